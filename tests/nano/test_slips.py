"""Mistakes in training texts: never learned, always recovered from, and where nothing can be told no loss either."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

TEXT = "The currency of Moldova is Moldovan lei.\n</think>\n<answer> Moldovan lei</answer>"


def talks(first: int, count: int) -> Iterator[Any]:
    from recipe import cache, samples

    for seed in range(first, first + count):
        rng = np.random.default_rng(seed)
        yield samples.converse(cache.scene_plan(seed), rng, samples.Faces(rng), invent=1.0)


@given(st.integers(0, 10_000))
def test_a_slip_replaces_one_copy_and_nothing_else(seed: int) -> None:
    from recipe import slips

    found = slips.slip(TEXT, ["Moldova", "Moldovan lei"], np.random.default_rng(seed))
    assert found is not None
    assert TEXT.startswith(found.text[: found.first])
    assert TEXT.endswith(found.text[found.end :])
    assert "Moldova" not in found.text[found.end : found.until]
    assert found.end <= found.until <= len(found.text)


@given(st.integers(0, 10_000), st.sampled_from(["Moldova", "an", "aaaa", "Federated States of Micronesia", "18,148"]))
def test_stopping_at_a_part_of_what_is_copied_is_never_learned(seed: int, right: str) -> None:
    from recipe import slips

    assert not right.startswith(slips.mistake(right, "The capital of ", np.random.default_rng(seed)))


def test_no_copy_no_slip() -> None:
    from recipe import slips

    assert slips.slip(TEXT, ["Chad", ""], np.random.default_rng(0)) is None


def test_no_loss_on_a_slip_and_loss_behind_it(nano_dir: Path) -> None:
    from recipe import samples

    from gog_edge.runtime.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(nano_dir / "tokenizer.json")
    seen = 0
    for talk in talks(43_000_000, 120):
        slipped = [p for p in talk.pieces if p.slip is not None]
        if not slipped:
            continue
        seen += 1
        assert len(slipped) == 1
        made = samples.encode(talk, tokenizer, with_images=False)
        talk.pieces = [replace(p, slip=None) for p in talk.pieces]
        sound = samples.encode(talk, tokenizer, with_images=False)
        at = next(n for n, (a, b) in enumerate(zip(made.ids, sound.ids, strict=False)) if a != b)
        assert made.labels[at] == -100
        s = slipped[0].slip
        after = tokenizer.encode_control(s.text[s.end : s.until])
        learned = [label for label in made.labels[at:] if label != -100]
        assert learned[: len(after)] == after
    assert seen > 5


def test_reading_keeps_the_question_and_the_searches(nano_dir: Path) -> None:
    from recipe import samples

    from gog_edge.runtime.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(nano_dir / "tokenizer.json")
    kept = 0
    for talk in talks(44_000_000, 40):
        searches, answer = sum('"text_search"' in p.text for p in talk.pieces), talk.pieces[-1].text
        if not samples.reading(talk):
            assert searches == 0
            continue
        kept += 1
        written = [p.text for p in talk.pieces if p.text]
        assert sum('"text_search"' in text for text in written) == searches
        assert not any('"crop_search"' in text for text in written[:1])
        assert written[-1] == answer
        made = samples.encode(talk, tokenizer, with_images=False)
        assert len(made.ids) == len(made.labels)
        first = next(label for label in made.labels if label != -100)
        assert first == tokenizer.special["<|im_end|>"], "the first thought goes by what was cut: no loss on it"
    assert kept > 10
