"""OpenAI's messages: which become the question, which the conversation before it, and which are refused."""

from __future__ import annotations

import base64
from typing import Any

import pytest

pytest.importorskip("starlette")

from gog_edge.errors import UsageError
from gog_edge.serve.messages import parse_messages
from gog_edge.types import Exchange


def picture(data: bytes) -> dict[str, Any]:
    wrapped = base64.encodebytes(data * 60).decode()  # a line end after every 76 characters
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{wrapped}", "detail": "low"}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def test_every_picture_and_text_is_read_at_its_place() -> None:
    talk = parse_messages(
        [
            {"role": "system", "content": "Be short."},
            user(picture(b"a"), text("Which"), text("boat?"), picture(b"b")),
            assistant([text("The red one.")]),
            {"role": "developer", "content": [text("Be kind.")]},
            user("And here?"),
            user(picture(b"c")),
            assistant("None."),
            user("Sure?"),
            assistant(None),  # some clients add the message that the answer will be written into
        ]
    )
    assert talk.images == [b"a" * 60, b"b" * 60, b"c" * 60]
    assert talk.question == "Sure?"
    assert talk.earlier == (Exchange("Which\nboat?", "The red one.", 2), Exchange("And here?", "None.", 1))
    assert talk.system == "Be short.\n\nBe kind."


def test_a_question_alone_has_nothing_before_it() -> None:
    talk = parse_messages([user(text("What is it?"), picture(b"a"))])
    assert (talk.question, talk.earlier, talk.system) == ("What is it?", (), "")


PICTURED = user(picture(b"a"), text("What is it?"))


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([user("What is it?")], "no image"),
        ([user(picture(b"a"))], "no text"),
        ([{"role": "system", "content": "Be short."}], "no image"),
        ([PICTURED, assistant("A boat.")], "end with the user's"),
        ([assistant("Hello."), PICTURED], "begin with the user's"),
        ([PICTURED, assistant([picture(b"a")]), user("Why?")], "can't hold an image"),
        ([{"role": "tool", "content": "7"}, PICTURED], "role 'tool'"),
        ([PICTURED, {"role": "assistant", "content": None, "tool_calls": [{}]}, user("Why?")], "tool_calls"),
        ([user(*[picture(b"a")] * 17, text("Which?"))], "17 images"),
        ([PICTURED, *[assistant("x")] * 300], "301 messages"),
    ],
)
def test_what_is_no_conversation_with_a_picture_is_refused(messages: list[Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_messages(messages)
