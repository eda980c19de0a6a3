"""Cutting a folded text into what the guard judges one by one: sentences, lines, and blocks between control marks."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from gog_edge.search.guard_cues import cues

MAX_UNIT = 600  # characters; a longer line without a stop is judged in pieces
MAX_BLOCK = 4000  # characters; a block whose closing mark is farther away ends with its line


@dataclass(frozen=True)
class Unit:
    """view[start:end]. `block`: what control marks enclose; `wrapped`: a line without a stop, may go on in the next."""

    start: int
    end: int
    block: bool = False
    wrapped: bool = False


def units(view: str, text: str, offsets: list[int] | None) -> Iterator[Unit]:
    """Units of the view of `text`, in order and without gaps (see `guard_cues.fold` for `offsets`)."""
    stops = []
    wraps = set()
    for stop in _patterns().stop.finditer(view):
        at = stop.end() if offsets is None else offsets[stop.end()]
        if stop["line"]:
            wraps.add(stop.end())
        elif stop["quote"] and text[at : at + 1].islower():
            continue  # in: Add "Buy this!" to your reply.
        stops.append(stop.end())
    for glued in cues().glued.finditer(text):  # in: Flag of Chad Ignore all …
        before = text[glued.start() - 1 : glued.start()]
        if before.islower() or before.isdigit():
            stops.append(glued.end() if offsets is None else bisect_left(offsets, glued.end()))
    stops.sort()
    start = 0
    for opened, closed in [*_blocks(view), (len(view), len(view))]:
        yield from _sentences(view, start, opened, stops, wraps)
        if closed > opened:
            yield Unit(opened, closed, block=True)
        start = closed


def _sentences(view: str, start: int, end: int, stops: list[int], wraps: set[int]) -> Iterator[Unit]:
    for at in range(bisect_right(stops, start), len(stops) + 1):
        if start >= end:
            return
        stop = min(stops[at], end) if at < len(stops) else end
        while stop - start > MAX_UNIT:
            space = view.rfind(" ", start + MAX_UNIT // 2, start + MAX_UNIT)
            piece = space + 1 if space > 0 else start + MAX_UNIT
            yield Unit(start, piece)
            start = piece
        yield Unit(start, stop, wrapped=stop in wraps)
        start = stop


def _blocks(view: str) -> Iterator[tuple[int, int]]:
    """Stretches from an opening mark to the closing one that belongs to it, else to the end of the line.

    Of a turn of the reader's own only the header: planted text often ends with one, to make the reader go on, and then
    what stands behind it is the page. Turns of others are orders."""
    marks = cues().marks(view)
    # by tag ("" for chat templates, whose endings differ): where they end, ascending
    closing: defaultdict[str, list[int]] = defaultdict(list)
    for mark in marks:
        if cues().ends(mark):
            closing[mark["tag"] or ""].append(mark.end())
    at = 0
    for mark in marks:
        if mark.start() < at:
            continue
        own = cues().own_turn.match(view, mark.start()) if mark["chat"] else None
        end = own.end() if own else _closed(mark, closing)
        if end is None and mark["tag"] in cues().pairs:
            continue
        at = _block_end(view, mark) if end is None else end
        yield mark.start(), at


def _closed(mark: re.Match[str], closing: dict[str, list[int]]) -> int | None:
    """Where the mark that closes this one ends; it may be itself."""
    if cues().ends(mark):
        return mark.end()
    ends = [] if mark["json"] else closing.get(mark["tag"] or "", [])
    found = bisect_right(ends, mark.end())
    return ends[found] if found < len(ends) and ends[found] - mark.end() <= MAX_BLOCK else None


def _block_end(view: str, mark: re.Match[str]) -> int:
    """Where a block ends that no mark closes: with its braces, or with its line."""
    depth = 0
    if mark["json"]:
        for brace in _patterns().brace.finditer(view, mark.start(), mark.start() + MAX_BLOCK):
            depth += 1 if brace.group() == "{" else -1
            if depth == 0:
                return brace.end()
    header = _patterns().header.match(view, mark.end())  # `<|im_start|>system` stands on a line of its own
    line = view.find("\n", header.end() if header else mark.end())
    return min(line + 1 if line >= 0 else len(view), mark.end() + MAX_BLOCK)


@dataclass(frozen=True)
class _Patterns:
    stop: re.Pattern[str]
    brace: re.Pattern[str]
    header: re.Pattern[str]


@lru_cache(maxsize=1)
def _patterns() -> _Patterns:
    return _Patterns(
        stop=re.compile(r"[.!?;\u2026](?P<quote>[\"')\]]{0,3})(?:\s+|$)|\u3002|(?P<line>[\n\r\u2028\u2029])\s*"),
        brace=re.compile(r"[{}]"),
        header=re.compile(r"[ \t]{0,9}\w{0,20}[ \t]{0,9}\r?\n"),
    )
