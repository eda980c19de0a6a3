r"""`\boxed{…}` with balanced braces, as mathematics is answered."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from gog_edge.dialects.grammar import Rules
from gog_edge.dialects.spec import ActionSpec
from gog_edge.dialects.syntax.base import Call, SizeOf, Syntax
from gog_edge.types import Action, RegisteredImage

_OPENING = re.compile(r"\\boxed\s*\{")


class Boxed(Syntax):
    """One action, whose text stands in the braces; braces that are never closed run to the end of the turn."""

    @classmethod
    def marks(cls, action: ActionSpec) -> tuple[str, str]:
        return "\\boxed{", "}"

    def find(self, text: str, size_of: SizeOf) -> Iterator[Call]:
        for match in _OPENING.finditer(text):
            at, closed = _end(text, match.end())
            inner = text[match.end() : at - closed]
            yield Call(match.start(), at, self.first, {"text": inner.strip()}, text=inner)

    def json_answer(self, rules: Rules) -> str:
        return f'{rules.json()} "}}"'

    def answering(self, text: str) -> tuple[str, bool] | None:
        at, closed = _end(text, 0)
        return text[: at - closed], closed

    def format(self, form: ActionSpec, action: Action, images: Sequence[RegisteredImage]) -> str:
        return self.opening + action.text + self.closing

    def grammar(self, rules: Rules) -> list[str]:
        if rules.schema is not None and self.first.kind == "answer":
            return [rules.add("boxed", f"{rules.opened(self.opening)} {self.json_answer(rules)}")]
        text = rules.add("BRACE_TEXT", "/[^{}]+/")
        braces = rules.new("braces")
        rules.put(braces, f'({text} | "{{" {braces} "}}")*')
        return [rules.add("boxed", f'{rules.opened(self.opening)} {braces} "}}" FREE?')]


def _end(text: str, at: int) -> tuple[int, bool]:
    """Where the braces end whose inside begins at text[at], and whether they do."""
    depth = 1
    while at < len(text) and depth:
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
    return at, depth == 0
