"""The resident image: decoded once, upright, 8-bit RGB, read-only, with a digest that names its content.

Everything a user can hand over becomes the same thing here: JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF, HEIF (with
pillow-heif), Pillow images, numpy arrays and camera frames.  Rules, in order:

1. first frame of an animation; 2. 16-bit values v become round(v / 257), 1-bit become 0 and 255; 3. CMYK, YCbCr,
Lab, palettes and greyscale become RGB as Pillow does (colour profiles are not applied: the policies were trained
without); 4. transparency is composited on white; 5. the EXIF orientation is applied (a broken EXIF block counts as
none).  Floating-point pictures are refused: their range is unknown.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Union

import numpy as np
from numpy.typing import NDArray

from gog_edge.deadline import UNLIMITED, Budget
from gog_edge.errors import ImageError, UsageError
from gog_edge.types import Region

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("gog_edge.frame")

ImageSource = Union["Frame", "Image", str, Path, bytes, bytearray, memoryview, BinaryIO, NDArray[Any]]
"""What `Frame.open` takes: a path, the bytes of an image file, an open binary file, a Pillow image, an array."""


@dataclass(frozen=True)
class ImageLimits:
    """What is refused before memory is spent on it.

    Args:
        max_bytes: of the file.
        max_pixels: of the stored image, before any resizing. The default is Pillow's own: 256 MiB of RGB.
        max_side: pixels of the longer side.
        memory: bytes that decoding may take, over all threads of the process: what does not fit beside others waits,
            what does not fit alone is refused (docs/limits.md says what formats take).
    """

    max_bytes: int = 64 << 20
    max_pixels: int = 89_478_485
    max_side: int = 65_535
    memory: int = 1 << 30

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_side", "memory"):
            if getattr(self, name) < 1:
                raise UsageError(f"ImageLimits.{name} is {getattr(self, name)}: a positive number is needed")

    def check_size(self, width: int, height: int, name: str) -> None:
        """Raises ImageError if an image of this size is beyond the limits or empty."""
        if width < 1 or height < 1:
            raise ImageError(f"{name}: {width}x{height} pixels is empty")
        if width * height > self.max_pixels:
            raise ImageError(
                f"{name}: {width}x{height} is {width * height / 1e6:.0f} million pixels, "
                f"{self.max_pixels / 1e6:.0f} are allowed; scale it down or raise ImageLimits.max_pixels"
            )
        if max(width, height) > self.max_side:
            raise ImageError(f"{name}: {width}x{height} has a side beyond {self.max_side} pixels; scale it down")

    def check_bytes(self, size: int, name: str) -> None:
        """Raises ImageError if a file of `size` bytes is beyond the limit or empty."""
        if size == 0:
            raise ImageError(f"{name}: the file is empty")
        if size > self.max_bytes:
            raise ImageError(
                f"{name}: more than {self.max_bytes / (1 << 20):.0f} MiB; re-encode it or raise ImageLimits.max_bytes"
            )


DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True, eq=False)
class Frame:
    """An upright RGB image. `pixels`: [height, width, 3] uint8, C-contiguous and read-only; `source` is for people.

    Two frames are equal when their pixels are, wherever they came from.
    """

    pixels: NDArray[np.uint8] = field(repr=False)
    source: str = ""

    def __post_init__(self) -> None:
        p = self.pixels
        if p.dtype != np.uint8 or p.ndim != 3 or p.shape[2] != 3 or 0 in p.shape:
            raise ImageError(f"a frame needs uint8 pixels [H, W, 3], not {p.dtype} {list(p.shape)}; use Frame.open")
        if not p.flags.c_contiguous or p.flags.writeable:
            p = np.ascontiguousarray(p)
            p = p.copy() if p is self.pixels else p
            p.flags.writeable = False
            object.__setattr__(self, "pixels", p)

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def region(self) -> Region:
        """The whole frame."""
        return Region(0.0, 0.0, float(self.width), float(self.height))

    @functools.cached_property
    def digest(self) -> str:
        """sha256 (hex) of height, width and pixels; computed at first use (about 2 GB/s with SHA instructions)."""
        h = hashlib.sha256(f"{self.height}x{self.width}:".encode())
        h.update(self.pixels.reshape(-1).data)
        return h.hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frame):
            return NotImplemented
        return self is other or (self.pixels.shape == other.pixels.shape and self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)

    def image(self) -> Image:
        """A Pillow copy, for showing and saving."""
        from PIL import Image

        return Image.fromarray(self.pixels)

    @classmethod
    def from_array(cls, array: NDArray[Any], *, bgr: bool, name: str | None = None) -> Frame:
        """A copy of an array as in `open`, with the order of its colours said: `bgr` for OpenCV's, else RGB.

        Raises:
            ImageError: of another type or shape, or beyond a limit.
        """
        return cls.open(np.asarray(array), bgr=bgr, name=name)

    @classmethod
    def from_cv2(cls, array: NDArray[Any], *, name: str | None = None) -> Frame:
        """A copy of what `cv2.imread` or a `cv2.VideoCapture` returned (blue, green, red); errors as `from_array`."""
        return cls.from_array(array, bgr=True, name=name or "cv2 frame")

    @classmethod
    def open(
        cls,
        source: ImageSource,
        *,
        bgr: bool | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
        name: str | None = None,
        budget: Budget = UNLIMITED,
    ) -> Frame:
        """Make a frame of whatever holds an image.

        Args:
            source: a path, encoded bytes, an open binary file, a Pillow image, a frame (returned as it is), or an
                array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (alpha last) of uint8 or uint16; arrays are copied.
            bgr: whether an array's channels are blue, green, red (OpenCV's) or red, green, blue; arrays only. None:
                red, green, blue, with a warning in the log if OpenCV is loaded.
            limits: what to refuse.
            name: how messages and traces call it; the default is the file's name or the kind of source.
            budget: ends waiting for memory, and decoding of what is read in blocks (JPEG, PNG, TIFF, GIF).

        Raises:
            ImageError: missing, unreadable, truncated, corrupt, of an unknown format or kind, or beyond a limit.
            CancelledError, DeadlineReached: the budget ended.
        """
        if isinstance(source, Frame):
            return source
        if isinstance(source, np.ndarray):
            from gog_edge.image.decode import array_to_rgb

            label = name or "array"
            if bgr is None and source.ndim == 3 and source.shape[2] >= 3 and "cv2" in sys.modules:
                _warn_of_bgr()
            return cls(array_to_rgb(source, bool(bgr), limits, label), label)
        if bgr:
            raise ImageError("bgr is for arrays: image files and Pillow images say what their channels are")
        from gog_edge.image import decode as decode

        if isinstance(source, (str, Path)):
            label = name or str(source)
            return cls(decode.decode_bytes(decode.read_file(Path(source), limits, label), limits, label, budget), label)
        if isinstance(source, (bytes, bytearray, memoryview)):
            label = name or "image bytes"
            return cls(decode.decode_bytes(bytes(source), limits, label, budget), label)
        if decode.is_pillow(source):
            label = name or str(getattr(source, "filename", "") or "Pillow image")
            return cls(decode.decode_image(source, limits, label, budget), label)
        if hasattr(source, "read"):
            label = name or str(getattr(source, "name", "") or "image file")
            return cls(decode.decode_bytes(decode.read_stream(source, limits, label), limits, label, budget), label)
        raise ImageError(f"can't make an image of a {type(source).__name__}; give a path, bytes, a file or an array")


@functools.cache
def _warn_of_bgr() -> None:
    """Once: an array alone does not tell how its colours are ordered, a loaded OpenCV makes one order likely."""
    log.warning(
        "an array is read as red, green, blue, but OpenCV is loaded, whose frames are blue, green, red: "
        "say bgr=True (or Frame.from_cv2) for those, bgr=False for others"
    )
