"""The export as a whole: interface, files, options, progress, and every way to fail before anything is visible."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tokenizers import Tokenizer

from gog_edge.bundle import Bundle
from gog_edge.errors import BundleError, CheckpointError, DialectError, ParityError, UsageError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.graph import weightfile
from gog_edge.export.options import ExportOptions, resolve
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.quantize.recipe import Recipe
from gog_edge.export.quantize.scheme import Scheme
from gog_edge.export.synthetic.checkpoint import make_checkpoint
from tests.export.graph_driver import Runner, conversation, session
from tests.versions import need_portable

FAMILIES = ("tiny-qwen3-vl", "tiny-qwen2.5-vl-tied")


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(request.param, tmp_path_factory.mktemp("c") / request.param, 5, "bfloat16")


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may change."""
    target = tmp_path / "copy"
    target.mkdir()
    for file in checkpoint.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def edit(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            data.pop(key, None)
        else:
            data[key] = value
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("backend", ["ort", "portable"])
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_the_manifest_is_the_graphs_interface(checkpoint: Path, precision: Any, backend: Any, tmp_path: Path) -> None:
    bundle = export_bundle(checkpoint, tmp_path / "b", ExportOptions(precision=precision, backend=backend))
    assert list(bundle.verify())
    for name in ("vision", "decoder"):
        spec = bundle.manifest.graphs[name]
        model = onnx.load(bundle.path(spec.file), load_external_data=False)
        assert {o.domain: o.version for o in model.opset_import} == spec.domains
        if backend == "portable":
            onnx.checker.check_model(str(bundle.path(spec.file)))  # nodes by their schema, external data in full
            assert spec.domains == {"": 24}
            assert {node.domain for node in model.graph.node} == {""}
            need_portable()
        located = {entry.value for t in model.graph.initializer for entry in t.external_data if entry.key == "location"}
        assert located == set(spec.data)
        live = session(bundle, name)
        for tensors, nodes in ((spec.inputs, live.get_inputs()), (spec.outputs, live.get_outputs())):
            assert [t.name for t in tensors] == [n.name for n in nodes]
            for tensor, node in zip(tensors, nodes):
                assert list(tensor.shape) == node.shape
                assert {"float": "float32", "float16": "float16"}.get(node.type[7:-1], node.type[7:-1]) == tensor.dtype


def test_weights_count_the_work_of_a_row(tmp_path: Path) -> None:
    root = make_checkpoint("tiny-qwen2.5-vl", tmp_path / "c", 5)
    source = Checkpoint.open(root)
    sizes = {n: int(np.prod(source.shape(n))) for n in source.names() if len(source.shape(n)) == 2}
    decoder = sum(s for n, s in sizes.items() if "layers." in n or n == "lm_head.weight")
    blocks = sum(s for n, s in sizes.items() if "visual.blocks." in n)
    merger = sum(s for n, s in sizes.items() if "visual.merger." in n)
    patch = int(np.prod(source.shape("model.visual.patch_embed.proj.weight"))) // 2
    for backend in ("ort", "portable"):
        graphs = export_bundle(root, tmp_path / "b", ExportOptions(backend=backend)).manifest.graphs  # type: ignore[arg-type]
        assert graphs["decoder"].weights == decoder
        assert abs(graphs["vision"].weights - (blocks + patch + merger / 4)) < 2


def test_weights_are_aligned_and_nothing_big_is_inline(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export_bundle(checkpoint, tmp_path / "b", ExportOptions(precision="int4"))
    for name in ("vision", "decoder"):
        model = onnx.load(bundle.path(f"{name}.onnx"), load_external_data=False)
        for tensor in model.graph.initializer:
            entries = {e.key: e.value for e in tensor.external_data}
            if entries:
                assert int(entries["offset"]) % weightfile.ALIGNMENT == 0
            else:
                assert np.prod(tensor.dims) <= 8


def test_a_tied_fp32_head_is_stored_once(tmp_path: Path) -> None:
    root = make_checkpoint("tiny-qwen2.5-vl-tied", tmp_path / "c", 5)
    bundle = export_bundle(root, tmp_path / "b", ExportOptions(precision="fp32"))
    assert "embedding.bin" in bundle.manifest.graphs["decoder"].data
    head = bundle.manifest.embedding.rows * bundle.manifest.embedding.columns * 4
    assert bundle.manifest.files["embedding.bin"].size == head


class Counting:
    """Progress that keeps the count of values per stage."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.done: dict[str, int] = {}

    def stage(self, name: str, total: int) -> None:
        self._current, self.totals[name], self.done[name] = name, total, 0

    def advance(self, amount: int) -> None:
        self.done[self._current] += amount


def test_progress_adds_up(checkpoint: Path, tmp_path: Path) -> None:
    for backend in ("ort", "portable"):
        counting = Counting()
        options = ExportOptions(precision="int4", backend=backend)  # type: ignore[arg-type]
        export_bundle(checkpoint, tmp_path / backend, options, progress=counting)
        assert list(counting.totals) == ["files", "embedding", "vision", "decoder", "commit"]
        assert counting.done == counting.totals


def test_provenance_and_small_files(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export_bundle(checkpoint, tmp_path / "b", ExportOptions(precision="int8", max_context=99, name="n"))
    manifest = bundle.manifest
    assert manifest.name == "n"
    assert manifest.decoder.max_context == 99
    assert manifest.provenance["peak_rss_bytes"] > 1 << 20
    assert manifest.provenance["checkpoint"] == checkpoint.name
    assert manifest.quantization["attention"]["bits"] == 8
    assert bundle.read_text("chat_template.jinja") == (checkpoint / "chat_template.jinja").read_text()
    assert str(checkpoint) not in (bundle.root / "manifest.json").read_text()  # no path of this machine


def test_the_same_export_twice_is_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    a, b = (export_bundle(checkpoint, tmp_path / name, ExportOptions(precision="int4")) for name in "ab")
    assert a.fingerprint == b.fingerprint


def test_embedding_is_within_half_a_step(checkpoint: Path, tmp_path: Path) -> None:
    from tests.export.graph_driver import embedding

    name = "model.language_model.embed_tokens.weight"
    want = Checkpoint.open(checkpoint).read(name)
    for precision, limit in (("fp32", 0.0), ("fp16", 2.0**-11), ("int8", 0.5 / 127 * 1.01)):
        bundle = export_bundle(checkpoint, tmp_path / precision, ExportOptions(precision=precision))  # type: ignore[arg-type]
        got = embedding(bundle)
        assert (np.abs(got - want).max(axis=1) <= limit * np.abs(want).max(axis=1) + 1e-12).all()


# -- failures -----------------------------------------------------------------------------------------------------


def test_a_killed_export_leaves_the_old_bundle(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    before = export_bundle(checkpoint, out, ExportOptions(precision="int4")).fingerprint
    script = textwrap.dedent(
        f"""
        import sys, time
        from gog_edge.export.pipeline import export_bundle
        from gog_edge.export.options import ExportOptions
        class Slow:
            def stage(self, name, total):
                print(name, flush=True)
                if name == "decoder": time.sleep(60)
            def advance(self, amount): pass
        export_bundle({str(checkpoint)!r}, {str(out)!r}, ExportOptions(precision="fp32"), progress=Slow())
        """
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    while child.stdout.readline().strip() not in ("decoder", ""):
        time.sleep(0.01)
    assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert Bundle.open(out).fingerprint == before
    assert len(list(tmp_path.iterdir())) == 2  # the old bundle and the leftovers of the killed export
    export_bundle(checkpoint, out, ExportOptions(precision="int4"))
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_full_disk_is_one_line(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    real = weightfile.WeightFile._put

    def put(self: weightfile.WeightFile, flat: np.ndarray) -> None:
        nonlocal written
        written += flat.size
        if written > 300_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, flat)

    monkeypatch.setattr(weightfile.WeightFile, "_put", put)
    with pytest.raises(BundleError, match="is full; nothing was changed") as error:
        export_bundle(checkpoint, tmp_path / "b")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_gate_fails_the_export(checkpoint: Path, tmp_path: Path) -> None:
    before = export_bundle(checkpoint, tmp_path / "b").fingerprint

    def gate(bundle: Bundle) -> dict[str, Any]:
        assert bundle.path("decoder.onnx").is_file()
        assert session(bundle, "vision").get_inputs()
        raise ParityError("logits differ")

    with pytest.raises(ParityError):
        export_bundle(checkpoint, tmp_path / "b", ExportOptions(precision="fp32"), gate=gate)
    assert Bundle.open(tmp_path / "b").fingerprint == before


def test_a_passed_gate_leaves_its_report(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export_bundle(checkpoint, tmp_path / "b", gate=lambda b: {"verdict": "PASS", "name": b.manifest.name})
    assert json.loads(bundle.read_text("verify.json")) == {"verdict": "PASS", "name": checkpoint.name}


def test_a_missing_tensor_is_named(copied: Path, tmp_path: Path) -> None:
    edit(copied / "config.json", **_nested(copied, num_hidden_layers=7))
    with pytest.raises(CheckpointError, match=r"has no tensor model\.language_model\.layers\.\d\."):
        export_bundle(copied, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_wrong_shape_is_named(copied: Path, tmp_path: Path) -> None:
    edit(copied / "config.json", **_nested(copied, intermediate_size=1000))
    with pytest.raises(CheckpointError, match="they do not belong together"):
        export_bundle(copied, tmp_path / "b")


def _nested(root: Path, **changes: Any) -> dict[str, Any]:
    """Changes of the text configuration, wherever it is."""
    config = json.loads((root / "config.json").read_text())
    return {"text_config": {**config["text_config"], **changes}} if "text_config" in config else changes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int2"}, "precision 'int2' is unknown"),
        ({"backend": "npu"}, "backend 'npu' is unknown"),
        ({"compute": "float16"}, "backend ort computes in float32, not float16"),
        ({"max_context": 0}, "max_context must be"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(ExportOptions(**options))


def test_options_follow_the_backend() -> None:
    rtx = resolve(ExportOptions(backend="tensorrt-rtx"))
    assert (rtx.compute, rtx.kv_dtype) == ("float16", "float16")
    assert resolve(ExportOptions(backend="tensorrt", precision="fp32")).compute == "float32"
    row = Scheme(8)
    cuda = resolve(ExportOptions(backend="cuda", recipe=Recipe("r", row, row, row, row, row, row, row)))
    assert cuda.recipe.attention.block == 128  # DynamicQuantizeMatMul has no CUDA kernel
    assert cuda.recipe.embedding == row


def test_context_beyond_the_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="max_context 99999999 is more"):
        export_bundle(checkpoint, tmp_path / "b", ExportOptions(max_context=99_999_999))


def test_int4_embeddings_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    row, four = Scheme(8), Scheme(4, 32)
    recipe = Recipe("r", four, row, row, row, row, row, row)
    with pytest.raises(UsageError, match="embedding is stored as"):
        export_bundle(checkpoint, tmp_path / "b", ExportOptions(recipe=recipe))


# -- tokenizer, preprocessing, dialect ------------------------------------------------------------------------------


def test_without_a_tokenizer(copied: Path, tmp_path: Path) -> None:
    (copied / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has neither tokenizer\.json nor vocab\.json"):
        export_bundle(copied, tmp_path / "b")
    bundle = export_bundle(copied, tmp_path / "b", ExportOptions(allow_missing_tokenizer=True))
    assert not bundle.has("tokenizer.json")


def test_tokenizer_from_vocabulary_and_merges(copied: Path, tmp_path: Path) -> None:
    path = copied / "tokenizer.json"
    whole = Tokenizer.from_file(str(path))
    data = json.loads(path.read_text())
    (copied / "vocab.json").write_text(json.dumps(data["model"]["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    (copied / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    decoder = {str(t["id"]): {"content": t["content"], "special": t["special"]} for t in data["added_tokens"]}
    edit(copied / "tokenizer_config.json", added_tokens_decoder=decoder)
    path.unlink()
    bundle = export_bundle(copied, tmp_path / "b")
    made = Tokenizer.from_file(str(bundle.path("tokenizer.json")))
    for text in ("Where is 1234 <|im_start|>user\n\n  é😀 it's?", "  \t\n a", "<|vision_start|><|image_pad|>x"):
        assert made.encode(text).ids == whole.encode(text).ids
        assert made.decode(made.encode(text).ids, skip_special_tokens=False) == whole.decode(
            whole.encode(text).ids, skip_special_tokens=False
        )


def test_tokenizer_ids_must_agree_with_the_config(copied: Path, tmp_path: Path) -> None:
    edit(copied / "config.json", image_token_id=3)
    with pytest.raises(CheckpointError, match=r"image_token_id is 3, tokenizer\.json says"):
        export_bundle(copied, tmp_path / "b")


def test_ids_may_come_from_the_tokenizer_alone(copied: Path, tmp_path: Path) -> None:
    want = export_bundle(copied, tmp_path / "a").manifest.tokens
    names = ("image_token_id", "vision_start_token_id", "vision_end_token_id", "eos_token_id")
    edit(copied / "config.json", **dict.fromkeys(names))
    (copied / "generation_config.json").unlink()
    got = export_bundle(copied, tmp_path / "b").manifest.tokens
    assert (got.image_pad, got.vision_start, got.vision_end) == (want.image_pad, want.vision_start, want.vision_end)
    assert set(got.eos) <= set(want.eos)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 15}, r"preprocessor_config\.json: patch_size = 15 contradicts"),
        ({"image_mean": [0.5]}, "image_mean must be three numbers"),
        ({"min_pixels": -3}, "min_pixels must be at least 1"),
    ],
)
def test_preprocessing_must_fit(copied: Path, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    edit(copied / "preprocessor_config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        export_bundle(copied, tmp_path / "b")


def test_preprocessing_in_all_spellings(copied: Path, tmp_path: Path) -> None:
    path = copied / "preprocessor_config.json"
    old = {"min_pixels": 4000, "max_pixels": 90_000, "size": None}
    new = {"min_pixels": None, "max_pixels": None, "size": {"shortest_edge": 4000, "longest_edge": 90_000}}
    found = []
    for i, changes in enumerate((old, new)):
        edit(path, **changes)
        found.append(export_bundle(copied, tmp_path / f"{i}").manifest.preprocessing)
    (copied / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(path.read_text())}))
    path.unlink()
    found.append(export_bundle(copied, tmp_path / "2").manifest.preprocessing)
    assert found[0] == found[1] == found[2]
    assert (found[0].min_pixels, found[0].max_pixels) == (4000, 90_000)
    capped = export_bundle(copied, tmp_path / "3", ExportOptions(max_pixels=50_000)).manifest.preprocessing
    assert capped.max_pixels == 50_000
    with pytest.raises(UsageError, match="max_pixels = 10 is less"):
        export_bundle(copied, tmp_path / "4", ExportOptions(max_pixels=10))


def test_a_dialect_file_travels_with_the_bundle(checkpoint: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    text = 'extends = "gog"\nschema = 1\nname = "mine"\n'
    mine.write_text(text)
    bundle = export_bundle(checkpoint, tmp_path / "b", ExportOptions(dialect=str(mine)))
    assert bundle.manifest.dialect == "dialect.toml"
    assert bundle.read_text("dialect.toml") == text
    with pytest.raises(UsageError, match="does not exist"):
        export_bundle(checkpoint, tmp_path / "c", ExportOptions(dialect=str(tmp_path / "none.toml")))


def test_a_wrong_dialect_is_met_at_export(checkpoint: Path, tmp_path: Path) -> None:
    mine, other = tmp_path / "mine.toml", tmp_path / "other.toml"
    mine.write_text('base = "gog"\n')
    other.write_text('extends = "third.toml"\nschema = 1\nname = "other"\n')
    (tmp_path / "third.toml").write_text('extends = "gog"\nschema = 1\nname = "third"\n')
    for dialect, line in (("gogg", "gogg"), (str(mine), "mine.toml"), (str(other), "needs files beside it")):
        with pytest.raises((DialectError, UsageError), match=line):
            export_bundle(checkpoint, tmp_path / "c", ExportOptions(dialect=dialect))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("backend", ["ort", "native"])
def test_layers_may_keep_eight_bits(checkpoint: Path, backend: Any, tmp_path: Path) -> None:
    bundle = export_bundle(checkpoint, tmp_path / "b", ExportOptions(backend=backend, int8=("attention",)))
    stored = bundle.manifest.quantization
    assert (stored["attention"]["bits"], stored["mlp"]["bits"], stored["down_proj"]["bits"]) == (8, 4, 4)
    assert stored["name"] == "int4-attention8"
    nodes = onnx.load(bundle.path("decoder.onnx"), load_external_data=False).graph.node
    bits = [a.i for n in nodes for a in n.attribute if n.op_type == "MatMulNBits" and a.name == "bits"]
    wide = bits.count(8) if backend == "ort" else [n.op_type for n in nodes].count("LinearW8")
    assert wide == 2 * bundle.manifest.decoder.layers + 1  # q, k, v in one matrix; o; the head


def test_recipes_are_fitted_to_the_operators() -> None:
    eight, four = Scheme(8, 32), Scheme(4, 48, symmetric=False)
    recipe = Recipe("r", Scheme(8), eight, eight, four, four, Scheme(16), Scheme(8))
    ort = resolve(ExportOptions(recipe=recipe)).recipe
    assert (ort.head.block, ort.mlp.block, ort.merger.block) == (128, 32, 0)
    assert not ort.mlp.symmetric
    native = resolve(ExportOptions(recipe=recipe, backend="native")).recipe
    assert (native.head.block, native.head.even, native.mlp.block, native.mlp.scale_dtype) == (32, True, 48, "float16")
    turned = {
        backend: resolve(ExportOptions(backend=backend)).recipe.mlp.rotation
        for backend in ("native", "ort", "portable")
    }
    assert turned == {"native": 64, "ort": 0, "portable": 0}  # stock operators round the activations themselves
    portable = resolve(ExportOptions(recipe=recipe, backend="portable")).recipe
    assert portable.mlp.symmetric
    assert portable.mlp.positive
    assert portable.head.block == 0
    cuda = resolve(ExportOptions(recipe=recipe, backend="cuda")).recipe
    assert (cuda.merger.block, cuda.mlp.scale_dtype) == (128, "float16")
    for fitted in (ort, native, portable, cuda):
        assert fitted.vision == Scheme(16)
        assert fitted.embedding == Scheme(8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "native", "kv_dtype": "float32"}, "keeps the KV cache in float16 or int8"),
        ({"kv_dtype": "int8"}, "keeps the KV cache in float32 or float16"),
        ({"vision_attention": "int8"}, "backend ort attends in float32"),
        ({"backend": "cuda", "exact_int4": True}, "cuda never widens blocks"),
        ({"precision": "int8", "int8": ("attention",)}, "this one is int8"),
    ],
)
def test_operators_and_their_limits(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(ExportOptions(**options))


def test_an_odd_head_needs_portable_graphs(tmp_path: Path) -> None:
    overrides = {"text_config": {"head_dim": 12, "rope_scaling": {"mrope_section": [2, 2, 2]}}}
    root = make_checkpoint("tiny-qwen3-vl", tmp_path / "c", 5, overrides=overrides)
    with pytest.raises(CheckpointError, match="head_dim = 12 is not a multiple of 8"):
        export_bundle(root, tmp_path / "b")
    assert export_bundle(root, tmp_path / "b", ExportOptions(backend="portable")).manifest.decoder.head_dim == 12


def test_weights_may_come_through_a_view(checkpoint: Path, tmp_path: Path) -> None:
    """Scaling a norm up and the matrices behind it down changes bytes, not the model: the way of AWQ."""
    from studies.awq import ScaledCheckpoint, Scaling

    opened = Checkpoint.open(checkpoint)
    layer = "model.language_model.layers.0."
    factors = np.linspace(0.5, 2, opened.shape(f"{layer}input_layernorm.weight")[0]).astype(np.float32)
    columns = {f"{layer}self_attn.{p}_proj.weight": factors for p in "qkv"}
    scaling = Scaling(columns, {f"{layer}input_layernorm.weight": 1 / factors})
    options = ExportOptions(precision="fp32")
    plain = export_bundle(opened, tmp_path / "a", options)
    scaled = export_bundle(opened, tmp_path / "b", options, weights=ScaledCheckpoint(opened, scaling))
    assert plain.fingerprint != scaled.fingerprint
    talk = conversation(plain, [])
    first, second = (Runner(b) for b in (plain, scaled))
    inputs = first.inputs(talk)[:3]
    np.testing.assert_allclose(first.step(*inputs), second.step(*inputs), atol=1e-4)
