"""A bare JSON object between two tags: `<grounding>{…}</grounding>`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from gog_edge.dialects.grammar import Rules
from gog_edge.dialects.spec import ActionSpec
from gog_edge.dialects.syntax.arguments import ArgumentSyntax
from gog_edge.dialects.syntax.base import Call, CallProblem, SizeOf
from gog_edge.dialects.syntax.borders import blocks, unfinished
from gog_edge.types import Action, RegisteredImage


class JsonObject(ArgumentSyntax):
    """One action; the object holds its arguments."""

    needs = ("open", "close")

    @classmethod
    def marks(cls, action: ActionSpec) -> tuple[str, str]:
        return action.open, action.close

    def find(self, text: str, size_of: SizeOf) -> Iterator[Call]:
        for block in blocks(text, self.opening, self.closing):
            raw = block.inner.strip()
            if len(block.values) == 1 and isinstance(block.values[0], dict):
                yield self._call(self.first, block.values[0], block.start, block.end, raw)
            else:
                problem = CallProblem("malformed", block.error or "an object is needed", "", raw)
                yield Call(block.start, block.end, self.first, problem=problem, text=raw)

    def partial(self, text: str, size_of: SizeOf) -> Call | None:
        start, value = unfinished(text, self.opening, self.closing) or (0, None)
        return self._call(self.first, value, start, len(text), "") if isinstance(value, dict) else None

    def format(self, form: ActionSpec, action: Action, images: Sequence[RegisteredImage]) -> str:
        return form.open + json.dumps(self._arguments(form, action, images), ensure_ascii=False) + form.close

    def grammar(self, rules: Rules) -> list[str]:
        close = rules.tag("close", self.closing)
        return [rules.add("json", f"{rules.opened(self.opening)} ({self._object(self.first, rules)}) {close}")]
