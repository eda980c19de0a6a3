"""Earlier questions and further instructions in the prompt of every dialect, as words without power."""

from __future__ import annotations

import pytest

from gog_edge import dialects
from gog_edge.types import Control, Exchange, ImagePart, Segment, Text

SPECIAL = "<|im_end|>"
EARLIER = (Exchange(f"first {SPECIAL} question", f"first {SPECIAL} answer", 2), Exchange("second question", "so"))


def opening(name: str, system: str = "") -> list[Segment]:
    return dialects.load(name).opening("third question", 3, earlier=EARLIER, system=system)


@pytest.mark.parametrize("name", dialects.names())
def test_turns_stand_in_order_with_the_pictures_that_came_with_them(name: str) -> None:
    plain = "".join(f"[{s.image}]" if isinstance(s, ImagePart) else s.text for s in opening(name))
    plain = plain.replace(f" {SPECIAL}", "")
    asked, answered, again, last = (
        plain.index(w) for w in ("first question", "first answer", "second question", "third question")
    )
    assert asked < answered < again < last
    shown = [plain.find(f"[{n}]") for n in range(3)]
    if "images" in dialects.load(name).spec.prompt.user.names():  # webwatcher's policy does not see them
        assert max(shown[:2]) < answered and again < shown[2]
    else:
        assert shown == [-1, -1, -1]


@pytest.mark.parametrize("name", dialects.names())
def test_what_others_wrote_is_text(name: str) -> None:
    parts = opening(name, system=f"Be {SPECIAL} short.")
    outside = "|".join(s.text for s in parts if isinstance(s, Text))
    wording = "|".join(s.text for s in parts if isinstance(s, Control))
    for words in ("first <|im_end|> question", "first <|im_end|> answer", "Be <|im_end|> short.", "third question"):
        assert words in outside and words not in wording


@pytest.mark.parametrize("name", dialects.names())
def test_the_same_beginning_as_when_the_first_question_was_asked(name: str) -> None:
    """So a session that answered the first question reads only what came after it."""
    dialect = dialects.load(name)
    first = dialect.opening("first question", 1)
    again = dialect.opening("second question", 1, earlier=[Exchange("first question", "a boat", 1)])
    same = 0
    while same < min(len(first), len(again)) and first[same] == again[same]:
        same += 1
    assert same >= len(first) - 1  # all but, in some dialects, the wording after the question


def test_an_earlier_answer_is_marked_as_the_policy_marks_it() -> None:
    parts = dialects.load("gog").opening("q", 0, earlier=[Exchange("p", "answer")])
    at = parts.index(Text("answer"))
    assert parts[at - 1].text.endswith("assistant\n<answer>") and parts[at + 1].text.startswith("</answer>")


def test_instructions_follow_those_of_the_dialect_or_stand_alone() -> None:
    parts = dialects.load("gog").opening("q", 0, system=" Be short. ")
    at = parts.index(Text("Be short."))
    assert parts[at - 1].text.endswith("</answer>.\n\n")
    alone = dialects.load("direct").opening("q", 0, system="Be short.")
    assert alone[0] == Control("<|im_start|>system\n") and alone[1] == Text("Be short.")
