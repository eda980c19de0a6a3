"""What `Frame.open` makes of every kind of source, and what it refuses."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, ImageOps

from gog_edge.errors import ImageError
from gog_edge.image.frame import Frame, ImageLimits
from gog_edge.types import Region


def picture(height: int = 23, width: int = 31) -> np.ndarray:
    """Different everywhere, without noise, so that lossy formats stay near."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([8 * x % 256, 10 * y % 256, (3 * x + 5 * y) % 256], axis=-1).astype(np.uint8)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_every_source_gives_the_same_frame(tmp_path: Path) -> None:
    image = Image.fromarray(picture())
    data = encoded(image, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with path.open("rb") as file:
        frames = [
            Frame.open(picture()),
            Frame.open(data),
            Frame.open(bytearray(data)),
            Frame.open(memoryview(data)),
            Frame.open(path),
            Frame.open(str(path)),
            Frame.open(file),
            Frame.open(io.BytesIO(data)),
            Frame.open(image),
        ]
    assert all(np.array_equal(f.pixels, picture()) for f in frames)
    assert len(set(frames)) == 1 and len({f.digest for f in frames}) == 1
    assert Frame.open(frames[0]) is frames[0]
    assert [f.source for f in frames[:2]] == ["array", "image bytes"]
    assert frames[4].source == frames[5].source == frames[6].source == str(path)
    assert Frame.open(data, name="camera 1").source == "camera 1"


def test_pixels_are_contiguous_read_only_and_private() -> None:
    array = picture()
    frame = Frame.open(array)
    before = frame.digest
    array[:] = 0
    assert frame.pixels.flags.c_contiguous and not frame.pixels.flags.writeable
    assert np.array_equal(frame.pixels, picture())
    assert Frame(picture()).digest == before
    with pytest.raises(ValueError):
        frame.pixels[0, 0, 0] = 1


def test_the_constructor_copies_what_could_change() -> None:
    array = picture()
    frame = Frame(array)
    array[:] = 0
    assert np.array_equal(frame.pixels, picture())
    assert np.array_equal(Frame(picture()[::-1, ::2]).pixels, picture()[::-1, ::2])
    for bad in (picture().astype(np.int16), picture()[:, :, 0], picture()[:0], picture()[:, :, :2]):
        with pytest.raises(ImageError, match=r"use Frame\.open"):
            Frame(bad)


def test_the_digest_tells_shapes_and_pixels_apart() -> None:
    flat = np.zeros((4, 6, 3), np.uint8)
    other = flat.copy()
    other[3, 5, 2] = 1
    digests = {Frame(a).digest for a in (flat, flat.reshape(6, 4, 3), flat.reshape(2, 12, 3), other)}
    assert len(digests) == 4 and all(len(d) == 64 for d in digests)
    assert Frame(flat) != Frame(other) and Frame(flat) == Frame(flat.copy()) and Frame(flat) != "frame"


def test_size_and_region() -> None:
    frame = Frame(picture(23, 31))
    assert (frame.width, frame.height) == (31, 23)
    assert frame.region == Region(0, 0, 31, 23)
    assert np.array_equal(np.asarray(frame.image()), picture(23, 31))
    assert "pixels" not in repr(frame)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_exif_orientation_is_applied(orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(Image.fromarray(picture()), form, exif=exif, **options)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert np.array_equal(Frame.open(data).pixels, upright)
    assert np.array_equal(Frame.open(Image.open(io.BytesIO(data))).pixels, upright)
    assert upright.shape[:2] == ((31, 23) if orientation >= 5 else (23, 31))


@pytest.mark.parametrize("value", [0, 9, 77])
def test_a_senseless_orientation_is_none(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    image = Image.fromarray(picture())
    assert np.array_equal(Frame.open(encoded(image, "PNG", exif=exif)).pixels, picture())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_does_not_cost_the_image(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(Image.fromarray(picture()), "PNG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff" + b"\xff" * 40)
    assert np.array_equal(Frame.open(data).pixels, picture())

    def broken(self: Image.Image) -> Image.Exif:
        raise SyntaxError("not a TIFF file\nat all")

    monkeypatch.setattr(Image.Image, "getexif", broken)
    assert np.array_equal(Frame.open(Image.fromarray(picture()), name="photo").pixels, picture())
    assert "photo: the EXIF block is broken (not a TIFF file)" in caplog.text


def test_transparency_is_composited_on_white() -> None:
    rgba = np.dstack([picture(), np.tile(np.linspace(0, 255, 31).astype(np.uint8), (23, 1))])
    alpha = rgba[:, :, 3:].astype(float) / 255
    expected = picture() * alpha + 255 * (1 - alpha)
    for source in (encoded(Image.fromarray(rgba), "PNG"), Image.fromarray(rgba), rgba):
        assert np.abs(Frame.open(source).pixels - expected).max() <= 1
    grey = encoded(Image.fromarray(rgba[:, :, 2:4], "LA"), "PNG")
    assert np.abs(Frame.open(grey).pixels - (picture()[:, :, 2:] * alpha + 255 * (1 - alpha))).max() <= 1


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA"])
def test_rare_alpha_modes(mode: str) -> None:
    rgba = np.dstack([np.full((4, 4, 3), 90, np.uint8), np.full((4, 4), 255, np.uint8)])
    rgba[0, 0, 3] = 0
    image = Image.fromarray(rgba)
    if mode == "PA":  # not by convert: before Pillow 12 it loses the transparency
        alpha = image.getchannel("A")
        image = image.convert("RGB").quantize(2)
        image.putalpha(alpha)
    else:
        image = image.convert("LA").convert("La") if mode == "La" else image.convert(mode)
    assert image.mode == mode
    pixels = Frame.open(image).pixels
    assert (pixels[0, 0] == 255).all() and np.abs(pixels[1, 1].astype(int) - 90).max() <= 2


def test_a_transparent_palette_colour_is_white() -> None:
    indexed = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), "P")
    indexed.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 250])
    pixels = Frame.open(encoded(indexed, "PNG", transparency=0)).pixels
    assert pixels.tolist() == [[[255] * 3, [200, 0, 0]], [[0, 0, 250], [255] * 3]]
    opaque = Frame.open(encoded(indexed, "PNG")).pixels
    assert opaque[0, 0].tolist() == [10, 20, 30]


