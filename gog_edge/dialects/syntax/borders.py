"""Where a JSON value ends inside of running text, and what of it is closed while it is still being written.

A border is found by brackets and quotes, so that a tag inside a string is a part of the string, values may follow each
other, and a block that is never closed ends where its last value does.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_CALL_CHARS = 20_000
FENCE = re.compile(r"\A\s*```[a-zA-Z]*[ \t]*\n?(.*?)\n?\s*```\s*\Z", re.DOTALL)

_FENCE_BEGINS, _FENCE_ENDS = re.compile(r"\s*(```[a-zA-Z]*\s*)?"), re.compile(r"\s*(```\s*)?")
_MARK = re.compile(r"""[\[\]{}()"',]""")
_QUOTED = {quote: re.compile(rf"(?s)(?:[^\\{quote}]|\\.)*{quote}") for quote in "\"'"}
_CLOSER = {"{": "}", "[": "]", "(": ")"}


@dataclass(frozen=True)
class Block:
    """text[start:end] from an opening mark to its closing one, or to the border of the last value where there is none.

    `inner`: what is between. `error`: why there are no `values`. `closed`: whether the closing mark is there.
    """

    start: int
    end: int
    inner: str
    values: tuple[Any, ...]
    error: str
    closed: bool


def blocks(text: str, opening: str, closing: str, beside: str = "\0") -> Iterator[Block]:
    """Every block of JSON values. `beside`: how something may begin that is passed over between value and mark."""
    at = 0
    while (start := text.find(opening, at)) >= 0:
        inner = start + len(opening)
        values, behind = _values(text, inner)
        close, following = text.find(closing, behind), text.find(opening, behind)
        closed, error = close >= 0 and not 0 <= following < close, ""
        if closed:
            end, at = close, close + len(closing)
            rest = text[behind:close].strip()
            if not values or (rest and not rest.startswith(beside)):
                try:
                    values = (load_json(text[inner:close]),)
                except ValueError as problem:
                    values, error = (), str(problem)
        elif values:
            end = at = behind
        else:
            end = at = following if following >= 0 else len(text)
            error = f"no {closing} at the end"
        yield Block(start, at, text[inner:end], values, error, closed)


def unfinished(text: str, opening: str, closing: str) -> tuple[int, Any] | None:
    """A last block that has no closing mark yet: where it starts, and its last value as far as it is closed.

    Asked often while a turn is written, so marks are not looked for inside of strings: `blocks` has the last word.
    """
    start = text.rfind(opening)
    if start < 0 or closing in text[start:]:
        return None
    return start, closed_value(text[start + len(opening) :])


def border(text: str, at: int) -> int | None:
    """Where the object or list that begins at text[at] ends; None where it does not."""
    return _scan(text, at)[0]


def closed_value(text: str) -> Any:
    """The last of the values that `text` is made of, as far as it is closed: an object's members whose own value is.

    None where nothing is closed.
    """
    at, value = _begin(text, 0), None
    while at < len(text) and text[at] in "{[":
        end, kept, missing = _scan(text, at)
        piece = text[at:end] if end is not None else text[at:kept] + missing
        try:
            value = load_json(piece) if end is not None or kept > at else value
        except ValueError:
            return None
        if end is None:
            break
        at = _begin(text, end)
    return value


def load_json(text: str) -> Any:
    """JSON as policies write it: strict, else a Python literal (single quotes, trailing commas), fences removed.

    Raises:
        ValueError: it is neither; the message is the JSON reader's.
    """
    if len(text) > MAX_CALL_CHARS:
        raise ValueError(f"the call has {len(text)} characters, more than {MAX_CALL_CHARS}")
    fenced = FENCE.match(text)
    body = (fenced.group(1) if fenced else text).strip()
    try:
        return json.loads(body, strict=False)
    except (ValueError, RecursionError) as error:
        try:
            return ast.literal_eval(body)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
            raise ValueError(reason) from error


def _begin(text: str, at: int) -> int:
    """Past white space and the beginning of a code fence."""
    match = _FENCE_BEGINS.match(text, at)
    return match.end() if match else at


def _values(text: str, at: int) -> tuple[tuple[Any, ...], int]:
    """The values one after the other from text[at] on, and where they end; none where one of them can't be read."""
    values: list[Any] = []
    at = behind = _begin(text, at)
    while at < len(text) and text[at] in "{[":
        end = border(text, at)
        if end is None:
            return (), at
        try:
            values.append(load_json(text[at:end]))
        except ValueError:
            return (), at
        match = _FENCE_ENDS.match(text, end)
        at = behind = match.end() if match else end
    return tuple(values), behind


def _scan(text: str, at: int) -> tuple[int | None, int, str]:
    """The value at text[at]: (its end or None, the end of what of it is closed, the brackets that close the rest).

    Closed are a list or object that ended, and a member of an object that a comma follows; half a list is not.
    """
    stack: list[str] = []
    place, kept, depth = at, at, 0
    limit = min(len(text), at + MAX_CALL_CHARS)
    while (match := _MARK.search(text, place, limit)) is not None:
        mark, place = match.group(), match.end()
        if mark in _QUOTED:
            quoted = _QUOTED[mark].match(text, place, limit)
            if quoted is None:
                break
            place = quoted.end()
        elif mark in _CLOSER:
            stack.append(_CLOSER[mark])
        elif mark == ",":
            if stack and stack[-1] == "}":
                kept, depth = match.start(), len(stack)
        elif not stack or stack.pop() != mark:
            break
        elif not stack:
            return place, place, ""
        else:
            kept, depth = place, len(stack)
    return None, kept, "".join(reversed(stack[:depth]))
