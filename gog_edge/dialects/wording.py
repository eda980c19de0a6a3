"""The small template language of dialect files: literal wording with `{placeholders}`.

`{name}` is replaced, `{name:.2f}` formats a number, `{name:json}` escapes text
for a JSON string, `{{` and `}}` are braces. Literal wording becomes `Control`
(special tokens in it are meant), every value that comes from outside becomes `Text` (special tokens in it are not).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Union

from gog_edge.dialects.templates import join_segments
from gog_edge.errors import DialectError
from gog_edge.serde import suggest
from gog_edge.types import Control, ImagePart, Segment, Text

Value = Union[str, int, float, Segment, Sequence[Segment]]

_TOKEN = re.compile(r"\{\{|\}\}|\{([a-z_]+)(?::([^{}]*))?\}|[{}]")


@dataclass(frozen=True)
class Placeholder:
    name: str
    spec: str = ""


@dataclass(frozen=True)
class Wording:
    """A compiled wording: literal strings and placeholders in order."""

    source: str
    parts: tuple[str | Placeholder, ...]

    def __bool__(self) -> bool:
        return bool(self.parts)

    def names(self) -> set[str]:
        """Names of the placeholders used."""
        return {part.name for part in self.parts if isinstance(part, Placeholder)}

    def render(self, values: Mapping[str, Value]) -> list[Segment]:
        """Segments of this wording with `values` filled in; strings and numbers become `Text`.

        Raises:
            KeyError: a placeholder has no value (a bug in the caller: names are checked when the file is read).
        """
        out: list[Segment] = []
        for part in self.parts:
            if isinstance(part, str):
                out.append(Control(part))
            else:
                out.extend(_segments(values[part.name], part.spec))
        return join_segments(out)

    def plain(self, values: Mapping[str, str | int | float]) -> str:
        """The rendered wording as one string (for replies kept in an `Action`)."""
        return "".join(part if isinstance(part, str) else _format(values[part.name], part.spec) for part in self.parts)

    def match(self, text: str) -> list[Segment] | None:
        """The inverse of `plain`: the wording as `Control`, what was filled in as `Text`.

        None when `text` was not written by this wording.
        """
        if not self.parts:
            return None
        pattern = "".join("(.*?)" if isinstance(p, Placeholder) else "(" + re.escape(p) + ")" for p in self.parts)
        found = re.fullmatch(pattern, text, re.DOTALL)
        if found is None:
            return None
        pieces = zip(self.parts, found.groups())
        return join_segments([Text(t) if isinstance(part, Placeholder) else Control(t) for part, t in pieces])


EMPTY = Wording("", ())


def compile_wording(source: str, allowed: Iterable[str], where: str) -> Wording:
    """Compile `source`; `allowed` are the placeholder names that make sense at `where` (the key's path in the file).

    Raises:
        DialectError: an unknown placeholder or a lone brace, with the key and a fix.
    """
    names = sorted(allowed)
    parts: list[str | Placeholder] = []
    literal, at = "", 0
    for match in _TOKEN.finditer(source):
        literal += source[at : match.start()]
        at = match.end()
        token = match.group()
        if token in ("{{", "}}"):
            literal += token[0]
        elif match.group(1) is None:
            mend = f"write {token * 2!r} for a brace"
            raise DialectError(f"{where}: a lone {token!r} at character {match.start()}; {mend}")
        elif match.group(1) not in names:
            raise DialectError(f"{where}: unknown placeholder {{{match.group(1)}}}{suggest(match.group(1), names)}")
        else:
            if literal:
                parts.append(literal)
            parts.append(Placeholder(match.group(1), match.group(2) or ""))
            literal = ""
    literal += source[at:]
    if literal:
        parts.append(literal)
    return Wording(source, tuple(parts))


def _segments(value: Value, spec: str) -> list[Segment]:
    if isinstance(value, (str, int, float)):
        return [Text(_format(value, spec))]
    if isinstance(value, (Control, Text, ImagePart)):
        return [value]
    return list(value)


def _format(value: str | int | float, spec: str) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)[1:-1] if spec == "json" else value
    return format(value, spec) if spec else str(value)
