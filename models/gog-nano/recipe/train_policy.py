"""Phases 2 and 3: the decoder. ``--phase text`` has no pictures (tool syntax, copying, choosing, reading); ``--phase
joint`` adds the glance and the crops, as the frozen tower sees them, and learns the list of what stands where.

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

from . import cache, optim, samples, vocabulary
from . import start as start_weights
from .batches import Batch, Feeder
from .faces import FaceTable
from .model import Dims, Nano
from .questions import climb
from .samples import Encoded
from .train_vision import DenseHead, cell_labels, dense_loss

BLIND_FOREIGN = 0.75  # share of conversations without pictures whose results hold foreign text


class Maker:
    """Number -> (row of the cache or -1, encoded conversation). Every number gives the same conversation again."""

    def __init__(self, options: argparse.Namespace, tokenizer: Tokenizer) -> None:
        self.options, self.tokenizer = options, tokenizer
        self.index = samples.open_index(options.index)
        self.joint = options.phase == "joint"
        self.shards = cache.Shards(options.cache) if self.joint else None
        self.faces = FaceTable(options.faces) if self.joint else None
        self.rows: list[int] = []
        if self.shards is not None and self.faces is not None:
            rows = self.shards.kept() if options.kept else self.shards.training()
            self.rows = [r for r in rows if self.faces.has(r) and len(self.shards.rows[r]["items"]) <= options.items]

    def __call__(self, number: int) -> tuple[int, Encoded]:
        rng = np.random.default_rng([29, number])
        roll = rng.random()
        if roll < self.options.echo:
            return -1, echo(rng, self.tokenizer)
        if roll < self.options.echo + self.options.compare:
            return -1, compare(rng, self.tokenizer)
        if self.shards is None or self.faces is None:
            return self.blind(number, rng)
        if rng.random() < self.options.blind:
            return self.lean(self.blind(number, rng), rng)
        row = self.rows[int(rng.integers(len(self.rows)))]
        scene = cache.scene_of(self.shards.rows[row])
        faces = samples.Faces(rng, self.faces.ranks(row, scene))
        talk = samples.converse(scene, rng, faces, self.index, invent=self.options.invent)
        short = bool(rng.random() < self.options.short)
        made = row, samples.encode(talk, self.tokenizer, with_images=True, short=short)
        return self.lean(made, rng) if short else made

    def lean(self, made: tuple[int, Encoded], rng: np.random.Generator) -> tuple[int, Encoded]:
        return (made[0], samples.bare(made[1], self.tokenizer)) if rng.random() < self.options.bare else made

    def blind(self, number: int, rng: np.random.Generator) -> tuple[int, Encoded]:
        """A conversation without its pictures: cheap practice of choosing, calling, reading and copying."""
        scene = cache.scene_plan(10_000_000 + number)
        talk = samples.converse(
            scene,
            rng,
            samples.Faces(rng),
            self.index,
            invent=max(0.7, self.options.invent),
            foreign_share=BLIND_FOREIGN,
        )
        if rng.random() < self.options.reading and samples.reading(talk):
            return -1, samples.encode(talk, self.tokenizer, with_images=False)
        short = bool(rng.random() < self.options.short)
        return -1, samples.encode(talk, self.tokenizer, with_images=False, short=short)


def echo(rng: np.random.Generator, tokenizer: Tokenizer) -> Encoded:
    """A run of random words, then the same again: the quickest way to attention heads that copy. Often of few different
    words, where what stood before does not say what comes next and only the place does ("2,521,521,139")."""
    n = int(rng.integers(8, 120))
    ids = rng.integers(0, tokenizer.size - 24, n).tolist()
    cut = int(rng.integers(0, n // 2))
    if rng.random() < 0.5:
        few, n, cut = rng.choice(ids, int(rng.integers(2, 9))), int(rng.integers(6, 48)), 0
        ids = [int(i) for i in rng.choice(few, n)]
    again = ids[cut:]
    return Encoded(ids + again, [-100] * (n + 1) + again[1:], [])


def compare(rng: np.random.Generator, tokenizer: Tokenizer) -> Encoded:
    """Which of several corners is the highest or lowest, five times over: scenes alone ask it too seldom."""
    out = Encoded([], [], [])
    for _ in range(5):
        way = str(rng.choice(["highest", "lowest"], p=[0.65, 0.35]))  # the former is learned later
        corners = [
            (25 * int(rng.integers(0, 34)), 25 * int(rng.integers(0, 36))) for _ in range(int(rng.integers(2, 6)))
        ]
        for words, learn in [(f"Target {way}", False), *climb(sorted(corners), way), (".\n", False)]:
            ids = tokenizer.encode_control(words)
            out.ids += ids
            out.labels += ids if learn else [-100] * len(ids)
    return out


class Memory:
    """Pictures of a batch as the frozen tower saw them once (``faces``), to put in place of the image tokens."""

    def __init__(self, shards: cache.Shards, faces: FaceTable) -> None:
        self.shards, self.faces = shards, faces
        self.labels: dict[int, np.ndarray] = {}

    def dense(self, rows: list[int]) -> Tensor:
        for row in rows:
            if row not in self.labels:
                self.labels[row] = cell_labels(self.shards.rows[row])
        return torch.from_numpy(np.stack([self.labels[r] for r in rows]))

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, list[Tensor], Tensor, list[int]]:
        """Flat positions [m], features [m, H], DeepStack features [m, H] a level; flat positions of the glances' cells
        and the rows of the glances."""
        where, cells, glances = [], [], []
        for first, number, crop, rows, columns in batch.slots:
            where.append(torch.arange(first, first + rows * columns))
            cells.append(self.faces.features(batch.rows[number], crop, rows * columns))
            if crop is None:
                glances.append((first, batch.rows[number]))
        main, *deep = torch.cat(cells).unbind(1)
        flat = (torch.tensor([f for f, _ in glances])[:, None] + torch.arange(108)).flatten()
        return torch.cat(where), main, deep, flat, [r for _, r in glances]


def token_weights(tokenizer: Tokenizer, size: int) -> Tensor:
    """How much each token counts in the loss. Coordinates less: most wrong tokens are roundings of box edges,
    where a step more or less does no harm. The numbers of carriers more: one says which flag is meant."""
    weights = torch.ones(size)
    for word in vocabulary.coordinates():
        weights[tokenizer.encode_control(word + ",")[0]] = 0.4
    for digit in "12345":
        weights[tokenizer.encode_control(digit)[0]] = 3.0
    return weights


def losses(
    net: Nano, batch: Batch, memory: Memory | None, head: nn.Module | None, weights: Tensor, hard_weight: float
) -> tuple[Tensor, dict[str, float]]:
    x = net.language_model.embed_tokens(batch.ids)
    deep = None
    seeing = memory is not None and bool(batch.slots)
    if memory is not None and seeing:
        where, features, levels, spots, rows = memory(batch)
        x = x.view(-1, x.shape[-1]).index_copy(0, where, features).view(x.shape)
        deep = [(where, level) for level in levels]
    hidden = net.language_model(x, batch.positions, deep)
    at = (batch.labels[:, 1:] != -100).nonzero(as_tuple=True)
    target = batch.labels[:, 1:][at]
    logits = net.language_model.logits(hidden[at]).float()
    weight = weights[target] * (1 + (hard_weight - 1) * batch.hard[:, 1:][at])
    loss = (F.cross_entropy(logits, target, reduction="none") * weight).sum() / weight.sum()
    right = logits.argmax(-1) == target
    hard = right[batch.hard[:, 1:][at]]
    figures = {"loss": loss.item(), "right": float(right.float().mean()), "hard": float(hard.float().mean())}
    if memory is not None and seeing and head is not None:
        cells = hidden.view(-1, hidden.shape[-1])[spots].view(len(rows), 108, -1)
        read, inside = dense_loss(head(cells), memory.dense(rows))
        loss = loss + 0.04 * read
        figures |= {"cells": inside["x0"], "cell-rank": inside["rank"], "seeing": figures["right"]}
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
    net.language_model.fuse()
    joint = options.phase == "joint"
    saved = torch.load(options.resume, weights_only=False) if options.resume.exists() else None
    if options.vision and options.vision.exists():
        load_tower(net, options.vision)
    net.visual.requires_grad_(False)
    head = DenseHead(dims.hidden).to(torch.bfloat16) if joint else None
    both = nn.ModuleDict({"net": net} | ({"dense": head} if head else {}))
    masters = optim.Masters(both, options.lr, options.lr * 0.6)
    start = 0
    if saved is not None:
        masters.load(saved["masters"])
        start = saved["step"]
    elif options.begin:
        optim.begin(masters, options.begin)
    make = Maker(options, tokenizer)
    feeder = Feeder(
        make,
        options.seed * 10_000_000 + rank + ranks * saved["seen"] if saved else options.seed * 10_000_000 + rank,
        ranks,
        options.tokens,
        tokenizer.special["<|endoftext|>"],
    )
    feeder.start()
    memory = Memory(make.shards, make.faces) if make.shards is not None and make.faces is not None else None
    weights = token_weights(tokenizer, dims.vocab)
    began, window, count = time.time(), [], 0
    log = options.log.open("a") if rank == 0 else None
    for step in range(start, options.steps):
        batch = feeder.get()
        loss, figures = losses(net, batch, memory, head, weights, options.hard)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", choices=["text", "joint"], required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--index", type=Path, required=True, help="text index built from world/documents.jsonl")
    parser.add_argument("--cache", type=Path, help="rendered scenes (joint)")
    parser.add_argument("--faces", type=Path, help="what the tower makes of the scenes: recipe.faces (joint)")
    parser.add_argument("--vision", type=Path, help="checkpoint of the tower (joint)")
    parser.add_argument("--begin", type=Path, help="start from the weights of this checkpoint")
    parser.add_argument("--resume", type=Path, required=True, help="checkpoint, written and read")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--tokens", type=int, default=6144, help="a process and step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--invent", type=float, default=0.5, help="share of conversations with made-up names (joint)")
    parser.add_argument("--echo", type=float, default=0.1, help="share of copying exercises")
    parser.add_argument("--compare", type=float, default=0.0, help="share of exercises in comparing heights")
    parser.add_argument("--blind", type=float, default=0.0, help="share of conversations without pictures (joint)")
    parser.add_argument("--reading", type=float, default=0.0, help="share of blind ones cut to their text searches")
    parser.add_argument("--short", type=float, default=0.0, help="share of conversations cut after the first turn")
    parser.add_argument("--bare", type=float, default=0.0, help="share of short and blind ones without system message")
    parser.add_argument("--warmup", type=int, default=40)
    parser.add_argument(
        "--hard", type=float, default=3.0, help="weight of tokens that plain induction gets wrong (batches.hard_copies)"
    )
    parser.add_argument("--items", type=int, default=5, help="most carriers in a scene (joint; curriculum)")
    parser.add_argument("--keep", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--port", type=int, default=29622)
    parser.set_defaults(kept=False)
    options = parser.parse_args()
    optim.run(train, options.ranks, options)


if __name__ == "__main__":
    main()
