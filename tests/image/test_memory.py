"""What decoding takes: peaks against what is asked for, turns between threads, refusals; the same pixels in bands."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from gog_edge.deadline import Budget, DeadlineReached, SystemClock
from gog_edge.errors import CancelledError, ImageError, UsageError
from gog_edge.image import decode, memory
from gog_edge.image.frame import DEFAULT_LIMITS, Frame, ImageLimits
from gog_edge.image.memory import DecodeMemory

MIB = 1 << 20


def small_webp(width: int, height: int) -> bytes:
    """A lossless WebP whose every pixel is one symbol of a code with one symbol: no bits at all a pixel."""
    bits = [*_bits(width - 1, 14), *_bits(height - 1, 14), *_bits(0, 4), 0, 0, 0, *([1, 0, 0, 0] * 5)]
    bits += [0] * (-len(bits) % 8)
    body = b"\x2f" + bytes(sum(bit << n for n, bit in enumerate(bits[i : i + 8])) for i in range(0, len(bits), 8))
    body += b"\0" * 16
    chunk = b"VP8L" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def _bits(value: int, count: int) -> list[int]:
    return [value >> n & 1 for n in range(count)]


PEAKS = """
import io, json, re, sys
from pathlib import Path
from PIL import Image
from gog_edge.image import decode, memory
from gog_edge.image.frame import Frame

def status(name):
    return int(re.search(name + r":\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

found = {}
for path in map(Path, sys.argv[1:]):
    data = path.read_bytes()
    with Image.open(io.BytesIO(data), formats=decode._known_formats(data)) as image:
        needed = memory.needed(image)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    frame = Frame.open(data)
    found[path.name] = [needed, status("VmHWM") - before]
    del frame
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One picture of six million pixels in every format and kind that has a path of its own."""
    folder = tmp_path_factory.mktemp("peaks")
    noise = np.random.default_rng(0).integers(100, 116, (100, 150, 3), np.uint8)
    rgb = Image.fromarray(np.tile(noise, (20, 20, 1)))
    rgba = rgb.convert("RGBA")
    turned = Image.Exif()
    turned[0x112] = 6
    rgb.save(folder / "plain.jpg", quality=95, subsampling=0)
    rgb.save(folder / "turned.jpg", exif=turned)
    rgb.save(folder / "progressive.jpg", progressive=True, quality=75, subsampling=0)
    rgb.convert("CMYK").save(folder / "four.jpg")
    rgb.save(folder / "plain.png", compress_level=1)
    rgba.save(folder / "alpha.png", compress_level=1)
    rgb.convert("L").quantize(16).save(folder / "palette.png")
    Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png", compress_level=1)
    rgb.convert("L").save(folder / "grey.gif")
    rgb.save(folder / "strips.tiff", compression="tiff_lzw")
    rgb.save(folder / "one.tiff", compression="tiff_lzw", strip_size=1 << 30)
    rgb.save(folder / "plain.bmp")
    rgb.save(folder / "lossy.webp", method=0)
    rgba.save(folder / "alpha.webp", lossless=True, method=0, quality=0)
    (folder / "small.webp").write_bytes(small_webp(3000, 2000))
    if "AVIF" in Image.SAVE:
        rgb.save(folder / "plain.avif", speed=10)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="this system has no VmHWM")
def test_no_format_takes_more_than_it_asks_for(files: Path) -> None:
    names = sorted(str(p) for p in files.iterdir())
    done = subprocess.run([sys.executable, "-c", PEAKS, *names], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert len(found) == len(names)
    over = {name: (needed, peak) for name, (needed, peak) in found.items() if peak > needed + 24 * MIB}
    assert not over
    assert found["plain.png"][1] < 8 * 6_000_000 + 24 * MIB  # ten bytes a pixel when pictures were converted whole


LARGE = """
import re, sys
from pathlib import Path
from gog_edge.errors import ImageError
from gog_edge.image.frame import Frame
try:
    Frame.open(Path(sys.argv[1]))
except ImageError as e:
    print(e)
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="this system has no VmHWM")
def test_a_few_bytes_do_not_take_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "small.webp"
    path.write_bytes(small_webp(16_000, 5_500))
    assert path.stat().st_size < 111
    done = subprocess.run([sys.executable, "-c", LARGE, str(path)], capture_output=True, text=True, check=True)
    line, peak = done.stdout.splitlines()
    assert "decoding takes 1426 MiB of memory, 1024 are allowed" in line
    assert int(peak) < 200 << 10  # 2.2 GB before


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr", "I;16", "I"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_make_the_same_pixels(monkeypatch: pytest.MonkeyPatch, mode: str, orientation: int) -> None:
    rng = np.random.default_rng(orientation)
    if mode in ("I;16", "I"):
        image = Image.fromarray(rng.integers(0, 65_536, (29, 17), np.uint16)).convert(mode)
    else:
        source = Image.fromarray(rng.integers(0, 256, (29, 17, 4), np.uint8))
        image = source.convert("P").convert("PA") if mode == "PA" else source.convert("RGB").convert(mode)
        if mode in ("RGBA", "LA", "PA"):
            image.putalpha(source.getchannel("A"))
    image.getexif()[0x112] = orientation
    whole = Frame.open(image)  # one band
    monkeypatch.setattr(decode, "_BAND_PIXELS", 3 * 17)
    bands = Frame.open(image)
    np.testing.assert_array_equal(bands.pixels, whole.pixels)
    upright = Image.fromarray(decode._to_rgb(image, "it"))
    upright.getexif()[0x112] = orientation
    turned = ImageOps.exif_transpose(upright)
    assert turned is not None
    np.testing.assert_array_equal(whole.pixels, np.asarray(turned))
    assert whole.pixels.flags.c_contiguous and not whole.pixels.flags.writeable


def test_transparency_of_a_palette_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 9, (40, 30), np.uint8), "L").convert("P")
    image.info["transparency"] = bytes([0, 255, 128, 7, 200, 255, 255, 255, 255])
    whole = Frame.open(image)
    monkeypatch.setattr(decode, "_BAND_PIXELS", 100)
    np.testing.assert_array_equal(Frame.open(image).pixels, whole.pixels)


