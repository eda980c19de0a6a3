"""Characters that must not reach a terminal, a page or a prompt out of somebody else's text.

Titles, page texts and file names are data. An escape sequence in a title would move the cursor, set a window's title
or write to the clipboard; a bidirectional override would turn the rest of a line round; tag characters and zero-width
spaces hide words from whoever looks.
"""

from __future__ import annotations

import html
import re

# Flags of England, Scotland and Wales are spelt with tag characters: those stay. Zero-width joiners stay as well,
# Persian, Hindi and emoji need them; tab and line feed are white space.
_FLAG = "\U0001f3f4[\U000e0030-\U000e007a]{1,8}\U000e007f"
_CONTROL, _DIRECTION = r"\x00-\x08\x0b-\x1f\x7f-\x9f", r"\u202a-\u202e\u2066-\u2069"
_HIDDEN = re.compile(rf"({_FLAG})|[{_CONTROL}{_DIRECTION}\u200b\u2060-\u2065\ufeff\U000e0000-\U000e007f]")
_IN_JSON = re.compile(rf"[\x7f-\x9f{_DIRECTION}]")


def printable(text: str) -> str:
    """`text` without control, direction and invisible characters; line ends become line feeds."""
    return _HIDDEN.sub(r"\1", text.replace("\r\n", "\n").replace("\r", "\n"))


def escape_html(text: str) -> str:
    """`printable` as text of an HTML page, or as an attribute in quotes."""
    return html.escape(printable(text), quote=True)


def printable_json(document: str) -> str:
    """A JSON document whose strings hold no raw character that a terminal obeys; it means the same."""
    return _IN_JSON.sub(lambda match: f"\\u{ord(match.group()):04x}", document)
