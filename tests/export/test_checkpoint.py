"""Reading checkpoints: layouts, names, types, and everything that can be wrong with the files."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gog_edge.errors import CheckpointError
from gog_edge.export.checkpoint.names import canonical_name
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.checkpoint.shards import narrow_bf16, widen
from gog_edge.families import find
from tests.export.weights_helpers import pack, pack_awq, write_checkpoint, write_sharded

RNG = np.random.default_rng(3)
Q = "model.language_model.layers.0.self_attn.q_proj"


def _weights() -> dict[str, np.ndarray]:
    return {
        "model.language_model.embed_tokens.weight": RNG.standard_normal((11, 6)).astype(np.float32),
        f"{Q}.weight": RNG.standard_normal((7, 5)).astype(ml_dtypes.bfloat16),
        "model.visual.pos_embed.weight": RNG.standard_normal((4, 3)).astype(np.float16),
        "lm_head.weight": RNG.standard_normal((11, 6)),
    }


@pytest.mark.parametrize("shards", [0, 1, 3])
def test_reads_every_float_type_from_any_layout(tmp_path: Path, shards: int) -> None:
    weights = _weights()
    root = write_sharded(tmp_path / "c", weights, shards) if shards else write_checkpoint(tmp_path / "c", weights)
    checkpoint = Checkpoint.open(root)
    assert checkpoint.names() == set(weights)
    for name, expected in weights.items():
        got = checkpoint.read(name)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected.astype(np.float32))
        np.testing.assert_array_equal(checkpoint.read_rows(name, 1, 3), got[1:3])
        assert checkpoint.read(name, np.float16).dtype == np.float16


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("visual.blocks.0.attn.qkv.weight", "model.visual.blocks.0.attn.qkv.weight"),
        ("model.visual.merger.mlp.0.bias", "model.visual.merger.mlp.0.bias"),
        ("model.layers.3.mlp.up_proj.weight", "model.language_model.layers.3.mlp.up_proj.weight"),
        ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
        ("model.norm.weight", "model.language_model.norm.weight"),
        ("language_model.model.norm.weight", "model.language_model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.language_model.layers.0.input_layernorm.weight", None),
        ("lm_head.weight", None),
        ("_orig_mod.module.model.visual.pos_embed.weight", "model.visual.pos_embed.weight"),
        ("something.else", None),
    ],
)
def test_names_of_both_generations(stored: str, name: str | None) -> None:
    assert canonical_name(stored) == (name or stored)
    assert canonical_name(canonical_name(stored)) == canonical_name(stored)


def test_same_weight_under_two_names_is_refused(tmp_path: Path) -> None:
    one = np.ones((1, 1), np.float32)
    root = write_checkpoint(tmp_path / "c", {"model.norm.weight": one, "model.language_model.norm.weight": one})
    with pytest.raises(CheckpointError, match="twice"):
        Checkpoint.open(root)


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_bfloat16_rounds_like_ml_dtypes(values: list[float]) -> None:
    x = np.array(values, np.float32)
    expected = x.astype(ml_dtypes.bfloat16)
    got = widen(narrow_bf16(x), "BF16")
    np.testing.assert_array_equal(got, expected.astype(np.float32))


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "c", _weights()))
    with pytest.raises(CheckpointError, match="no tensor nowhere"):
        checkpoint.read("nowhere")
    with pytest.raises(CheckpointError, match="rows 5:99"):
        checkpoint.read_rows("lm_head.weight", 5, 99)
    assert "lm_head.weight" in checkpoint
    assert "nowhere" not in checkpoint


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_damaged_values_are_refused(tmp_path: Path, bad: float) -> None:
    weight = np.ones((3, 4), np.float32)
    weight[1, 2] = bad
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "c", {"lm_head.weight": weight}))
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        checkpoint.read("lm_head.weight")
    np.testing.assert_array_equal(checkpoint.read_rows("lm_head.weight", 2, 3), weight[2:])


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "c", {"lm_head.weight": np.full((1, 1), 1e6, np.float32)}))
    with pytest.raises(CheckpointError, match="beyond the range"):
        checkpoint.read("lm_head.weight", np.float16)


# What can be wrong with the files. Each case damages a good folder and names a part of the line it must end in.


def _truncate(root: Path) -> None:
    path = root / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def _drop_shard(root: Path) -> None:
    (root / "model-00002-of-00003.safetensors").unlink()


def _drop_index(root: Path) -> None:
    (root / "model.safetensors.index.json").unlink()


def _wrong_index(root: Path) -> None:
    path = root / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.extra.weight"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))


def _broken_index(root: Path) -> None:
    (root / "model.safetensors.index.json").write_text('{"weight_map": ')


def _escaping_index(root: Path) -> None:
    path = root / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"lm_head.weight": "../model.safetensors"}}))


def _foreign_shard(root: Path) -> None:
    (root / "model-00002-of-00003.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def _bad_header(root: Path) -> None:
    (root / "model-00002-of-00003.safetensors").write_bytes((20).to_bytes(8, "little") + b"{" * 20)


def _bad_shape(root: Path) -> None:
    header = json.dumps({"lm_head.weight": {"dtype": "F32", "shape": [3, 3], "data_offsets": [0, 8]}}).encode()
    path = root / "model-00002-of-00003.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)


def _bad_entry(root: Path) -> None:
    header = json.dumps({"lm_head.weight": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}).encode()
    path = root / "model-00002-of-00003.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def _no_config(root: Path) -> None:
    (root / "config.json").unlink()


def _bad_config(root: Path) -> None:
    (root / "config.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (_truncate, "truncated"),
        (_drop_shard, "lacks model-00002-of-00003"),
        (_drop_index, "3 safetensors files but no"),
        (_wrong_index, "does not hold it"),
        (_broken_index, "can't be read as a safetensors index"),
        (_escaping_index, "outside of the checkpoint"),
        (_foreign_shard, "not a safetensors file"),
        (_bad_header, "header is not JSON"),
        (_bad_shape, "its shape needs 36"),
        (_bad_entry, "malformed"),
        (_no_config, "no config.json"),
        (_bad_config, "not a JSON object"),
    ],
)
def test_damage_ends_in_one_clear_line(tmp_path: Path, damage, line: str) -> None:  # type: ignore[no-untyped-def]
    root = write_sharded(tmp_path / "c", _weights(), 3)
    damage(root)
    with pytest.raises(CheckpointError, match=line) as caught:
        Checkpoint.open(root)
    assert "\n" not in str(caught.value)


def test_file_that_shrinks_after_opening_is_noticed(tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path / "c", _weights())
    checkpoint = Checkpoint.open(root)
    path = root / "model.safetensors"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CheckpointError, match="truncated while reading"):
        for name in checkpoint.names():
            checkpoint.read(name)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(CheckpointError, match="torch pickle"):
        Checkpoint.open(tmp_path)


def test_other_folders_are_told_apart(tmp_path: Path) -> None:
    for file, line in (("adapter_config.json", "LoRA adapter"), ("manifest.json", "gog-edge bundle")):
        root = tmp_path / file
        root.mkdir()
        (root / file).write_text("{}")
        with pytest.raises(CheckpointError, match=line):
            Checkpoint.open(root)
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoint.open(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="is a file"):
        Checkpoint.open(str(tmp_path / "manifest.json" / "manifest.json"))


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({"model_type": "qwen3_vl"}, False),
        ({"tie_word_embeddings": True, "model_type": "qwen3_vl"}, True),
        ({"text_config": {"tie_word_embeddings": True}, "model_type": "qwen2_5_vl"}, True),
        ({"text_config": {"tie_word_embeddings": True}, "model_type": "qwen3_vl"}, False),
        ({"tie_word_embeddings": False, "text_config": {}, "model_type": "qwen2_5_vl"}, False),
    ],
)
def test_tied_embeddings(config: dict, tied: bool) -> None:  # type: ignore[type-arg]
    assert find(config).tied(config) is tied


def test_files_beside_the_weights(tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path / "c", _weights())
    (root / "chat_template.jinja").write_text("jinja")
    checkpoint = Checkpoint.open(root)
    assert checkpoint.file("chat_template.jinja") == root / "chat_template.jinja"
    assert checkpoint.file("tokenizer.json") is None
    assert checkpoint.json("tokenizer_config.json") == {}


# The hub: a fake client module, so nothing here touches a network.


class _Gone(Exception):
    pass


def _fake_hub(monkeypatch: pytest.MonkeyPatch, answer: object) -> list[tuple[str, object]]:
    calls: list[tuple[str, object]] = []

    def snapshot_download(repo_id: str, revision: str | None = None, allow_patterns: object = None) -> str:
        assert "*.bin" not in list(allow_patterns)  # type: ignore[call-overload]
        calls.append((repo_id, revision))
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return calls


def test_hub_id_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _fake_hub(monkeypatch, write_checkpoint(tmp_path / "c", _weights()))
    checkpoint = Checkpoint.open("owner/name", revision="v1")
    assert calls == [("owner/name", "v1")]
    assert checkpoint.origin == "owner/name"
    with pytest.raises(CheckpointError, match="revision only makes sense"):
        Checkpoint.open(tmp_path / "c", revision="v1")


def test_a_repository_of_gguf_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_hub(monkeypatch, tmp_path)
    with pytest.raises(CheckpointError, match="GGUF"):
        Checkpoint.open("owner/name-GGUF")


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("GatedRepoError", "consent"),
        ("RepositoryNotFoundError", "no such repository"),
        ("RevisionNotFoundError", "no revision"),
        ("LocalEntryNotFoundError", "go online or give a folder"),
        ("SomethingElse", "SomethingElse: first line"),
    ],
)
def test_hub_failures_are_one_line(monkeypatch: pytest.MonkeyPatch, kind: str, line: str) -> None:
    _fake_hub(monkeypatch, type(kind, (_Gone,), {})("first line\nsecond"))
    with pytest.raises(CheckpointError, match=line) as caught:
        Checkpoint.open("owner/name", revision="v1")
    assert "\n" not in str(caught.value)


def test_hub_client_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'gog-edge\[export\]'"):
        Checkpoint.open("owner/name")


# Pre-quantised checkpoints. References are computed here from the integers, independently of the reader.


def _ints(groups: int, inputs: int, outputs: int, bits: int, low: int = 0):  # type: ignore[no-untyped-def]
    q = RNG.integers(0, 2**bits, (inputs, outputs))
    zeros = RNG.integers(low, 2**bits, (groups, outputs))
    scales = (RNG.random((groups, outputs)) * 0.1 + 0.01).astype(np.float16)
    return q, zeros, scales


def _expected(q: np.ndarray, zeros: np.ndarray, scales: np.ndarray, group_of: np.ndarray) -> np.ndarray:
    values = (q - zeros[group_of]) * scales[group_of].astype(np.float32)
    return values.T.astype(np.float32)


def _open_packed(root: Path, parts: dict[str, np.ndarray], quantization: dict) -> Checkpoint:  # type: ignore[type-arg]
    tensors = {f"model.layers.0.self_attn.q_proj.{k}": v for k, v in parts.items()}
    tensors["visual.pos_embed.weight"] = np.ones((2, 2), np.float16)
    return Checkpoint.open(write_checkpoint(root, tensors, {"quantization_config": quantization}))


@pytest.mark.parametrize("group", [16, 64])
def test_awq_is_dequantised(tmp_path: Path, group: int) -> None:
    inputs, outputs = 64, 24
    q, zeros, scales = _ints(inputs // group, inputs, outputs, 4)
    qweight, qzeros = pack_awq(q, zeros)
    checkpoint = _open_packed(
        tmp_path / "c",
        {"qweight": qweight, "qzeros": qzeros, "scales": scales},
        {"quant_method": "awq", "bits": 4, "group_size": group, "version": "GEMM", "zero_point": True},
    )
    assert checkpoint.names() == {f"{Q}.weight", "model.visual.pos_embed.weight"}
    assert checkpoint.shape(f"{Q}.weight") == (outputs, inputs)
    assert checkpoint.quantization == "awq"
    expected = _expected(q, zeros, scales, np.arange(inputs) // group)
    np.testing.assert_array_equal(checkpoint.read(f"{Q}.weight"), expected)
    np.testing.assert_array_equal(checkpoint.read_rows(f"{Q}.weight", 3, 21), expected[3:21])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_is_dequantised(tmp_path: Path, bits: int, layout: str, act_order: bool) -> None:
    inputs, outputs, group = 64, 48, 16
    q, zeros, scales = _ints(inputs // group, inputs, outputs, bits)
    group_of = np.arange(inputs) // group
    if act_order:
        group_of = RNG.permutation(group_of)
    stored_zeros = (zeros - 1) % 2**bits if layout == "gptq" else zeros
    checkpoint = _open_packed(
        tmp_path / "c",
        {
            "qweight": np.ascontiguousarray(pack(q.T, bits).T),
            "qzeros": pack(stored_zeros, bits),
            "scales": scales,
            "g_idx": group_of.astype(np.int32),
        },
        {"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": layout},
    )
    expected = _expected(q, zeros, scales, group_of)
    np.testing.assert_array_equal(checkpoint.read(f"{Q}.weight"), expected)
    np.testing.assert_array_equal(checkpoint.read_rows(f"{Q}.weight", 5, 37), expected[5:37])


@pytest.mark.parametrize(
    ("quantization", "line"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "fp8"}, "quantised with fp8"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "awq", "version": "gemv"}, "AWQ gemv"),
        ({"quant_method": "gptq", "bits": 3}, "3 bits"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "marlin"),
        ({}, "unknown"),
        ("awq", "not an object"),
        ({"quant_method": "awq"}, "no tensor is packed"),
    ],
)
def test_other_quantisations_are_refused(tmp_path: Path, quantization: object, line: str) -> None:
    root = write_checkpoint(tmp_path / "c", _weights(), {"quantization_config": quantization})
    with pytest.raises(CheckpointError, match=line):
        Checkpoint.open(root)


def test_packed_layer_with_a_missing_or_wrong_part_is_refused(tmp_path: Path) -> None:
    q, zeros, scales = _ints(2, 32, 16, 4)
    qweight, qzeros = pack_awq(q, zeros)
    quantization = {"quant_method": "awq", "bits": 4}
    with pytest.raises(CheckpointError, match="without"):
        _open_packed(tmp_path / "a", {"qweight": qweight, "scales": scales}, quantization)
    with pytest.raises(CheckpointError, match="do not fit together"):
        _open_packed(tmp_path / "b", {"qweight": qweight, "qzeros": qzeros[:1], "scales": scales}, quantization)
    with pytest.raises(CheckpointError, match="both packed and as floats"):
        parts = {"qweight": qweight, "qzeros": qzeros, "scales": scales, "weight": np.ones((16, 32), np.float32)}
        _open_packed(tmp_path / "d", parts, quantization)


def test_fp8_tensor_is_refused_by_name(tmp_path: Path) -> None:
    header = json.dumps({"lm_head.weight": {"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    checkpoint = Checkpoint.open(tmp_path)
    with pytest.raises(CheckpointError, match="F8_E4M3"):
        checkpoint.read("lm_head.weight")
