"""What of a text is an answer: never a call, a part of one, or a mark of the conversation.

The rule, in this order. Closed reasoning is left out. A text in front of the first call is the answer; if there is
none, the text behind the last one is; a call that was never opened reaches back to the beginning
(`capital"}}</tool_call>`), one that was never closed to the end, and a control token ends the text. The answer's own
marks are taken off, and so is half a mark at the end. A call without tags ends the text as well. What is left is no
answer if it is the tail of a JSON call, or nothing but brackets and quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property

from gog_edge.dialects.spec import DialectSpec
from gog_edge.dialects.syntax import Syntax
from gog_edge.sanitize import KNOWN_TAGS

# Elements of HTML that pictures of source code show: markup only where the dialect itself has them.
_HTML = frozenset({"img", "image", "code", "search"})
_TAG_NAME = re.compile(r"[A-Za-z_]\w*")
_WRAPPED = re.compile(r"<(answer|response)>(.*?)</\1>", re.DOTALL)  # by whatever dialect
_MARKS = re.compile(r"</?(?:answer|response)>")
_THOUGHT = ("think", "thinking", "reason")
_CONTROL = r"<\|(?:[^|<>\n]{1,40}\|>|\w[^<>\n]*>?)"  # or what is left of one
_TAIL = re.compile(r"""["'\]}\d]\s*\}\s*$""")
_BARE_CALL = re.compile(
    r"""[\[{\s]*\{\s*["']name["']\s*:\s*["']([^"'\n]{1,80})["']\s*(,\s*["'](?:arguments|parameters)["'])?"""
)
_BRACE = re.compile(r"[\[{\s]*\{")
_COULD_CALL = re.compile(  # `_BARE_CALL`, as far as it is written
    r"""[\[{\s]*\{\s*(?:["'](?:n(?:a(?:m(?:e(?:["']\s*(?::.*)?)?)?)?)?)?)?""", re.DOTALL
)
_LOOSE_END = re.compile(r"""[\s"'\]\[{]*\Z""")
_BRACKETS = re.compile(r"""[\s"'`{}\[\]():,<>/]*""")


