"""Scenarios that are no conversation: one part of the runtime by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from gog_edge.bench.camera import camera_cells
from gog_edge.bench.indexing import index_cells
from gog_edge.bench.ours import LocalSubject
from gog_edge.bench.result import Cell
from gog_edge.bench.searching import search_cells
from gog_edge.bench.subject import Picture, Words, picture
from gog_edge.errors import BenchError
from gog_edge.manifest import Preprocessing
from gog_edge.runtime.crop import backend, crop_patches, pixel_box, region_grid
from gog_edge.runtime.crop.reference import resize_box
from gog_edge.runtime.frame import Frame
from gog_edge.types import Region

Piece = Callable[[Path | None, int], Iterator[Cell]]

FRAME = (4000, 3000)  # 12 megapixels
BOX = (1200.0, 900.0, 2989.0, 2242.0)  # a fifth of it
BUDGET = 448 * 336
QWEN3_VL = Preprocessing(16, 2, 2, 4096, 1 << 24, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def seconds_of(work: Callable[[], object], repeats: int) -> tuple[float, ...]:
    """Seconds of every run after one that is not counted."""
    work()
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        samples.append(time.perf_counter() - start)
    return tuple(samples)


def interleaved(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, ...]]:
    """The same for several pieces of work in turn: A B A B …"""
    samples: dict[str, list[float]] = {name: [] for name in work}
    for run in range(repeats + 1):
        for name, call in work.items():
            start = time.perf_counter()
            call()
            if run:
                samples[name].append(time.perf_counter() - start)
    return {name: tuple(values) for name, values in samples.items()}


def crop(bundle: Path | None, repeats: int) -> Iterator[Cell]:
    """A fifth of a 12-megapixel frame to 448x336 pixels' worth of patches: one and two threads, Pillow + numpy."""
    frame = Frame.open(picture(*FRAME, seed=1).pixels)
    region = Region(*BOX)
    grid = region_grid(region, frame.width, frame.height, QWEN3_VL, min_pixels=4096, max_pixels=BUDGET)
    height, width = grid.pixels(QWEN3_VL.patch_size)
    box = pixel_box(region, frame.width, frame.height)

    def pillow_numpy() -> object:
        pixels = resize_box(frame.pixels, box, width, height).astype(np.float32)
        patches = (pixels / 255 - 0.5) / 0.5
        p, m = 16, 2
        shape = (height // p // m, m, p, width // p // m, m, p, 3)
        return np.ascontiguousarray(patches.reshape(shape).transpose(0, 3, 1, 4, 6, 2, 5)).reshape(-1, 3 * p * p)

    runs = interleaved(
        {
            "gog-edge 1 thread": lambda: crop_patches(frame, region, grid, QWEN3_VL, threads=1),
            "gog-edge 2 threads": lambda: crop_patches(frame, region, grid, QWEN3_VL, threads=2),
            "Pillow + numpy": pillow_numpy,
        },
        max(repeats, 20),
    )
    for name, samples in runs.items():
        note = str(backend()) if name.startswith("gog-edge") else ""
        yield Cell("crop", name, "crop", "s", samples, note=note)


def load(bundle: Path | None, repeats: int) -> Iterator[Cell]:
    """From nothing to the first token, files in the page cache; a fresh process each time would add the imports."""
    subject = _subject(bundle)
    subject.load()
    subject.close()
    samples = []
    for _ in range(repeats):
        samples.append(subject.load())
        subject.close()
    yield Cell("load", "gog-edge", "load to first token", "s", tuple(samples))


def questions(bundle: Path | None, repeats: int) -> Iterator[Cell]:
    """A first question about a frame, then others about the same one: those pay for their own words only."""
    subject = _subject(bundle)
    subject.load()
    scene = picture(1024, 768, seed=5)
    first = [subject.turn([Picture(scene.pixels), Words(60, 1)], 8).total]
    mark = _after_image(subject)
    later = []
    for number in range(max(repeats, 10)):
        subject.session.cut(mark)
        later.append(subject.turn([Words(60, 2 + number)], 8).total)
    subject.close()
    yield Cell("questions", "gog-edge", "first question", "s", tuple(first))
    yield Cell("questions", "gog-edge", "every other question", "s", tuple(later))


def camera(bundle: Path | None, repeats: int) -> Iterator[Cell]:
    """A camera at 1, 5 and 15 frames a second: age of the answers, frames dropped, answers in time."""
    subject = _subject(bundle)
    subject.load()
    try:
        yield from camera_cells(subject, repeats)
    finally:
        subject.close()


def search(bundle: Path | None, repeats: int) -> Iterator[Cell]:
    """A provider that takes 0.2, 1 and 3 s: how much of it the early start hides."""
    subject = _subject(bundle)
    subject.load()
    try:
        yield from search_cells(subject, repeats)
    finally:
        subject.close()


def index(bundle: Path | None, repeats: int) -> Iterator[Cell]:
    """The local index from 1,000 to 100,000 entries: inserting, searching with pictures, text and both."""
    yield from index_cells(repeats)


def _after_image(subject: LocalSubject) -> int:
    """Length of the conversation up to the end of its image."""
    span = subject.session.positions.spans[0]
    return int(span.stop) + 1


def _subject(bundle: Path | None) -> LocalSubject:
    if bundle is None:
        raise BenchError("this scenario needs a bundle: --bundle DIR (gog-edge bench make-checkpoint makes one)")
    return LocalSubject(bundle)


PIECES: dict[str, Piece] = {
    "crop": crop,
    "load": load,
    "questions": questions,
    "camera": camera,
    "search": search,
    "index": index,
}
