"""Exact match, substring match and token F1, as the published systems compute them."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CJK = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af])")


def normalise(text: str) -> str:
    """Search-R1's normalisation (from SQuAD): lower case, no ASCII punctuation, no English articles, single spaces."""
    lowered = unicodedata.normalize("NFC", text).lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", lowered).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 when the normalised prediction equals a normalised answer."""
    said = normalise(prediction)
    return float(bool(said) and any(said == normalise(a) for a in answers))


def substring_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 when a normalised answer is contained in the normalised prediction."""
    said = normalise(prediction)
    return float(any(n in said for a in answers if (n := normalise(a))))


def token_recall(prediction: str, answers: Sequence[str]) -> float:
    """DynVQA's F1-recall: the best share of an answer's tokens that the prediction has, 0..1."""
    said = Counter(_tokens(prediction))
    return max((_recall(said, Counter(_tokens(a))) for a in answers), default=0.0)


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """The best token F1 over the answers, 0..1."""
    said = Counter(_tokens(prediction))
    return max((_f1(said, Counter(_tokens(a))) for a in answers), default=0.0)


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "em": exact_match,
    "subem": substring_match,
    "f1": token_f1,
    "recall": token_recall,
}


def score(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """Every metric."""
    return {name: round(metric(prediction, answers), 6) for name, metric in METRICS.items()}


def _tokens(text: str) -> list[str]:
    """Words; characters of Chinese, Japanese and Korean one by one."""
    return _CJK.sub(r" \1 ", normalise(text)).split()


def _recall(said: Counter[str], gold: Counter[str]) -> float:
    return sum((said & gold).values()) / sum(gold.values()) if gold else 0.0


def _f1(said: Counter[str], gold: Counter[str]) -> float:
    common = sum((said & gold).values())
    return 2 * common / (sum(said.values()) + sum(gold.values())) if common else 0.0
