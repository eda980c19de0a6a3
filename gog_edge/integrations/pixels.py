"""Pictures as other programs send them: rows of pixels with a name for their layout, or a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import ImageError
from gog_edge.image.frame import Frame

PACKED = {"rgb8": (3, False), "bgr8": (3, True), "rgba8": (4, False), "bgra8": (4, True), "mono8": (1, False)}
"""Bytes of a pixel, and whether blue comes first."""
FILES = ("jpeg", "jpg", "png", "avif", "webp")
_YUV422 = {"yuv422": (1, 0), "uyvy": (1, 0), "yuv422_yuy2": (0, 1), "yuyv": (0, 1)}
"""Where the first luma and the first chroma byte lie; four bytes are two pixels."""


def frame_of_pixels(
    data: NDArray[np.uint8], encoding: str, width: int, height: int, step: int | None = None, *, name: str = "picture"
) -> Frame:
    """The picture in rows of pixels.

    Args:
        data: [n] uint8, at least `height` rows.
        encoding: as ROS names them: rgb8, bgr8, rgba8, bgra8, mono8, yuv422 (also uyvy: U Y V Y), yuv422_yuy2 (also
            yuyv: Y U Y V). YUV is BT.601 in video range, as cameras send it and cv_bridge reads it.
        width, height: in pixels.
        step: bytes from one row to the next; None: rows have no padding, and `data` is nothing but them.
        name: of the picture, for messages.

    Raises:
        ImageError: the encoding is unknown, or the sizes contradict each other.
    """
    yuv = encoding in _YUV422
    if not yuv and encoding not in PACKED:
        known = ", ".join((*PACKED, *_YUV422, *FILES))
        raise ImageError(f"encoding {encoding!r} is not known: send {known}")
    if min(width, height) < 1 or (yuv and width % 2):
        even = " of an even width" if yuv else ""
        raise ImageError(f"a {encoding} picture of {width}x{height}: it needs pixels{even}")
    row = width * (2 if yuv else PACKED[encoding][0])
    wanted = row * height if step is None else step * (height - 1) + row
    if step is not None and step < row:
        raise ImageError(f"a {encoding} picture of {width}x{height} has rows of {row} bytes or more, not {step}")
    if data.size != wanted if step is None else data.size < wanted:
        raise ImageError(f"a {encoding} picture of {width}x{height} has {wanted} bytes, not {data.size}")
    if step is None or step == row:
        rows_only = data[: row * height].reshape(height, row)
    else:
        rows_only = np.lib.stride_tricks.as_strided(data, (height, row), (step, 1), writeable=False)
    if yuv:
        return Frame.from_array(_rgb_of_yuv422(rows_only, *_YUV422[encoding]), bgr=False, name=name)
    channels, bgr = PACKED[encoding]
    return Frame.from_array(rows_only.reshape(height, width, channels), bgr=bgr, name=name)


def frame_of_message(data: NDArray[np.uint8], metadata: Mapping[str, Any]) -> Frame:
    """The picture in an array of bytes, as dora's nodes send it.

    Args:
        data: [n] uint8: rows of pixels without padding, or a file.
        metadata: `encoding` (as in `frame_of_pixels`; jpeg, png, avif, webp), `width` and `height` (for pixels).

    Raises:
        ImageError: the encoding is unknown, the size is not that of the data, or the file can't be read.
    """
    encoding = str(metadata.get("encoding", "")).lower()
    if encoding in FILES:
        return Frame.open(data.tobytes(), name=f"{encoding} picture")
    width, height = metadata.get("width"), metadata.get("height")
    known = encoding in PACKED or encoding in _YUV422
    if known and (type(width) is not int or type(height) is not int or min(width, height) < 1):
        raise ImageError(f"a {encoding} picture needs width and height in its metadata")
    size = (width, height) if known else (1, 1)
    return frame_of_pixels(data, encoding, *size, name=f"{encoding} picture")


def _rgb_of_yuv422(rows: NDArray[np.uint8], luma: int, chroma: int) -> NDArray[np.uint8]:
    """[H, 2 * W] to [H, W, 3], by the matrix of ITU-R BT.601 with luma from 16 to 235."""
    pairs = rows.reshape(rows.shape[0], -1, 4).astype(np.float32)
    y = np.maximum(pairs[:, :, luma::2] - 16, 0) * 1.164383
    u, v = pairs[:, :, chroma, None] - 128, pairs[:, :, chroma + 2, None] - 128
    planes = (y + 1.596027 * v, y - 0.391762 * u - 0.812968 * v, y + 2.017232 * u)
    rgb = np.stack(planes, axis=-1).reshape(rows.shape[0], -1, 3)
    whole: NDArray[np.uint8] = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
    return whole
