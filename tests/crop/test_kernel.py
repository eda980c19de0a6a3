"""Patches and pictures of crops: native and numpy, against Pillow, for any box, size and number of threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gog_edge.crop import Grid, PixelBox, backend, crop_image, crop_patches, kernel, pixel_box, region_grid
from gog_edge.crop.reference import resize_box
from gog_edge.crop.taps import PRECISION_BITS, bicubic_taps
from gog_edge.errors import ImageError, RegionError, UsageError
from gog_edge.image.frame import Frame
from gog_edge.manifest import Preprocessing
from gog_edge.native import build
from gog_edge.types import Region
from tests.crop.pictures import BOTH, QWEN3, QWEN25, noise, scene


@pytest.fixture
def no_native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine without a compiler."""
    monkeypatch.setenv("GOG_EDGE_NO_NATIVE", "1")
    monkeypatch.setattr(build, "_statuses", {})
    kernel._native_kernel.cache_clear()
    yield
    kernel._native_kernel.cache_clear()


def pillow_patches(frame: Frame, region: Region | None, grid: Grid, pre: Preprocessing) -> np.ndarray:
    """The definition, written without any of the package's arithmetic: horizontal, vertical, 8 bits, blocks."""
    box = pixel_box(region, frame.width, frame.height)
    height, width = grid.pixels(pre.patch_size)
    image = frame.image().crop((box.x0, box.y0, box.x1, box.y1))
    image = image.resize((width, image.height), Image.Resampling.BICUBIC)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float64)
    values = (resized * pre.rescale_factor - np.array(pre.image_mean)) / np.array(pre.image_std)
    p, m = pre.patch_size, pre.merge_size
    rows = []
    for block_y in range(0, height, p * m):
        for block_x in range(0, width, p * m):
            for y in range(block_y, block_y + p * m, p):
                for x in range(block_x, block_x + p * m, p):
                    rows.append(values[y : y + p, x : x + p].transpose(2, 0, 1).reshape(-1))
    return np.array(rows)


REGIONS = {
    "whole": None,
    "inside": Region(40.5, 30, 201, 133.25),
    "top left": Region(0, 0, 57, 43),
    "bottom right": Region(263, 190, 1000, 1000),
    "last column": Region(300, 10, 301, 190),
    "last row": Region(5, 210, 195, 211),
    "one pixel": Region(300, 210, 301, 211),
    "upscale": Region(100, 100, 109, 107),
}


@pytest.mark.parametrize("pre", BOTH, ids=["qwen2.5", "qwen3"])
@pytest.mark.parametrize("name", REGIONS)
def test_patches_are_pillows(name: str, pre: Preprocessing) -> None:
    frame, region = noise(211, 301), REGIONS[name]
    grid = region_grid(region, frame.width, frame.height, pre)
    patches = crop_patches(frame, region, grid, pre)
    assert patches.shape == (grid.patches, pre.patch_values) and patches.dtype == np.float32
    # one 8-bit step is about 0.014; float32 arithmetic is good to a few 1e-7
    np.testing.assert_allclose(patches, pillow_patches(frame, region, grid, pre), rtol=0, atol=2e-6)


def test_twelve_megapixels_down_to_a_gaze() -> None:
    frame = Frame(np.tile(noise(300, 400).pixels, (10, 10, 1)))
    region = Region(1000, 800, 2789, 2142)
    grid = region_grid(region, frame.width, frame.height, QWEN25)
    np.testing.assert_allclose(
        crop_patches(frame, region, grid, QWEN25), pillow_patches(frame, region, grid, QWEN25), rtol=0, atol=2e-6
    )
    whole = region_grid(None, frame.width, frame.height, QWEN3, max_pixels=64 * 1024)
    np.testing.assert_allclose(
        crop_patches(frame, None, whole, QWEN3), pillow_patches(frame, None, whole, QWEN3), rtol=0, atol=2e-6
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_box_any_grid(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    frame = noise(height, width)
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    region = Region(x0, y0, data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height)))
    pre = data.draw(st.sampled_from(BOTH))
    grid = Grid(2 * data.draw(st.integers(1, 5)), 2 * data.draw(st.integers(1, 5)))
    threads = data.draw(st.integers(1, 5))
    patches = crop_patches(frame, region, grid, pre, threads=threads)
    np.testing.assert_allclose(patches, pillow_patches(frame, region, grid, pre), rtol=0, atol=2e-6)


@pytest.mark.skipif(backend().name != "native", reason="no native kernel on this machine")
def test_numpy_gives_the_same_bits(no_native: None) -> None:
    fallback = [
        crop_patches(noise(211, 301), region, region_grid(region, 301, 211, pre), pre)
        for region in REGIONS.values()
        for pre in BOTH
    ]
    assert backend().name == "numpy"
    kernel._native_kernel.cache_clear()
    build._statuses.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("GOG_EDGE_NO_NATIVE")
        assert backend().name == "native"
        native = [
            crop_patches(noise(211, 301), region, region_grid(region, 301, 211, pre), pre)
            for region in REGIONS.values()
            for pre in BOTH
        ]
    for a, b in zip(fallback, native, strict=True):
        assert a.tobytes() == b.tobytes()


