"""Rendered scenes kept on disk: glances as shown to the policy and crops of every item, raw uint8, with their plans.

A shard ``NNNN`` is ``NNNN.glance.npy`` [n, 288, 384, 3], ``NNNN.crops.bin`` (crops one after another) and
``NNNN.jsonl`` (one scene a line; each crop with its offset, shape and 0..1000 box). Shards are written whole, so a
stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from . import geometry, scenes, world

SHARD = 250
GLANCE = (384, 288)
KEPT = 500


def shrink(image: Image.Image, box: geometry.Box | None, limits: tuple[int, int]) -> np.ndarray:
    """A crop (or the whole image) as the policy is shown it: uint8 [h, w, 3], antialiased bicubic."""
    box = box or (0.0, 0.0, float(image.width), float(image.height))
    size = geometry.smart_resize(box[2] - box[0], box[3] - box[1], limits)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box))


def scene_plan(seed: int) -> scenes.Scene:
    """The training scene of a seed: cluttered scenes, single flags, photographs; nothing that is held out."""
    rng = np.random.default_rng([17, seed])
    roll = rng.random()
    if roll < 0.05:
        return scenes.plan(seed, [e.id for e in world.photos(False)], kind=scenes.PHOTO)
    pool = [e.id for e in world.flags(False)]
    if roll < 0.17:
        return scenes.plan(seed, pool, kind=scenes.SINGLE)
    return scenes.plan(seed, pool, made_up=0.12)


def _jitter(box: tuple[int, int, int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    shift = rng.integers(-1, 2, 4) * geometry.STEP
    x0, y0, x1, y1 = (int(np.clip(v + d, 0, 1000)) for v, d in zip(box, shift, strict=True))
    return (x0, y0, x1, y1) if x1 - x0 >= 75 and y1 - y0 >= 75 else box


def _empty_box(scene: scenes.Scene, rng: np.random.Generator) -> tuple[int, int, int, int] | None:
    for _ in range(20):
        w, h = int(rng.integers(5, 11)) * 25, int(rng.integers(5, 11)) * 25
        x, y = int(rng.integers(0, (1000 - w) // 25)) * 25, int(rng.integers(0, (1000 - h) // 25)) * 25
        box = (x, y, x + w, y + h)
        crop = geometry.to_pixels(box, scenes.WIDTH, scenes.HEIGHT)
        if all(geometry.holds(crop, item.box) < 0.02 for item in scene.items):
            return box
    return None


def _record(seed: int, sink: BinaryIO) -> tuple[np.ndarray, dict[str, Any]]:
    rng = np.random.default_rng([19, seed])
    image, scene = scenes.render(scene_plan(seed))
    crops: list[dict[str, Any]] = []

    def add(item: int, role: str, box: tuple[int, int, int, int]) -> None:
        pixels = shrink(image, geometry.to_pixels(box, image.width, image.height), geometry.GAZE_PIXELS)
        crops.append({"item": item, "role": role, "box": box, "offset": sink.tell(), "shape": list(pixels.shape)})
        sink.write(pixels.tobytes())

    for index, item in enumerate(scene.items):
        best = geometry.expert_box(item.box, image.width, image.height)
        if scene.type == scenes.CLUTTERED:
            add(index, "expert", best)
            add(index, "jitter", _jitter(best, rng))
    empty = _empty_box(scene, rng) if scene.type == scenes.CLUTTERED else None
    if empty is not None:
        add(-1, "empty", empty)
    return shrink(image, None, geometry.GLANCE_PIXELS), {**asdict(scene), "crops": crops}


def write_shard(folder: Path, number: int) -> None:
    stem = folder / f"{number:04d}"
    if stem.with_suffix(".jsonl").exists():
        return
    glances, rows = [], []
    with stem.with_suffix(".crops.bin").open("wb") as sink:
        for seed in range(number * SHARD, (number + 1) * SHARD):
            glance, row = _record(seed, sink)
            glances.append(glance)
            rows.append(row)
    np.save(stem.with_suffix(".glance.npy"), np.stack(glances))
    part = stem.with_suffix(".part")
    part.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    part.rename(stem.with_suffix(".jsonl"))


def scene_of(row: dict[str, Any]) -> scenes.Scene:
    """The rendered scene of a row, with the boxes that its flags really cover."""
    items = tuple(scenes.Item(**{**i, "box": tuple(i["box"])}) for i in row["items"])
    return scenes.Scene(row["seed"], row["type"], items)


class Shards:
    """Reads what is there; ``refresh`` picks up shards written since."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        self._glances: list[np.ndarray] = []
        self._crops: list[np.ndarray] = []
        self._done: set[str] = set()
        self.refresh()

    def refresh(self) -> int:
        for path in sorted(self.folder.glob("[0-9]*.jsonl")):
            if path.stem in self._done:
                continue
            self._done.add(path.stem)
            stem = self.folder / path.stem
            self.rows += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            self._glances.append(np.load(stem.with_suffix(".glance.npy"), mmap_mode="r"))
            self._crops.append(np.memmap(stem.with_suffix(".crops.bin"), np.uint8, "r"))
        return len(self.rows)

    def kept(self) -> range:
        """Scenes kept out of training, to validate on."""
        return range(len(self.rows) - min(KEPT, len(self.rows) // 20), len(self.rows))

    def training(self) -> range:
        return range(self.kept().start)

    def clear(self, row: int) -> bool:
        """Whether the order from the left is clear (``scenes.APART``; scenes drawn before that rule may break it)."""
        centres = [(i["box"][0] + i["box"][2]) / 2 for i in self.rows[row]["items"]]
        return all(b - a >= scenes.APART for a, b in itertools.pairwise(centres))

    def glance(self, row: int) -> np.ndarray:
        return np.asarray(self._glances[row // SHARD][row % SHARD])

    def crop(self, row: int, crop: dict[str, Any]) -> np.ndarray:
        h, w, c = crop["shape"]
        flat = self._crops[row // SHARD][crop["offset"] : crop["offset"] + h * w * c]
        return np.asarray(flat).reshape(h, w, c)

    def crops(self, role: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, row in enumerate(self.rows):
            for crop in row["crops"]:
                if crop["role"] == role:
                    yield index, crop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shards", type=int, default=48, help=f"{SHARD} scenes each")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for number in range(options.shards):
        write_shard(options.out, number)


if __name__ == "__main__":
    main()
