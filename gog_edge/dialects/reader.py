"""Typed reading of dialect files: a TOML table -> a frozen dataclass, with errors that name the key and the mend."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from gog_edge.dialects.wording import EMPTY, Wording, compile_wording, suggest
from gog_edge.errors import DialectError

T = TypeVar("T")


def wording(*placeholders: str) -> Any:
    """A dataclass field that holds a `Wording`; `placeholders` are the names allowed in it."""
    return dataclasses.field(default=EMPTY, metadata={"placeholders": placeholders})


def read_table(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """Build `cls` from `data`; `where` is the path of the table, for messages.

    Raises:
        DialectError: an unknown or missing key, a value of the wrong type, or a wording with unknown placeholders.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = _hints(cast(Any, cls))
    for key in data:
        if key not in fields:
            raise DialectError(f"{_path(where, key)}: unknown key{suggest(key, sorted(fields))}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        path = _path(where, name)
        if name in data:
            values[name] = _value(hints[name], data[name], path, field.metadata.get("placeholders", ()))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise DialectError(f"{path}: missing; add it")
    return cls(**values)


def _path(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _value(hint: Any, value: Any, path: str, placeholders: tuple[str, ...]) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Wording:
        return compile_wording(_value(str, value, path, ()), placeholders, path)
    if origin is Literal:
        if value not in args:
            known = [str(choice) for choice in args]
            raise DialectError(f"{path}: {value!r} is not one of {', '.join(known)}{suggest(str(value), known)}")
        return value
    if origin in (Union, types.UnionType):
        return _union(args, value, path, placeholders)
    if origin is tuple:
        if not isinstance(value, list):
            raise DialectError(f"{path}: a list is needed, not {_kind(value)}")
        return tuple(_value(args[0], item, f"{path}[{i}]", placeholders) for i, item in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise DialectError(f"{path}: a table is needed, not {_kind(value)}")
        return {str(key): _value(args[1], item, _path(path, str(key)), placeholders) for key, item in value.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise DialectError(f"{path}: a table is needed, not {_kind(value)}")
        return read_table(cast(type, hint), value, path)
    return _scalar(hint, value, path)


def _union(args: tuple[Any, ...], value: Any, path: str, placeholders: tuple[str, ...]) -> Any:
    """Optional[X] (a key that is present is an X), or alternatives tried in order."""
    choices = [arg for arg in args if arg is not type(None)]
    errors: list[DialectError] = []
    for choice in choices:
        try:
            return _value(choice, value, path, placeholders)
        except DialectError as error:
            errors.append(error)
    raise errors[0]


def _scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is Any:
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:  # bool is not an int here
        raise DialectError(f"{path}: {_NAMES[hint]} is needed, not {_kind(value)}")
    if hint in (int, float) and value < 0:
        raise DialectError(f"{path}: {value} is negative; zero or more is needed")
    return value


_NAMES: dict[type, str] = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def _kind(value: Any) -> str:
    return _NAMES.get(type(value), "a list" if isinstance(value, list) else "a table")
