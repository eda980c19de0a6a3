"""Typed reading of dialect files: a TOML table -> a frozen dataclass, with errors that name the key and the fix."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from gog_edge.dialects.wording import EMPTY, Wording, compile_wording
from gog_edge.errors import DialectError
from gog_edge.serde import NOT_MINE, Field, SerdeError, decode

T = TypeVar("T")


def wording(*placeholders: str) -> Any:
    """A dataclass field that holds a `Wording`; `placeholders` are the names allowed in it."""
    return dataclasses.field(default=EMPTY, metadata={"placeholders": placeholders})


def read_table(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """Build `cls` from `data`; `where` is the path of the table, for messages.

    Raises:
        DialectError: an unknown or missing key, a value of the wrong type, or a wording with unknown placeholders.
    """
    try:
        return decode(cls, data, where, _wordings)
    except SerdeError as e:
        raise DialectError(str(e)) from None


def _wordings(kind: Any, value: Any, path: str, field: Field) -> Any:
    """What only dialects have: wordings in place of strings, and no number below zero."""
    if kind is Wording:
        return compile_wording(decode(str, value, path), field.get("placeholders", ()), path)
    if kind in (int, float) and type(value) in (int, float) and value < 0:
        raise SerdeError(f"{path}: {value} is negative; zero or more is needed")
    return NOT_MINE