def test_grey_bilevel_and_cmyk() -> None:
    grey = picture()[:, :, 0]
    assert np.array_equal(Frame.open(encoded(Image.fromarray(grey), "PNG")).pixels, np.repeat(grey[:, :, None], 3, 2))
    bits = Image.fromarray(grey).convert("1")
    assert set(np.unique(Frame.open(encoded(bits, "PNG")).pixels)) == {0, 255}
    cmyk = Image.fromarray(np.full((16, 16, 3), (200, 30, 90), np.uint8)).convert("CMYK")
    pixels = Frame.open(encoded(cmyk, "JPEG", quality=95)).pixels
    assert np.abs(pixels[8, 8].astype(int) - (200, 30, 90)).max() <= 4


def test_sixteen_bits_round_to_the_nearest() -> None:
    deep = np.arange(0, 65536, 31, dtype=np.uint16)[: 45 * 46].reshape(45, 46)
    expected = np.round(deep / 257).astype(np.uint8)
    for source in (encoded(Image.fromarray(deep), "PNG"), encoded(Image.fromarray(deep), "TIFF"), deep):
        assert np.array_equal(Frame.open(source).pixels, np.repeat(expected[:, :, None], 3, 2))
    big_endian = Image.frombytes("I;16B", (46, 45), deep.astype(">u2").tobytes())
    assert np.array_equal(Frame.open(big_endian).pixels[:, :, 1], expected)
    wide = Image.fromarray(deep.astype(np.int32))
    assert np.array_equal(Frame.open(wide).pixels[:, :, 0], expected)
    colour = np.dstack([deep // 2, deep // 3, deep])
    assert np.array_equal(Frame.open(colour).pixels[:, :, 2], expected)


def test_the_first_picture_of_an_animation() -> None:
    pictures = [Image.new("RGB", (8, 6), c) for c in ("red", "lime", "blue")]
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if form == "WEBP" else {}
        data = encoded(pictures[0], form, save_all=True, append_images=pictures[1:], **options)
        assert (Frame.open(data).pixels == (255, 0, 0)).all(), form


@pytest.mark.parametrize("form", ["JPEG", "BMP", "AVIF"])
def test_other_formats(form: str) -> None:
    if form == "AVIF":
        features = pytest.importorskip("PIL.features")
        if "avif" not in features.modules or not features.check("avif"):
            pytest.skip("this Pillow has no AVIF")
    smooth = Image.fromarray(np.full((32, 48, 3), (120, 60, 200), np.uint8))
    assert np.abs(Frame.open(encoded(smooth, form)).pixels.astype(int) - (120, 60, 200)).max() <= 3


def test_heif_where_it_is_installed() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (120, 60, 200))).save(buffer)
    pixels = Frame.open(buffer.getvalue()).pixels
    assert pixels.shape == (48, 64, 3) and np.abs(pixels.astype(int) - (120, 60, 200)).max() <= 4