def test_threads_decode_in_turn_where_there_is_room_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (400, 300), "red").save(buffer, "PNG")
    data, together, most = buffer.getvalue(), 0, 0
    lock, upright = threading.Lock(), decode._upright

    def counted(*args: object) -> object:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        time.sleep(0.02)
        with lock:
            together -= 1
        return upright(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(decode, "_upright", counted)
    one, all_of_them = ImageLimits(memory=400 * 300 * 8), ImageLimits()
    for limits, expected in ((one, {1}), (all_of_them, {2, 3, 4})):
        most = 0
        with ThreadPoolExecutor(4) as pool:
            frames = list(pool.map(lambda _, limits=limits: Frame.open(data, limits=limits), range(8)))
        assert most in expected
        assert len({f.digest for f in frames}) == 1


def test_turns() -> None:
    """Who asked first is served first; who gives up leaves no hole; what is let go is there for the next one."""
    gate, limits = DecodeMemory(), ImageLimits(memory=10)
    order: list[str] = []
    inside, leave = threading.Event(), threading.Event()

    def hold(name: str, size: int, budget: Budget) -> None:
        with gate.hold(size, limits, name, budget):
            order.append(name)
            if name == "first":
                inside.set()
                leave.wait(60)

    def waiting(count: int) -> None:
        while len(gate._queue) < count:
            time.sleep(0.001)

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(hold, "first", 6, Budget())]
        inside.wait(60)
        gone = Budget()
        jobs.append(pool.submit(hold, "gives up", 9, gone))
        waiting(1)
        jobs.append(pool.submit(hold, "second", 10, Budget()))
        waiting(2)
        jobs.append(pool.submit(hold, "third", 1, Budget()))  # would fit at once, but came later
        waiting(3)
        gone.cancel()
        with pytest.raises(CancelledError):
            jobs[1].result(60)
        assert order == ["first"]
        leave.set()
        for job in (jobs[0], *jobs[2:]):
            job.result(60)
    assert order == ["first", "second", "third"]
    assert (gate._taken, len(gate._queue)) == (0, 0)


def test_the_memory_that_is_free_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_webp(3000, 2000)
    monkeypatch.setattr(memory, "available_memory", lambda: 90 * MIB)
    with pytest.raises(ImageError, match="takes 97 MiB of memory, 90 are free; scale it down"):
        Frame.open(data)
    monkeypatch.setattr(memory, "available_memory", lambda: 98 * MIB)
    assert Frame.open(data).width == 3000
    assert memory.MEMORY._taken == 0


def test_a_limit_that_makes_no_sense() -> None:
    with pytest.raises(UsageError, match=r"ImageLimits\.memory is 0"):
        ImageLimits(memory=0)
    assert DEFAULT_LIMITS.memory == 1 << 30


class Ticking(SystemClock):
    """A second goes by whenever it is looked at."""

    seconds = 0.0

    def now(self) -> float:
        self.seconds += 1.0
        return self.seconds


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_decoding_ends_with_the_deadline(form: str) -> None:
    """At the next block: of several hundred blocks that would be read, a few are."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8)
    Image.fromarray(noise).save(buffer, form)
    whole = Ticking()
    Frame.open(buffer.getvalue(), budget=Budget(1e6, clock=whole))
    assert whole.seconds > 40
    clock = Ticking()
    with pytest.raises(DeadlineReached):
        Frame.open(buffer.getvalue(), budget=Budget(20.0, clock=clock))
    assert clock.seconds < 25
