"""OpenAI's messages as one question with its pictures, what came before it, and further instructions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gog_edge.errors import UsageError
from gog_edge.serve.fields import FieldError
from gog_edge.serve.wire import decode_image, unicode_text
from gog_edge.types import Exchange

MOST_PICTURES = 16
_MOST_MESSAGES = 256
_SYSTEM = ("system", "developer")


@dataclass
class _Said:
    """What the user said before the next reply."""

    texts: list[str] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


@dataclass(frozen=True)
class Talk:
    """A list of messages, read. `images`: files of the whole conversation, in order."""

    images: list[bytes]
    question: str
    earlier: tuple[Exchange, ...]
    system: str


def parse_messages(messages: Any, name: str = "messages") -> Talk:
    """The conversation that `messages`, the field `name` of a request, holds.

    Messages of one role in a row are one turn. System and developer messages are joined, wherever they stand.

    Raises:
        FieldError: it is no conversation that ends with a question and has a picture as a data URL.
    """
    try:
        return _parsed(messages)
    except UsageError as e:
        raise FieldError(name, str(e).replace("messages", name)) from e


def _parsed(messages: Any) -> Talk:
    if not isinstance(messages, list) or not messages:
        raise UsageError("messages is missing or empty: a list of messages is needed")
    if len(messages) > _MOST_MESSAGES:
        raise UsageError(f"messages holds {len(messages)} messages: at most {_MOST_MESSAGES} are read")
    system: list[str] = []
    asked, replies = [_Said()], list[str]()
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        if role in _SYSTEM:
            system += _texts(message, role)
        elif role == "user":
            if len(asked) == len(replies):
                asked.append(_Said())
            texts, images = _parts(message.get("content"))
            asked[-1].texts += texts
            asked[-1].images += images
        elif role == "assistant":
            _reply("\n".join(_texts(message, role)), asked, replies)
        else:
            raise UsageError(f"a message of role {role!r} is not understood: system, user or assistant is needed")
    if len(asked) == len(replies):
        raise UsageError("the last of messages is the assistant's: end with the user's question")
    return _talk(asked, replies, "\n\n".join(system))


def _reply(text: str, asked: list[_Said], replies: list[str]) -> None:
    """A turn of the assistant; an empty one, as some clients add for the answer to come, is none."""
    if not text.strip():
        return
    if len(replies) == len(asked):
        replies[-1] += "\n" + text
    elif asked[-1].texts or asked[-1].images:
        replies.append(text)
    else:
        raise UsageError("the first of messages is the assistant's: begin with the user's")


def _talk(asked: list[_Said], replies: list[str], system: str) -> Talk:
    images = [image for said in asked for image in said.images]
    if not images or not asked[-1].text.strip():
        what = "no image" if not images else "no text in the last message of the user"
        raise UsageError(f"messages holds {what}: an image and a question are needed")
    if len(images) > MOST_PICTURES:
        raise UsageError(f"messages holds {len(images)} images: at most {MOST_PICTURES} are looked at")
    earlier = tuple(Exchange(said.text, reply, len(said.images)) for said, reply in zip(asked, replies))
    return Talk([decode_image(image) for image in images], asked[-1].text, earlier, system)


def _texts(message: Mapping[str, Any], role: str) -> list[str]:
    """The texts of a message that can't hold pictures; none where its content is null."""
    if message.get("tool_calls") or message.get("function_call"):
        raise UsageError("tool_calls can't be given here: the policy has tools of its own")
    content = message.get("content")
    texts, images = ([], []) if content is None else _parts(content)
    if images:
        raise UsageError(f"a message of role {role!r} can't hold an image: only the user's can")
    return texts


def _parts(content: Any) -> tuple[list[str], list[Any]]:
    """(texts, image addresses) of one message."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise UsageError("the content of a message must be text, or a list of text and image_url parts")
    texts: list[str] = []
    images: list[Any] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(unicode_text(part["text"], "text"))
        elif kind == "image_url":
            url = part.get("image_url")
            images.append(url.get("url") if isinstance(url, Mapping) else url)
        else:
            raise UsageError(f"a content part of type {kind!r} is not understood")
    return texts, images
