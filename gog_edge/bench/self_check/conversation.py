"""The conversation of the self-check, and how far two engines are apart on it.

One engine (ONNX Runtime on the CPU) chooses the tokens; the other is led along them, so that every step compares what
both compute from the same past. Both run the same graphs with the same quantised weights: what differs is arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.bench.subject import picture
from gog_edge.disk.tensorfile import read_tensors, write_tensors
from gog_edge.engines.base import F32
from gog_edge.errors import BenchError
from gog_edge.image.frame import Frame
from gog_edge.manifest import Manifest
from gog_edge.runtime.model import Model
from gog_edge.runtime.session import Session
from gog_edge.types import ImagePart, Region

SIZE = (480, 360)
CROP = Region(120.0, 90.0, 330.0, 270.0)
WORDS = 24  # text tokens read a turn
DRAFT = 3  # guessed tokens of the step with several rows
KIND = "self-check-reference"

# Least cosine of a feature row, largest mean divergence of the next token in nats, by the precision of the weights.
# Both sides have the same weights: what may differ is TF32 or half sums. A cache row that gets lost moves even a
# random policy by 1e-4 nats.
LIMITS = {"fp32": (0.9999, 1e-5), "fp16": (0.999, 1e-3), **dict.fromkeys(("int8", "int5", "int4"), (0.99, 5e-3))}
TIE_NATS = 0.1  # two tokens this close in log probability may change places


@dataclass
class Talk:
    """What an engine computed for the conversation. `features`: [m, H] an image; `logits`: [V] a step, in order;
    `draft`: [1 + DRAFT, V]; `rewound`: the first step of the second turn once more, after going back."""

    tokens: list[int] = field(default_factory=list)
    features: list[F32] = field(default_factory=list)
    logits: list[F32] = field(default_factory=list)
    draft: F32 = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    rewound: F32 = field(default_factory=lambda: np.zeros(0, np.float32))

    def save(self, path: Path, fingerprint: str) -> None:
        """Keep it, to be compared with on another machine."""
        arrays: dict[str, NDArray[Any]] = {"tokens": np.array(self.tokens, np.int32), "logits": np.stack(self.logits)}
        arrays |= {f"features.{i}": f for i, f in enumerate(self.features)}
        arrays |= {"draft": self.draft, "rewound": self.rewound}
        write_tensors(path, {"kind": KIND, "fingerprint": fingerprint}, arrays)

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> Talk:
        """Read a kept one.

        Raises:
            BenchError: it belongs to another bundle. SessionError: it is damaged.
        """
        header, arrays = read_tensors(path)
        if header.get("kind") != KIND or header.get("fingerprint") != fingerprint:
            raise BenchError(f"{path} is not the self-check reference of this bundle: make it again with the bundle")
        count = sum(name.startswith("features.") for name in arrays)
        return cls(
            [int(t) for t in arrays["tokens"]],
            [np.array(arrays[f"features.{i}"]) for i in range(count)],
            list(np.array(arrays["logits"])),
            np.array(arrays["draft"]),
            np.array(arrays["rewound"]),
        )


def hold(model: Model, tokens: int, lead: Sequence[int] | None = None) -> Talk:
    """Two turns, a whole image and a crop of it; `tokens` a turn, chosen greedily or given by `lead`.

    Raises:
        EngineError: the engine failed.
    """
    talk, session = Talk(), Session(model)
    frame = Frame.open(picture(*SIZE, seed=11).pixels)
    for turn, region in enumerate((None, CROP)):
        plan = model.vision.plan(frame, region)
        talk.features.append(np.array(model.vision.encode(plan)[0].main))
        mark = session.mark()
        _ask(session, frame, region, turn)
        for _ in range(tokens):
            row = np.array(session.run()[0], np.float32)
            talk.logits.append(row)
            token = int(row.argmax()) if lead is None else int(lead[len(talk.tokens)])
            talk.tokens.append(token)
            session.extend([token])
    guesses = ordinary_tokens(model.manifest, DRAFT, 99)
    talk.draft = np.array(session.run(guesses), np.float32)
    session.rewind(mark)
    _ask(session, frame, CROP, 1)
    talk.rewound = np.array(session.run()[0], np.float32)
    return talk


def _ask(session: Session, frame: Frame, region: Region | None, turn: int) -> None:
    image = session.add_image(frame, region, source=0)
    session.append([ImagePart(image.index)])
    session.extend(ordinary_tokens(session.model.manifest, WORDS, turn), given=True)


def ordinary_tokens(manifest: Manifest, count: int, seed: int) -> list[int]:
    """Tokens below every special one, whose ids are at the end of the vocabulary."""
    special = manifest.tokens
    high = min(special.image_pad, special.vision_start, special.vision_end, *special.eos, manifest.decoder.vocab)
    high = high if high > 64 else manifest.decoder.vocab
    taken = {special.image_pad, special.vision_start, special.vision_end}
    ids = np.random.default_rng(seed).integers(1, high, 4 * count)
    return [int(i) for i in ids if int(i) not in taken][:count]


def compare(reference: Talk, ours: Talk) -> dict[str, float]:
    """How far `ours` is from `reference`: the metrics that `agrees` judges, and the worst errors beside them."""
    rows = [*zip(reference.logits, ours.logits), *zip(reference.draft, ours.draft), (reference.rewound, ours.rewound)]
    kl, worse, ties, largest = [], 0, 0, 0.0
    for a, b in rows:
        p, q = _log_softmax(a), _log_softmax(b)
        kl.append(float((np.exp(p) * (p - q)).sum()))
        largest = max(largest, float(np.abs(a - b).max()))
        chosen = int(q.argmax())
        if chosen != int(p.argmax()):
            near = float(p.max() - p[chosen]) < TIE_NATS
            ties, worse = ties + near, worse + (not near)
    cosine = [_cosine(a, b) for a, b in zip(reference.features, ours.features)]
    again = ours.logits[len(ours.logits) // 2]
    return {
        "steps": float(len(rows)),
        "feature_cosine_min": min(cosine),
        "kl_mean": float(np.mean(kl)),
        "kl_max": max(kl),
        "logit_error_max": largest,
        "other_tokens": float(worse),
        "near_ties": float(ties),
        "rewind_error_max": float(np.abs(again - ours.rewound).max()),
    }


def agrees(metrics: dict[str, float], precision: str) -> bool:
    """Within what other arithmetic explains; a value that is not a number never is."""
    cosine, divergence = LIMITS[precision]
    return (
        metrics["feature_cosine_min"] >= cosine
        and metrics["kl_mean"] <= divergence
        and metrics["other_tokens"] == 0
        and bool(np.isfinite(list(metrics.values())).all())
    )


def _cosine(a: F32, b: F32) -> float:
    """The worst of the rows."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return float(((x * y).sum(1) / np.maximum(norms, 1e-30)).min())


def _log_softmax(row: F32) -> NDArray[np.float64]:
    x = row.astype(np.float64)
    x -= x.max()
    result: NDArray[np.float64] = x - np.log(np.exp(x).sum())
    return result
