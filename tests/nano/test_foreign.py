"""Foreign text in training results: it is there, it varies, and the teacher is not led by it."""

from __future__ import annotations

import numpy as np
import pytest

from gog_edge.types import Hit

pytest.importorskip("torch")

HITS = [Hit("Flag of Utopia", "National flag of Utopia.", score=0.9), Hit("Flag of Atlantis", "Flag.", score=0.5)]


@pytest.mark.parametrize("seed", range(40))
def test_every_disturbance_adds_text_and_keeps_the_first_result(seed: int) -> None:
    from recipe import foreign

    seen = foreign.disturb(HITS, np.random.default_rng(seed))
    assert len(seen) <= 3
    assert any(h.title.startswith("Flag of Utopia") and "National flag of Utopia." in h.text for h in seen)


def test_nothing_of_the_evaluations_planted_texts_is_trained_on() -> None:
    from recipe import foreign

    from gog_edge.evaluation.injection import KINDS, MARK

    rng = np.random.default_rng(0)
    said = [foreign.sentence(rng) for _ in range(400)]
    assert len(set(said)) > 350
    for planted in (text for texts in KINDS.values() for text in texts):
        blank = planted.replace(MARK, "{x}")
        assert blank not in (*foreign.DEMANDS, *foreign.PLAIN)
        assert not any(MARK in text for text in said)


def test_the_teacher_acts_as_without_foreign_text() -> None:
    from recipe import cache, samples

    def talk(share: float, seed: int) -> tuple[list[str], str]:
        scene, rng = cache.scene_plan(42_000_000 + seed), np.random.default_rng([5, seed])
        made = samples.converse(scene, rng, samples.Faces(rng), invent=1.0, foreign_share=share)
        shown = "".join(getattr(s, "text", "") for p in made.pieces for s in p.segments)
        return [p.text for p in made.pieces if p.text], shown

    pairs = [(talk(0.0, seed), talk(1.0, seed)) for seed in range(40)]
    assert all(clean[0] == disturbed[0] for clean, disturbed in pairs)
    assert sum(clean[1] != disturbed[1] for clean, disturbed in pairs) > 20
