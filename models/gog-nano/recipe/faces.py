"""What the tower's own search finds for every item of the cached scenes: made once a tower, read in the joint phase.

One line a scene: the best pictures of the index (with cosine) for the whole image or for every teacher's crop, cut as
the runtime's index cuts its results (``rank.dynamic_count``).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from gog_edge.runtime.search.index.rank import dynamic_count

from . import cache, optim, retrieval, scenes
from .model import Dims, Nano

KEEP_IMAGE = 0.5  # as in runtime/search/index/local_index.py
Box = tuple[int, int, int, int]


class FaceTable:
    def __init__(self, path: Path) -> None:
        self._rows: dict[int, list[list[tuple[str, float]]]] = {}
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                self._rows[record["row"]] = [[(k, s) for k, s in hits] for hits in record["hits"]]

    def has(self, row: int) -> bool:
        return row in self._rows

    def ranks(self, row: int, scene: scenes.Scene) -> dict[tuple[int, Box | None], list[tuple[str, float]]]:
        from .questions import box_of

        if scene.type != scenes.CLUTTERED:
            return {(0, None): self._rows[row][0]}
        return {(i, box_of(item)): self._rows[row][i] for i, item in enumerate(scene.items)}


def cut(scores: np.ndarray, ids: list[str]) -> list[tuple[str, float]]:
    """The results that the index would show of all its scores [N]."""
    order = np.argsort(-scores)[:32]
    count = dynamic_count([float(scores[i]) for i in order], 3, keep=KEEP_IMAGE)
    return [(ids[i], round(float(scores[i]), 3)) for i in order[:count]]


@torch.no_grad()
def write(shards: cache.Shards, net: Nano, out: Path) -> None:
    found, vectors = retrieval.index_vectors(net.visual)
    train_only = [i for i, e in enumerate(found) if not e.held_out]  # training never sees what is held out
    ids = [found[i].id for i in train_only]
    keys = vectors[train_only].numpy()
    groups: dict[tuple[int, ...], list[tuple[int, int, np.ndarray]]] = {}
    hits: dict[int, list[list[tuple[str, float]]]] = {}
    part = out.with_suffix(".part")
    with part.open("w", encoding="utf-8") as sink:
        for begin in range(0, len(shards.rows), cache.SHARD):
            rows = range(begin, min(begin + cache.SHARD, len(shards.rows)))
            groups.clear()
            hits.clear()
            for row in rows:
                record = shards.rows[row]
                hits[row] = [[] for _ in record["items"]]
                if record["type"] != scenes.CLUTTERED:
                    from PIL import Image

                    pixels = retrieval.index_picture(Image.fromarray(shards.glance(row)))
                    groups.setdefault(pixels.shape, []).append((row, 0, pixels))
                for crop in record["crops"]:
                    if crop["role"] == "expert":
                        groups.setdefault(tuple(crop["shape"]), []).append((row, crop["item"], shards.crop(row, crop)))
            for members in groups.values():
                for at in range(0, len(members), 64):
                    some = members[at : at + 64]
                    scores = net.visual.embed(torch.from_numpy(np.stack([p for _, _, p in some]))).numpy() @ keys.T
                    for (row, item, _), line in zip(some, scores, strict=True):
                        hits[row][item] = cut(line, ids)
            for row in rows:
                sink.write(json.dumps({"row": row, "hits": hits[row]}) + "\n")
    part.replace(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--vision", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    optim.join(0, 1, 0)
    from .train_policy import load_tower

    net = Nano(Dims()).to(torch.bfloat16)
    load_tower(net, options.vision)
    write(cache.Shards(options.cache), net, options.out)


if __name__ == "__main__":
    main()
