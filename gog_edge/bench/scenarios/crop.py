"""The crop scenario: a box of a large frame to patches, by our kernel, by Pillow and numpy, by transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from gog_edge.bench.peers import find_peers
from gog_edge.bench.result import Cell
from gog_edge.bench.statistics import seconds_of
from gog_edge.bench.subject import picture
from gog_edge.crop import backend, crop_patches, pixel_box, region_grid
from gog_edge.crop.reference import resize_box
from gog_edge.image.frame import Frame
from gog_edge.manifest import Preprocessing
from gog_edge.types import Region

FRAME = (4000, 3000)  # 12 megapixels
BOX = (1200.0, 900.0, 2989.0, 2242.0)  # a fifth of it
BUDGET = 448 * 336
QWEN3_VL = Preprocessing(16, 2, 2, 4096, 1 << 24, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
Work = Callable[[], float]


def crop_cells(repeats: int) -> Iterator[Cell]:
    """Every subject that is available, interleaved. transformers runs where its environment is installed."""
    scene = picture(*FRAME, seed=1)
    frame = Frame.open(scene.pixels)
    region = Region(*BOX)
    grid = region_grid(region, frame.width, frame.height, QWEN3_VL, min_pixels=4096, max_pixels=BUDGET)
    height, width = grid.pixels(QWEN3_VL.patch_size)
    box = pixel_box(region, frame.width, frame.height)

    def ours(threads: int) -> Work:
        return lambda: seconds_of(lambda: crop_patches(frame, region, grid, QWEN3_VL, threads=threads))

    def pillow_numpy() -> object:
        pixels = resize_box(frame.pixels, box, width, height).astype(np.float32)
        patches = (pixels / 255 - 0.5) / 0.5
        p, m = 16, 2
        shape = (height // p // m, m, p, width // p // m, m, p, 3)
        return np.ascontiguousarray(patches.reshape(shape).transpose(0, 3, 1, 4, 6, 2, 5)).reshape(-1, 3 * p * p)

    work: dict[str, Work] = {
        "gog-edge": ours(1),
        "gog-edge 2 threads": ours(2),
        "Pillow + numpy": lambda: seconds_of(pillow_numpy),
    }
    brought = find_peers()
    peers = brought.crop(box, BUDGET, QWEN3_VL.patch_size) if brought is not None else []
    try:
        for peer in peers:
            peer.load()
            work[peer.name] = lambda peer=peer: peer.turn([scene], 0).total  # type: ignore[misc]
        for name, samples in _interleaved(work, repeats).items():
            note = str(backend()) if name.startswith("gog-edge") else ""
            yield Cell("crop", name, "crop", "s", samples, note=note)
    finally:
        for peer in peers:
            peer.close()


def _interleaved(work: dict[str, Work], repeats: int) -> dict[str, tuple[float, ...]]:
    """Seconds of every run after one that does not count, one after another: A B A B …"""
    samples: dict[str, list[float]] = {name: [] for name in work}
    for run in range(repeats + 1):
        for name, call in work.items():
            seconds = call()
            if run:
                samples[name].append(seconds)
    return {name: tuple(values) for name, values in samples.items()}
