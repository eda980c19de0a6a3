"""Files that are broken, cut short, or made to hurt: one line of ImageError each, never another exception."""

from __future__ import annotations

import importlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gog_edge.errors import ImageError
from gog_edge.image.frame import Frame, ImageLimits

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")


def sample(form: str) -> bytes:
    rng = np.random.default_rng(3)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(buffer, form, exif=exif)
    return buffer.getvalue()


def refused(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        Frame.open(data)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("image bytes")
    return message


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: bytes, *extra: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(extra)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_truncated_files(form: str, kept: float) -> None:
    data = sample(form) if form != "BMP" else sample_bmp()
    refused(data[: int(len(data) * kept)])


def sample_bmp() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 32), "red").save(buffer, "BMP")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"x", b"\0" * 100, b"GIF89a", b"%PDF-1.7\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\xff\xd8\xff\xe0"],
)
def test_what_is_no_image(data: bytes) -> None:
    refused(data)


def test_formats_that_are_not_ours_are_not_tried() -> None:
    for form in ("PPM", "TGA", "EPS", "ICO", "PCX", "SGI"):
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), "red").save(buffer, form)
        assert "not an image that can be read" in refused(buffer.getvalue())


def test_a_huge_header_is_refused_before_its_pixels_are_decoded() -> None:
    assert "million pixels" in refused(png(20_000, 5_000, b"\0" * 100))
    assert "Pillow's limit" in refused(png(60_000, 60_000, b"\0" * 100))


def test_a_raised_limit_names_pillows() -> None:
    with pytest.raises(ImageError, match="MAX_IMAGE_PIXELS"):
        Frame.open(png(60_000, 60_000, b"\0" * 100), limits=ImageLimits(max_pixels=1 << 40))


def test_a_compressed_text_bomb() -> None:
    bomb = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(b"A" * (80 << 20)))
    good = (b"\0" + b"\1" * 3 * 4) * 4
    refused(png(4, 4, good, bomb))


def test_heif_without_its_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.import_module

    def without_heif(name: str, package: str | None = None) -> object:
        if name == "pillow_heif":
            raise ImportError(name)
        return original(name, package)

    monkeypatch.setattr(importlib, "import_module", without_heif)
    monkeypatch.setattr(Image, "OPEN", {k: v for k, v in Image.OPEN.items() if k != "HEIF"})
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64
    assert "gog-edge[heif]" in refused(data)


@settings(max_examples=150, deadline=None)
@given(form=st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF"]), data=st.data())
def test_damaged_files_decode_or_end_in_one_line(form: str, data: st.DataObject) -> None:
    content = bytearray(sample(form))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        frame = Frame.open(bytes(content), limits=ImageLimits(max_pixels=1 << 20))
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        assert frame.pixels.dtype == np.uint8 and frame.pixels.shape[2] == 3


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=300))
def test_random_bytes(content: bytes) -> None:
    for prefix in (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\1\0WEBPVP8 ", b"II*\0", b"GIF89a"):
        try:
            Frame.open(prefix + content)
        except ImageError as error:
            assert "\n" not in str(error)
