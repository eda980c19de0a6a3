"""Trains the tokenizer on conversations of the teacher and on the facts of countries that are not held out."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from . import cache, samples, teacher, vocabulary, world


def text_of(talk: teacher.Conversation) -> str:
    return "".join(p.text or "".join(getattr(s, "text", "") for s in p.segments) for p in talk.pieces)


def texts(index: Path, count: int) -> list[str]:
    opened = samples.open_index(index)
    out = []
    for number in range(count):
        rng = np.random.default_rng([23, number])
        out.append(text_of(samples.converse(cache.scene_plan(number), rng, samples.Faces(rng), opened)))
    held = {e.id for e in world.entities() if e.held_out}
    facts = [f"{d['title']}\n{d['text']}" for d in world.documents() if d["id"].split("/")[1] not in held]
    return out + 2 * facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--index", type=Path, required=True, help="text index of world/documents.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--conversations", type=int, default=2500)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    vocabulary.save(vocabulary.train(texts(options.index, options.conversations)), options.out)


if __name__ == "__main__":
    main()