def test_camera_frames() -> None:
    bgr = picture()[:, :, ::-1]
    assert np.array_equal(Frame.open(bgr, bgr=True).pixels, picture())
    bgra = np.dstack([bgr, np.full((23, 31), 255, np.uint8)])
    assert np.array_equal(Frame.open(bgra, bgr=True).pixels, picture())
    grey = picture()[:, :, :1]
    assert np.array_equal(Frame.open(grey, bgr=True).pixels, np.repeat(grey, 3, 2))
    padded = np.zeros((23, 40, 3), np.uint8)  # a camera buffer with row padding
    padded[:, :31] = picture()
    assert np.array_equal(Frame.open(padded[:, :31]).pixels, picture())
    with pytest.raises(ImageError, match="bgr is for arrays"):
        Frame.open(encoded(Image.fromarray(picture()), "PNG"), bgr=True)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"float32; scale to 0\.\.255"),
        (np.zeros((4, 4, 3), np.int64), "int64; convert to uint8"),
        (np.zeros((4, 4), bool), "bool"),
        (np.zeros((3, 4, 4), np.uint8)[:, :, :2], "shape"),
        (np.zeros((2, 4, 4, 3), np.uint8), "shape"),
        (np.zeros((5,), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        Frame.open(array)


def test_floating_point_files_and_unknown_modes_are_refused() -> None:
    with pytest.raises(ImageError, match="floating-point"):
        Frame.open(encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))
    with pytest.raises(ImageError, match="beyond 16 bits"):
        Frame.open(Image.fromarray(np.full((2, 2), 70_000, np.int32)))
    with pytest.raises(ImageError, match="colour mode LAB"):
        Frame.open(Image.new("LAB", (4, 4)))


def test_limits() -> None:
    data = encoded(Image.new("RGB", (100, 50)), "PNG")
    with pytest.raises(ImageError, match="100x50 is 0 million pixels"):
        Frame.open(data, limits=ImageLimits(max_pixels=4999))
    assert Frame.open(data, limits=ImageLimits(max_pixels=5000)).width == 100
    with pytest.raises(ImageError, match="side beyond 99"):
        Frame.open(data, limits=ImageLimits(max_side=99))
    with pytest.raises(ImageError, match="MiB"):
        Frame.open(data, limits=ImageLimits(max_bytes=len(data) - 1))
    with pytest.raises(ImageError, match="MiB"):
        Frame.open(io.BytesIO(data), limits=ImageLimits(max_bytes=len(data) - 1))
    with pytest.raises(ImageError, match="million"):
        Frame.open(np.zeros((50, 100, 3), np.uint8), limits=ImageLimits(max_pixels=4999))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        Frame.open(tmp_path / "missing.jpg")
    with pytest.raises(ImageError, match="not a regular file"):
        Frame.open(tmp_path)
    with pytest.raises(ImageError, match="addresses are not fetched"):
        Frame.open("https://example.org/cat.jpg")
    with pytest.raises(ImageError):
        Frame.open("a\0b.png")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(ImageError, match="not a regular file"):
        Frame.open(fifo)
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(ImageError, match="empty"):
        Frame.open(empty)


def test_sources_that_are_nothing() -> None:
    with pytest.raises(ImageError, match="dict"):
        Frame.open({})  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="binary mode"):
        Frame.open(io.StringIO("text"))  # type: ignore[arg-type]
    closed = io.BytesIO(b"x")
    closed.close()
    with pytest.raises(ImageError, match="can't be read"):
        Frame.open(closed)


def test_the_order_of_colours_is_said() -> None:
    blue = np.zeros((4, 6, 3), np.uint8)
    blue[:, :, 0] = 255  # of an OpenCV frame
    assert Frame.from_cv2(blue).pixels[0, 0].tolist() == [0, 0, 255]
    assert Frame.from_array(blue, bgr=True) == Frame.from_cv2(blue)
    assert Frame.from_array(blue, bgr=False).pixels[0, 0].tolist() == [255, 0, 0]


def test_an_array_without_an_order_is_warned_of_once_where_opencv_is_loaded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from gog_edge.image import frame as module

    module._warn_of_bgr.cache_clear()
    array = np.zeros((4, 6, 3), np.uint8)
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    Frame.open(array)
    assert caplog.messages == []
    monkeypatch.setitem(sys.modules, "cv2", ModuleType("cv2"))
    for said in (True, False):
        Frame.open(array, bgr=said)
    Frame.open(array[:, :, 0])  # grey has no order
    assert caplog.messages == []
    Frame.open(array)
    Frame.open(array)
    assert len(caplog.messages) == 1 and "bgr=True" in caplog.messages[0]
    module._warn_of_bgr.cache_clear()
