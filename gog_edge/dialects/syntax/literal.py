"""Exactly one text: `<search><img></search>`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from gog_edge.dialects.grammar import Rules
from gog_edge.dialects.spec import ActionSpec
from gog_edge.dialects.syntax.base import Call, SizeOf, Syntax
from gog_edge.types import Action, RegisteredImage


class Literal(Syntax):
    """One action, without arguments."""

    needs = ("literal",)

    @classmethod
    def marks(cls, action: ActionSpec) -> tuple[str, str]:
        return action.literal, ""

    def find(self, text: str, size_of: SizeOf) -> Iterator[Call]:
        for match in re.finditer(re.escape(self.opening), text):
            yield Call(match.start(), match.end(), self.first, text=self.opening)

    def format(self, form: ActionSpec, action: Action, images: Sequence[RegisteredImage]) -> str:
        return form.literal

    def grammar(self, rules: Rules) -> list[str]:
        return [rules.opened(self.opening)]
