"""Phase 1: the vision tower. Dense labels for every merged cell, and retrieval with the pooled features.

Dense: what flag lies under a cell (is there one, its carrier's kind and colour, its size, the four coordinates of the
box that a teacher would write, its place from the left and from the right, whether this cell stands for the flag, where
the next flag begins). Places are counted by attention, which only the tower can do in both directions: the decoder reads
cells in order. One marked cell a flag gives it something to count. Retrieval: crops as a gaze makes them (rendered scenes, jittered boxes, made-up
flags) against the clean pictures of the index, InfoNCE both ways. Flags held out of training never occur, not even
as pictures of the index; recall on them is what is reported.
"""

from __future__ import annotations

import argparse
import csv
import queue
import threading
import time
from dataclasses import asdict
from functools import cache as cache_function
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from . import cache, draw, geometry, optim, retrieval, scenes, world
from .model import Dims, Nano

BINS = 1000 // geometry.STEP + 1
CELLS = (9, 12)  # rows, columns of the glance
KIND = {k: i for i, k in enumerate(draw.KINDS)}
COLOUR = {k: i for i, k in enumerate(draw.COLOURS)}
SIZE = {k: i for i, k in enumerate(scenes.SIZES)}
RANKS = 5  # places from the left
SPLIT = [1, len(KIND), len(COLOUR), len(SIZE), BINS, BINS, BINS, BINS, RANKS, RANKS, 1, BINS + 1]
# column of the labels, weight of its loss
READ = {
    "kind": (1, 0.6),
    "colour": (2, 0.4),
    "size": (3, 0.4),
    "x0": (4, 0.35),
    "y0": (5, 0.35),
    "x1": (6, 0.35),
    "y1": (7, 0.35),
    "rank": (8, 1.2),
    "right": (9, 0.6),
    "next": (11, 0.3),
}


class DenseHead(nn.Module):
    """Linear read-outs of one cell: presence, kind, colour, size, four coordinates, place from the left and from the
    right, "this cell stands for the flag", where the next flag to the right begins. Dropped after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_head = nn.LayerNorm(width)
        self.head = nn.Linear(width, sum(SPLIT))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm_head(x))


def cell_labels(row: dict[str, Any], flip: bool = False) -> np.ndarray:
    """[108, 13] int: presence, kind, colour, size, x0, y0, x1, y1 (grid steps), place from the left, from the right,
    marked cell, next x0 (grid steps; BINS: none), number of cells of the flag; -100: no label. ``flip``: of the
    mirrored picture."""
    labels = np.full((CELLS[0] * CELLS[1], 13), -100, np.int64)
    labels[:, 0] = labels[:, 10] = 0
    if row["type"] != scenes.CLUTTERED:
        labels[:, [0, 10]] = -100
        return labels
    boxes = [tuple(item["box"]) for item in row["items"]]
    items = list(zip(row["items"], boxes, strict=True))
    if flip:
        items = [(i, (scenes.WIDTH - b[2], b[1], scenes.WIDTH - b[0], b[3])) for i, b in reversed(items)]
    grids = [geometry.expert_box(b, scenes.WIDTH, scenes.HEIGHT) for _, b in items]
    shares = np.array([[geometry.holds(box, cell) for cell in _cells()] for _, box in items])
    owner = shares.argmax(0)
    for rank, (item, _) in enumerate(items):
        share = shares[rank]
        mine = (owner == rank) & (share > min(0.3, 0.9 * share.max()))
        following = grids[rank + 1][0] // geometry.STEP if rank + 1 < len(items) else BINS
        values = [1, KIND[item["kind"]], COLOUR[item["colour"]], SIZE[item["size"]]]
        values += [v // geometry.STEP for v in grids[rank]]
        labels[mine] = [*values, rank, len(items) - 1 - rank, 0, following, max(1, int(mine.sum()))]
        labels[(owner == rank) & ~mine & (share > 0.05), 0] = -100
        best = int(share.argmax())
        if mine[best]:
            labels[best, 10] = 1
    return labels


@cache_function
def _cells() -> list[tuple[float, float, float, float]]:
    w, h = scenes.WIDTH / CELLS[1], scenes.HEIGHT / CELLS[0]
    return [(c * w, r * h, (c + 1) * w, (r + 1) * h) for r in range(CELLS[0]) for c in range(CELLS[1])]


def dense_loss(out: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Loss and shares of right read-outs (coordinates: within one step). Every flag weighs the same, however large."""
    out, labels = out.float().flatten(0, 1), labels.flatten(0, 1)
    parts = out.split(SPLIT, 1)
    known = labels[:, 0] >= 0
    loss = 2.0 * F.binary_cross_entropy_with_logits(parts[0][known, 0], labels[known, 0].float())
    marked = labels[:, 10] >= 0
    loss = loss + 2.0 * F.binary_cross_entropy_with_logits(parts[10][marked, 0], labels[marked, 10].float())
    figures = {}
    on = labels[:, 0] == 1
    weight = 1.0 / labels[on, 12]
    weight = weight / weight.sum().clamp(min=1e-6)
    for name, (column, share) in READ.items():
        logits, target = parts[column][on], labels[on, column]
        loss = loss + share * (F.cross_entropy(logits, target, reduction="none") * weight).sum()
        near = (logits.argmax(1) - target).abs() <= (1 if name in ("x0", "y0", "x1", "y1", "next") else 0)
        figures[name] = float((near.float() * weight).sum())
    figures["present"] = float(((parts[0][known, 0] > 0) == (labels[known, 0] == 1)).float().mean())
    on = labels[:, 10] == 1
    figures["marked"] = float((parts[10][on, 0] > 0).float().mean())
    return loss, figures


