"""`<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Qwen's tool calls."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from gog_edge.dialects.grammar import Rules, quoted
from gog_edge.dialects.spec import ActionSpec
from gog_edge.dialects.syntax.arguments import ArgumentSyntax
from gog_edge.dialects.syntax.base import Call, CallProblem, SizeOf
from gog_edge.dialects.syntax.borders import blocks, load_json, unfinished
from gog_edge.dialects.syntax.code import CODE_OPEN
from gog_edge.types import Action, RegisteredImage

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_NAMED = re.compile(r'"name"\s*:\s*"([^"\n]+)"')


class ToolCall(ArgumentSyntax):
    """All tool calls of a dialect. A block holds one object, several one after the other, or a list of them."""

    needs = ("name",)
    begins = '\n{"name": "'  # from the opening mark to the name, as it is written
    _before = r'\s*\{{\s*"name"\s*:\s*"{name}"\s*,\s*"arguments"\s*:\s*\{{\s*'

    @classmethod
    def marks(cls, action: ActionSpec) -> tuple[str, str]:
        return OPEN, CLOSE

    def find(self, text: str, size_of: SizeOf) -> Iterator[Call]:
        # An interpreter's call carries its code after the object.
        for block in blocks(text, OPEN, CLOSE, CODE_OPEN):
            raw = block.inner.strip()
            if not block.values:
                named = _NAMED.search(raw)
                problem = CallProblem("malformed", block.error, named.group(1)[:60] if named else "", raw)
                yield Call(block.start, block.end, None, problem=problem, text=raw)
            for value in block.values:
                for call in value if isinstance(value, (list, tuple)) and value else [value]:
                    yield self._read(call, block.start, block.end, raw)

    def partial(self, text: str, size_of: SizeOf) -> Call | None:
        start, value = unfinished(text, OPEN, CLOSE) or (0, None)
        calls = value if isinstance(value, (list, tuple)) else [value]
        return self._read(calls[-1], start, len(text), "") if calls and calls[-1] else None

    def _read(self, call: Any, start: int, end: int, raw: str) -> Call:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            problem = CallProblem("malformed", "an object with 'name' is needed", "", raw)
            return Call(start, end, None, problem=problem, text=raw)
        name = call["name"]
        form = next((a for a in self.actions if a.name == name), None)
        if form is None:
            return Call(start, end, None, problem=CallProblem("unknown_tool", "", name[:60], raw), text=raw)
        if self._bare(form) and call.get("arguments") is not None:
            problem = CallProblem("surplus", f"{name} takes no arguments", name, raw)
            return Call(start, end, form, problem=problem, text=raw)
        arguments, error = call.get("arguments") or {}, "'arguments' is not an object"
        if isinstance(arguments, str):
            try:
                arguments = load_json(arguments)
            except ValueError as problem_:
                arguments, error = None, str(problem_)
        if not isinstance(arguments, dict):
            return Call(start, end, form, problem=CallProblem("malformed", error, name, raw), text=raw)
        return self._call(form, arguments, start, end, raw)

    def _bare(self, form: ActionSpec) -> bool:
        """Whether the dialect refuses arguments for this action, even empty ones."""
        return not form.args and form.kind != "refuse" and bool(self.spec.replies.surplus)

    def format(self, form: ActionSpec, action: Action, images: Sequence[RegisteredImage]) -> str:
        call: dict[str, Any] = {"name": form.name}
        if not self._bare(form):
            call["arguments"] = self._arguments(form, action, images)
        return f"{OPEN}\n{json.dumps(call, ensure_ascii=False)}\n{CLOSE}"

    def grammar(self, rules: Rules) -> list[str]:
        bodies = [rules.add("tool", self._body(a, rules)) for a in self.actions if a.kind != "refuse"]
        if not bodies:
            return []
        close = rules.tag("tool_close", CLOSE, before="\n")
        body = rules.add("tool_body", f"{quoted(self.begins)} ({' | '.join(bodies)}) {close}")
        several = ""
        if self.spec.parse.pick == "all":
            several = f' ("\\n" {rules.tag("next_call", OPEN, after=f" {body}")})*'
        return [rules.add("tool_turn", f"{rules.opened(OPEN)} {body}{several}")]

    def _body(self, form: ActionSpec, rules: Rules) -> str:
        """From the name to the end of the call."""
        arguments = '""'
        if not self._bare(form):
            arguments = f'", \\"arguments\\": " ({self._object(form, rules)})'
            arguments = arguments if form.args else f"({arguments})?"
        return f'{quoted(form.name + chr(34))} ({arguments}) "}}"'
