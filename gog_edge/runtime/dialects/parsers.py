"""The shared parsers: text of a turn -> what was called, with which raw arguments. Nothing is ever executed.

Every parser yields `Found` pieces with their place in the text; an unreadable call is a `Found` with a `problem`, so
that the dialect can answer it with its own words. No parser raises on any text.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gog_edge.runtime.dialects.spec import ActionSpec, ParseSpec

MAX_CALL_CHARS = 20_000
_FENCE = re.compile(r"\A\s*```[a-zA-Z]*\s*\n?(.*?)\n?\s*```\s*\Z", re.DOTALL)
_PARSE_ERRORS = (ValueError, SyntaxError, RecursionError, MemoryError, TypeError)


@dataclass(frozen=True)
class Problem:
    """Why a call can't be used: `reply` is a key of [replies], `detail` its placeholder's value."""

    reply: str
    detail: str = ""


@dataclass(frozen=True)
class Found:
    """One call in a turn. `values`: role -> raw value."""

    start: int
    end: int
    action: ActionSpec | None
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: Problem | None = None


def split_thought(text: str, spec: ParseSpec) -> tuple[str, int]:
    """(the reasoning without its tags, where the rest begins). Works with and without the opening tag (prefill)."""
    if not spec.think_close:
        return "", 0
    close = text.find(spec.think_close)
    if close < 0:
        return "", 0
    head = text[:close]
    opened = head.find(spec.think_open) if spec.think_open else -1
    thought = head[opened + len(spec.think_open) :] if opened >= 0 else head
    return thought.strip(), close + len(spec.think_close)


def find_calls(text: str, actions: Sequence[ActionSpec], spec: ParseSpec) -> list[Found]:
    """Everything callable in `text`, in order, without overlaps (the action listed first wins at one place)."""
    found: list[tuple[int, int, Found]] = []
    if any(action.via == "tool_call" for action in actions):
        found += [(f.start, -1, f) for f in _tool_calls(text, actions, spec)]
    blocks: dict[tuple[str, str], list[ActionSpec]] = {}
    for order, action in enumerate(actions):
        if action.via == "code":
            blocks.setdefault((action.open or "<code>", action.close or "</code>"), []).append(action)
        else:
            found += [(f.start, order, f) for f in _PARSERS.get(action.via, _nothing)(text, action)]
    for (opening, closing), calls in blocks.items():
        found += [(f.start, len(actions), f) for f in _code_calls(text, opening, closing, calls)]
    out: list[Found] = []
    for _, _, item in sorted(found, key=lambda entry: entry[:2]):
        if not out or item.start >= out[-1].end or (item.start, item.end) == (out[-1].start, out[-1].end):
            same = out and (item.start, item.end) == (out[-1].start, out[-1].end)
            if not same or (item.action is not None and item.action.via in ("tool_call", "code")):
                out.append(item)
    return out


def load_json(text: str) -> Any:
    """JSON as policies write it: strict, else a Python literal (single quotes, trailing commas), fences removed.

    Raises:
        ValueError: it is neither.
    """
    if len(text) > MAX_CALL_CHARS:
        raise ValueError(f"the call has {len(text)} characters, more than {MAX_CALL_CHARS}")
    fenced = _FENCE.match(text)
    body = fenced.group(1) if fenced else text.strip()
    try:
        return json.loads(body, strict=False)
    except (ValueError, RecursionError) as error:
        try:
            return ast.literal_eval(body)
        except _PARSE_ERRORS:
            reason = f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else "not JSON"
            raise ValueError(reason) from error


def _spans(text: str, opening: str, closing: str, *, unclosed: bool) -> Iterator[tuple[int, int, str, bool]]:
    """(start, end, inner text, closed) of every `opening … closing`; a last one without an end if `unclosed`."""
    at = 0
    while True:
        start = text.find(opening, at)
        if start < 0:
            return
        inner = start + len(opening)
        end = text.find(closing, inner)
        if end < 0:
            if unclosed:
                yield start, len(text), text[inner:], False
            return
        at = end + len(closing)
        yield start, at, text[inner:end], True


def _tool_calls(text: str, actions: Sequence[ActionSpec], spec: ParseSpec) -> Iterator[Found]:
    names = {action.name: action for action in actions if action.via == "tool_call"}
    for start, end, inner, closed in _spans(text, spec.call_open, spec.call_close, unclosed=True):
        try:
            calls = _json_calls(inner)
        except ValueError as error:
            detail = str(error) if closed else f"no {spec.call_close} at the end"
            yield Found(start, end, None, problem=Problem("malformed", detail))
            continue
        for call in calls:
            yield _tool_call(call, names, spec, start, end)


def _json_calls(inner: str) -> list[Any]:
    """The calls of one block: an object, a list of objects, or one object a line."""
    try:
        value = load_json(inner)
    except ValueError:
        lines = [line for line in inner.strip().splitlines() if line.strip()]
        if len(lines) < 2 or not all(line.strip().startswith("{") for line in lines):
            raise
        return [load_json(line) for line in lines]
    return list(value) if isinstance(value, (list, tuple)) and value else [value]


def _tool_call(call: Any, names: Mapping[str, ActionSpec], spec: ParseSpec, start: int, end: int) -> Found:
    if not isinstance(call, dict) or not isinstance(call.get(spec.name_key), str):
        return Found(start, end, None, problem=Problem("malformed", f"an object with {spec.name_key!r} is needed"))
    name = call[spec.name_key]
    action = names.get(name)
    if action is None:
        return Found(start, end, None, problem=Problem("unknown_tool", name[:60]))
    arguments = call.get(spec.arguments_key) or {}
    if isinstance(arguments, str):
        try:
            arguments = load_json(arguments)
        except ValueError as error:
            return Found(start, end, action, problem=Problem("malformed", str(error)))
    if not isinstance(arguments, dict):
        return Found(start, end, action, problem=Problem("malformed", f"{spec.arguments_key!r} is not an object"))
    return _with_values(action, arguments, start, end)


def _with_values(action: ActionSpec, arguments: Mapping[Any, Any], start: int, end: int) -> Found:
    values: dict[str, Any] = {}
    for role, key in action.args.items():
        if isinstance(key, tuple):
            if all(k in arguments for k in key):
                values[role] = [arguments[k] for k in key]
        elif arguments.get(key) is not None:
            values[role] = arguments[key]
    for role in action.required:
        if role not in values:
            key = action.args[role]
            missing = key if isinstance(key, str) else ", ".join(key)
            return Found(start, end, action, values, Problem("argument", f"{missing!r} is missing"))
    return Found(start, end, action, values)


def _json_objects(text: str, action: ActionSpec) -> Iterator[Found]:
    for start, end, inner, closed in _spans(text, action.open, action.close, unclosed=True):
        try:
            value = load_json(inner)
        except ValueError as error:
            detail = str(error) if closed else f"no {action.close} at the end"
            yield Found(start, end, action, problem=Problem("malformed", detail))
            continue
        if isinstance(value, dict):
            yield _with_values(action, value, start, end)
        else:
            yield Found(start, end, action, problem=Problem("malformed", "an object is needed"))


def _tags(text: str, action: ActionSpec) -> Iterator[Found]:
    # An answer that ran into the token limit is still an answer; a call must be closed.
    for start, end, inner, _ in _spans(text, action.open, action.close, unclosed=action.kind == "answer"):
        value = inner.strip()
        values: dict[str, Any] = {} if action.content == "none" else {str(action.content): value}
        if not value and action.content in ("query", "box", "url"):
            detail = f"nothing between {action.open} and {action.close}"
            yield Found(start, end, action, values, Problem("argument", detail))
        else:
            yield Found(start, end, action, values)


def _literals(text: str, action: ActionSpec) -> Iterator[Found]:
    at = text.find(action.literal)
    while at >= 0:
        yield Found(at, at + len(action.literal), action)
        at = text.find(action.literal, at + len(action.literal))


def _boxed(text: str, action: ActionSpec) -> Iterator[Found]:
    for match in re.finditer(r"\\boxed\s*\{", text):
        depth, at = 1, match.end()
        while at < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        inner = text[match.end() : at - 1] if depth == 0 else text[match.end() :]
        yield Found(match.start(), at, action, {"text": inner.strip()})


def _code_calls(text: str, opening: str, closing: str, actions: Sequence[ActionSpec]) -> Iterator[Found]:
    names = {action.name: action for action in actions if action.kind != "refuse"}
    refusal = next((action for action in actions if action.kind == "refuse"), None)
    for start, end, inner, closed in _spans(text, opening, closing, unclosed=True):
        calls = _closed_list(inner, names) if closed or inner.strip() else None
        if calls is None:
            yield Found(start, end, refusal, problem=Problem("refused", "code"))
            continue
        for action, arguments in calls:
            yield _with_values(action, arguments, start, end)


def _closed_list(source: str, names: Mapping[str, ActionSpec]) -> list[tuple[ActionSpec, dict[str, Any]]] | None:
    """The calls of a block that consists of nothing but calls of `names` with literal arguments; else None."""
    fenced = _FENCE.match(source)
    body = (fenced.group(1) if fenced else source).strip()
    if len(body) > MAX_CALL_CHARS:
        return None
    try:
        tree = ast.parse(body)
    except _PARSE_ERRORS:
        return None
    calls: list[tuple[ActionSpec, dict[str, Any]]] = []
    for statement in tree.body:
        value = getattr(statement, "value", None) if isinstance(statement, (ast.Expr, ast.Assign)) else None
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "print" and value.args:
            value = value.args[0]
        if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Name) or value.func.id not in names:
            return None
        action = names[value.func.id]
        order = [key for key in action.args.values() if isinstance(key, str)]
        if len(value.args) > len(order) or any(keyword.arg is None for keyword in value.keywords):
            return None
        try:
            arguments = {key: ast.literal_eval(arg) for key, arg in zip(order, value.args)}
            arguments.update({str(keyword.arg): ast.literal_eval(keyword.value) for keyword in value.keywords})
        except _PARSE_ERRORS:
            return None
        calls.append((action, arguments))
    return calls or None


def _nothing(text: str, action: ActionSpec) -> Iterator[Found]:
    return iter(())


_PARSERS = {"json": _json_objects, "tag": _tags, "literal": _literals, "boxed": _boxed}
