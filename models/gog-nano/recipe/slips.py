"""Copies that go wrong, to recover from: what is written after one is what a sound policy writes there.

A policy that has made up the end of a word ("Ecuadorish") has left all that it could copy from and goes round in
circles ("Ecuadorish called Ecuadorish called …") until its turn is cut off. Training texts have no such place, so some
get one: without loss on the mistake itself, with loss on ending it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import names


@dataclass(frozen=True)
class Slip:
    """``text`` with a mistake at ``first`` to ``end``; up to ``until`` follows what is to be learned, behind it the
    true words stand again, which nobody could tell from the wrong ones."""

    text: str
    first: int
    end: int
    until: int


def slip(text: str, copied: Sequence[str], rng: np.random.Generator) -> Slip | None:
    """One of the ``copied`` strings of ``text`` (with the space before it) goes wrong; None if none is there."""
    places = sorted({(at, c) for c in copied if c for at in _all(text, c)})
    if not places:
        return None
    at, right = places[int(rng.integers(len(places)))]
    first = at - 1 if at and text[at - 1] == " " else at
    wrong = text[first:at] + mistake(right, text[:first], rng)
    end, rest = first + len(wrong), text[at + len(right) :]
    again = [p for c in copied if c for p in _all(rest, c)]
    return Slip(text[:first] + wrong + rest, first, end, end + min(again, default=len(rest)))


def mistake(right: str, before: str, rng: np.random.Generator) -> str:
    """``right`` with an end of its own, half of the time said again and again, with or without the words before it."""
    ending = "".join(str(rng.choice(names.bits())) for _ in range(int(rng.integers(1, 4)))).lower()
    kept = right[: int(rng.integers(0, len(right)))] if rng.random() < 0.5 else right
    wrong = kept + ending
    if right.startswith(wrong):  # never a mere beginning of it: nobody is to stop there
        wrong = right + ending
    if rng.random() < 0.4:
        return wrong
    roll = rng.random()
    if roll < 0.35:
        unit = ending  # Moldovaananan…
    elif roll < 0.7:
        words = before.split()[-int(rng.integers(1, 4)) :]
        unit = f" {' '.join(words)} {wrong}"  # Ecuadorish called Ecuadorish…
    else:
        unit = wrong[int(rng.integers(0, len(wrong))) :]  # Tajikistananstjikistananstjik…
    said = wrong + unit * int(rng.integers(1, 9))
    return said[: len(said) - int(rng.integers(0, len(unit)))]


def _all(text: str, part: str) -> list[int]:
    out, at = [], text.find(part)
    while at >= 0:
        out.append(at)
        at = text.find(part, at + len(part))
    return out
