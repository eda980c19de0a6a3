"""The conversation as the protocol wants it: messages, cut out of what the dialect's chat template rendered.

Templates of these families put a turn between `<|im_start|>role` and `<|im_end|>`. Those markers are looked for in
wording alone, never in outside text or in what the policy wrote: there a `<|name|>` loses its meaning (`‹|name|>`),
since the server, other than our tokenizer, would make a control token of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gog_edge.errors import DialectError
from gog_edge.sanitize import LOOK_ALIKE, Neutraliser
from gog_edge.types import ImagePart, Segment, Text

_BORDER = re.compile(r"<\|im_start\|>(\w+)\n?|<\|im_end\|>\n?")
_SPECIAL = re.compile(r"<(?=\|[^|<>\s]{1,40}\|>)")
_NEUTRAL = Neutraliser()


@dataclass(frozen=True)
class Written:
    """What the policy wrote, or the server in its name."""

    text: str


Part = Segment | Written
Message = dict[str, Any]


def messages_of(parts: Sequence[Part], picture: Callable[[int], str]) -> list[Message]:
    """Messages with string content, or parts of text and pictures where there is a picture; the last one is the
    policy's, which it goes on with.

    Args:
        picture: registry index -> data URL.

    Raises:
        DialectError: the chat template does not mark its turns as ChatML does.
    """
    out: list[tuple[str, list[str | ImagePart]]] = []
    inside = False
    for part in parts:
        if isinstance(part, ImagePart):
            _in_turn(out, inside).append(part)
        elif isinstance(part, Written):
            _in_turn(out, inside).append(_SPECIAL.sub(LOOK_ALIKE, part.text))
        elif isinstance(part, Text):
            _in_turn(out, inside).append(_NEUTRAL.markers(part.text))
        else:
            at = 0
            for border in _BORDER.finditer(part.text):
                _wording(out, inside, part.text[at : border.start()])
                inside, at = border.group(1) is not None, border.end()
                if inside:
                    out.append((border.group(1), []))
            _wording(out, inside, part.text[at:])
    return [{"role": role, "content": _content(found, picture)} for role, found in out]


def _wording(out: list[tuple[str, list[str | ImagePart]]], inside: bool, text: str) -> None:
    if inside:
        out[-1][1].append(text)
    elif text.strip():
        raise DialectError(
            f"the chat template writes {text.strip()[:40]!r} outside of ChatML's turns: it can't be sent to a server"
        )


def _in_turn(out: list[tuple[str, list[str | ImagePart]]], inside: bool) -> list[str | ImagePart]:
    if not inside:
        raise DialectError("the chat template does not mark its turns as ChatML does: it can't be sent to a server")
    return out[-1][1]


def _content(found: Sequence[str | ImagePart], picture: Callable[[int], str]) -> str | list[Message]:
    if not any(isinstance(item, ImagePart) for item in found):
        return "".join(item for item in found if isinstance(item, str))
    content: list[Message] = []
    for item in found:
        if isinstance(item, ImagePart):
            content.append({"type": "image_url", "image_url": {"url": picture(item.image)}})
        elif not item:
            continue
        elif content and content[-1]["type"] == "text":
            content[-1]["text"] += item
        else:
            content.append({"type": "text", "text": item})
    return content