def test_without_a_compiler_it_says_why_once(no_native: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="gog_edge.native"):
        assert backend().name == "numpy" and "GOG_EDGE_NO_NATIVE" in backend().reason
        crop_image(scene(50, 40), None, (10, 20))
        crop_image(scene(50, 40), None, (10, 20))
    assert len(caplog.records) == 1
    assert str(backend()).startswith("numpy (native code is switched off")


@pytest.mark.skipif(backend().name != "native", reason="no native kernel on this machine")
@settings(max_examples=150, deadline=None)
@given(size_in=st.integers(1, 3000), size_out=st.integers(1, 600))
def test_the_table_made_in_cpp_is_the_one_made_in_numpy(size_in: int, size_out: int) -> None:
    """Resizing single bright pixels with either table; the widest downscales keep every weight visible."""
    native_kernel = kernel._native_kernel()
    assert native_kernel is not None
    row = np.random.default_rng([size_in, size_out]).integers(0, 256, (1, size_in, 3), dtype=np.uint8)
    taps = bicubic_taps(size_in, size_out)
    sums = np.add.reduceat(
        row[0].astype(np.int64)[np.concatenate([np.arange(s, s + c) for s, c in zip(taps.start, taps.count)])]
        * np.concatenate([w[:c] for w, c in zip(taps.weight, taps.count)])[:, None],
        np.concatenate([[0], np.cumsum(taps.count)[:-1]]),
    )
    expected = np.clip((sums + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS, 0, 255)
    made = native_kernel.image(row, PixelBox(0, 0, size_in, 1), size_out, 1, 1)
    assert np.array_equal(made[0], expected)


@pytest.mark.parametrize("threads", [2, 3, 7, 64, None])
def test_the_number_of_threads_changes_no_bit(threads: int | None) -> None:
    frame, region = noise(700, 901), Region(3, 5, 890, 640)
    grid = region_grid(region, frame.width, frame.height, QWEN25)
    one = crop_patches(frame, region, grid, QWEN25, threads=1)
    assert crop_patches(frame, region, grid, QWEN25, threads=threads).tobytes() == one.tobytes()
    image = crop_image(frame, region, (77, 101), threads=1)
    assert np.array_equal(crop_image(frame, region, (77, 101), threads=threads), image)


def test_crops_at_the_same_time_share_the_helpers() -> None:
    frame = noise(700, 901)
    regions = [Region(3 * i, 5 * i, 890 - 7 * i, 640) for i in range(12)]
    alone = [crop_image(frame, region, (77, 101), threads=1) for region in regions]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda region: crop_image(frame, region, (77, 101), threads=3), regions * 5))
    assert all(np.array_equal(a, b) for a, b in zip(alone * 5, together, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_made_by_fork_cuts_crops_as_well() -> None:
    """It has none of its parent's helper threads."""
    frame = noise(300, 401)
    expected = crop_image(frame, None, (77, 101), threads=2)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(crop_image(frame, None, (77, 101), threads=2), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    to=st.tuples(st.integers(1, 80), st.integers(1, 80)),
)
def test_pictures_of_crops(size: tuple[int, int], to: tuple[int, int]) -> None:
    frame = noise(*size)
    expected = resize_box(frame.pixels, pixel_box(None, size[1], size[0]), to[1], to[0])
    assert np.array_equal(crop_image(frame, None, to), expected)


def test_a_crop_at_its_own_size_is_a_copy_of_the_pixels() -> None:
    frame = noise(20, 30)
    crop = crop_image(frame, Region(3, 4, 13, 9))
    assert np.array_equal(crop, frame.pixels[4:9, 3:13])
    crop[:] = 0
    assert frame.pixels[4:9, 3:13].any()


def test_a_flat_picture_stays_flat() -> None:
    frame = Frame(np.full((97, 41, 3), 200, dtype=np.uint8))
    assert (crop_image(frame, None, (333, 17)) == 200).all()


def test_out_is_written_and_checked() -> None:
    frame = scene(100, 120)
    grid = region_grid(None, 120, 100, QWEN3)
    shape = (grid.patches, QWEN3.patch_values)
    out = np.full(shape, np.nan, dtype=np.float32)
    assert crop_patches(frame, None, grid, QWEN3, out=out) is out
    assert np.array_equal(out, crop_patches(frame, None, grid, QWEN3))
    read_only = np.empty(shape, dtype=np.float32)
    read_only.flags.writeable = False
    for bad in (
        np.empty((shape[0] + 1, shape[1]), np.float32),
        np.empty(shape, np.float64),
        np.empty(shape[::-1], np.float32).T,
        read_only,
    ):
        with pytest.raises(UsageError, match="out is"):
            crop_patches(frame, None, grid, QWEN3, out=bad)


@pytest.mark.parametrize("grid", [Grid(0, 2), Grid(2, 3), Grid(-2, 2), Grid(1 << 14, 2)])
def test_impossible_grids_are_refused(grid: Grid) -> None:
    with pytest.raises(ImageError):
        crop_patches(scene(10, 10), None, grid, QWEN3)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5), (1 << 17, 5)])
def test_impossible_picture_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="both sides"):
        crop_image(scene(10, 10), None, size)


def test_a_box_outside_is_refused() -> None:
    with pytest.raises(RegionError, match="outside"):
        crop_patches(scene(10, 10), Region(20, 20, 30, 30), Grid(2, 2), QWEN3)
