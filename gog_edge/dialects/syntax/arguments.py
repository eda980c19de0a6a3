"""Arguments with keys: this runtime's roles <-> keys of a dialect, read, written and as a grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, ClassVar

from gog_edge.dialects.grammar import Rules
from gog_edge.dialects.images import reference
from gog_edge.dialects.spec import ActionSpec
from gog_edge.dialects.syntax.base import Call, CallProblem, Syntax
from gog_edge.types import Action, RegisteredImage


class ArgumentSyntax(Syntax):
    """A syntax whose calls hold a JSON object of arguments, or what comes to the same. `_before`: what stands between
    the opening mark and the arguments, with the name of the call."""

    _before: ClassVar[str] = r"\s*\{{\s*"

    def _call(self, form: ActionSpec, arguments: Mapping[Any, Any], start: int, end: int, text: str) -> Call:
        """The call with its values by role; a problem where a required one is missing."""
        values: dict[str, Any] = {}
        for role, key in form.args.items():
            keys = _keys(key)
            if role == "box" and len(keys) == 4:
                if all(k in arguments for k in keys):
                    values[role] = [arguments[k] for k in keys]
            else:
                present = [arguments[k] for k in keys if arguments.get(k) is not None]
                values.update({role: present[0]} if present else {})
        problem = None
        lacking = [_keys(form.args[role]) for role in form.required if role not in values]
        if lacking:
            missing = next((k for k in lacking[0] if arguments.get(k) is None), lacking[0][0])
            problem = CallProblem("argument", f"'{', '.join(lacking[0])}' is missing", form.name, text, missing)
        return Call(start, end, form, values, problem, text)

    def _arguments(self, form: ActionSpec, action: Action, images: Sequence[RegisteredImage]) -> dict[str, Any]:
        """The inverse of `_call`: key -> value, in the order of `args`."""
        box = self.frame.json_numbers(action.region, images[action.image]) if action.region is not None else []
        name = reference(self.spec.images, action.image)
        image = int(name) if name.isdigit() else name
        out: dict[str, Any] = {}
        for role, keys in form.args.items():
            key = _keys(keys)[0]
            if role == "box":
                out.update(
                    zip(_keys(keys), box) if len(_keys(keys)) == 4 else {key: [box] if form.lists == "each" else box}
                )
            elif role == "image":
                if "image" in (*form.required, *form.always) or action.image:
                    out[key] = [image] if form.lists else image
            elif role == "unused":
                out[key] = name
            elif role == "limit":
                out.update({key: action.limit} if action.limit else {})
            elif role == "label":
                out.update({key: action.label} if action.label or "label" in (*form.required, *form.always) else {})
            else:
                out[key] = [action.text] if form.lists else action.text
        return out

    def answering(self, text: str) -> tuple[str, bool] | None:
        form = next((a for a in self.actions if a.kind == "answer"), None)
        key = next((_keys(form.args[r])[0] for r in ("text", "query", "url") if r in form.args), "") if form else ""
        named = re.match(self._before.format(name=re.escape(form.name)), text) if form and key else None
        value = re.compile(rf'"{re.escape(key)}"\s*:\s*"').search(text, named.end()) if named else None
        return _string_so_far(text, value.end()) if value else None

    def _object(self, form: ActionSpec, rules: Rules) -> str:
        """A JSON object with the required keys and any of the optional ones, in the order of `args`."""
        pairs: list[tuple[str, bool]] = []
        for role, keys in form.args.items():
            needed = role in (*form.required, *form.always, "box", "unused")
            if role == "box" and len(_keys(keys)) == 4:
                pairs.append((' ", " '.join(f'"\\"{key}\\": " NUM' for key in keys), needed))
            else:
                pairs.append((f'"\\"{_keys(keys)[0]}\\": " {self._value(role, form, rules)}', needed))
        forms: list[str] = []
        for kept in product(*(((True,) if needed else (True, False)) for _, needed in pairs)):
            chosen = [pair for (pair, _), keep in zip(pairs, kept) if keep]
            forms.append('"{" ' + ' ", " '.join(chosen) + ' "}"' if chosen else '"{}"')
        return " | ".join(forms)

    def _value(self, role: str, form: ActionSpec, rules: Rules) -> str:
        if role == "box":
            if form.lists == "each" and "image" in form.args:  # one pair: their numbers are equal
                return '"[" box "]"'
            return '"[" box (", " box)* "]"' if form.lists == "each" else "box"
        if role == "image":
            named = r'"\"" REF "\""' if rules.references_are_text else "REF"
            return f'"[" {named} "]"' if form.lists else named
        if role == "limit":
            return "LIMIT"
        several = ' (", " STR)*' if form.lists == "each" else ""
        return f'"[" STR{several} "]"' if form.lists and role in ("query", "url") else "STR"


def _keys(keys: str | tuple[str, ...]) -> tuple[str, ...]:
    return keys if isinstance(keys, tuple) else (keys,)


_CHARACTERS = re.compile(r'(?:[^"\\]|\\u[0-9A-Fa-f]{4}|\\[^u])*')
_HALF_A_PAIR = re.compile(r"[\ud800-\udfff]")


def _string_so_far(text: str, at: int) -> tuple[str, bool] | None:
    """The JSON string whose inside begins at text[at]: (its characters that are complete, whether it is closed)."""
    match = _CHARACTERS.match(text, at)
    assert match is not None
    try:
        said = str(json.loads(f'"{match.group()}"', strict=False))
    except ValueError:
        return None
    closed = text.startswith('"', match.end())
    return (said if closed else _HALF_A_PAIR.split(said)[0]), closed
