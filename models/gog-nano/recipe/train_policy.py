"""Phases 2 and 3: the decoder. ``--phase text`` has no pictures (tool syntax, copying, choosing, reading); ``--phase
joint`` adds the glance and the crops through the tower and learns the list of what stands where.

Loss on what the policy writes only. In the joint phase every glance position also predicts, from the decoder's hidden
state, what lies under it (the tower's dense labels): cheap supervision of the language side.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gog_edge.runtime.tokenizer import Tokenizer

from . import cache, optim, samples
from . import start as start_weights
from .batches import Batch, Feeder
from .faces import FaceTable
from .model import Dims, Nano
from .samples import Encoded
from .train_vision import DenseHead, Loader, cell_labels, contrast, dense_loss


class Maker:
    """Number -> (row of the cache or -1, encoded conversation). Every number gives the same conversation again."""

    def __init__(self, options: argparse.Namespace, tokenizer: Tokenizer) -> None:
        self.options, self.tokenizer = options, tokenizer
        self.index = samples.open_index(options.index)
        self.joint = options.phase == "joint"
        self.shards = cache.Shards(options.cache) if self.joint else None
        self.faces = FaceTable(options.faces) if self.joint else None

    def __call__(self, number: int) -> tuple[int, Encoded]:
        rng = np.random.default_rng([29, number])
        if self.shards is None or self.faces is None:
            if rng.random() < self.options.echo:
                return -1, echo(rng, self.tokenizer)
            return self.blind(number, rng)
        if rng.random() < self.options.blind:
            return self.blind(number, rng)
        row = int(rng.integers(len(self.shards.rows)))
        while not self.faces.has(row) or len(self.shards.rows[row]["items"]) > self.options.items:
            row = int(rng.integers(len(self.shards.rows)))
        scene = cache.scene_of(self.shards.rows[row])
        faces = samples.Faces(rng, self.faces.ranks(row, scene))
        talk = samples.converse(scene, rng, faces, self.index, invent=self.options.invent)
        return row, samples.encode(talk, self.tokenizer, with_images=True)

    def blind(self, number: int, rng: np.random.Generator) -> tuple[int, Encoded]:
        """A conversation without its pictures: cheap practice of choosing, calling, reading and copying."""
        scene = cache.scene_plan(10_000_000 + number)
        talk = samples.converse(scene, rng, samples.Faces(rng), self.index, invent=max(0.7, self.options.invent))
        return -1, samples.encode(talk, self.tokenizer, with_images=False)


def echo(rng: np.random.Generator, tokenizer: Tokenizer) -> Encoded:
    """A run of random words, then the same again: the quickest way to attention heads that copy."""
    n = int(rng.integers(8, 60))
    ids = rng.integers(0, tokenizer.size - 24, n).tolist()
    cut = int(rng.integers(0, n // 2))
    again = ids[cut:]
    return Encoded(ids + again, [-100] * (n + 1) + again[1:], [])


class Eyes:
    """Pictures of a batch through the tower, as rows to put in place of the image tokens.

    With ``heads`` (and an unfrozen tower) it also takes the tower's own losses, so that it goes on learning where
    things are and how flags look (phase 1), from the same pictures.
    """

    def __init__(self, net: Nano, shards: cache.Shards, heads: nn.ModuleList | None, loader: Loader | None) -> None:
        self.net, self.shards, self.heads, self.loader = net, shards, heads, loader
        self.labels: dict[int, np.ndarray] = {}
        self.calls = 0

    def dense(self, rows: list[int]) -> Tensor:
        for row in rows:
            if row not in self.labels:
                self.labels[row] = cell_labels(self.shards.rows[row])
        return torch.from_numpy(np.stack([self.labels[r] for r in rows]))

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, list[Tensor], list[int], Tensor | None, dict[str, float]]:
        """Flat positions [m], features [m, H], DeepStack features [m, H] a level, flat positions and rows of the
        glances, the tower's loss, figures."""
        groups: dict[tuple[int, int], list[tuple[int, int, bool]]] = {}
        pictures: dict[int, np.ndarray] = {}
        for first, number, crop, rows, columns in batch.slots:
            row = batch.rows[number]
            pixels = self.shards.glance(row) if crop is None else self.shards.expert(row, crop)
            if pixels.shape[:2] != (rows * 32, columns * 32):
                raise ValueError(f"scene {row}: crop {crop} is {pixels.shape}, not {rows}x{columns} cells")
            groups.setdefault((rows, columns), []).append((first, row, crop is None))
            pictures[first] = pixels
        where, main, deep = [], [], []
        loss, figures = None, {}
        glance_at: list[int] = []
        glance_rows: list[int] = []
        with torch.set_grad_enabled(self.heads is not None):
            for (rows, columns), members in groups.items():
                features, levels = self.net.visual(torch.from_numpy(np.stack([pictures[f] for f, _, _ in members])))
                assert levels is not None
                where.append(
                    (torch.tensor([f for f, _, _ in members])[:, None] + torch.arange(rows * columns)).flatten()
                )
                main.append(features.flatten(0, 1))
                deep.append(levels.flatten(1, 2))
                if members[0][2]:  # glances have a grid of their own
                    glance_at, glance_rows = [f for f, _, _ in members], [r for _, r, _ in members]
                    if self.heads is not None:
                        labels = self.dense(glance_rows)
                        loss, figures = dense_loss(self.heads[0](features), labels)
                        for level, head in zip(levels, list(self.heads)[1:], strict=True):
                            loss = loss + 0.3 * dense_loss(head(level), labels)[0]
        self.calls += 1
        if self.loader is not None and loss is not None and self.calls % 2 == 0:
            pairs = self.loader.queue.get()
            vectors = [self.net.visual.embed(pairs[k]) for k in ("pictures", "single_pictures", "crops", "singles")]
            searching, figures["recall"] = contrast(torch.cat(vectors[2:]), torch.cat(vectors[:2]))
            loss = loss + 1.5 * searching
        flat = (torch.tensor(glance_at)[:, None] + torch.arange(108)).flatten()
        return torch.cat(where), torch.cat(main), [*torch.cat(deep, 1)], [*flat.tolist(), *glance_rows], loss, figures


