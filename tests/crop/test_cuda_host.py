"""The whole CUDA path but the driver's leaf calls: the kernel source runs on the host, bit-equal to the CPU kernel."""

from __future__ import annotations

import ctypes
import re
import weakref
from pathlib import Path

import numpy as np
import pytest

from gog_edge.crop import Grid, crop_image, crop_patches, cuda, region_grid
from gog_edge.crop.cuda import CudaCropper
from gog_edge.crop.gpu import DeviceArray
from gog_edge.crop.native import SOURCES
from gog_edge.errors import EngineError, ImageError, RegionError, UsageError
from gog_edge.types import Region
from tests.crop.fake_gpu import FakeDriver, build_grid
from tests.crop.pictures import BOTH, QWEN3, noise


@pytest.fixture(scope="module")
def grid_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build_grid(tmp_path_factory.mktemp("grid"))


@pytest.fixture(autouse=True)
def precompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVRTC has its own tests."""
    monkeypatch.setattr(cuda, "crop_cubin", lambda arch, directory: b"\x7fELF gog_crop " + arch.encode())


@pytest.fixture
def driver(grid_library: ctypes.CDLL) -> FakeDriver:
    return FakeDriver(grid_library)


@pytest.mark.parametrize("pre", BOTH, ids=["qwen2.5", "qwen3"])
@pytest.mark.parametrize(
    ("size", "region"),
    [
        ((61, 83), None),
        ((61, 83), Region(3.5, 7, 70, 50)),
        ((61, 83), Region(80, 59, 83, 61)),
        ((300, 90), Region(0, 0, 90, 300)),  # more source rows than shared memory holds
    ],
)
def test_patches_equal_the_cpu_kernel(
    size: tuple[int, int], region: Region | None, pre: object, driver: FakeDriver
) -> None:
    frame = noise(*size)
    grid = region_grid(region, frame.width, frame.height, pre, min_pixels=4000, max_pixels=9000)
    with CudaCropper(driver) as cropper:
        result = cropper.crop_patches(frame, region, grid, pre)
        assert result.shape == (grid.patches, pre.patch_values) and result.dtype == np.float32
        assert cropper.to_host(result).tobytes() == crop_patches(frame, region, grid, pre).tobytes()
        result.close()
    assert not driver.live


def test_pictures_equal_the_cpu_kernel(driver: FakeDriver) -> None:
    frame, region = noise(50, 70), Region(10, 5, 60.5, 44)
    with CudaCropper(driver) as cropper:
        for size in ((17, 33), (1, 1), (40, 31)):
            assert np.array_equal(cropper.crop_image(frame, region, size), crop_image(frame, region, size))


def test_the_frame_travels_once(driver: FakeDriver) -> None:
    frame, grid = noise(40, 60), Grid(2, 2)
    cropper = CudaCropper(driver)
    cropper.keep(frame)
    assert driver.calls == [("load", "gog_crop"), ("allocate", 7200), ("upload", 7200)]
    driver.calls.clear()
    out = cropper.crop_patches(frame, Region(0, 0, 20, 20), grid, QWEN3)
    again = cropper.crop_patches(frame, Region(30, 5, 60, 40), grid, QWEN3, out=out)
    assert again is out
    same_pixels = noise(40, 60)
    cropper.crop_patches(same_pixels, None, grid, QWEN3, out=out)
    tables = [call[1] for call in driver.calls if call[0] == "upload"]
    assert len(tables) == 3 and 7200 not in tables
    # output, then one table buffer for all crops; no wait between the gazes
    assert [c[0] for c in driver.calls] == ["allocate", "allocate"] + ["upload", "launch"] * 3
    assert all(c[1:] == ("gog_crop", (1, 2), 256) for c in driver.calls if c[0] == "launch")
    cropper.close()
    out.close()
    assert not driver.live


def test_shared_memory_needs_no_copy(grid_library: ctypes.CDLL) -> None:
    driver, frame = FakeDriver(grid_library, integrated=True), noise(40, 60)
    with CudaCropper(driver) as cropper:
        result = cropper.crop_patches(frame, None, Grid(2, 4), QWEN3)
        assert np.array_equal(cropper.to_host(result), crop_patches(frame, None, Grid(2, 4), QWEN3))
        result.close()
    assert ("share", 7200) in driver.calls and ("upload", 7200) not in driver.calls
    assert not driver.live
    assert np.array_equal(frame.pixels, noise(40, 60).pixels)


def test_the_oldest_frame_leaves_the_device_first(grid_library: ctypes.CDLL) -> None:
    driver = FakeDriver(grid_library)
    a, b, c, big = noise(10, 10, 1), noise(10, 10, 2), noise(10, 10, 3), noise(40, 40, 4)
    cropper = CudaCropper(driver, resident_bytes=700)
    for frame in (a, b, a, c):  # b is the oldest when c comes
        cropper.keep(frame)
    before = driver.count("upload")
    cropper.keep(a)
    assert driver.count("upload") == before
    cropper.keep(b)
    assert driver.count("upload") == before + 1
    cropper.keep(big)  # beyond the limit by itself: kept alone
    assert [m.nbytes for m in driver.live] == [4800]
    cropper.close()


def test_tables_grow_when_a_crop_needs_more(driver: FakeDriver) -> None:
    frame = noise(4, 3000)
    with CudaCropper(driver) as cropper:
        size = (2, 2900)
        assert np.array_equal(cropper.crop_image(frame, None, (1, 40)), crop_image(frame, None, (1, 40)))
        small = driver.live[-2].nbytes
        picture = cropper.crop_image(frame, None, size)
        assert np.array_equal(picture, crop_image(frame, None, size))
        assert max(m.nbytes for m in driver.live) >= small
    assert not driver.live


def test_bad_requests_reach_no_device(driver: FakeDriver) -> None:
    frame = noise(20, 20)
    cropper = CudaCropper(driver)
    driver.calls.clear()
    with pytest.raises(RegionError):
        cropper.crop_patches(frame, Region(30, 30, 40, 40), Grid(2, 2), QWEN3)
    with pytest.raises(ImageError):
        cropper.crop_patches(frame, None, Grid(3, 2), QWEN3)
    with pytest.raises(ImageError):
        cropper.crop_image(frame, None, (0, 3))
    wrong = DeviceArray(driver.allocate(16), (2, 2), np.dtype(np.float32))
    with pytest.raises(UsageError, match="out is"):
        cropper.crop_patches(frame, None, Grid(2, 2), QWEN3, out=wrong)
    assert [c[0] for c in driver.calls] == ["allocate"]


def test_a_full_device_is_an_engine_error_and_leaks_nothing(grid_library: ctypes.CDLL) -> None:
    driver = FakeDriver(grid_library, memory=1000)
    with CudaCropper(driver) as cropper, pytest.raises(EngineError, match="out of memory"):
        cropper.crop_image(noise(5, 5), None, (4, 4))
    assert not driver.live


def test_tile_and_block_are_those_of_the_source() -> None:
    text = (SOURCES / "crop_grid.h").read_text()
    found = dict(re.findall(r"(kTileW|kTileH|kBlockThreads) = (\d+)", text))
    assert (int(found["kTileW"]), int(found["kTileH"])) == cuda.TILE
    assert int(found["kBlockThreads"]) == cuda.BLOCK


def test_device_arrays_know_their_size(driver: FakeDriver) -> None:
    array = DeviceArray(driver.allocate(64), (3, 5), np.dtype(np.float32))
    assert array.nbytes == 60
    alive = weakref.ref(array)
    array.close()
    del array
    assert alive() is None and not driver.live


def test_no_gpu_is_one_clear_line() -> None:
    pytest.importorskip("cuda.core")
    from gog_edge.crop.cuda_driver import open_driver

    if Path("/dev/nvidiactl").exists() or Path("/dev/nvgpu").exists():
        pytest.skip("this machine has a GPU")
    with pytest.raises(EngineError, match="no CUDA device 0") as caught:
        open_driver()
    assert "\n" not in str(caught.value)


def test_arguments_reach_the_kernel_as_declared() -> None:
    """cuda-core's own packing of our argument types, read back: a Python int is 8 bytes, np.int32 4, and so on."""
    handler = pytest.importorskip("cuda.core._kernel_arg_handler")
    arguments = [0x1234_5678_9ABC, np.int64(-5), np.int32(-7), np.float32(0.25), 0]
    holder = handler.ParamHolder(arguments)
    pointers = ctypes.cast(holder.ptr, ctypes.POINTER(ctypes.c_void_p))
    kinds = [ctypes.c_uint64, ctypes.c_int64, ctypes.c_int32, ctypes.c_float, ctypes.c_uint64]
    read = [kind.from_address(pointers[i] or 0).value for i, kind in enumerate(kinds)]
    assert read == [0x1234_5678_9ABC, -5, -7, 0.25, 0]
