"""Results are data: what a page, title or file name says can not look like the dialect's own wording.

Rule: in result text, the `<` of anything that could be a control marker (`<|…`) or a tag of a dialect's wording or
action syntax (`<tool_call>`, `</tool_response>`, `<answer>` …) becomes `‹` (U+2039). Other text is unchanged, so
`a < b` and HTML examples stay readable. Special tokens are a second wall: `Text` is encoded with them disabled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gog_edge.sanitize import printable

# Tags of all shipped dialects: a page must not be able to speak another dialect either.
KNOWN_TAGS = frozenset(
    {
        "think",
        "reason",
        "answer",
        "response",
        "tool_call",
        "tool_response",
        "tools",
        "tool",
        "code",
        "search",
        "text_search",
        "image_search",
        "img_search",
        "img",
        "information",
        "observation",
        "result",
        "results",
        "grounding",
        "bbox",
        "box",
        "image",
        "interpreter",
        "system",
        "user",
        "assistant",
        "python",
        "search_result",
        "visit",
        "crop",
        "zoom",
        "function",
        "function_call",
        "im_start",
        "im_end",
    }
)
LOOK_ALIKE = "\u2039"

_TAG_IN_WORDING = re.compile(r"<\s*/?\s*([A-Za-z_][A-Za-z0-9_]*)")
_RESERVED = re.compile("[\U000f60e0\U000f60e1]")  # what marks places in a rendered template
_SPACE = re.compile(r"\s+")


class Neutraliser:
    """Cleans result text for one dialect.

    Args:
        wordings: the dialect's wrapper and syntax strings; their tag names are added to `KNOWN_TAGS`.
    """

    def __init__(self, wordings: Iterable[str] = ()) -> None:
        tags = set(KNOWN_TAGS)
        for source in wordings:
            tags.update(tag.lower() for tag in _TAG_IN_WORDING.findall(source))
        names = "|".join(sorted((re.escape(tag) for tag in tags), key=len, reverse=True))
        self._pattern = re.compile(rf"[<\uff1c](?=\s*[|\uff5c]|\s*/?\s*(?:{names})\b)", re.IGNORECASE)

    def text(self, text: str, limit: int = 0) -> str:
        """Body text: markers neutralised, control and invisible characters dropped, cut to `limit` characters."""
        if limit:
            text = text[: 4 * limit + 1000]  # megabytes are not cleaned for the sake of a few hundred characters
        clean = _RESERVED.sub("", printable(text)).strip()
        return self._pattern.sub(LOOK_ALIKE, cut(clean, limit))

    def line(self, text: str, limit: int = 0) -> str:
        """One line, for titles and addresses: white space is collapsed as well."""
        return self.text(_SPACE.sub(" ", text), limit)


def cut(text: str, limit: int) -> str:
    """At most `limit` characters (0 is no limit), cut at a word where one ends near, marked with `…`."""
    if not limit or len(text) <= limit:
        return text
    kept = text[: limit - 1]
    space = kept.rfind(" ")
    if space > limit * 0.8:
        kept = kept[:space]
    return kept.rstrip() + "\u2026"
