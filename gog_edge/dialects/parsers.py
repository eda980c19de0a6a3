"""The shared parsers: text of a turn -> what was called, with which raw arguments. Nothing is ever executed.

Every parser yields `Found` pieces with their place in the text; an unreadable call is a `Found` with a `problem`, so
that the dialect can answer it with its own words. No parser raises on any text.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gog_edge.dialects.code_calls import RefusedCode, read_code
from gog_edge.dialects.spec import ActionSpec, DialectSpec, ParseSpec

MAX_CALL_CHARS = 20_000
_FENCE = re.compile(r"\A\s*```[a-zA-Z]*\s*\n?(.*?)\n?\s*```\s*\Z", re.DOTALL)

SizeOf = Callable[[str], "tuple[float, float] | None"]


@dataclass(frozen=True)
class Problem:
    """Why a call can't be used: `reply` is a key of [replies]; the others are values of its placeholders."""

    reply: str
    error: str = ""
    tool: str = ""
    call: str = ""
    missing: str = ""
    image: str = ""


@dataclass(frozen=True)
class Found:
    """One call in a turn. `values`: role -> raw value."""

    start: int
    end: int
    action: ActionSpec | None
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: Problem | None = None
    call: str = ""


def split_thought(text: str, spec: ParseSpec) -> tuple[str, int]:
    """(the reasoning without its tags, where the rest begins). Works with and without the opening tag (prefill).

    A thinking checkpoint closes what its chat template has opened by </think>, whatever tags the dialect has.
    """
    if not spec.think_close:
        return "", 0
    for opening, closing in ((spec.think_open, spec.think_close), ("<think>", "</think>")):
        close = text.find(closing)
        if close >= 0:
            head = text[:close]
            opened = head.find(opening) if opening else -1
            thought = head[opened + len(opening) :] if opened >= 0 else head
            return thought.strip(), close + len(closing)
    return "", 0


def find_calls(text: str, spec: DialectSpec, size_of: SizeOf) -> list[Found]:
    """Everything callable in `text`, in order, without overlaps (the action listed first wins at one place).

    `size_of`: pixels of a named image, for code that computes boxes.
    """
    found: list[tuple[int, int, Found]] = []
    actions = spec.actions
    if any(action.via == "tool_call" for action in actions):
        found += [(f.start, -1, f) for f in _tool_calls(text, actions, spec.parse)]
    blocks: dict[tuple[str, str], dict[str, ActionSpec]] = {}
    for order, action in enumerate(actions):
        if action.via == "code":
            block = (action.open or "<code>", action.close or "</code>")
            blocks.setdefault(block, {})[action.name] = action
        elif action.via in _PARSERS:
            found += [(f.start, order, f) for f in _PARSERS[action.via](text, action)]
    for (opening, closing), calls in blocks.items():
        unit = spec.coordinates.frame == "unit"
        found += [(f.start, len(actions), f) for f in _code_blocks(text, opening, closing, calls, size_of, unit)]
    out: list[Found] = []
    for _, _, item in sorted(found, key=lambda entry: entry[:2]):
        if not out or item.start >= out[-1].end or _same_block(out[-1], item):
            out.append(item)
    return out


