"""Added tokens of a tokenizer: where they are found in a prompt, by the rules of Hugging Face's `tokenizers`.

A token may take the white space beside it (`lstrip`, `rstrip`), count only as a word of its own (`single_word`), or be
looked for in the normalised text (`normalized`). Tokens are found in wording alone, never in outside text; white space
is taken, and words are told apart, across the border of the two, as in the rendered prompt.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Span = tuple[str, bool]
"""A piece of a prompt, and whether it is wording, in which tokens may stand."""

_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"  # fmt: skip  # noqa: E501
_JOINERS = "\u200c\u200d"
_CIRCLED = ((0x24B6, 0x24E9), (0x1F130, 0x1F149), (0x1F150, 0x1F169), (0x1F170, 0x1F189))


@dataclass(frozen=True)
class Found:
    """A token of the text, with the white space that it takes; a half-open range of characters."""

    start: int
    stop: int
    token: int


class AddedTokens:
    """The `added_tokens` of a tokenizer.json.

    Args:
        entries: the file's list.
        normalize: what the tokenizer does to text before it looks for tokens with `normalized`.

    Raises:
        KeyError, TypeError, ValueError: an entry is malformed.
    """

    def __init__(self, entries: Iterable[Mapping[str, Any]], normalize: Callable[[str], str]) -> None:
        entries = list(entries)
        self._normalize = normalize
        self.ids = {str(e["content"]): int(e["id"]) for e in entries}
        self._raw = _Rules([(str(e["content"]), e) for e in entries if not e.get("normalized")])
        self._normal = _Rules([(normalize(str(e["content"])), e) for e in entries if e.get("normalized")])

    def split(self, spans: Sequence[Span]) -> list[str | int]:
        """Spans that follow each other -> texts and token ids in turn; a text is as it is to be encoded."""
        out: list[str | int] = []
        for piece in _cut(spans, self._raw.find(spans)):
            if isinstance(piece, int):
                out.append(piece)
            elif not self._normal.any:
                out.append("".join(text for text, _ in piece))
            else:
                normal = [(self._normalize(text), control) for text, control in piece]
                found = self._normal.find(normal)
                # without a token the text continues as it is: the encoder normalises by itself
                parts = _cut(normal, found) if found else [piece]
                out += [p if isinstance(p, int) else "".join(text for text, _ in p) for p in parts]
        return [p for p in out if p != ""]


class _Rules:
    """Tokens that are looked for together; the longest wins."""

    def __init__(self, tokens: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        self._tokens = {content: entry for content, entry in tokens if content}
        names = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names))) if names else None

    @property
    def any(self) -> bool:
        """Whether there are tokens at all."""
        return self._pattern is not None

    def find(self, spans: Sequence[Span]) -> list[Found]:
        """The tokens of a text, in order."""
        if self._pattern is None:
            return []
        text = "".join(part for part, _ in spans)
        found: list[Found] = []
        at = end = 0
        for part, control in spans:
            for match in self._pattern.finditer(text, at, at + len(part)) if control else ():
                one = self._taken(text, match, end)
                if one is not None:
                    found.append(one)
                    end = one.stop
            at += len(part)
        return found

    def _taken(self, text: str, match: re.Match[str], end: int) -> Found | None:
        """A match with the white space beside it; None: it is part of a word, or taken by the token before."""
        entry, (start, stop) = self._tokens[match.group()], match.span()
        if start < end:
            return None
        if entry.get("single_word"):
            before, after = text[start - 1 : start], text[stop : stop + 1]
            if (before and is_word(before)) or (after and is_word(after)):
                return None
        while entry.get("lstrip") and start > end and text[start - 1] in _SPACE:
            start -= 1
        while entry.get("rstrip") and stop < len(text) and text[stop] in _SPACE:
            stop += 1
        return Found(start, stop, int(entry["id"]))


def _cut(spans: Sequence[Span], found: Sequence[Found]) -> list[list[Span] | int]:
    """Token ids, and what is left between them as spans."""
    out: list[list[Span] | int] = []
    at = 0
    for one in found:
        out += [_part(spans, at, one.start), one.token]
        at = one.stop
    out.append(_part(spans, at, sum(len(text) for text, _ in spans)))
    return [p for p in out if p != []]


def _part(spans: Sequence[Span], start: int, stop: int) -> list[Span]:
    out: list[Span] = []
    at = 0
    for text, control in spans:
        piece = text[max(start - at, 0) : max(stop - at, 0)]
        if piece:
            out.append((piece, control))
        at += len(text)
    return out


def is_word(character: str) -> bool:
    r"""Whether a character belongs to words: what \w is to the `tokenizers` library (Unicode's UTS 18, annex C)."""
    kind = unicodedata.category(character)
    return (
        kind[0] in "LM"
        or kind in ("Nd", "Nl", "Pc")
        or character in _JOINERS
        or any(low <= ord(character) <= high for low, high in _CIRCLED)
    )
