"""From files, Pillow images and arrays to upright 8-bit RGB pixels; `Frame.open` is the public way in.

Image files are hostile until proven otherwise: only the formats below are tried, sizes are checked before pixels are
decoded, memory is asked for (`gog_edge.image.memory`), and whatever a decoder raises ends as one line of ImageError.
"""

from __future__ import annotations

import importlib
import io
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from gog_edge.deadline import UNLIMITED, Budget, DeadlineReached
from gog_edge.errors import CancelledError, ImageError
from gog_edge.image.memory import MEMORY, needed

if TYPE_CHECKING:
    from PIL.Image import Image

    from gog_edge.image.frame import ImageLimits

log = logging.getLogger("gog_edge.frame")

_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "HEIF")
_PLUGINS = ("MpoImagePlugin", "WebPImagePlugin", "AvifImagePlugin", "TiffImagePlugin")  # beyond Image.preinit()
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_ORIENTATION = 0x0112
_BAND_PIXELS = 1 << 20  # converted at once: 4 MiB beside the image and the frame
_OURS = (ImageError, CancelledError, DeadlineReached, MemoryError)


def read_file(path: Path, limits: ImageLimits, name: str) -> bytes:
    """The content of a regular file within the limits.  Raises ImageError."""
    try:
        if not path.is_file():
            address = str(path).partition(":")[0] in ("http", "https", "ftp")
            mend = "download it first: addresses are not fetched" if address else "check the path"
            what = "is not a regular file" if path.exists() else "does not exist"
            raise ImageError(f"{name} {what}; {mend}")
        limits.check_bytes(path.stat().st_size, name)
        return path.read_bytes()
    except (OSError, ValueError) as e:
        if isinstance(e, ImageError):
            raise
        raise ImageError(f"{name} can't be read: {getattr(e, 'strerror', None) or e}") from e


def read_stream(stream: Any, limits: ImageLimits, name: str) -> bytes:
    """The rest of an open binary file, at most the limit.  Raises ImageError."""
    try:
        data = stream.read(limits.max_bytes + 1)
    except (OSError, ValueError) as e:
        raise ImageError(f"{name} can't be read: {getattr(e, 'strerror', None) or e}") from e
    if not isinstance(data, bytes):
        raise ImageError(f"{name} gave {type(data).__name__}, not bytes; open it in binary mode")
    return data