def load_json(text: str) -> Any:
    """JSON as policies write it: strict, else a Python literal (single quotes, trailing commas), fences removed.

    Raises:
        ValueError: it is neither; the message is the JSON reader's.
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
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
            raise ValueError(reason) from error


def _same_block(one: Found, other: Found) -> bool:
    """Several calls of one tool-call or code block share its place; they are all kept."""
    grouped = all(f.action is None or f.action.via in ("tool_call", "code") for f in (one, other))
    return grouped and (one.start, one.end) == (other.start, other.end)


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
        raw = inner.strip()
        try:
            calls = _json_calls(_without_code(inner))
        except ValueError as error:
            detail = str(error) if closed else f"no {spec.call_close} at the end"
            named = re.search(rf'"{re.escape(spec.name_key)}"\s*:\s*"([^"\n]+)"', raw)
            problem = Problem("malformed", detail, named.group(1)[:60] if named else "", raw)
            yield Found(start, end, None, problem=problem, call=raw)
            continue
        for call in calls:
            yield _tool_call(call, names, spec, start, end, raw)


def _without_code(inner: str) -> str:
    """A tool call may carry code after its object (`{…}<code>…</code>`); the object alone is read."""
    return inner.split("<code>", 1)[0] if "<code>" in inner else inner


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


def _tool_call(call: Any, names: Mapping[str, ActionSpec], spec: ParseSpec, start: int, end: int, raw: str) -> Found:
    if not isinstance(call, dict) or not isinstance(call.get(spec.name_key), str):
        problem = Problem("malformed", f"an object with {spec.name_key!r} is needed", "", raw)
        return Found(start, end, None, problem=problem, call=raw)
    name = call[spec.name_key]
    action = names.get(name)
    if action is None:
        return Found(start, end, None, problem=Problem("unknown_tool", "", name[:60], raw), call=raw)
    if action.bare and call.get(spec.arguments_key) is not None:
        problem = Problem("surplus", f"{name} takes no {spec.arguments_key}", name, raw)
        return Found(start, end, action, problem=problem, call=raw)
    arguments = call.get(spec.arguments_key) or {}
    if isinstance(arguments, str):
        try:
            arguments = load_json(arguments)
        except ValueError as error:
            return Found(start, end, action, problem=Problem("malformed", str(error), name, raw), call=raw)
    if not isinstance(arguments, dict):
        problem = Problem("malformed", f"{spec.arguments_key!r} is not an object", name, raw)
        return Found(start, end, action, problem=problem, call=raw)
    return _with_values(action, arguments, start, end, raw)


def _with_values(action: ActionSpec, arguments: Mapping[Any, Any], start: int, end: int, raw: str) -> Found:
    values: dict[str, Any] = {}
    for role, key in action.args.items():
        if isinstance(key, tuple) and role == "box":
            if all(k in arguments for k in key):
                values[role] = [arguments[k] for k in key]
        else:
            keys = key if isinstance(key, tuple) else (key,)
            present = [arguments[k] for k in keys if arguments.get(k) is not None]
            if present:
                values[role] = present[0]
    if action.via == "code" and "result" in arguments:
        values["label"] = arguments["result"]
    for role in action.required:
        if role not in values:
            key = action.args[role]
            missing = key if isinstance(key, str) else ", ".join(key)
            first = missing if isinstance(key, str) else next((k for k in key if arguments.get(k) is None), key[0])
            problem = Problem("argument", f"'{missing}' is missing", action.name, raw, first)
            return Found(start, end, action, values, problem, raw)
    return Found(start, end, action, values, call=raw)


def _json_objects(text: str, action: ActionSpec) -> Iterator[Found]:
    for start, end, inner, closed in _spans(text, action.open, action.close, unclosed=True):
        raw = inner.strip()
        try:
            value = load_json(inner)
            if not isinstance(value, dict):
                raise ValueError("an object is needed")
        except ValueError as error:
            detail = str(error) if closed else f"no {action.close} at the end"
            yield Found(start, end, action, problem=Problem("malformed", detail, "", raw), call=raw)
            continue
        yield _with_values(action, value, start, end, raw)


def _tags(text: str, action: ActionSpec) -> Iterator[Found]:
    # An answer that ran into the token limit is still an answer; a call must be closed.
    for start, end, inner, _ in _spans(text, action.open, action.close, unclosed=action.kind == "answer"):
        value = inner.strip()
        role = "box" if action.content == "box_or_label" else str(action.content)
        values: dict[str, Any] = {} if action.content == "none" else {role: value}
        problem = None
        if not value and action.content not in ("none", "text", "label"):
            problem = Problem("argument", f"nothing between {action.open} and {action.close}", "", value)
        yield Found(start, end, action, values, problem, value)


def _literals(text: str, action: ActionSpec) -> Iterator[Found]:
    at = text.find(action.literal)
    while at >= 0:
        yield Found(at, at + len(action.literal), action, call=action.literal)
        at = text.find(action.literal, at + len(action.literal))


def _boxed(text: str, action: ActionSpec) -> Iterator[Found]:
    for match in re.finditer(r"\\boxed\s*\{", text):
        depth, at = 1, match.end()
        while at < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        inner = text[match.end() : at - 1] if depth == 0 else text[match.end() :]
        yield Found(match.start(), at, action, {"text": inner.strip()}, call=inner)


def _code_blocks(
    text: str, opening: str, closing: str, actions: Mapping[str, ActionSpec], size_of: SizeOf, unit: bool
) -> Iterator[Found]:
    refusal = next((action for action in actions.values() if action.kind == "refuse"), None)
    for start, end, inner, closed in _spans(text, opening, closing, unclosed=True):
        try:
            if not closed:
                raise RefusedCode(f"no {closing} at the end")
            if len(inner) > MAX_CALL_CHARS:
                raise RefusedCode("the code is too long")
            calls = read_code(inner, actions, size_of, unit)
        except RefusedCode as error:
            problem = Problem("refused", str(error), "python", inner.strip())
            yield Found(start, end, refusal, problem=problem, call=inner.strip())
            continue
        for call in calls:
            yield _with_values(actions[call.name], call.arguments, start, end, inner.strip())


_PARSERS: dict[str, Callable[[str, ActionSpec], Iterator[Found]]] = {
    "json": _json_objects,
    "tag": _tags,
    "literal": _literals,
    "boxed": _boxed,
}
