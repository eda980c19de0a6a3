"""Text between two tags: `<answer>…</answer>`, `<bbox>[x1, y1, x2, y2]</bbox>`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from gog_edge.dialects.coordinates import split_box
from gog_edge.dialects.grammar import Rules
from gog_edge.dialects.spec import ActionSpec
from gog_edge.dialects.syntax.base import Call, CallProblem, SizeOf, Syntax
from gog_edge.dialects.syntax.borders import border
from gog_edge.errors import RegionError
from gog_edge.types import Action, RegisteredImage


class Tag(Syntax):
    """One action. A pair is the innermost one: a tag that is opened again before it is closed was not closed."""

    needs = ("open", "close")

    @classmethod
    def marks(cls, action: ActionSpec) -> tuple[str, str]:
        return action.open, action.close

    def find(self, text: str, size_of: SizeOf) -> Iterator[Call]:
        at = 0
        while (start := text.find(self.opening, at)) >= 0:
            close = text.find(self.closing, start + len(self.opening))
            if close >= 0:
                start = max(start, text.rfind(self.opening, start, close))
            elif self.first.kind != "answer":
                return  # an answer that ran into the token limit is still an answer; a call must be closed
            inner, end = start + len(self.opening), close if close >= 0 else len(text)
            at = end + len(self.closing)
            yield self._read(start, min(at, len(text)), text[inner:end].strip())

    def partial(self, text: str, size_of: SizeOf) -> Call | None:
        start = text.rfind(self.opening)
        if start < 0 or self.closing in text[start:] or not self._has_box:
            return None
        inner = start + len(self.opening)
        begin = text.find("[", inner)
        end = border(text, begin) if begin >= 0 else None
        return self._read(start, end, text[inner:end].strip()) if end is not None else None

    @property
    def _has_box(self) -> bool:
        return self.first.content in ("box", "box_or_label")

    def _read(self, start: int, end: int, value: str) -> Call:
        content, name = self.first.content, self.first.name
        values: dict[str, Any] = {} if content == "none" else {content: value}
        problem = None
        if not value and content not in ("none", "text", "label"):
            problem = CallProblem("argument", f"nothing between {self.opening} and {self.closing}", "", value)
        elif content == "box_or_label":
            try:
                box, words = split_box(value)
                values = {"box": box, "label": words}
                problem = None if box is not None else CallProblem("ground", "", name, words)
            except RegionError as error:
                problem = CallProblem("box", str(error), name, value)
        return Call(start, end, self.first, values, problem, value)

    def format(self, form: ActionSpec, action: Action, images: Sequence[RegisteredImage]) -> str:
        inner = action.label if form.content == "label" else action.text
        if self._has_box:
            words = f" {action.label}" if form.content == "box_or_label" and action.label else ""
            box = self.frame.json_numbers(action.region, images[action.image]) if action.region is not None else []
            inner = json.dumps(box) + words
        return form.open + ("" if form.content == "none" else inner) + form.close

    def grammar(self, rules: Rules) -> list[str]:
        inside = {"none": "", "box": "box ", "box_or_label": "box WORDS? "}.get(self.first.content, "WORDS ")
        if rules.schema is not None and self.first.kind == "answer":
            answer = self.json_answer(rules)
            return [rules.add("tag", f"{rules.opened(self.opening)} {answer}")] if answer else []
        text = self.first.content == "text"
        rest = rules.until(self.closing) if text else inside + rules.tag("close", self.closing)
        return [rules.add("tag", f"{rules.opened(self.opening)} {rest}")]

    def json_answer(self, rules: Rules) -> str:
        return f"{rules.json()} {rules.tag('close', self.closing)}" if self.first.content == "text" else ""

    def answering(self, text: str) -> tuple[str, bool] | None:
        if self.first.content != "text":
            return None
        if (end := text.find(self.closing)) >= 0:
            return text[:end], True
        half = next((n for n in range(len(self.closing) - 1, 0, -1) if text.endswith(self.closing[:n])), 0)
        return text[: len(text) - half], False

    def unwrapped(self, text: str) -> str:
        return text.replace(self.opening, "").replace(self.closing, "")
