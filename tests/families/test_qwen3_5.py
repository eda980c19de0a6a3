"""Qwen3.5's config, rotary arithmetic and weights, without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gog_edge import families
from gog_edge.bench.machine.roofline import decoder_attention_flops, kv_bytes_read
from gog_edge.errors import CheckpointError, UsageError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.graph.matrix import Stacked
from gog_edge.export.options import BACKENDS, ExportOptions
from gog_edge.export.pipeline import export_bundle, set_aside
from gog_edge.export.synthetic.checkpoint import make_checkpoint
from gog_edge.export.synthetic.configs import model_config
from gog_edge.export.tensorrt.add import add_engines
from gog_edge.export.tensorrt.build import BuildOptions
from gog_edge.families.qwen3_5 import caches, head_order, parse, rotary
from gog_edge.families.target import AttentionCache, RecurrentCache
from gog_edge.families.weights import decoder_inputs, shapes, tensor_classes
from gog_edge.manifest import DecoderSpec
from gog_edge.shapes import SHAPES

HYBRIDS = [name for name, shape in SHAPES.items() if shape.linear is not None]


def config(**text: Any) -> dict[str, Any]:
    made = model_config("qwen3.5-4b")
    made["text_config"] = {**made["text_config"], **text}
    return made


def decoder(**text: Any) -> DecoderSpec:
    return parse(config(**text)).decoder.spec


def test_layers_given_or_derived() -> None:
    usual = tuple(range(3, 32, 4))
    assert decoder().linear.full_layers == usual  # type: ignore[union-attr]
    assert decoder(layer_types=None).linear.full_layers == usual  # type: ignore[union-attr]
    assert decoder(layer_types=None, full_attention_interval=None).linear.full_layers == usual  # type: ignore[union-attr]
    assert decoder(layer_types=None, full_attention_interval=8).linear.full_layers == (7, 15, 23, 31)  # type: ignore[union-attr]
    kinds = caches(decoder())
    assert [isinstance(kind, AttentionCache) for kind in kinds] == [i in usual for i in range(32)]


@pytest.mark.parametrize("name", HYBRIDS)
def test_what_is_kept_is_what_the_table_says(name: str) -> None:
    shape, config = SHAPES[name], model_config(name)
    kinds = caches(families.find(config).parse(config).decoder.spec)
    assert 4 * sum(kind.fixed_values for kind in kinds) == shape.state_bytes
    per_token = 2 * shape.attention_layers * shape.kv_heads * shape.head_dim
    assert sum(kind.values_per_token for kind in kinds) == per_token


def test_published_figures_of_the_caches() -> None:
    # 12 KB a token in float16 and 18 MiB of states (0.8B), 32 KB and 48 MiB (4B), beside the convolutions' inputs
    assert [2 * 2 * SHAPES[n].attention_layers * SHAPES[n].kv_heads * 256 for n in HYBRIDS[:3:2]] == [12288, 32768]
    kinds = caches(decoder())
    states = [k.heads * k.key_dim * k.value_dim for k in kinds if isinstance(k, RecurrentCache)]
    assert 4 * sum(states) == 48 << 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"layer_types": ["full_attention"]}, "layer_types must say"),
        ({"layer_types": ["sliding_attention"] * 32}, "layer_types must say"),
        ({"layer_types": ["linear_attention"] * 32}, "leaves no layer with full_attention"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"linear_num_value_heads": 24}, "not a multiple of 16 key heads"),
        ({"linear_conv_kernel_dim": 1}, "must be at least 2"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_parameters": {"partial_rotary_factor": 1.5}}, "turns 384 of 256"),
        ({"rope_parameters": {"partial_rotary_factor": 0.02}}, "turns 5 of 256"),
        ({"rope_parameters": {"mrope_section": [11, 11]}}, "must be three numbers"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
    ],
)
def test_what_is_refused(text: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse(config(**text))


def test_a_flat_config_is_refused() -> None:
    flat = config()
    with pytest.raises(CheckpointError, match="text_config is missing"):
        parse({**flat, "text_config": None})
    with pytest.raises(CheckpointError, match="qwen3_5_text' \\(a language model\\)"):
        families.find({"model_type": "qwen3_5_text"})


def test_rotary_axes_of_the_published_sizes() -> None:
    spec = decoder()
    frequencies, axes = rotary(spec)
    assert len(frequencies) == len(axes) == 128
    assert np.count_nonzero(frequencies) == 32 and frequencies[0] == 1 and (frequencies[32:] == 0).all()
    assert np.flatnonzero(axes == 1).tolist() == list(range(1, 33, 3))  # the row
    assert np.flatnonzero(axes == 2).tolist() == list(range(2, 30, 3))  # the column
    assert frequencies[31] == np.float32(1) / np.float32(1e7) ** np.float32(62 / 64)


@pytest.mark.parametrize(("size", "part"), [(256, 0.25), (32, 0.5), (24, 1.0), (20, 0.3)])
def test_what_turns_together_lies_half_a_head_apart(size: int, part: float) -> None:
    spec = decoder(head_dim=size, rope_parameters={"partial_rotary_factor": part})
    order = head_order(spec)
    assert sorted(order) == list(range(size))
    turned = spec.rotary // 2
    for i in range(size // 2):
        pair = order[i], order[i + size // 2]
        assert pair == (i, i + turned) if i < turned else min(pair) >= spec.rotary


def test_rows_in_another_order() -> None:
    class Source:
        def names(self) -> set[str]:
            return {"a", "b"}

        def shape(self, name: str) -> tuple[int, ...]:
            return (6, 2)

        def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
            return np.arange(start, stop, dtype=np.float32)[:, None] + [0, 100 if name == "a" else 200]

    order = (7, 8, 0, 1, 2, 11, 3)
    source: Any = Source()
    stacked = Stacked(source, ("a", "b"), (6, 6), 2, order)
    whole = Stacked(source, ("a", "b"), (6, 6), 2).read(0, 12)
    for start, stop in ((0, 7), (1, 4), (5, 6)):
        assert np.array_equal(stacked.read(start, stop), whole[list(order[start:stop])])


def test_weights_and_roles() -> None:
    made = model_config("tiny-qwen3.5")
    found = shapes(families.find(made), parse(made))
    prefix = "model.language_model.layers"
    assert found[f"{prefix}.0.linear_attn.conv1d.weight"] == (2 * 2 * 20 + 6 * 12, 1, 3)
    assert found[f"{prefix}.0.linear_attn.A_log"] == found[f"{prefix}.2.linear_attn.dt_bias"] == (6,)
    assert found[f"{prefix}.1.self_attn.q_proj.weight"] == (2 * 4 * 32, 56)
    assert found[f"{prefix}.1.self_attn.q_norm.weight"] == (32,)
    assert f"{prefix}.1.linear_attn.A_log" not in found and not any(name.startswith("mtp") for name in found)
    roles = tensor_classes(made)
    assert roles[f"{prefix}.0.linear_attn.in_proj_qkv.weight"] == roles[f"{prefix}.1.self_attn.q_proj.weight"]
    assert roles[f"{prefix}.0.linear_attn.out_proj.weight"] == roles[f"{prefix}.1.self_attn.o_proj.weight"]
    assert f"{prefix}.0.linear_attn.in_proj_a.weight" not in roles  # always float
    assert not any("in_proj_b" in name for names in decoder_inputs(made) for name in names)


def test_what_predicts_several_tokens_is_set_aside_and_said(tmp_path: Path) -> None:
    root = make_checkpoint("tiny-qwen3.5", tmp_path / "c")
    said = set_aside(Checkpoint.open(root))
    assert said is not None and said.startswith("15 tensors of a head that predicts several tokens (MTP)")
    assert export_bundle(root, tmp_path / "b").manifest.provenance["set_aside"] == said
    without = make_checkpoint("tiny-qwen3.5", tmp_path / "d", overrides={"text_config": {"mtp_num_hidden_layers": 0}})
    assert set_aside(Checkpoint.open(without)) is None


@pytest.mark.parametrize("backend", [name for name, rules in BACKENDS.items() if not rules.recurrent])
def test_backends_without_linear_attention_say_so(backend: Any, tmp_path: Path) -> None:
    root = make_checkpoint("tiny-qwen3.5", tmp_path / "c")
    with pytest.raises(UsageError, match=f"which backend {backend} does not build: use one of native"):
        export_bundle(root, tmp_path / "b", ExportOptions(precision="fp16", backend=backend))
    assert not (tmp_path / "b").exists()


def test_no_engine_is_built_of_a_portable_bundle(tmp_path: Path) -> None:
    root = make_checkpoint("tiny-qwen3.5", tmp_path / "c")
    bundle = export_bundle(root, tmp_path / "b", ExportOptions(precision="fp32", backend="portable"))
    with pytest.raises(UsageError, match="no TensorRT engine is built of yet"):
        add_engines(bundle, tmp_path / "b", "tensorrt-rtx", BuildOptions())


def test_what_a_step_reads_and_attends_to(tmp_path: Path) -> None:
    """For rooflines: states are read and written whole, keys and values of the layers that attend read."""
    bundle = export_bundle(make_checkpoint("tiny-qwen3.5", tmp_path / "c"), tmp_path / "b", ExportOptions("fp32"))
    states = 3 * (2 * (2 * 2 * 20 + 6 * 12) + 6 * 20 * 12)
    assert kv_bytes_read(bundle.manifest, 100) == 4 * (2 * 2 * 2 * 32 * 100 + 2 * states)
    assert decoder_attention_flops(bundle.manifest.decoder, 1, 100) == 4 * 2 * 4 * 32 * 99.5