class Loader(threading.Thread):
    """Makes batches ahead of time."""

    def __init__(self, shards: cache.Shards, seed: int, glances: int, pairs: int) -> None:
        super().__init__(daemon=True)
        self.shards, self.glances, self.pairs = shards, glances, pairs
        self.rng = np.random.default_rng(seed)
        self.rows = [i for i in shards.training() if shards.clear(i)]
        self.near: dict[str, list[str]] = {}  # hard negatives, see ``find_near``
        self.queue: queue.Queue[dict[str, Tensor]] = queue.Queue(6)
        self.by_grid: dict[tuple[int, int], dict[str, list[tuple[int, dict[str, Any]]]]] = {}
        training = set(shards.training())
        for role in ("expert", "jitter"):
            for row, crop in shards.crops(role):
                if row not in training:
                    continue
                key = shards.rows[row]["items"][crop["item"]]["entity"]
                grid = self.by_grid.setdefault((crop["shape"][0], crop["shape"][1]), {})
                grid.setdefault(key, []).append((row, crop))
        self.grids = [g for g, members in self.by_grid.items() if len(members) >= pairs]
        weights = np.array([sum(len(v) for v in self.by_grid[g].values()) for g in self.grids], float)
        self.grid_weights = (weights / weights.sum()) ** 0.7 / ((weights / weights.sum()) ** 0.7).sum()
        self.singles = [i for i in shards.training() if shards.rows[i]["type"] != scenes.CLUTTERED]
        self.labels: dict[tuple[int, bool], np.ndarray] = {}

    def run(self) -> None:
        while True:
            self.queue.put(self.batch())

    def batch(self) -> dict[str, Tensor]:
        rng, shards = self.rng, self.shards
        glances, labels = [], []
        for row in rng.choice(self.rows, self.glances):
            flip = bool(rng.random() < 0.5)
            if (int(row), flip) not in self.labels:
                self.labels[int(row), flip] = cell_labels(shards.rows[int(row)], flip)
            picture = shards.glance(int(row))
            glances.append(_light(picture[:, ::-1] if flip else picture, rng))
            labels.append(self.labels[int(row), flip])
        grid = self.grids[int(rng.choice(len(self.grids), p=self.grid_weights))]
        members = self.by_grid[grid]
        crops, pictures = [], []
        real = [k for k in members if not k.startswith("made-")]
        made = [k for k in members if k.startswith("made-")]
        chosen = self._alike(real, self.pairs * 3 // 4)
        chosen += list(rng.permutation(made)[: self.pairs - len(chosen)])
        for key in chosen:
            row, crop = members[key][int(rng.integers(len(members[key])))]
            crops.append(_augment(shards.crop(row, crop), rng))
            pictures.append(retrieval.index_picture(world.picture(key)))
        singles = rng.choice(self.singles, 4, replace=False)
        return {
            "glances": torch.from_numpy(np.stack(glances)),
            "labels": torch.from_numpy(np.stack(labels)),
            "crops": torch.from_numpy(np.stack(crops)),
            "pictures": torch.from_numpy(np.stack(pictures)),
            "singles": torch.from_numpy(
                np.stack([retrieval.index_picture(Image.fromarray(shards.glance(int(r)))) for r in singles])
            ),
            "single_pictures": torch.from_numpy(
                np.stack(
                    [retrieval.index_picture(world.picture(shards.rows[int(r)]["items"][0]["entity"])) for r in singles]
                )
            ),
        }

    def _alike(self, pool: list[str], count: int) -> list[str]:
        """``count`` different flags of the pool; about half of them come with one that is hard to tell from them."""
        rng, chosen, inside = self.rng, [], set(pool)
        for key in rng.permutation(pool):
            group = [str(key), *(k for k in rng.permutation(self.near.get(str(key), []))[:1] if k in inside)]
            chosen += [k for k in group if k not in chosen]
            if len(chosen) >= count:
                break
        return chosen[:count]


def find_near(net: nn.Module, count: int = 4) -> dict[str, list[str]]:
    """For every picture of training the ``count`` others that the tower finds most alike."""
    found, vectors = retrieval.index_vectors(net)
    keep = [i for i, e in enumerate(found) if not e.held_out]
    scores = vectors[keep] @ vectors[keep].T - 2 * torch.eye(len(keep))
    best = scores.topk(count, 1).indices.tolist()
    return {found[keep[a]].id: [found[keep[b]].id for b in near] for a, near in enumerate(best)}


def _light(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another brightness, the colours nearly as they were."""
    if rng.random() < 0.5:
        return picture
    tone = rng.uniform(0.85, 1.08) * rng.uniform(0.97, 1.03, 3)
    return np.clip(picture * tone.astype(np.float32), 0, 255).astype(np.uint8)


def _augment(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, a colour cast, sometimes a coarser picture."""
    x = crop.astype(np.float32)
    x = (x - 128) * rng.uniform(0.75, 1.15) + 128 * rng.uniform(0.75, 1.15)
    x = np.clip(x * rng.uniform(0.93, 1.07, 3), 0, 255).astype(np.uint8)
    if rng.random() < 0.2:
        image = Image.fromarray(x)
        small = image.resize((image.width // 2, image.height // 2), Image.Resampling.BILINEAR)
        x = np.asarray(small.resize(image.size, Image.Resampling.BILINEAR))
    return x


def contrast(queries: Tensor, keys: Tensor, temperature: float = 0.05) -> tuple[Tensor, float]:
    """InfoNCE both ways, and margins that make one threshold of the cosine mean the same for every flag: right pairs
    above 0.9, the most alike wrong one (made-up flags are among the queries) below 0.5. Returns loss, recall."""
    cosines = queries.float() @ keys.float().T
    target = torch.arange(len(cosines))
    scores = cosines / temperature
    loss = 0.5 * (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target))
    wrong = (cosines - 2 * torch.eye(len(cosines))).amax(1)
    loss = loss + 3.0 * (F.relu(0.9 - cosines.diagonal()).square() + F.relu(wrong - 0.5).square()).mean()
    return loss, float((scores.argmax(1) == target).float().mean())


@torch.no_grad()
def validate(net: nn.Module, head: nn.Module, shards: cache.Shards, count: int = 120) -> dict[str, float]:
    """Read-outs on scenes that are kept out of training."""
    rows = [i for i in shards.kept() if shards.rows[i]["type"] == scenes.CLUTTERED and shards.clear(i)][:count]
    sums: dict[str, float] = {}
    for at in range(0, len(rows), 12):
        part = rows[at : at + 12]
        features, _ = net(torch.from_numpy(np.stack([shards.glance(r) for r in part])), False)
        labels = torch.from_numpy(np.stack([cell_labels(shards.rows[r]) for r in part]))
        for name, share in dense_loss(head(features), labels)[1].items():
            sums[f"v-{name}"] = sums.get(f"v-{name}", 0.0) + share * len(part) / len(rows)
    return {k: round(v, 4) for k, v in sums.items()}


def train(rank: int, ranks: int, options: argparse.Namespace) -> None:
    optim.join(rank, ranks, options.port)
    torch.manual_seed(1)
    dims = Dims()
    net = Nano(dims).visual.to(torch.bfloat16)
    heads = nn.ModuleList(DenseHead(dims.hidden) for _ in range(1 + len(dims.v_deepstack))).to(torch.bfloat16)
    both = nn.ModuleDict({"visual": net, "heads": heads})
    masters = optim.Masters(both, options.lr, options.lr * 0.75)
    start = 0
    if options.resume.exists():
        saved = torch.load(options.resume, weights_only=False)
        masters.load(saved["masters"])
        start = saved["step"]
    elif options.begin:
        optim.begin(masters, options.begin, "net.")
    shards = cache.Shards(options.cache)
    loader = Loader(shards, 100 + rank + 7 * start, options.glances, options.pairs)
    loader.near = find_near(net)
    loader.start()
    log = options.log.open("a", newline="") if rank == 0 else None
    began, window = time.time(), []
    for step in range(start, options.steps):
        batch = loader.queue.get()
        features, deep = net(batch["glances"])
        loss, figures = dense_loss(heads[0](features), batch["labels"])
        for level in range(len(dims.v_deepstack)):
            loss = loss + 0.4 * dense_loss(heads[1 + level](deep[level]), batch["labels"])[0]
        vectors = [net.embed(batch[k]) for k in ("pictures", "single_pictures", "crops", "singles")]
        keys, queries = torch.cat(vectors[:2]), torch.cat(vectors[2:])
        searching, recall = contrast(queries, keys)
        total = loss + options.contrast * searching
        total.backward()
        scale = optim.schedule(step, options.steps, options.warmup)
        norm = masters.step(scale)
        figures |= {"loss": loss.item(), "contrast": searching.item(), "recall": recall, "norm": norm}
        window.append(figures)
        if log and (step + 1) % options.every == 0:
            mean = {k: round(float(np.mean([w[k] for w in window])), 4) for k in figures}
            row = {"step": step + 1, "seconds": round(time.time() - began), "lr": round(scale, 3), **mean}
            if (step + 1) % (5 * options.every) == 0 or step + 1 == options.steps:
                row |= retrieval.evaluate(net, held_out=True) | validate(net, heads[0], shards)
                optim.save(options.resume, {"masters": masters.state(), "step": step + 1, "dims": asdict(dims)})
            csv.writer(log).writerow([f"{k}={v}" for k, v in row.items()])
            log.flush()
            window = []
        if (step + 1) % 100 == 0:
            loader.near = find_near(net)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--resume", type=Path, required=True, help="checkpoint, written and read")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--glances", type=int, default=6, help="a process and step")
    parser.add_argument("--pairs", type=int, default=40, help="a process and step")
    parser.add_argument("--begin", type=Path, help="start from the tower and read-outs of this checkpoint")
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--contrast", type=float, default=1.0)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--port", type=int, default=29611)
    options = parser.parse_args()
    optim.run(train, options.ranks, options)


if __name__ == "__main__":
    main()
