"""The text of an answer while its turn is being written: what of it is sure, piece by piece.

A piece is held back while it could still become markup, a call, or the end of the answer. What has been shown stands:
if what follows turns the shown text into something else (a second answer, the end of a call that never began), the
answer is what was shown. Where the dialect's own rule lets a later call cancel an answer (`parse.answer` last or
alone), or a text become reasoning in front of a call, nothing is shown before the turn has ended; for an answer
between marks a grammar rules that out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from gog_edge.dialects.answer_text import AnswerText
from gog_edge.dialects.spec import DialectSpec
from gog_edge.dialects.syntax import Syntax
from gog_edge.types import Action, ActionKind, Turn

_NEVER = "\0"  # in no text
_SURE = 40  # characters of a forced turn: it may begin with the rest of a call
_MOST = 3200  # characters between two marks: longer answers are cut at a word behind them (`turns`)


class AnswerStream:
    """One turn's.

    Args:
        begun: how the turn was begun for the policy. In a `forced` one the dialect's prefill is a part of its text.
        constrained: a grammar that ends with the answer holds.
        as_json: the answer is a JSON object, and nothing in it is markup.

    `stops`: strings that end the turn; those that may stand in an object do not. `sign`: what the turn's text must hold
    for `feed` to be worth calling. `shown`: the pieces so far.
    """

    def __init__(
        self,
        spec: DialectSpec,
        syntaxes: Sequence[Syntax],
        answers: AnswerText,
        *,
        begun: str,
        forced: bool,
        constrained: bool,
        as_json: bool,
    ) -> None:
        self._answers, self._forced, self._constrained, self._json = answers, forced, constrained, as_json
        self._begun = spec.forced.prefill if forced else ""
        self._answering = [s for s in syntaxes if any(a.kind == "answer" for a in s.actions)]
        self._calls = [s.opening for s in syntaxes if s.first.kind != "answer"]
        self._open, self._close = spec.parse.think_open, spec.parse.think_close
        self._thinks = bool(self._open) and self._open in begun and self._close not in begun
        self._plain = forced or not syntaxes or as_json
        self._may = forced or constrained or not syntaxes or spec.parse.answer in ("first", "wins")
        one = len(self._answering) == 1 and not self._plain
        self.sign = _NEVER if not self._may else self._answering[0].opening if one else ""
        closings = {s.closing for s in self._answering}
        self.stops = tuple(s for s in spec.stop if not (as_json and (forced or s in closings)))
        self._syntax: Syntax | None = None
        self._inner = -1
        self.shown = ""

    def feed(self, text: str) -> str:
        """The next piece, of the turn's text so far."""
        if not self._may:
            return ""
        text = self._begun + text
        if self._inner < 0 or not self.shown:
            self._inner = self._begin(text)
            if self._inner < 0:
                return ""
        sure = self._sure(text)
        if len(sure) <= len(self.shown) or not sure.startswith(self.shown):
            return ""
        piece = sure[len(self.shown) :]
        self.shown = sure
        return piece

    def settle(self, turn: Turn, text: str) -> Turn:
        """The turn as it was read, with the answer that agrees with what was shown. `text`: the whole turn."""
        if self._json and (inner := self._begin(self._begun + text)) >= 0:
            said = _json(self._begun + text, inner)
            return Turn(turn.thought, (Action(ActionKind.ANSWER, said),), turn.raw) if said else turn
        if not self.shown or answer_of(turn).startswith(self.shown):
            return turn
        return Turn(turn.thought, (Action(ActionKind.ANSWER, self.shown),), turn.raw)

    def rest(self, answer: str) -> str:
        """The last piece: what of the whole answer was not shown yet."""
        return answer[len(self.shown) :]

    def _begin(self, text: str) -> int:
        """Where the answer's text begins, -1 where that is not known yet."""
        start = 0
        for close in (self._close, "</think>") if self._close else ():
            if (at := text.find(close)) >= 0:
                start = at + len(close)
                break
        if not (start or self._constrained) and (self._thinks or (self._open and self._open in text)):
            return -1
        again = [(at, s) for s in self._answering if (at := text.find(s.opening, max(start, len(self._begun)))) >= 0]
        found = again or [(at, s) for s in self._answering if (at := text.find(s.opening, start)) >= 0]
        at, self._syntax = min(found, key=lambda f: f[0]) if found else (-1, None)
        if not self._forced and any(
            0 <= text.find(o, start) < (at if at >= 0 else len(text)) for o in self._calls if o
        ):
            return -1
        if self._syntax is not None:
            return at + len(self._syntax.opening)
        return start if self._plain else -1

    def _sure(self, text: str) -> str:
        inner = text[self._inner :]
        if self._json:
            return _json(text, self._inner)
        if self._syntax is None:
            written, closed = inner, False
        else:
            found = self._syntax.answering(inner)
            if found is None:
                return ""
            written, closed = found
        sure = self._answers.sure(written, closed, self.shown)
        if self._syntax is not None and len(sure) >= _MOST:
            sure, self.sign = sure[:_MOST].rstrip(), _NEVER
        return sure if closed or not self._forced or len(sure) >= _SURE else ""


def answer_of(turn: Turn) -> str:
    """The answer that a turn gives; empty when it gives none."""
    return next((a.text for a in reversed(turn.actions) if a.kind is ActionKind.ANSWER), "")


def answers(turn: Turn) -> bool:
    """Whether a turn gives an answer, be it an empty one."""
    return any(a.kind is ActionKind.ANSWER for a in turn.actions)


def _json(text: str, inner: int) -> str:
    """The object that begins behind text[:inner], as far as it is written."""
    begin = text.find("{", inner)
    if begin < 0 or text[inner:begin].strip():
        return ""
    try:
        _, end = json.JSONDecoder().raw_decode(text, begin)
    except (ValueError, RecursionError):
        end = len(text)
    return text[begin:end].rstrip()