def losses(net: Nano, batch: Batch, eyes: Eyes | None, head: nn.Module | None) -> tuple[Tensor, dict[str, float]]:
    x = net.language_model.embed_tokens(batch.ids)
    deep, extra = None, None
    figures: dict[str, float] = {}
    if eyes is not None and not any(crop is None for _, _, crop, _, _ in batch.slots):
        eyes = None
    if eyes is not None:
        where, features, levels, spots, extra, seen = eyes(batch)
        figures = {f"tower-{k}": v for k, v in seen.items() if k in ("kind", "x0", "rank", "recall")}
        x = x.view(-1, x.shape[-1]).index_copy(0, where, features).view(x.shape)
        deep = [(where, level) for level in levels]
    hidden = net.language_model(x, batch.positions, deep)
    at = (batch.labels[:, 1:] != -100).nonzero(as_tuple=True)
    target = batch.labels[:, 1:][at]
    logits = net.language_model.logits(hidden[at]).float()
    loss = F.cross_entropy(logits, target)
    figures = {"loss": loss.item(), "right": float((logits.argmax(-1) == target).float().mean())} | figures
    if eyes is not None and head is not None:
        count = len(spots) // 109
        cells = hidden.view(-1, hidden.shape[-1])[torch.tensor(spots[: 108 * count])].view(count, 108, -1)
        read, inside = dense_loss(head(cells), eyes.dense(spots[108 * count :]))
        loss = loss + 0.04 * read
        figures |= {"cells": inside["x0"], "cell-rank": inside["rank"]}
        if extra is not None:
            loss = loss + 0.12 * extra
    return loss, figures


