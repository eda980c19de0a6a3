"""Weights in huge pages: the reader of graph files, the same numbers as mapped, and when they stay mapped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gog_edge.bundle import Bundle
from gog_edge.engines.base import DecoderInputs
from gog_edge.engines.ort import weights as ort_weights
from gog_edge.engines.ort.decoder import OrtDecoder
from gog_edge.engines.ort.graph import OrtGraph
from gog_edge.engines.ort.options import OrtOptions, find_device
from gog_edge.errors import BundleError, UsageError
from gog_edge.native.dispatch import available
from gog_edge.runtime.decoder import Rotary

onnx = pytest.importorskip("onnx")
linux = pytest.mark.skipif(not hasattr(ort_weights.mmap, "MADV_HUGEPAGE"), reason="huge pages are asked for on Linux")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from gog_edge.export.options import ExportOptions
    from gog_edge.export.pipeline import export_bundle
    from gog_edge.export.synthetic.checkpoint import make_checkpoint

    folder = tmp_path_factory.mktemp("weights")
    checkpoint = make_checkpoint("tiny-qwen3-vl", folder / "c", 1)
    return export_bundle(checkpoint, folder / "b", ExportOptions(backend="native"))


def test_reads_what_onnx_reads(bundle: Bundle) -> None:
    path = bundle.path("decoder.onnx")
    found = {t.name: t for t in ort_weights.external_tensors(path.read_bytes())}
    stored = onnx.load(path, load_external_data=False).graph.initializer
    assert found.keys() == {t.name for t in stored if t.external_data}
    for tensor in stored:
        if tensor.name not in found:
            continue
        mine, place = found[tensor.name], {e.key: e.value for e in tensor.external_data}
        assert (mine.element, mine.shape) == (tensor.data_type, tuple(tensor.dims))
        assert (mine.file, mine.offset, mine.length) == (
            place["location"],
            int(place["offset"]),
            int(place["length"]),
        )


@linux
def test_arrays_hold_the_file(bundle: Bundle) -> None:
    names, arrays = ort_weights.load(bundle.path("decoder.onnx"), 3)
    model = onnx.load(bundle.path("decoder.onnx"))
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    assert names
    for name, array in zip(names, arrays):
        np.testing.assert_array_equal(array, stored[name])


@linux
@pytest.mark.skipif(available() is not None, reason=str(available()))
def test_same_logits_as_mapped(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_weights, "_LEAST", 0)
    monkeypatch.setattr(ort_weights, "available_memory", lambda: 1 << 40)
    spec = bundle.manifest.decoder
    x = np.random.default_rng(0).standard_normal((5, spec.hidden)).astype(np.float32)
    cos, sin = Rotary(bundle.manifest)(np.broadcast_to(np.arange(5), (3, 5)))
    results = []
    for weights in ("map", "auto"):
        graph = OrtGraph(bundle, "decoder", find_device("cpu"), OrtOptions(weights=weights))
        copied = ort_weights.why_mapped(bundle.path("decoder.onnx")) is None
        assert bool(graph._weights) == (weights == "auto" and copied)
        decoder = OrtDecoder(graph, bundle.manifest, 64)
        results.append(decoder.run(DecoderInputs(x, cos, sin, None, 5, ()), decoder.new_cache(8), 0))
    np.testing.assert_array_equal(*results)


def test_stays_mapped(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = bundle.path("decoder.onnx")
    assert ort_weights.why_mapped(path) == "the weights are small"
    monkeypatch.setattr(ort_weights, "_LEAST", 0)
    monkeypatch.setattr(ort_weights, "available_memory", lambda: 0)
    switch = tmp_path / "enabled"
    monkeypatch.setattr(ort_weights, "_SWITCH", switch)
    assert "huge pages" in str(ort_weights.why_mapped(path))
    switch.write_text("always madvise [never]\n")
    assert "no transparent huge pages" in str(ort_weights.why_mapped(path))
    switch.write_text("always [madvise] never\n")
    if hasattr(ort_weights.mmap, "MADV_HUGEPAGE"):
        assert "of memory are available" in str(ort_weights.why_mapped(path))


@linux
def test_damage(bundle: Bundle, tmp_path: Path) -> None:
    graph = tmp_path / "decoder.onnx"
    graph.write_bytes(bundle.path("decoder.onnx").read_bytes())
    whole = bundle.path("decoder.onnx.data").read_bytes()
    (tmp_path / "decoder.onnx.data").write_bytes(whole[:-64])
    with pytest.raises(BundleError, match="does not hold all of"):
        ort_weights.load(graph, 1)
    for broken in (b"\x3a\x80\x80", graph.read_bytes()[:-9], b"\x3a\x02\x2b\x2b"):
        with pytest.raises(BundleError, match="no ONNX model"):
            ort_weights.external_tensors(broken)


def test_option() -> None:
    with pytest.raises(UsageError, match="weights is 'copy'"):
        OrtOptions(weights="copy")  # type: ignore[arg-type]
