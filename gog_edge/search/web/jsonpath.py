"""Reading values out of JSON answers: "a.b.0.c", alternatives "a|b", and templates "https://x/{key}"."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

_TAG = re.compile(r"<[^<>]{0,200}>")
_SLOT = re.compile(r"\{([^{}]+)\}")


def pick(document: Any, path: str) -> Any:
    """The first alternative that is there and not empty; an empty path is the document itself; else None."""
    for alternative in path.split("|"):
        value = document
        for name in filter(None, alternative.strip().split(".")):
            if isinstance(value, dict):
                value = value.get(name)
            elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
                value = value[int(name)]
            else:
                value = None
        if value is not None and value != "":
            return value
    return None


def pick_text(document: Any, path: str, redact: Callable[[str], str] = str) -> str:
    """A value as plain text: markup that search engines put into snippets is removed; lists are joined by lines."""
    if not path:
        return ""
    if "{" in path:
        missing = False

        def part(match: re.Match[str]) -> str:
            nonlocal missing
            found = pick(document, match[1])
            missing = missing or found is None
            return "" if found is None else str(found)

        filled = _SLOT.sub(part, path)
        return "" if missing else redact(filled)
    value = pick(document, path)
    if isinstance(value, list):
        value = "\n".join(str(v) for v in value if isinstance(v, (str, int, float)))
    if value is None or isinstance(value, dict):
        return ""
    text = str(value)
    return redact(html.unescape(_TAG.sub("", text)) if "<" in text or "&" in text else text)
