"""`<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>`: Qwen3.5's tool calls."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import product

from gog_edge.dialects.grammar import Rules, pattern, quoted
from gog_edge.dialects.spec import ActionSpec
from gog_edge.dialects.syntax.base import Call, CallProblem, SizeOf
from gog_edge.dialects.syntax.borders import border, load_json
from gog_edge.dialects.syntax.tool_call import CLOSE, OPEN, ToolCall
from gog_edge.types import Action, RegisteredImage

_FUNCTION = re.compile(r"\s*<function=([^<>\n]+)>\s*")
_PARAMETER = re.compile(r"<parameter=([^<>\n]+)>\n?")
# A value ends where the next parameter or an end of the call follows: a closing tag in the middle of it is its text.
_VALUE_ENDS = re.compile(r"\n?</parameter>\s*(?=<parameter=|</function>|</tool_call>|\Z)")
_ENDS = "</function>"


class FunctionXml(ToolCall):
    """All tool calls of a dialect. Texts stand as they are, numbers and lists as JSON."""

    begins = "\n<function="

    def find(self, text: str, size_of: SizeOf) -> Iterator[Call]:
        at = 0
        while (start := text.find(OPEN, at)) >= 0:
            found, at, broken = self._functions(text, start + len(OPEN))
            close, following = text.find(CLOSE, at), text.find(OPEN, at)
            closed = close >= 0 and not 0 <= following < close
            broken = broken or (closed and bool(text[at:close].strip()))
            if closed:
                at = close + len(CLOSE)
            elif broken:
                at = following if following >= 0 else len(text)
            raw = text[start + len(OPEN) : at].removesuffix(CLOSE).strip()
            for name, arguments in found:
                yield self._typed(name, arguments, start, at, raw)
            if broken:
                named = _FUNCTION.match(raw)
                problem = CallProblem("malformed", f"no {_ENDS} at the end", named.group(1)[:60] if named else "", raw)
                yield Call(start, at, None, problem=problem, text=raw)

    def partial(self, text: str, size_of: SizeOf) -> Call | None:
        start = text.rfind(OPEN)
        found, at, _ = self._functions(text, start + len(OPEN))
        if start < 0 or CLOSE in text[at:]:
            return None
        unfinished = _function(text, at)
        if unfinished is not None:
            found.append(unfinished[:2])
        return self._typed(*found[-1], start, len(text), "") if found else None

    def _functions(self, text: str, at: int) -> tuple[list[tuple[str, dict[str, str]]], int, bool]:
        """The complete functions from text[at] on, where they end, and whether none or half a one is there."""
        found: list[tuple[str, dict[str, str]]] = []
        while (function := _function(text, at)) is not None and function[2] is not None:
            found.append(function[:2])
            at = function[2]
        return found, at, function is not None or not found

    def _typed(self, name: str, arguments: dict[str, str], start: int, end: int, raw: str) -> Call:
        """The call, with JSON read where the role of a key is not a text."""
        call = self._read({"name": name, "arguments": arguments}, start, end, raw)
        values = dict(call.values)
        for role, value in values.items():
            if isinstance(value, str) and call.action is not None and (call.action.lists or role == "limit"):
                with suppress(ValueError):
                    values[role] = load_json(value)
        return Call(start, end, call.action, values, call.problem, raw)

    def format(self, form: ActionSpec, action: Action, images: Sequence[RegisteredImage]) -> str:
        lines = [OPEN, f"<function={form.name}>"]
        for key, value in self._arguments(form, action, images).items():
            written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines += [f"<parameter={key}>", written, "</parameter>"]
        return "\n".join([*lines, _ENDS, CLOSE])

    def answering(self, text: str) -> tuple[str, bool] | None:
        return None  # where a value ends is known only when the next thing has begun

    def _body(self, form: ActionSpec, rules: Rules) -> str:
        parts: list[tuple[str, bool]] = []
        for role, keys in form.args.items():
            needed = role in (*form.required, *form.always, "box", "unused")
            four = role == "box" and isinstance(keys, tuple) and len(keys) == 4
            value = "NUM" if four else self._value(role, form, rules)
            text = value == "STR" and self._text(rules)
            for key in keys if isinstance(keys, tuple) and four else [keys if isinstance(keys, str) else keys[0]]:
                ends = text or f"{value} {quoted(chr(10) + '</parameter>' + chr(10))}"
                parts.append((f"{quoted(f'<parameter={key}>{chr(10)}')} {ends}", needed))
        forms = [
            " ".join(part for (part, _), keep in zip(parts, kept) if keep)
            for kept in product(*((True,) if needed else (True, False) for _, needed in parts))
        ]
        return f'{quoted(f"{form.name}>{chr(10)}")} ({" | ".join(f or chr(34) * 2 for f in forms)}) "{_ENDS}"'

    def _text(self, rules: Rules) -> str:
        """The terminal for a text up to the end of its parameter."""
        ends = "|".join(pattern(tag) for tag in ("</parameter>", self.spec.parse.think_close) if tag)
        body = f"(/(?s:.+)/ & ~/(?s:.*)({ends})(?s:.*)/) {quoted(chr(10) + '</parameter>' + chr(10))}"
        return rules.add("VALUE", body)

    def _value(self, role: str, form: ActionSpec, rules: Rules) -> str:
        if role == "image" and not form.lists:
            return "REF"
        return super()._value(role, form, rules)


def _function(text: str, at: int) -> tuple[str, dict[str, str], int | None] | None:
    """The function at text[at]: its name, its parameters as far as they are closed, its end or None without one."""
    begun = _FUNCTION.match(text, at)
    if begun is None:
        return None
    at, arguments = begun.end(), {}
    while (parameter := _PARAMETER.match(text, at)) is not None:
        inner = parameter.end()
        listed = border(text, inner) if text.startswith(("[", "{"), inner) else None
        ended = _VALUE_ENDS.search(text, listed or inner)
        if ended is None:
            arguments.update({parameter.group(1): text[inner:listed]} if listed else {})
            return begun.group(1), arguments, None
        arguments[parameter.group(1)] = text[inner : ended.start()]
        at = ended.end()
    return begun.group(1), arguments, at + len(_ENDS) if text.startswith(_ENDS, at) else None
