"""Filling request templates: `{query}` from the search, `${NAME}` from the environment. Keys never leave by messages.

One pass over the template: what is filled in is never looked at again, so a query that contains `${PATH}` or
`{image_url}` stays text.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from gog_edge.errors import SearchError

_SLOT = re.compile(r"\$\{(?P<env>[A-Za-z_][A-Za-z0-9_]*)(?P<optional>\?)?\}|\{(?P<name>[a-z_][a-z0-9_]*)\}")
_SHORTEST_SECRET = 4


class Secrets:
    """Environment values that were used, to keep them out of everything that is shown."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        self._used: set[str] = set()

    def get(self, name: str) -> str | None:
        """The value of an environment variable; remembered as secret."""
        value = self._environ.get(name, "").strip()
        if not value:
            return None
        if len(value) >= _SHORTEST_SECRET:
            self._used.add(value)
        return value

    def redact(self, text: str) -> str:
        """`text` with every used secret replaced, plain and as addresses, JSON and base64 spell it."""
        for value in sorted(self._used, key=len, reverse=True):
            encoded = base64.b64encode(value.encode("utf-8", "replace")).decode().rstrip("=")
            for form in {value, quote(value, safe=""), quote(value), json.dumps(value)[1:-1], encoded}:
                text = text.replace(form, "[key]")
        return text

    def redact_all(self, value: Any) -> Any:
        """A copy of a JSON-like value with every used secret replaced, in the names of fields as well."""
        if isinstance(value, str):
            return self.redact(value)
        if isinstance(value, dict):
            return {self.redact(str(k)): self.redact_all(v) for k, v in value.items()}
        return [self.redact_all(v) for v in value] if isinstance(value, list) else value

    def __repr__(self) -> str:
        return f"Secrets({len(self._used)} in use)"


class MissingOptionalError(Exception):
    """An optional variable is not set; the entry that holds it is left out. Never leaves this package."""


def fill(template: Any, values: Mapping[str, Any], secrets: Secrets, *, encode: Callable[[str], str] = str) -> Any:
    """A copy of a JSON-like template with its slots filled; a string that is one slot keeps the value's type.

    Args:
        encode: applied to every value put into a longer string (percent-encoding in URLs).

    Raises:
        SearchError: a variable is not set, or a slot has no value for this search.
    """
    if isinstance(template, dict):
        result: dict[str, Any] = {}
        for key, value in template.items():
            try:
                result[key] = fill(value, values, secrets, encode=encode)
            except MissingOptionalError:
                continue
        return result
    if isinstance(template, list):
        return [fill(v, values, secrets, encode=encode) for v in template]
    if not isinstance(template, str):
        return template
    whole = _SLOT.fullmatch(template)
    if whole is not None:
        return _value(whole, values, secrets)
    return _SLOT.sub(lambda m: encode(str(_value(m, values, secrets))), template)


def slots(template: Any) -> set[str]:
    """Names of the `{name}` slots in a template."""
    if isinstance(template, dict):
        return set().union(*(slots(v) for v in template.values()))
    if isinstance(template, list):
        return set().union(*(slots(v) for v in template))
    if not isinstance(template, str):
        return set()
    return {m["name"] for m in _SLOT.finditer(template) if m["name"]}


def url_part(value: str) -> str:
    """Percent-encoded for a path or query."""
    return quote(value, safe="")


def _value(match: re.Match[str], values: Mapping[str, Any], secrets: Secrets) -> Any:
    if match["env"]:
        found = secrets.get(match["env"])
        if found is None and match["optional"]:
            raise MissingOptionalError
        if found is None:
            raise SearchError(f"the environment variable {match['env']} is not set; export it")
        return found
    if match["name"] not in values:
        raise SearchError(f"the template asks for {{{match['name']}}}, which this search does not have")
    return values[match["name"]]
