"""Calibration by the built-in text: what the decoder sees of it, and what an export makes of that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gog_edge.bundle import Bundle
from gog_edge.errors import CheckpointError
from gog_edge.export.calibration import builtin
from gog_edge.export.calibration.builtin import BuiltIn, read_builtin
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.options import ExportOptions
from gog_edge.export.parity.gate import fake_quantisation
from gog_edge.export.pipeline import check_checkpoint, export_bundle
from gog_edge.export.quantize import calibration
from gog_edge.export.quantize.calibration import LayerStats, gram
from gog_edge.export.quantize.recipe import Recipe
from gog_edge.export.quantize.scheme import Scheme, dequantize
from gog_edge.export.quantize.weights import quantize
from gog_edge.export.synthetic.checkpoint import make_checkpoint
from gog_edge.families.weights import _Watching, decoder_inputs
from gog_edge.native.rotation import rotate
from tests.native.graphs import needs_ops

IDS = [5 + i * 37 % 120 for i in range(61)]


class _Noting(_Watching):
    """Notes the statistics that are known when a matrix is built."""

    def __init__(self, known: BuiltIn) -> None:
        super().__init__()
        self.known, self.stats = known, dict[str, LayerStats]()

    def linear(self, x: Any, weight: Any, biases: Any, *, role: Any) -> Any:
        for name in weight.shapes:
            if (found := self.known(name)) is not None:  # a router stays float
                self.stats[name] = found
        return super().linear(x, weight, biases, role=role)


def _stats(checkpoint: Checkpoint, ids: list[int]) -> dict[str, LayerStats]:
    family, config = checkpoint.family, check_checkpoint(checkpoint)
    known = BuiltIn(checkpoint, family, config, ids)
    target: Any = _Noting(known)
    known.beside(lambda t: family.build_decoder(t, config.decoder, family.caches(config.decoder.spec)))(target)
    return target.stats  # type: ignore[no-any-return]


@pytest.mark.parity
@pytest.mark.parametrize("name", ["tiny-qwen3-vl", "tiny-qwen2.5-vl", "tiny-qwen3.5", "tiny-qwen3-vl-moe"])
def test_every_layer_sees_what_it_sees_in_transformers(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from gog_edge.export.parity.reference import Reference

    checkpoint = Checkpoint.open(make_checkpoint(name, tmp_path / "ck", 3, "float32"))
    ours = _stats(checkpoint, IDS)
    reference, seen = Reference(checkpoint), dict[str, Any]()
    for names in decoder_inputs(checkpoint.config):
        module = reference.model.get_submodule(names[0].removesuffix(".weight"))
        module.register_forward_pre_hook(
            lambda _, x, key=names[0]: seen.__setitem__(key, x[0].detach().float().numpy())
        )
    reference.logits(np.array(IDS), ())
    assert len(seen) > 6
    assert set(ours) >= set(seen)
    for key, x in seen.items():
        rows = x.reshape(-1, x.shape[-1])
        assert len(rows) == len(IDS)
        expected = rows.T @ rows / len(rows)
        assert np.abs(ours[key].hessian - expected).max() < 2e-4 * np.abs(expected).max(), key


def test_long_texts_are_cut_into_sequences_that_do_not_see_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open(make_checkpoint("tiny-qwen2.5-vl", tmp_path / "ck", 3, "float32"))
    first, second = _stats(checkpoint, IDS[:20]), _stats(checkpoint, IDS[20:40])
    monkeypatch.setattr(builtin, "_SEQUENCE", 20)
    both = _stats(checkpoint, IDS[:40])
    for key in both:
        expected = (first[key].hessian + second[key].hessian) / 2
        np.testing.assert_allclose(both[key].hessian, expected, atol=1e-4 * np.abs(expected).max())


def test_without_a_tokenizer_scales_are_searched(tmp_path: Path) -> None:
    root = make_checkpoint("tiny-qwen2.5-vl", tmp_path / "ck")
    checkpoint = Checkpoint.open(root)
    assert read_builtin(tmp_path / "none.json", checkpoint, checkpoint.family, check_checkpoint(checkpoint)) is None
    assert export_bundle(root, tmp_path / "a").manifest.quantization["mlp"]["method"] == "gptq"
    (root / "tokenizer.json").unlink()
    bare = export_bundle(root, tmp_path / "b", ExportOptions(allow_missing_tokenizer=True))
    assert bare.manifest.quantization["mlp"]["method"] == bare.manifest.quantization["head"]["method"] == "mse"


@needs_ops
@pytest.mark.parametrize("name", ["tiny-qwen3-vl-untied", "tiny-qwen3.5"])
@pytest.mark.parametrize("options", [("int4", "ort"), ("int4", "native"), ("int5", "native"), ("int8", "native")])
def test_the_gate_reads_back_what_is_stored(name: str, options: tuple[Any, Any], tmp_path: Path) -> None:
    """Against integers chosen again here, with the same statistics: stacked, reordered, woven, packed and turned."""
    precision, backend = options
    checkpoint = Checkpoint.open(make_checkpoint(name, tmp_path / "ck", 3, "float32"))
    bundle = export_bundle(checkpoint, tmp_path / "b", ExportOptions(precision=precision, backend=backend))
    config, family = check_checkpoint(checkpoint), checkpoint.family
    transform = fake_quantisation(bundle, checkpoint.config)
    known = read_builtin(bundle.root / "tokenizer.json", checkpoint, family, config)
    assert transform is not None and known is not None
    recipe = _recipe(bundle)
    target: Any = _Noting(known)
    known.beside(lambda t: family.build_decoder(t, config.decoder, family.caches(config.decoder.spec)))(target)
    roles = {n: role for names, role in target.seen.matrices for n in names}
    checked = 0
    for key, stats in target.stats.items():
        if roles[key] == "gates" or key == family.embedding:  # float; the table's own rows, which the head is not
            continue
        weight = np.asarray(checkpoint.read(key, np.float32))
        expected = dequantize(quantize(weight, recipe.scheme(roles[key], key), stats))
        np.testing.assert_allclose(transform(key, weight), expected, atol=2e-6 * np.abs(weight).max(), err_msg=key)
        checked += 1
    assert checked > 10


def _recipe(bundle: Bundle) -> Recipe:
    from gog_edge.serde import decode

    return decode(Recipe, bundle.manifest.quantization, "quantization")


def test_wide_inputs_are_calibrated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    mixed = np.eye(350, dtype=np.float32) + np.float32(0.2) * rng.standard_normal((350, 350), np.float32)
    x: NDArray[np.float32] = rng.standard_normal((900, 350), np.float32) @ mixed
    weight = rng.standard_normal((64, 350)).astype(np.float32)
    scheme = Scheme(4, 32, method="gptq", rotation=64)
    errors = {}
    for most in (4096, 128):
        monkeypatch.setattr(calibration, "MOST_INPUTS", most)
        stats = LayerStats(np.square(x).mean(0), np.abs(x).mean(0), gram(x), len(x))
        assert stats.hessian.shape == ((350, 350) if most == 4096 else (3, 128, 128))
        error = dequantize(quantize(weight, scheme, stats)) - weight
        errors[most] = float(np.linalg.norm(x @ error.T))
        turned = rotate(x, 64)[:, :128]
        part = stats.turned(64).hessian[0] if most == 128 else stats.turned(64).hessian[:128, :128]
        np.testing.assert_allclose(part, turned.T @ turned / len(x), atol=1e-3 * np.abs(part).max())
    searched = dequantize(quantize(weight, replace(scheme, method="mse"))) - weight
    assert errors[4096] < errors[128] < 0.95 * np.linalg.norm(x @ searched.T)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_numbers_beyond_float32_are_a_damaged_checkpoint(precision: Any, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = make_checkpoint("tiny-qwen3-vl", tmp_path / "ck", 3, "float32")
    weights = load_file(folder / "model.safetensors")
    weights["model.language_model.layers.1.mlp.up_proj.weight"] *= np.float32(1e30)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj\.weight sees numbers .*--method mse"):
        export_bundle(folder, tmp_path / "b", ExportOptions(precision=precision))
    export_bundle(
        folder, tmp_path / "m", ExportOptions(precision, recipe=Recipe.for_precision(precision, method="mse"))
    )
