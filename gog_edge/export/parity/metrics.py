"""How far two results are apart, and whether that is too far: metrics, tolerances (data), verdicts.

"reference" is the HF model, "bundle" the exported one. Logits are compared as what they mean, a distribution:
KL(reference || bundle) in nats, and the token that greedy decoding takes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import ParityError

F32 = NDArray[np.float32]
_ROWS = 64  # rows of logits turned into float64 at once
_FILE = Path(__file__).with_name("tolerances.toml")


class Verdict(str, Enum):
    """Outcome of a stage or a report. AMBIGUOUS: only near ties differ; it does not fail an export.

    SKIPPED: a stage that could not be compared; its note says why. It fails nothing, and a report is never it.
    """

    PASS = "pass"
    AMBIGUOUS = "ambiguous"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Stage:
    """One comparison: what was measured, what is allowed, what follows."""

    name: str
    verdict: Verdict
    metrics: dict[str, float]
    at_least: dict[str, float] = field(default_factory=dict)
    at_most: dict[str, float] = field(default_factory=dict)
    note: str = ""
    cause: str = ""  # of a failure, as far as the stages together tell

    def complaint(self) -> str:
        """What is beyond its limit, in words, or why a failed stage has no figures."""
        low = [f"{k} {self.metrics[k]:.4g} < {v:.4g}" for k, v in self.at_least.items() if not self.metrics[k] >= v]
        high = [f"{k} {self.metrics[k]:.4g} > {v:.4g}" for k, v in self.at_most.items() if not self.metrics[k] <= v]
        return ", ".join(low + high) or (self.note if self.verdict is Verdict.FAIL else "")


@dataclass(frozen=True)
class Tolerances:
    """Limits of every stage for one precision, as tolerances.toml has them."""

    precision: str
    stages: Mapping[str, Mapping[str, Mapping[str, float]]]

    @classmethod
    def load(cls, precision: str, file: Path = _FILE) -> Tolerances:
        """Read the limits of `precision`.

        Raises:
            ParityError: the file has none for it.
        """
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
        table = tomllib.loads(file.read_text("utf-8"))
        if precision not in table:
            raise ParityError(f"{file} has no tolerances for {precision}: it knows {', '.join(table)}")
        return cls(precision, table[precision])

    def judge(self, name: str, metrics: dict[str, float], note: str = "", limits_of: str = "") -> Stage:
        """A stage with its verdict; `limits_of`: another stage, whose limits are taken.

        Raises:
            ParityError: there are no limits for this stage, or they name a metric that was not measured.
        """
        limits = self.stages.get(limits_of or name)
        if limits is None:
            raise ParityError(f"there are no tolerances for stage {limits_of or name!r} at {self.precision}")
        at_least, at_most = dict(limits.get("at_least", {})), dict(limits.get("at_most", {}))
        for key in (*at_least, *at_most):
            if key not in metrics:
                raise ParityError(f"the tolerances of stage {name!r} name {key!r}, which is not measured")
        ok = all(metrics[k] >= v for k, v in at_least.items()) and all(metrics[k] <= v for k, v in at_most.items())
        verdict = Verdict.PASS if ok else Verdict.FAIL
        if ok and "mismatches" in at_most and metrics.get("near_ties"):
            verdict = Verdict.AMBIGUOUS
        return Stage(name, verdict, metrics, at_least, at_most, note)

    def value(self, name: str, key: str) -> float:
        """A number of a stage that is no limit by itself (such as the margin that counts as a tie)."""
        return float(self.stages[name][key])  # type: ignore[arg-type]


def compare_features(reference: F32, bundle: F32) -> dict[str, float]:
    """Rows [n, d]: the worst and mean cosine of a row, the relative error of all (Frobenius), the largest error.

    Raises:
        ParityError: the shapes differ, or a value is not finite.
    """
    _check(reference, bundle, "features")
    a, b = reference.astype(np.float64), bundle.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine = (a * b).sum(-1) / np.maximum(norms, 1e-30)
    cosine = np.where(norms == 0, np.where((a == b).all(-1), 1.0, 0.0), cosine)
    return {
        "cosine_min": float(cosine.min()),
        "cosine_mean": float(cosine.mean()),
        "relative_error": float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(a)), 1e-30),
        "max_abs_error": float(np.abs(a - b).max()),
    }


def compare_logits(reference: F32, bundle: F32) -> dict[str, float]:
    """Rows of logits [n, V]: KL mean and maximum, agreement of the top token, relative error.

    A constant added to a row means nothing, so rows are centred before the relative error is taken.

    Raises:
        ParityError: the shapes differ, or a value is not finite.
    """
    _check(reference, bundle, "logits")
    error = energy = largest = 0.0
    for start in range(0, len(reference), _ROWS):
        a = reference[start : start + _ROWS].astype(np.float64)
        b = bundle[start : start + _ROWS].astype(np.float64)
        a -= a.mean(-1, keepdims=True)
        b -= b.mean(-1, keepdims=True)
        error += float(np.square(a - b).sum())
        energy += float(np.square(a).sum())
        largest = max(largest, float(np.abs(a - b).max()))
    kl = divergence(reference, bundle)
    agree = reference.argmax(-1) == bundle.argmax(-1)
    return {
        "kl_mean": float(kl.mean()),
        "kl_p99": float(np.quantile(kl, 0.99)),
        "kl_max": float(kl.max()),
        "top1_agreement": float(agree.mean()),
        "relative_error": float(np.sqrt(error / max(energy, 1e-30))),
        "max_abs_error": largest,
        "rows": float(len(reference)),
    }


def divergence(reference: F32, bundle: F32) -> NDArray[np.float64]:
    """KL(reference || bundle) in nats of each row of logits [n, V]."""
    kl = [np.zeros(0)]
    for start in range(0, len(reference), _ROWS):
        log_p, log_q = (_log_softmax(side[start : start + _ROWS].astype(np.float64)) for side in (reference, bundle))
        kl.append((np.exp(log_p) * (log_p - log_q)).sum(-1))
    return np.maximum(np.concatenate(kl), 0.0)


def compare_greedy(
    reference: F32, tokens: NDArray[np.int64], tie: float, masked: Sequence[int] = ()
) -> dict[str, float]:
    """What the bundle decoded greedily against what the reference would have taken at each of these places.

    Args:
        reference: logits [n, V] of the reference for the places where `tokens` [n] were chosen.
        tie: a difference of logits below this times the row's standard deviation counts as a near tie.
        masked: tokens that greedy decoding was not allowed to take.

    As the reference sees the same prefix at every place, "all equal" is what greedy decoding with it would give.

    Raises:
        ParityError: the lengths differ, or a value is not finite.
    """
    if len(reference) != len(tokens):
        raise ParityError(f"{len(tokens)} decoded tokens can't be compared with {len(reference)} rows of logits")
    if not np.isfinite(reference).all():
        raise ParityError("the reference model's logits are not finite")
    allowed = reference.copy()
    allowed[:, list(masked)] = -np.inf
    best = allowed.argmax(-1)
    rows = np.arange(len(tokens))
    margin = reference[rows, best] - reference[rows, tokens]
    differs = best != tokens
    tied = differs & (margin <= tie * reference.std(-1))
    first = int(np.flatnonzero(differs)[0]) if differs.any() else len(tokens)
    return {
        "tokens": float(len(tokens)),
        "agreement": float(1 - (differs & ~tied).mean()) if len(tokens) else 1.0,
        "exact_agreement": float(1 - differs.mean()) if len(tokens) else 1.0,
        "mismatches": float((differs & ~tied).sum()),
        "near_ties": float(tied.sum()),
        "first_difference": float(first),
        "largest_margin": float(margin.max()) if len(tokens) else 0.0,
    }


def worst(parts: list[dict[str, float]]) -> dict[str, float]:
    """The worst value of each metric over several comparisons of one kind (images)."""
    if not parts:
        return {}
    smaller_is_worse = ("cosine_min", "cosine_mean", "top1_agreement", "agreement")
    return {key: (min if key in smaller_is_worse else max)(part[key] for part in parts) for key in parts[0]}


def combine(stages: Sequence[Stage]) -> Verdict:
    """FAIL if any failed, else AMBIGUOUS if any is, else PASS."""
    verdicts = {s.verdict for s in stages}
    for verdict in (Verdict.FAIL, Verdict.AMBIGUOUS):
        if verdict in verdicts:
            return verdict
    return Verdict.PASS


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = x - x.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def _check(reference: NDArray[Any], bundle: NDArray[Any], what: str) -> None:
    if reference.shape != bundle.shape:
        raise ParityError(f"{what}: the bundle gives {list(bundle.shape)}, the reference {list(reference.shape)}")
    for side, values in (("bundle", bundle), ("reference model", reference)):
        if not np.isfinite(values).all():
            raise ParityError(f"{what}: the {side} gives values that are not finite")
