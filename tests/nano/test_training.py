"""Pieces of the recipe that training stands on: attention in chunks, mirrored labels, clues, short conversations."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from gog_edge.runtime.tokenizer import Tokenizer

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("length", [5, 96, 250])
def test_attention_in_chunks_is_causal_attention(length: int) -> None:
    from recipe import model

    torch.manual_seed(length)
    q = torch.randn(2, 4, length, 16, requires_grad=True)
    k, v = (torch.randn(2, 2, length, 16, requires_grad=True) for _ in range(2))
    grad = torch.randn(2, 4, length, 16)
    found = model._Causal.apply(q, k, v)
    slopes = torch.autograd.grad(found, (q, k, v), grad)
    mask = torch.full((length, length), float("-inf")).triu(1)
    plain = model.attend(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), mask)
    assert torch.allclose(found, plain, atol=1e-5)
    for mine, theirs in zip(slopes, torch.autograd.grad(plain, (q, k, v), grad), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)


def _scene(seed: int):  # type: ignore[no-untyped-def]
    from recipe import cache, scenes

    while (scene := cache.scene_plan(seed)).type != scenes.CLUTTERED:
        seed += 1000
    return scene


@pytest.mark.parametrize("seed", range(41_000_000, 41_000_012))
def test_labels_of_a_mirrored_scene(seed: int) -> None:
    from dataclasses import asdict

    from recipe import train_vision

    scene = _scene(seed)
    row = {"type": scene.type, "items": [asdict(i) for i in scene.items]}
    plain, mirrored = train_vision.cell_labels(row), train_vision.cell_labels(row, flip=True)
    assert (plain[:, 10] == 1).sum() == len(scene.items) == (mirrored[:, 10] == 1).sum()
    for labels in (plain, mirrored):
        on = labels[labels[:, 0] == 1]
        assert set(on[:, 8]) == set(range(len(scene.items)))
        assert (on[:, 8] + on[:, 9] == len(scene.items) - 1).all()
    kinds = [{int(k) for k in t[t[:, 8] == rank][:, 1]} for t, rank in ((plain, 0), (mirrored, len(scene.items) - 1))]
    assert kinds[0] == kinds[1] and len(kinds[0]) == 1


@pytest.mark.parametrize("seed", range(41_000_020, 41_000_040))
def test_centres_lie_apart_and_clues_lead_to_the_target(seed: int) -> None:
    from recipe import questions, scenes, teacher

    items = _scene(seed).items
    centres = [i.centre[0] for i in items]
    assert all(b - a >= scenes.APART for a, b in itertools.pairwise(centres))
    listed = teacher.parse_list(_scene(seed))
    for target in range(len(items)):
        for way in questions.references(items, target):
            said = questions.clue(items, target, way)
            assert said.endswith(str(target + 1))
            words = said.strip().split(": ")[0].removeprefix("of ")
            if way in ("highest", "lowest"):
                assert [words.count(f"{n} [") > 0 for n in range(1, len(items) + 1)] == [True] * len(items)
                continue
            assert words.isdigit() or f"{words} [" in listed


def test_a_bare_short_conversation_is_the_middle_of_the_whole(nano_dir: Path) -> None:
    from recipe import samples

    tokenizer = Tokenizer.load(nano_dir / "tokenizer.json")
    scene, rng = _scene(41_000_050), np.random.default_rng(1)
    talk = samples.converse(scene, rng, samples.Faces(rng), invent=1.0)
    whole = samples.encode(talk, tokenizer, with_images=True)
    short = samples.bare(samples.encode(talk, tokenizer, with_images=True, short=True), tokenizer)
    cut = whole.ids.index(short.ids[0], 1)
    assert whole.ids[cut : cut + len(short.ids)] == short.ids
    pad = tokenizer.special["<|image_pad|>"]
    assert all(short.ids[first] == pad for first, *_ in short.images) and short.labels[-1] == short.ids[-1]
