"""The teacher's conversations are what the runtime itself would write and read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gog_edge.runtime.tokenizer import Tokenizer
from gog_edge.types import ActionKind, ImagePart

pytest.importorskip("torch")


def _talk(seed: int):  # type: ignore[no-untyped-def]
    from recipe import cache, samples

    rng = np.random.default_rng([1, seed])
    scene = cache.scene_plan(40_000_000 + seed)
    return samples.converse(scene, rng, samples.Faces(rng), invent=1.0)


@pytest.mark.parametrize("seed", range(30))
def test_every_turn_is_read_back(seed: int) -> None:
    from recipe import teacher

    talk = _talk(seed)
    turns = [p.text for p in talk.pieces if p.text]
    for text in turns[:-1]:
        turn = teacher.dialect().parse(text, talk.registry)
        assert [a.kind for a in turn.actions] != [ActionKind.INVALID], text
    last = teacher.dialect().parse(turns[-1], talk.registry)
    assert last.actions[0].kind is ActionKind.ANSWER
    assert last.actions[0].text.strip() == last.actions[0].text


def test_names_held_out_never_occur() -> None:
    from recipe import world

    held = [e.name for e in world.entities() if e.held_out]
    for seed in range(120):
        for piece in _talk(seed).pieces:
            said = piece.text + "".join(getattr(s, "text", "") for s in piece.segments)
            assert not any(name in said for name in held), said


def test_labels_are_the_policys_tokens(nano_dir: Path) -> None:
    from recipe import samples

    tokenizer = Tokenizer.load(nano_dir / "tokenizer.json")
    for seed in range(20):
        talk = _talk(seed)
        talk.pieces = [replace(p, slip=None) for p in talk.pieces]  # mistakes: test_slips.py
        example = samples.encode(talk, tokenizer, with_images=True)
        assert len(example.ids) == len(example.labels)
        learned = [i for i, label in zip(example.ids, example.labels, strict=True) if label != -100]
        said = "<|im_end|>".join(p.text for p in talk.pieces if p.text and p.learn) + "<|im_end|>"
        assert tokenizer.decode(learned) == said
        images = sum(isinstance(s, ImagePart) for p in talk.pieces for s in p.segments)
        assert len(example.images) == images


def test_every_reference_names_one_item() -> None:
    from recipe import questions, scenes, world

    pool = [e.id for e in world.flags(False)]
    for seed in range(60):
        scene = scenes.plan(seed, pool)
        for target in range(len(scene.items)):
            for kind, words in questions.references(scene.items, target).items():
                others = [
                    w
                    for i in range(len(scene.items))
                    if i != target
                    for k, w in questions.references(scene.items, i).items()
                    if k == kind
                ]
                assert words not in others, (kind, words)