def train(rank: int, ranks: int, options: argparse.Namespace) -> None:
    optim.join(rank, ranks, options.port)
    torch.manual_seed(2)
    tokenizer = Tokenizer.load(options.tokenizer / "tokenizer.json")
    dims = Dims()
    net = Nano(dims)
    start_weights.induction(net)
    net = net.to(torch.bfloat16)
    net.language_model.inverse = net.language_model.inverse.float()
    joint = options.phase == "joint"
    saved = torch.load(options.resume, weights_only=False) if options.resume.exists() else None
    if options.vision and options.vision.exists():
        load_tower(net, options.vision)
    net.visual.requires_grad_(joint and options.unfreeze)
    head = DenseHead(dims.hidden).to(torch.bfloat16) if joint else None
    heads = (
        nn.ModuleList(DenseHead(dims.hidden) for _ in range(1 + len(dims.v_deepstack))).to(torch.bfloat16)
        if joint and options.unfreeze
        else None
    )
    both = nn.ModuleDict({"net": net} | ({"dense": head} if head else {}) | ({"heads": heads} if heads else {}))
    masters = optim.Masters(both, options.lr, options.lr * 0.6)
    start = 0
    if saved is not None:
        masters.load(saved["masters"])
        start = saved["step"]
    elif options.begin:
        begin(masters, options.begin)
        if heads is not None and options.vision != options.begin:
            begin(masters, options.vision)
    make = Maker(options, tokenizer)
    feeder = Feeder(
        make,
        options.seed * 10_000_000 + rank + ranks * saved["seen"] if saved else options.seed * 10_000_000 + rank,
        ranks,
        options.tokens,
        tokenizer.special["<|endoftext|>"],
    )
    feeder.start()
    eyes = None
    if make.shards is not None:
        loader = Loader(make.shards, 900 + rank, 1, 10) if heads is not None else None
        if loader is not None:
            loader.start()
        eyes = Eyes(net, make.shards, heads, loader)
    began, window, count = time.time(), [], 0
    log = options.log.open("a") if rank == 0 else None
    for step in range(start, options.steps):
        batch = feeder.get()
        loss, figures = losses(net, batch, eyes, head)
        loss.backward()
        count += len(batch.rows)
        scale = optim.schedule(step, options.steps, warmup=options.warmup)
        figures["norm"] = masters.step(scale)
        window.append(figures)
        if log and (step + 1) % 20 == 0:
            keys = dict.fromkeys(k for w in window for k in w)
            mean = {k: round(float(np.nanmean([w[k] for w in window if k in w])), 4) for k in keys}
            row = {
                "step": step + 1,
                "seconds": round(time.time() - began),
                "seen": count * ranks,
                "lr": round(scale, 3),
                **mean,
            }
            log.write(",".join(f"{k}={v}" for k, v in row.items()) + "\n")
            log.flush()
            window = []
        if rank == 0 and ((step + 1) % options.keep == 0 or step + 1 == options.steps):
            tower = {k: v.float() for k, v in net.visual.state_dict().items()}
            payload = {
                "masters": masters.state(),
                "step": step + 1,
                "seen": feeder.next // ranks,
                "dims": asdict(dims),
                "tower": tower,
            }
            optim.save(options.resume, payload)


def load_tower(net: Nano, path: Path) -> None:
    """Copies the tower of a vision or joint checkpoint."""
    saved = torch.load(path, weights_only=False)
    if "tower" in saved:
        net.visual.load_state_dict(saved["tower"])
        return
    masters = {k.removeprefix("visual."): v for k, v in saved["masters"]["masters"].items() if k.startswith("visual.")}
    net.visual.load_state_dict(masters)


def begin(masters: optim.Masters, path: Path) -> None:
    """Starts from the weights (not the optimiser) of another phase, wherever the names agree."""
    saved = torch.load(path, weights_only=False)["masters"]["masters"]
    with torch.no_grad():
        for name, live, master in masters.pairs:
            if name in saved:
                rows = min(len(master), len(saved[name])) if master.ndim else 1
                master[:rows].copy_(saved[name][:rows])  # a read-out that has grown keeps what it had
                live.copy_(master)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", choices=["text", "joint"], required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--index", type=Path, required=True, help="text index built from world/documents.jsonl")
    parser.add_argument("--cache", type=Path, help="rendered scenes (joint)")
    parser.add_argument("--faces", type=Path, help="picture results of every item (joint)")
    parser.add_argument("--vision", type=Path, help="checkpoint of the tower (joint)")
    parser.add_argument("--begin", type=Path, help="start from the weights of this checkpoint")
    parser.add_argument("--resume", type=Path, required=True, help="checkpoint, written and read")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--tokens", type=int, default=6144, help="a process and step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--invent", type=float, default=0.5, help="share of conversations with made-up names (joint)")
    parser.add_argument("--echo", type=float, default=0.3, help="share of copying exercises (text)")
    parser.add_argument("--blind", type=float, default=0.0, help="share of conversations without pictures (joint)")
    parser.add_argument("--warmup", type=int, default=40)
    parser.add_argument("--items", type=int, default=5, help="most carriers in a scene (joint; curriculum)")
    parser.add_argument("--unfreeze", action="store_true", help="train the tower as well (joint)")
    parser.add_argument("--keep", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--port", type=int, default=29622)
    options = parser.parse_args()
    optim.run(train, options.ranks, options)


if __name__ == "__main__":
    main()
