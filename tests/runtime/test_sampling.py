"""Sampling: greedy, filters, penalty, reproducibility."""

from __future__ import annotations

import numpy as np
import pytest

from gog_edge.errors import EngineError, UsageError
from gog_edge.runtime.sampling import Sampler
from gog_edge.sampling_options import Sampling

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03], np.float32))


def counts(options: Sampling, draws: int = 4000) -> np.ndarray:
    sampler = Sampler(options)
    return np.bincount([sampler.choose(LOGITS) for _ in range(draws)], minlength=5) / draws


def test_greedy_is_the_default() -> None:
    assert Sampler(Sampling()).choose(LOGITS) == 0
    assert Sampling().greedy


def test_frequencies_follow_the_distribution() -> None:
    assert counts(Sampling(temperature=1.0, seed=1)) == pytest.approx([0.5, 0.25, 0.15, 0.07, 0.03], abs=0.03)
    squared = np.array([0.5, 0.25, 0.15, 0.07, 0.03]) ** 2
    assert counts(Sampling(temperature=0.5, seed=1)) == pytest.approx(squared / squared.sum(), abs=0.03)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (Sampling(temperature=1, top_k=2), 2),
        (Sampling(temperature=1, top_p=0.7), 2),
        (Sampling(temperature=1, top_p=0.75), 2),
        (Sampling(temperature=1, top_p=0.76), 3),
        (Sampling(temperature=1, min_p=0.2), 3),
        (Sampling(temperature=1, top_k=4, top_p=0.5), 1),
    ],
)
def test_filters_keep_the_likeliest(options: Sampling, kept: int) -> None:
    share = counts(options, 800)
    assert (share[:kept] > 0).all()
    assert share[kept:].sum() == 0


def test_repetition_penalty_is_that_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    rng = np.random.default_rng(0)
    logits = rng.normal(size=50).astype(np.float32)
    seen = [3, 7, 7, 20]
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([seen]), torch.tensor(logits[None]))
    sampler = Sampler(Sampling(repetition_penalty=1.7), seen)
    assert np.allclose(sampler._penalise(logits), theirs[0].numpy())


def test_seed_decides() -> None:
    def draw(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1, seed=seed))
        return [sampler.choose(LOGITS) for _ in range(50)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_are_an_error(temperature: float) -> None:
    sampler = Sampler(Sampling(temperature=temperature))
    with pytest.raises(EngineError, match="not numbers"):
        sampler.choose(np.array([0.0, np.nan], np.float32))
    with pytest.raises(EngineError, match="not numbers"):
        sampler.choose(np.array([0.0, np.inf], np.float32))
    with pytest.raises(EngineError, match="ruled out"):
        sampler.choose(np.full(3, -np.inf, np.float32))


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1), ("top_p", 0), ("top_p", 1.5), ("min_p", 1), ("top_k", -1), ("seed", -1),
     ("repetition_penalty", 0)],
)  # fmt: skip
def test_options_are_checked(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        Sampling(**{name: value})  # type: ignore[arg-type]