class AnswerText:
    """Reads answers of one dialect. `read` is the text of an answer, empty where there is none."""

    def __init__(self, spec: DialectSpec, syntaxes: Sequence[Syntax]) -> None:
        self._answering = [s for s in syntaxes if s.first.kind == "answer"]
        self._calls = [s for s in syntaxes if s.first.kind != "answer"]
        self._tools = {a.name for s in self._calls for a in s.actions if a.name}
        self._thoughts = {*_THOUGHT, *_tags((spec.parse.think_open,))}

    def read(self, text: str) -> str:
        """The answer in `text`."""
        text = self._thought.sub("", text)
        for syntax in self._answering:
            text = syntax.unwrapped(text)
        wrapped = _WRAPPED.findall(text)
        text = _MARKS.sub("", wrapped[-1][1] if wrapped else text)
        text = self._outside(text).strip()
        text = text[: len(text) - self._half_a_mark(text)].strip()
        text = self._without_call(text)
        return "" if _BRACKETS.fullmatch(text) else text

    def sure(self, text: str, closed: bool, shown: str = "") -> str:
        """The beginning of an answer that is still being written, as far as what follows can't make it markup or a
        call. `closed`: nothing follows. `shown`: the beginning that was sure before; only what follows it is looked at.
        """
        text = text.lstrip()
        if not text.startswith(shown):
            return shown
        text = text[len(shown) :]
        if mark := self._marks.search(text):
            text, closed = text[: mark.start()], True
        if (at := text.rfind("<")) >= 0 and self._could_begin(text[at:]):
            text = text[:at]
        for own in self._own_marks:
            text = text[: next((at for n in range(len(own), 0, -1) if (at := _found(text, own, n)) >= 0), len(text))]
        for brace in _BRACE.finditer(text) if "{" in text else ():
            if _COULD_CALL.fullmatch(text, brace.start()) or _BARE_CALL.match(text, brace.start()):
                text = text[: brace.start()]
                break
        if "}" in text:
            text = _balanced(text, shown.count("{") - shown.count("}"))
        text = text.rstrip() if closed else _LOOSE_END.sub("", text)
        return "" if not shown and _BRACKETS.fullmatch(text) else shown + text

    def _could_begin(self, tail: str) -> bool:
        """Whether a mark begins with `tail`."""
        tail = tail.lower()
        return any(mark.startswith(tail) for mark in self._written) or tail.startswith("<|")

    def _outside(self, text: str) -> str:
        """The text in front of the first call, else the one behind the last."""
        marks = list(self._marks.finditer(text))
        if not marks:
            return text
        first = marks[0]
        before = "" if first["close"] else text[: first.start()]
        if before.strip():
            return before
        last = marks[-1]
        return text[last.end() :] if last["close"] or last["whole"] else ""

    def _half_a_mark(self, text: str) -> int:
        """Characters at the end that begin a mark: the turn ended in the middle of it."""
        at = text.rfind("<")
        tail = text[at:].lower() if at >= 0 else ""
        begins = len(tail) > 1 and any(mark.startswith(tail) for mark in self._written)
        return len(tail) if begins else 0

    def _without_call(self, text: str) -> str:
        """What stands in front of a call without tags; nothing if the text is the tail of one."""
        bare = next((b for b in _BARE_CALL.finditer(text) if b[2] or b[1] in self._tools), None)
        text = text if bare is None else text[: bare.start()].strip()
        return "" if _TAIL.search(text) and text.count("}") > text.count("{") else text

    @cached_property
    def _own_marks(self) -> list[str]:
        """Of the answer itself, and openings of calls that are no tags."""
        own = [mark for s in self._answering for mark in (s.opening, s.closing) if len(mark) > 1]
        return own + [s.opening for s in self._calls if not s.opening.startswith("<")]

    @cached_property
    def _names(self) -> frozenset[str]:
        """Tags that are markup here, in lower case."""
        own = _tags(mark for s in self._calls for mark in (s.opening, s.closing))
        return (KNOWN_TAGS - _HTML) | own | self._thoughts

    @cached_property
    def _written(self) -> list[str]:
        marks = [f"<{slash}{name}" for name in self._names for slash in ("", "/")]
        return [*(f"{mark}>" for mark in marks), "<|im_start|>", "<|im_end|>", "<|endoftext|>"]

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        """`whole`: a call that is one text; `close`: the end of a call; otherwise its beginning, or a control token."""
        whole = [re.escape(s.opening) for s in self._calls if not s.closing and s.opening]
        names = "|".join(sorted(map(re.escape, self._names), key=len, reverse=True))
        # a damaged one is one as well: "<answer{x}>", "<tool_call\n>", "</think%", and "</reason" in front of "<"
        tag = rf"(?:{names})(?!\w)(?:\s*>|[^<>\n]*>?)"
        parts = (
            rf"(?P<whole>{'|'.join(whole) or '(?!)'})",
            rf"(?P<close></{tag})",
            rf"(?P<open><{tag}|{_CONTROL})",
        )
        return re.compile("|".join(parts), re.IGNORECASE)

    @cached_property
    def _thought(self) -> re.Pattern[str]:
        names = "|".join(sorted(map(re.escape, self._thoughts), key=len, reverse=True))
        return re.compile(rf"<({names})>.*?</\1>", re.DOTALL | re.IGNORECASE)


def _tags(marks: Iterable[str]) -> frozenset[str]:
    return frozenset(name.lower() for mark in marks if mark.startswith("<") for name in _TAG_NAME.findall(mark)[:1])


def _balanced(text: str, depth: int) -> str:
    """`text` up to a closing brace that nothing opened, without the quotes in front of it. `depth`: braces that are
    open before it."""
    for at, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            return text[:at].rstrip(" \n\t\"'])}")
    return text


def _found(text: str, mark: str, n: int) -> int:
    """Where `mark` stands in `text`, or at its end the first n characters of it; -1 if it does not."""
    if n == len(mark):
        return text.find(mark)
    return len(text) - n if text.endswith(mark[:n]) else -1
