"""Phase 1: the vision tower. Dense labels for every merged cell, and retrieval with the pooled features.

Dense: what flag lies under a cell (is there one, its carrier's kind and colour, its size, the four coordinates of the
box that a teacher would write). Retrieval: crops as a gaze makes them (rendered scenes, jittered boxes, made-up
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


class DenseHead(nn.Module):
    """Linear read-outs of one cell: presence 1, kind, colour, size, four coordinates, place from the left.
    Dropped after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_head = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1 + len(KIND) + len(COLOUR) + len(SIZE) + 4 * BINS + RANKS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm_head(x))


def cell_labels(row: dict[str, Any]) -> np.ndarray:
    """[108, 9] int: presence, kind, colour, size, x0, y0, x1, y1 (grid steps), place from the left; -100: no label."""
    labels = np.full((CELLS[0] * CELLS[1], 9), -100, np.int64)
    labels[:, 0] = 0
    if row["type"] != scenes.CLUTTERED:
        labels[:, 0] = -100
        return labels
    best = np.zeros(len(labels))
    cell_w, cell_h = scenes.WIDTH / CELLS[1], scenes.HEIGHT / CELLS[0]
    for rank, item in enumerate(row["items"]):
        box = item["box"]
        grid = [v // geometry.STEP for v in geometry.expert_box(tuple(box), scenes.WIDTH, scenes.HEIGHT)]
        values = [1, KIND[item["kind"]], COLOUR[item["colour"]], SIZE[item["size"]], *grid, rank]
        for index in range(len(labels)):
            r, c = divmod(index, CELLS[1])
            cell = (c * cell_w, r * cell_h, (c + 1) * cell_w, (r + 1) * cell_h)
            share = geometry.holds(tuple(box), cell)
            if share > max(0.3, best[index]):
                best[index] = share
                labels[index] = values
            elif 0.05 < share <= 0.3 and best[index] == 0:
                labels[index, 0] = -100
    return labels


def dense_loss(out: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
    out, labels = out.float().flatten(0, 1), labels.flatten(0, 1)
    parts = out.split([1, len(KIND), len(COLOUR), len(SIZE), BINS, BINS, BINS, BINS, RANKS], 1)
    known = labels[:, 0] >= 0
    loss = 2.0 * F.binary_cross_entropy_with_logits(parts[0][known, 0], labels[known, 0].float())
    figures = {}
    on = labels[:, 0] == 1
    for name, part, column in (
        ("kind", 1, 1),
        ("colour", 2, 2),
        ("size", 3, 3),
        ("x0", 4, 4),
        ("y0", 5, 5),
        ("x1", 6, 6),
        ("y1", 7, 7),
        ("rank", 8, 8),
    ):
        logits, target = parts[part][on], labels[on, column]
        loss = loss + F.cross_entropy(logits, target) * (0.35 if 4 <= part < 8 else 0.5)
        near = (logits.argmax(1) - target).abs() <= (1 if 4 <= part < 8 else 0)
        figures[name] = float(near.float().mean())
    figures["present"] = float(((parts[0][known, 0] > 0) == (labels[known, 0] == 1)).float().mean())
    return loss, figures


class Loader(threading.Thread):
    """Makes batches ahead of time."""

    def __init__(self, shards: cache.Shards, seed: int, glances: int, pairs: int) -> None:
        super().__init__(daemon=True)
        self.shards, self.glances, self.pairs = shards, glances, pairs
        self.rng = np.random.default_rng(seed)
        self.queue: queue.Queue[dict[str, Tensor]] = queue.Queue(6)
        self.by_grid: dict[tuple[int, int], dict[str, list[tuple[int, dict[str, Any]]]]] = {}
        for role in ("expert", "jitter"):
            for row, crop in shards.crops(role):
                key = shards.rows[row]["items"][crop["item"]]["entity"]
                grid = self.by_grid.setdefault((crop["shape"][0], crop["shape"][1]), {})
                grid.setdefault(key, []).append((row, crop))
        self.grids = [g for g, members in self.by_grid.items() if len(members) >= pairs]
        weights = np.array([sum(len(v) for v in self.by_grid[g].values()) for g in self.grids], float)
        self.grid_weights = (weights / weights.sum()) ** 0.7 / ((weights / weights.sum()) ** 0.7).sum()
        self.singles = [i for i, r in enumerate(shards.rows) if r["type"] != scenes.CLUTTERED]
        self.labels: dict[int, np.ndarray] = {}

    def run(self) -> None:
        while True:
            self.queue.put(self.batch())

    def batch(self) -> dict[str, Tensor]:
        rng, shards = self.rng, self.shards
        rows = rng.integers(0, len(shards.rows), self.glances)
        for row in rows:
            if int(row) not in self.labels:
                self.labels[int(row)] = cell_labels(shards.rows[int(row)])
        glances = np.stack([shards.glance(int(r)) for r in rows])
        labels = np.stack([self.labels[int(r)] for r in rows])
        grid = self.grids[int(rng.choice(len(self.grids), p=self.grid_weights))]
        members = self.by_grid[grid]
        crops, pictures = [], []
        real = [k for k in members if not k.startswith("made-")]
        made = [k for k in members if k.startswith("made-")]
        chosen = list(rng.permutation(real)[: self.pairs * 3 // 4])
        chosen += list(rng.permutation(made)[: self.pairs - len(chosen)])
        for key in chosen:
            row, crop = members[key][int(rng.integers(len(members[key])))]
            crops.append(_augment(shards.crop(row, crop), rng))
            pictures.append(retrieval.index_picture(world.picture(key)))
        singles = rng.choice(self.singles, 4, replace=False)
        return {
            "glances": torch.from_numpy(glances),
            "labels": torch.from_numpy(labels),
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
    scores = queries.float() @ keys.float().T / temperature
    target = torch.arange(len(scores))
    loss = 0.5 * (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target))
    return loss, float((scores.argmax(1) == target).float().mean())


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
    shards = cache.Shards(options.cache)
    loader = Loader(shards, 100 + rank + 7 * start, options.glances, options.pairs)
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
        scale = optim.schedule(step, options.steps)
        norm = masters.step(scale)
        figures |= {"loss": loss.item(), "contrast": searching.item(), "recall": recall, "norm": norm}
        window.append(figures)
        if log and (step + 1) % options.every == 0:
            mean = {k: round(float(np.mean([w[k] for w in window])), 4) for k in figures}
            row = {"step": step + 1, "seconds": round(time.time() - began), "lr": round(scale, 3), **mean}
            if (step + 1) % (5 * options.every) == 0 or step + 1 == options.steps:
                row |= retrieval.evaluate(net, held_out=True)
                optim.save(options.resume, {"masters": masters.state(), "step": step + 1, "dims": asdict(dims)})
            csv.writer(log).writerow([f"{k}={v}" for k, v in row.items()])
            log.flush()
            window = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--resume", type=Path, required=True, help="checkpoint, written and read")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--glances", type=int, default=6, help="a process and step")
    parser.add_argument("--pairs", type=int, default=40, help="a process and step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--contrast", type=float, default=1.0)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--port", type=int, default=29611)
    options = parser.parse_args()
    optim.run(train, options.ranks, options)


if __name__ == "__main__":
    main()
