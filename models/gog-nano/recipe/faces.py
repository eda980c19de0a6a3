"""What a finished tower makes of the cached scenes: the features of every picture a conversation may show, and what its
own search finds for every item. Made once a tower; the joint phase then trains the decoder without running the tower.

A shard ``NNNN`` is ``NNNN.npy`` (int16 [cells, levels, H]: bfloat16 bits; level 0 the merged features, then DeepStack)
and ``NNNN.jsonl``: one scene a line with its row, the first cell of the glance and of every teacher's crop, and for the
whole image or every item the best pictures of the index (with cosine), cut as the runtime's index cuts its results.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gog_edge.search.local.rank import dynamic_count

from . import cache, optim, retrieval, scenes
from .model import Dims, Nano

KEEP_IMAGE = 0.5  # as in runtime/search/index/local_index.py
BATCH = 48
Box = tuple[int, int, int, int]


class FaceTable:
    """Reads what ``write`` has written."""

    def __init__(self, folder: Path) -> None:
        self._rows: dict[int, dict[str, Any]] = {}
        self._cells: dict[int, np.ndarray] = {}
        for path in sorted(folder.glob("[0-9]*.jsonl")):
            self._cells[int(path.stem)] = np.load(path.with_suffix(".npy"), mmap_mode="r")
            for line in path.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                self._rows[record["row"]] = record

    def has(self, row: int) -> bool:
        return row in self._rows

    def ranks(self, row: int, scene: scenes.Scene) -> dict[tuple[int, Box | None], list[tuple[str, float]]]:
        from .questions import box_of

        hits = [[(k, s) for k, s in found] for found in self._rows[row]["hits"]]
        if scene.type != scenes.CLUTTERED:
            return {(0, None): hits[0]}
        return {(i, box_of(item)): hits[i] for i, item in enumerate(scene.items)}

    def features(self, row: int, crop: Box | None, count: int) -> Tensor:
        """The ``count`` cells of the glance or of a teacher's crop, bfloat16 [count, levels, H]."""
        first = self._rows[row]["cells"]["glance" if crop is None else str(list(crop))]
        return torch.from_numpy(np.array(self._cells[row // cache.SHARD][first : first + count])).view(torch.bfloat16)


def cut(scores: np.ndarray, ids: list[str]) -> list[tuple[str, float]]:
    """The results that the index would show of all its scores [N]."""
    order = np.argsort(-scores)[:32]
    count = dynamic_count([float(scores[i]) for i in order], 3, keep=KEEP_IMAGE)
    return [(ids[i], round(float(scores[i]), 3)) for i in order[:count]]


@torch.no_grad()
def write_shard(shards: cache.Shards, net: Nano, ids: list[str], keys: np.ndarray, number: int, out: Path) -> None:
    stem = out / f"{number:04d}"
    if stem.with_suffix(".jsonl").exists():
        return
    rows = [r for r in range(number * cache.SHARD, (number + 1) * cache.SHARD) if shards.clear(r)]
    records = {r: {"row": r, "cells": {}, "hits": [[] for _ in shards.rows[r]["items"]]} for r in rows}
    # pictures of one size together: (row, name of its cells or None, item to search with or -1, pixels)
    groups: dict[tuple[int, ...], list[tuple[int, str | None, int, np.ndarray]]] = {}
    for row in rows:
        glance = shards.glance(row)
        groups.setdefault(glance.shape, []).append((row, "glance", -1, glance))
        if shards.rows[row]["type"] != scenes.CLUTTERED:
            pixels = retrieval.index_picture(Image.fromarray(glance))
            groups.setdefault(pixels.shape, []).append((row, None, 0, pixels))
        for crop in shards.rows[row]["crops"]:
            if crop["role"] == "expert":
                name = str(list(crop["box"]))
                groups.setdefault(tuple(crop["shape"]), []).append((row, name, crop["item"], shards.crop(row, crop)))
    cells: list[np.ndarray] = []
    at = 0
    for members in groups.values():
        for begin in range(0, len(members), BATCH):
            part = members[begin : begin + BATCH]
            main, deep = net.visual(torch.from_numpy(np.stack([p for *_, p in part])))
            assert deep is not None
            every = torch.stack([main, *deep], 2).view(torch.int16).numpy()
            scores = F.normalize(main.float().mean(1), dim=-1).numpy() @ keys.T
            for (row, name, item, _), line, mine in zip(part, scores, every, strict=True):
                if item >= 0:
                    records[row]["hits"][item] = cut(line, ids)
                if name is not None:
                    records[row]["cells"][name] = at
                    cells.append(mine)
                    at += len(mine)
    np.save(stem.with_suffix(".npy"), np.concatenate(cells))
    partial = stem.with_suffix(".part")
    partial.write_text("".join(json.dumps(records[r]) + "\n" for r in rows), encoding="utf-8")
    partial.replace(stem.with_suffix(".jsonl"))


def work(rank: int, ranks: int, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    from .train_policy import load_tower

    net = Nano(Dims()).to(torch.bfloat16)
    load_tower(net, options.vision)
    shards = cache.Shards(options.cache)
    found, vectors = retrieval.index_vectors(net.visual)
    train_only = [i for i, e in enumerate(found) if not e.held_out]  # training never sees what is held out
    ids, keys = [found[i].id for i in train_only], vectors[train_only].numpy()
    for number in range(rank, len(shards.rows) // cache.SHARD, ranks):
        write_shard(shards, net, ids, keys, number, options.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--vision", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    optim.run(work, options.ranks, options)


if __name__ == "__main__":
    main()
