"""Somebody else's text is data: what must not reach a terminal, a page or a prompt out of it.

Titles, page texts and file names are not ours. An escape sequence in a title would move the cursor, set a window's
title or write to the clipboard; a bidirectional override would turn the rest of a line round; tag characters and
zero-width spaces hide words from whoever looks. And what a page says can't look like the wording of a conversation:
the `<` of anything that could be a control marker (`<|…`) or a tag of a wording or an action (`<tool_call>`,
`</tool_response>`, `<answer>` …) becomes `‹` (U+2039). Other text is unchanged, so `a < b` and HTML examples stay
readable. Special tokens are a second wall: `Text` is encoded with them disabled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Flags of England, Scotland and Wales are spelt with tag characters: those stay. Zero-width joiners stay as well,
# Persian, Hindi and emoji need them; tab and line feed are white space.
_FLAG = "\U0001f3f4[\U000e0030-\U000e007a]{1,8}\U000e007f"
_CONTROL, _DIRECTION = r"\x00-\x08\x0b-\x1f\x7f-\x9f", r"\u202a-\u202e\u2066-\u2069"
_HIDDEN = re.compile(rf"({_FLAG})|[{_CONTROL}{_DIRECTION}\u200b\u2060-\u2065\ufeff\U000e0000-\U000e007f]")
_IN_JSON = re.compile(rf"[\x7f-\x9f{_DIRECTION}\ud800-\udfff]")
_RESERVED = re.compile("[\U000f60e0\U000f60e1]")  # what marks places in a rendered template
_TAG = re.compile(r"<\s*/?\s*([A-Za-z_][A-Za-z0-9_]*)")
_SPACE = re.compile(r"\s+")

# Tags of all shipped dialects: a page must not be able to speak another dialect either.
KNOWN_TAGS = frozenset({
    "answer", "assistant", "bbox", "box", "code", "crop", "function", "function_call", "grounding", "im_end",
    "im_start", "image", "image_search", "img", "img_search", "information", "interpreter", "observation",
    "parameter", "python", "reason", "response", "result", "results", "search", "search_result", "system",
    "text_search", "think", "thinking", "tool", "tool_call", "tool_response", "tools", "user", "visit", "zoom",
})  # fmt: skip
LOOK_ALIKE = "\u2039"


def printable(text: str) -> str:
    """`text` without control, direction and invisible characters; line ends become line feeds."""
    return _HIDDEN.sub(r"\1", text.replace("\r\n", "\n").replace("\r", "\n"))


def escape_html(text: str) -> str:
    """`printable` as text of an HTML page, or as an attribute in quotes."""
    import html  # with its table of entities: for pages, not for every question

    return html.escape(printable(text), quote=True)


def printable_json(document: str) -> str:
    """A JSON document whose strings hold no raw character that a terminal obeys or UTF-8 lacks; it means the same."""
    return _IN_JSON.sub(lambda match: f"\\u{ord(match.group()):04x}", document)


def cut(text: str, limit: int) -> str:
    """At most `limit` characters (0 is no limit), cut at a word where one ends near, marked with `…`."""
    if not limit or len(text) <= limit:
        return text
    kept = text[: limit - 1]
    space = kept.rfind(" ")
    if space > limit * 0.8:
        kept = kept[:space]
    return kept.rstrip() + "\u2026"


class Neutraliser:
    """Cleans text for the prompts of one dialect.

    Args:
        wordings: the dialect's wrapper and syntax strings; their tag names are added to `KNOWN_TAGS`.
    """

    def __init__(self, wordings: Iterable[str] = ()) -> None:
        tags = KNOWN_TAGS.union(tag.lower() for wording in wordings for tag in _TAG.findall(wording))
        names = "|".join(sorted((re.escape(tag) for tag in tags), key=len, reverse=True))
        self._pattern = re.compile(rf"[<\uff1c](?=\s*[|\uff5c]|\s*/?\s*(?:{names})\b)", re.IGNORECASE)

    def text(self, text: str, limit: int = 0) -> str:
        """Body text: markers neutralised, control and invisible characters dropped, cut to `limit` characters."""
        if limit:
            text = text[: 4 * limit + 1000]  # megabytes are not cleaned for the sake of a few hundred characters
        clean = _RESERVED.sub("", printable(text)).strip()
        return self._pattern.sub(LOOK_ALIKE, cut(clean, limit))

    def markers(self, text: str) -> str:
        """`text` with nothing but its markers neutralised."""
        return self._pattern.sub(LOOK_ALIKE, text)

    def line(self, text: str, limit: int = 0) -> str:
        """One line, for titles and addresses: white space is collapsed as well."""
        return self.text(_SPACE.sub(" ", text), limit)
