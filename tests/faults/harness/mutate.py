"""Seeded damage: to bytes, to JSON values, to texts. Every function returns something else than it was given."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from random import Random
from typing import Any

BLOCK = 4096  # what a power cut leaves as zeros
WORDS = (b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"%s%n",
         b"\r\n\r\n")  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, "", " ", "x" * 3000, "\0", "é🦩",
    "../../etc/passwd", "[bold]", "{", "%s", [], {}, [[]], {"": 0}, [None] * 50, "NaN", "-1", "\n", "\x1b[2J", "\ud800",
)  # fmt: skip
FRAGMENTS = ("\0", "\n", "\r\n", '"', "'", "{", "}", "[", "]", "<", ">", "</", "=", ",", ":", "\\", "é", "\u202e", "#",
             "%", "1e999", "NaN", "-", "0" * 60, "null", "true", "{x}", "{0}", "]]>", "--", " ", "\t")  # fmt: skip


def damaged(data: bytes, rng: Random, other: bytes = b"") -> tuple[str, bytes]:
    """(what was done, other bytes than `data`): bits, bytes, blocks, cuts, and splices of itself or of `other`."""
    kinds = ("bit", "byte", "bytes", "zeros", "cut", "longer", "removed", "doubled", "word", "spliced", "digit")
    while True:
        kind = rng.choice(kinds)
        bad = _DAMAGES[kind](data, rng, other or data)
        if bad != data:
            return kind, bad


def _put(data: bytes, at: int, piece: bytes) -> bytes:
    return data[:at] + piece + data[at + len(piece) :]


def _at(data: bytes, rng: Random) -> int:
    """A place; half of them near the start, where the headers are."""
    end = max(len(data), 1)
    return rng.randrange(min(end, 256)) if rng.random() < 0.5 else rng.randrange(end)


def _bit(data: bytes, rng: Random, other: bytes) -> bytes:
    at = _at(data, rng)
    return _put(data, at, bytes([data[at] ^ 1 << rng.randrange(8)])) if data else b"\0"


def _bytes(data: bytes, rng: Random, other: bytes) -> bytes:
    for _ in range(rng.randint(2, 16)):
        data = _put(data, _at(data, rng), rng.randbytes(1))
    return data


def _digit(data: bytes, rng: Random, other: bytes) -> bytes:
    """Another digit in a number of a text, as one flipped bit makes it."""
    places = [i for i in range(len(data)) if 48 <= data[i] < 58][:10_000]
    if not places:
        return data
    at = rng.choice(places)
    return _put(data, at, bytes([48 + (data[at] - 48 ^ 1 << rng.randrange(3)) % 10]))


def _zeros(data: bytes, rng: Random, other: bytes) -> bytes:
    start = rng.randrange(len(data) // BLOCK + 1) * BLOCK
    return _put(data, start, bytes(min(BLOCK, len(data) - start)))


def _removed(data: bytes, rng: Random, other: bytes) -> bytes:
    at = _at(data, rng)
    return data[:at] + data[at + rng.randint(1, 64) :]


def _doubled(data: bytes, rng: Random, other: bytes) -> bytes:
    at, size = _at(data, rng), rng.randint(1, 512)
    return data[: at + size] + data[at:]


def _spliced(data: bytes, rng: Random, other: bytes) -> bytes:
    return data[: _at(data, rng)] + other[_at(other, rng) :]


_DAMAGES = {
    "bit": _bit,
    "byte": lambda data, rng, other: _put(data, _at(data, rng), rng.randbytes(1)),
    "bytes": _bytes,
    "zeros": _zeros,
    "cut": lambda data, rng, other: data[: rng.randrange(max(len(data), 1))],
    "longer": lambda data, rng, other: data + rng.randbytes(rng.randint(1, 64)),
    "removed": _removed,
    "doubled": _doubled,
    "word": lambda data, rng, other: _put(data, _at(data, rng), rng.choice(WORDS)),
    "spliced": _spliced,
    "digit": _digit,
}


def mutated(value: Any, rng: Random, odd: Sequence[Any] = ODD) -> tuple[str, Any]:
    """(what was done, a copy of a JSON value with one or two changes): odd values, lost, doubled and swapped parts."""
    new = copy.deepcopy(value)
    said = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        places = list(_places(new, ""))
        if not places:
            return "replaced", rng.choice(odd)
        where, parent, key = rng.choice(places)
        kind = rng.choice(("odd", "odd", "odd", "lost", "nudged", "swapped", "renamed", "nested"))
        said.append(f"{kind} {where}")
        old = parent[key]
        if kind == "lost":
            del parent[key]
        elif kind == "nudged":
            parent[key] = _nudged(old, rng)
        elif kind == "swapped":
            _, other, name = rng.choice(places)
            parent[key] = copy.deepcopy(other[name]) if not isinstance(other[name], (dict, list)) else None
        elif kind == "renamed" and isinstance(parent, dict):
            parent[f"{key}{rng.choice(('', '_', 'x', ' '))}x"] = parent.pop(key)
        elif kind == "nested":
            for _ in range(rng.choice((1, 3, 300))):
                old = [old]
            parent[key] = old
        else:
            parent[key] = rng.choice(odd)
    return ", ".join(said), new


def _nudged(value: Any, rng: Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return rng.choice((value + 1, value - 1, -value, value * 2, value * 1000, value / 2))
    if isinstance(value, str):
        return mutated_text(value or "x", rng)[1]
    if isinstance(value, list):
        return value + value[:1] if rng.random() < 0.5 else value[:-1]
    return [value]


def _places(value: Any, where: str, depth: int = 0) -> Any:
    """(path, parent, key) of everything inside of `value`."""
    if depth > 30:
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        path = f"{where}.{key}"[:120]
        yield path, value, key
        yield from _places(inner, path, depth + 1)


def mutated_text(text: str, rng: Random, fragments: Sequence[str] = FRAGMENTS) -> tuple[str, str]:
    """(what was done, another text): characters and lines lost, doubled, swapped, and fragments put in."""
    new, said = text, []
    while new == text or rng.random() < 0.3:
        kind = rng.choice(("lost", "doubled", "put", "put", "swapped", "line lost", "line doubled", "cut"))
        at, size = rng.randrange(len(new) + 1), rng.choice((1, 1, 2, 8, 40))
        lines = new.split("\n")
        row = rng.randrange(len(lines))
        if kind == "lost":
            new = new[:at] + new[at + size :]
        elif kind == "doubled":
            new = new[: at + size] + new[at:]
        elif kind == "put":
            new = new[:at] + rng.choice(fragments) * rng.choice((1, 1, 1, 3)) + new[at:]
        elif kind == "swapped":
            other = rng.randrange(len(new) + 1)
            low, high = sorted((at, other))
            new = new[:low] + new[high : high + size] + new[low:]
        elif kind == "line lost":
            new = "\n".join(lines[:row] + lines[row + 1 :])
        elif kind == "line doubled":
            new = "\n".join([*lines[: row + 1], *lines[row:]])
        elif kind == "cut":
            new = new[:at]
        said.append(kind)
        if not new:
            new = "" if text else "x"
            if new != text:
                break
    return ", ".join(said), new