def is_pillow(source: object) -> TypeGuard[Image]:
    """Whether `source` is a Pillow image (Pillow is loaded already if it is)."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(source, module.Image)


class _Watched(io.BytesIO):
    """An encoded image whose reading ends with the budget: decoders ask for one block after the other."""

    def __init__(self, data: bytes, budget: Budget) -> None:
        super().__init__(data)
        self._budget = budget

    def read(self, size: int | None = -1, /) -> bytes:
        self._budget.check()
        return super().read(size)


def decode_bytes(data: bytes, limits: ImageLimits, name: str, budget: Budget = UNLIMITED) -> NDArray[np.uint8]:
    """Upright RGB [H, W, 3] of an encoded image.

    Raises:
        ImageError: it can't be read, or is beyond a limit. CancelledError, DeadlineReached: the budget ended.
    """
    from PIL import Image, UnidentifiedImageError

    limits.check_bytes(len(data), name)
    try:
        with Image.open(_Watched(data, budget), formats=_known_formats(data)) as image:
            return decode_image(image, limits, name, budget)
    except UnidentifiedImageError as e:
        if _is_heif(data) and "HEIF" not in Image.OPEN:
            raise ImageError(f"{name} is a HEIF image; pip install 'gog-edge[heif]' to read it") from e
        raise ImageError(f"{name} is not an image that can be read ({', '.join(_FORMATS)})") from e
    except _OURS:
        raise
    except Image.DecompressionBombError as e:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise ImageError(
            f"{name} claims more than {most:.0f} million pixels, Pillow's limit; "
            "shrink it first (or raise PIL.Image.MAX_IMAGE_PIXELS as well)"
        ) from e
    except Exception as e:  # a broken file can make a decoder raise anything
        raise ImageError(f"{name} is truncated or corrupt: {_one_line(e)}") from e


def decode_image(image: Image, limits: ImageLimits, name: str, budget: Budget = UNLIMITED) -> NDArray[np.uint8]:
    """Upright RGB [H, W, 3] of a Pillow image (its current picture, if it has several).  Raises as `decode_bytes`."""
    limits.check_size(image.width, image.height, name)
    try:
        with MEMORY.hold(needed(image), limits, name, budget):
            image.load()
            return _upright(image, _orientation(image, name), name, budget)
    except _OURS:
        raise
    except Exception as e:  # as above
        raise ImageError(f"{name} is truncated or corrupt: {_one_line(e)}") from e


def array_to_rgb(array: NDArray[Any], bgr: bool, limits: ImageLimits, name: str) -> NDArray[np.uint8]:
    """A read-only RGB copy of [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] uint8 or uint16.  Raises ImageError."""
    if array.dtype not in (np.uint8, np.uint16):
        mend = "scale to 0..255 and convert to uint8" if array.dtype.kind == "f" else "convert to uint8"
        raise ImageError(f"{name} holds {array.dtype}; {mend} first")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ImageError(
            f"{name} has the shape {list(array.shape)}; [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] is needed"
        )
    height, width, channels = array.shape
    limits.check_size(width, height, name)
    values = _to_8_bit(array) if array.dtype == np.uint16 else array.astype(np.uint8, copy=False)
    if bgr and channels > 1:
        values = values[:, :, [2, 1, 0, 3][:channels]]
    if channels == 4:
        return _on_white(np.ascontiguousarray(values))
    rgb = np.empty((height, width, 3), dtype=np.uint8)
    rgb[:] = values  # one channel is repeated
    rgb.flags.writeable = False
    return rgb


def _known_formats(data: bytes) -> list[str]:
    """Those of our formats that this Pillow can read; registers pillow-heif when a HEIF file asks for it."""
    from PIL import Image

    Image.preinit()
    for plugin in _PLUGINS:
        try:
            importlib.import_module(f"PIL.{plugin}")
        except ImportError:  # AVIF came with Pillow 11.3
            log.debug("this Pillow has no %s", plugin)
    if _is_heif(data) and "HEIF" not in Image.OPEN:
        try:
            importlib.import_module("pillow_heif").register_heif_opener()
        except ImportError:
            log.debug("pillow-heif is not installed")
    return [f for f in _FORMATS if f in Image.OPEN]


def _is_heif(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS


def _to_rgb(image: Image, name: str) -> NDArray[np.uint8]:
    """[H, W, 3], as stored (not turned yet)."""
    mode = image.mode
    if mode == "F":
        raise ImageError(f"{name} holds floating-point pixels, whose range is unknown; convert it to 8 bits first")
    if mode == "I" or mode.startswith("I;16"):
        grey = np.asarray(image)
        if grey.size and (int(grey.min()) < 0 or int(grey.max()) > 65_535):
            raise ImageError(f"{name} holds integers beyond 16 bits; convert it to 8 bits first")
        return np.repeat(_to_8_bit(grey)[:, :, None], 3, axis=2)
    if mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        return _on_white(np.asarray(image.convert("RGBA")))
    if mode not in ("RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX"):
        raise ImageError(f"{name} has the colour mode {mode}, which is not supported; convert it to RGB first")
    return np.asarray(image if mode == "RGB" else image.convert("RGB"))


def _to_8_bit(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Nearest 8-bit value of 16-bit ones: 65535 / 255 is 257."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Composite [H, W, 4] on white, with Pillow's rounding (as Qwen's own image loading does)."""
    from PIL import Image

    picture = Image.fromarray(rgba)
    white = Image.new("RGB", picture.size, (255, 255, 255))
    white.paste(picture, mask=picture.getchannel("A"))
    return np.asarray(white)


def _orientation(image: Image, name: str) -> int:
    """The EXIF orientation, 1 (as stored) to 8; 1 when there is none or the block is broken."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception as e:  # noqa: BLE001 - EXIF is a TIFF in the file, broken in all the ways that TIFF can be
        log.warning("%s: the EXIF block is broken (%s); the image is taken as it is stored", name, _one_line(e))
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(image: Image, orientation: int, name: str, budget: Budget) -> NDArray[np.uint8]:
    """RGB [H, W, 3] of a loaded image with its EXIF orientation applied, C-contiguous and read-only.

    In bands of rows, each written where it belongs: the image and the frame are the only whole pictures in memory.
    """
    width, height = image.size
    frame = np.empty((width, height, 3) if orientation >= 5 else (height, width, 3), np.uint8)
    stored = frame  # as the image is stored
    if orientation in (3, 4, 7, 8):
        stored = stored[::-1]
    if orientation in (2, 3, 6, 7):
        stored = stored[:, ::-1]
    if orientation >= 5:
        stored = stored.transpose(1, 0, 2)
    rows = max(_BAND_PIXELS // width, 1)
    for y in range(0, height, rows):
        budget.check()
        band = image if rows >= height else image.crop((0, y, width, min(y + rows, height)))
        stored[y : y + rows] = _to_rgb(band, name)
    frame.flags.writeable = False
    return frame


def _one_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return (lines[0] if lines else "") or type(error).__name__
