"""The crop kernel in Pillow and numpy: what the native kernel is measured against, and the way without a compiler.

Both passes are asked for one after the other, because Pillow 13 resizes some shapes vertically first; older
versions, torch and the native kernel always resize horizontally first, and that is what policies were trained on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gog_edge.crop.geometry import Grid, PixelBox
from gog_edge.crop.normal import Normal


def resize_box(pixels: NDArray[np.uint8], box: PixelBox, width: int, height: int) -> NDArray[np.uint8]:
    """The box of `pixels` [H, W, 3] as [height, width, 3]: antialiased bicubic, horizontal pass first."""
    image = Image.fromarray(pixels[box.y0 : box.y1, box.x0 : box.x1])
    image = image.resize((width, box.height), Image.Resampling.BICUBIC)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def to_patches(
    image: NDArray[np.uint8], grid: Grid, patch: int, merge: int, normal: Normal, out: NDArray[np.float32]
) -> None:
    """Normalise `image` [rows * p, columns * p, 3] into `out` [n, 3 * p * p], rows in merge-block order."""
    values = (image.astype(np.float32) - normal.offset) * normal.scale
    blocks = values.reshape(
        grid.rows // merge, merge, patch, grid.columns // merge, merge, patch, 3
    )  # (block row, row in block, py, block column, column in block, px, channel)
    target = out.reshape(grid.rows // merge, grid.columns // merge, merge, merge, 3, patch, patch)
    np.copyto(target, blocks.transpose(0, 3, 1, 4, 6, 2, 5))
