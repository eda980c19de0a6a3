"""How well a joint checkpoint predicts the teacher's tokens (teacher forcing), by kind of token. A quick look while
training; the measure that counts is ``evaluate.py``."""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from gog_edge.runtime.tokenizer import Tokenizer

from . import batches, draw, train_policy, weights
from .geometry import STEP

_COORDINATE = re.compile(r"^(?: \[|, )(\d+)$")


def kind_of(token: str, inside_list: bool) -> str:
    if _COORDINATE.match(token):
        return "box in list" if inside_list else "box in call"
    word = token.strip()
    if inside_list:
        for name, words in (("kind", draw.KINDS), ("colour", draw.COLOURS), ("size", ("small", "medium", "large"))):
            if word in words:
                return name
        return "list form"
    return "target" if word.isdigit() else "rest"


@torch.no_grad()
def probe(options: argparse.Namespace) -> dict[str, float]:
    tokenizer = Tokenizer.load(options.tokenizer / "tokenizer.json")
    net = weights.load_net(options.checkpoint).bfloat16()
    net.language_model.inverse = net.language_model.inverse.float()
    make = train_policy.Maker(options, tokenizer)
    assert make.shards is not None and make.faces is not None
    memory = train_policy.Memory(make.shards, make.faces)
    right: dict[str, list[bool]] = defaultdict(list)
    for group in range(options.count // 12):
        batch = batches.collate([make(900_000_000 + 12 * group + i) for i in range(12)], 0)
        where, features, levels, *_ = memory(batch)
        x = net.language_model.embed_tokens(batch.ids)
        x = x.view(-1, x.shape[-1]).index_copy(0, where, features).view(x.shape)
        hidden = net.language_model(x, batch.positions, [(where, level) for level in levels])
        for row in range(len(batch.rows)):
            at = (batch.labels[row, 1:] != -100).nonzero().flatten()
            want = batch.labels[row, 1:][at].tolist()
            said = net.language_model.logits(hidden[row, at]).argmax(-1).tolist()
            inside = True
            for w, s in zip(want, said, strict=True):
                token = tokenizer.decode([w])
                inside = inside and token not in ("Target", "</think>", "Not", "One")
                kind = kind_of(token, inside)
                right[kind].append(w == s)
                a, b = _COORDINATE.match(token), _COORDINATE.match(tokenizer.decode([s]))
                if a:
                    right[f"{kind} within one"].append(bool(b) and abs(int(a[1]) - int(b[1])) <= STEP if b else False)
    return {kind: round(float(np.mean(v)), 4) for kind, v in sorted(right.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    for name in ("tokenizer", "index", "cache", "faces"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--count", type=int, default=60)
    parser.set_defaults(phase="joint", items=5, invent=0.5, echo=0.0, blind=0.0, short=0.0, bare=0.0, kept=True)
    torch.set_num_threads(1)
    for kind, share in probe(parser.parse_args()).items():
        print(f"{kind:24s} {share:.4f}")


if __name__ == "__main__":
    main()
