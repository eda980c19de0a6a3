"""The tower and its cache: keyed by content, shared by threads, bounded, kept on disk."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from gog_edge.bundle import Bundle
from gog_edge.crop import Grid
from gog_edge.deadline import Budget
from gog_edge.engines.base import Features
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.engines.registry import create_engine
from gog_edge.errors import CancelledError, RegionError, UsageError
from gog_edge.image.frame import Frame
from gog_edge.runtime.feature_cache import DiskFeatures, FeatureCache, FeatureKey
from gog_edge.runtime.vision import VisionEmbedder, VisionEncoder
from gog_edge.types import PixelLimits, Region
from tests.runtime.conftest import picture
from tests.runtime.fakes import ScriptedEngine


def key(i: int) -> FeatureKey:
    return FeatureKey(f"digest{i}", (0, 0, 10, 10), (4, 4))


def features(value: float, rows: int = 4) -> Features:
    return Features(np.full((rows, 8), value, np.float32), np.full((2, rows, 8), -value, np.float32))


def encoder(bundle: Bundle, cache: FeatureCache | None = None) -> VisionEncoder:
    engine = ScriptedEngine(bundle, [""])
    return VisionEncoder(bundle, engine.vision, cache or FeatureCache(1 << 20))


def test_regions_that_round_to_the_same_pixels_are_one_entry(bundle: Bundle, frame: Frame) -> None:
    tower = encoder(bundle)
    first = tower.plan(frame, Region(10.2, 20.4, 80.7, 90.1))
    same = tower.plan(frame, Region(10.9, 20.0, 80.1, 90.9))
    other = tower.plan(frame, Region(9.9, 20.0, 80.1, 90.9))
    assert first.key == same.key != other.key
    assert tower.encode(first)[1] is False
    assert tower.encode(same)[1] is True
    assert tower.encode(tower.plan(picture(77), Region(10.2, 20.4, 80.7, 90.1)))[1] is False


def test_plans_follow_the_limits(bundle: Bundle) -> None:
    tower = encoder(bundle)
    big = picture(1, 800, 600)
    pre = bundle.manifest.preprocessing
    for limits in (None, PixelLimits(0, 40_000), PixelLimits(200_000, 0)):
        plan = tower.plan(big, None, limits)
        area = plan.shown_width * plan.shown_height
        assert plan.tokens == plan.rows * plan.columns == area // pre.factor**2
        assert area <= (limits.max_pixels if limits and limits.max_pixels else pre.max_pixels)
    assert tower.plan(big, None, PixelLimits(10**9, 40_000)).tokens <= 40  # the largest area wins
    small = Region(0, 0, 60, 45)
    assert tower.plan(big, small, PixelLimits(upscale=2.0)).tokens > 3 * tower.plan(big, small).tokens / 2
    assert tower.plan_grid(big, small, Grid(4, 6)).tokens == 6
    with pytest.raises(RegionError):
        tower.plan(big, Region(900, 0, 950, 10))
    for bad in ({"min_pixels": -1}, {"upscale": 0}):
        with pytest.raises(UsageError):
            PixelLimits(**bad)  # type: ignore[arg-type]


def test_the_oldest_goes_first_and_the_bound_holds() -> None:
    one = features(0).nbytes
    cache = FeatureCache(2 * one)
    for i in range(3):
        cache.get(key(i), lambda i=i: features(i))  # type: ignore[misc]
    assert [cache.peek(key(i)) for i in range(3)] == [False, True, True]
    cache.get(key(1), lambda: features(9))
    cache.get(key(3), lambda: features(3))
    assert cache.peek(key(1)) and not cache.peek(key(2))
    counts = cache.counts()
    assert counts.bytes == 2 * one == counts.entries * one
    assert (counts.hits, counts.misses) == (1, 4)
    cache.get(key(4), lambda: features(4, rows=100))  # larger than the whole cache: not kept
    assert not cache.peek(key(4)) and cache.peek(key(1))
    cache.clear()
    assert cache.counts().bytes == 0


def test_two_threads_compute_once() -> None:
    cache = FeatureCache(1 << 20)
    began, go, runs = threading.Event(), threading.Event(), []

    def slow() -> Features:
        runs.append(1)
        began.set()
        go.wait(5)
        return features(1)

    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(cache.get(key(0), slow)[1])) for _ in range(4)]
    threads[0].start()
    began.wait(5)
    for t in threads[1:]:
        t.start()
    go.set()
    for t in threads:
        t.join(5)
    assert len(runs) == 1
    assert sorted(results) == [False, True, True, True]


def test_who_waits_takes_over_when_the_other_is_cancelled() -> None:
    cache = FeatureCache(1 << 20)
    began, go = threading.Event(), threading.Event()

    def cancelled() -> Features:
        began.set()
        go.wait(5)
        raise CancelledError("stop")

    first: list[BaseException] = []

    def run() -> None:
        try:
            cache.get(key(0), cancelled)
        except CancelledError as e:
            first.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    began.wait(5)
    threading.Timer(0.05, go.set).start()
    found, shared = cache.get(key(0), lambda: features(2))
    thread.join(5)
    assert first and not shared and found.main[0, 0] == 2


def test_who_waits_can_be_cancelled_and_errors_are_shared() -> None:
    cache = FeatureCache(1 << 20)
    began, go = threading.Event(), threading.Event()

    def fails() -> Features:
        began.set()
        go.wait(5)
        raise ValueError("broken tower")

    def run() -> None:
        with pytest.raises(ValueError, match="broken tower"):
            cache.get(key(0), fails)

    thread = threading.Thread(target=run)
    thread.start()
    began.wait(5)
    budget = Budget()
    threading.Timer(0.05, budget.cancel).start()
    with pytest.raises(CancelledError):
        cache.get(key(0), lambda: features(0), budget)
    threading.Timer(0.05, go.set).start()
    with pytest.raises(ValueError, match="broken tower"):
        cache.get(key(0), lambda: features(0))
    thread.join(5)
    assert cache.get(key(0), lambda: features(3))[0].main[0, 0] == 3  # nothing stays behind


def test_features_on_disk_serve_the_next_process(tmp_path: Path) -> None:
    FeatureCache(0, DiskFeatures(tmp_path, "tower", 1 << 20)).get(key(0), lambda: features(5))
    again = FeatureCache(1 << 20, DiskFeatures(tmp_path, "tower", 1 << 20))
    found, cached = again.get(key(0), lambda: features(6))
    assert cached and found.main[0, 0] == 5 and found.deepstack is not None and found.deepstack[0, 0, 0] == -5
    other, cached = FeatureCache(0, DiskFeatures(tmp_path, "another", 1 << 20)).get(key(0), lambda: features(6))
    assert not cached and other.main[0, 0] == 6
    for file in (tmp_path / "tower").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    found, cached = FeatureCache(0, DiskFeatures(tmp_path, "tower", 1 << 20)).get(key(0), lambda: features(7))
    assert not cached and found.main[0, 0] == 7


def test_the_disk_is_bounded(tmp_path: Path) -> None:
    import os

    disk = DiskFeatures(tmp_path, "tower", 4000)
    for i in range(6):
        disk.save(key(i), features(i))
        for file in (tmp_path / "tower").iterdir():  # as if time had passed
            os.utime(file, (1000 + i, 1000 + i))
    assert sum(f.stat().st_size for f in (tmp_path / "tower").iterdir()) <= 4000 + 1500
    unwritable = tmp_path / "file"
    unwritable.write_text("x")
    DiskFeatures(unwritable, "tower", 4000).save(key(0), features(0))  # told in the log, not raised


def test_embedding_is_the_unit_mean_of_the_features(bundle25: Bundle, frame: Frame) -> None:
    engine = create_engine("cpu", bundle25, OrtOptions(threads=1, spin=False))
    tower = VisionEncoder(bundle25, engine.vision, FeatureCache(1 << 20))
    embedder = VisionEmbedder(tower, PixelLimits(0, 50_000))
    vector = embedder.embed(frame)
    assert vector.dtype == np.float32 and np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    main = tower.encode(embedder.plan(frame))[0].main
    assert np.allclose(vector, main.mean(0) / np.linalg.norm(main.mean(0)), atol=1e-6)
    crop = embedder.embed(frame, Region(0, 0, 70, 70))
    assert not np.allclose(crop, vector, atol=1e-3)
    assert embedder.fingerprint != VisionEmbedder(tower).fingerprint
    assert embedder.fingerprint.startswith(bundle25.vision_fingerprint)
    engine.close()
