"""Plain data (JSON, TOML) <-> frozen dataclasses, checked: a mistake is named by its path, with what is needed there.

`decode` and `encode` are for files whose format is ours: dataclasses, int, float, str, bool, None, Optional, Literal,
enums, tuple[T, ...], fixed tuples and dict[str, T]; unknown keys are refused, so that a newer format is never half
understood. `Section` is for files of others, of which we read some keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from gog_edge.errors import CheckpointError, UsageError

T = TypeVar("T")
Field = Mapping[str, Any]  # the metadata of a dataclass field
Hook = Callable[[Any, Any, str, Field], Any]
NOT_MINE = object()
"""What a hook returns for a kind that it leaves to `decode`."""

NOT_WRITTEN = {"written": False}
"""Metadata of a field that `encode` leaves out."""

_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


class SerdeError(ValueError):
    """`path: problem`; callers re-raise it as the error of the thing that they read."""


def encode(value: Any) -> Any:
    """A value made of the supported types as plain JSON data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (f.name for f in dataclasses.fields(value) if f.metadata.get("written", True))
        return {name: encode(getattr(value, name)) for name in fields}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (tuple, list)):
        return [encode(v) for v in value]
    if isinstance(value, dict):
        return {str(k): encode(v) for k, v in value.items()}
    return value


def decode(cls: type[T], data: Any, path: str | None = None, hook: Hook | None = None) -> T:
    """`data` as an instance of `cls`.

    Args:
        path: of `data`, for messages; the name of `cls` by default.
        hook: called first, with (type, value, path, metadata of the field), for types of one's own.

    Raises:
        SerdeError: a key is missing or unknown, or a value has another type; names the path.
    """
    return typing.cast(T, _Decoder(hook).value(cls, data, cls.__name__ if path is None else path, {}))


def shown(value: Any) -> str:
    """A value of a file, for a message: what is long is cut."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}…"


def suggest(word: str, known: Sequence[str]) -> str:
    """A suggestion for a misspelt name: the nearest known one, or the list of all."""
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return "; known here: " + (", ".join(known) if known else "none")


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


class _Decoder:
    def __init__(self, hook: Hook | None) -> None:
        self._hook = hook

    def value(self, kind: Any, data: Any, path: str, field: Field) -> Any:
        if self._hook is not None and (found := self._hook(kind, data, path, field)) is not NOT_MINE:
            return found
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if dataclasses.is_dataclass(kind):
            return self._table(kind, _needed(data, Mapping, "a table", path), path)
        if origin in (typing.Union, types.UnionType):
            return self._union(args, data, path, field)
        if origin is typing.Literal:
            return _one_of(data, args, path)
        if origin is tuple:
            return self._tuple(args, _needed(data, (list, tuple), "a list", path), path, field)
        if origin in (dict, Mapping):
            table = _needed(data, Mapping, "a table", path)
            return {str(k): self.value(args[1], v, _join(path, str(k)), field) for k, v in table.items()}
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return kind(_one_of(data, [m.value for m in kind], path))
        return _scalar(kind, data, path)

    def _table(self, kind: Any, data: Mapping[str, Any], path: str) -> Any:
        fields = {f.name: f for f in dataclasses.fields(kind)}
        for key in data:
            if key not in fields:
                raise SerdeError(f"{_join(path, key)}: unknown key{suggest(str(key), sorted(fields))}")
        values = {}
        for name, f in fields.items():
            if name in data:
                values[name] = self.value(_hints(kind)[name], data[name], _join(path, name), f.metadata)
            elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise SerdeError(f"{_join(path, name)}: missing; add it")
        try:
            return kind(**values)
        except UsageError as e:  # a value that checks itself
            raise SerdeError(f"{path}: {e}") from e

    def _union(self, options: Sequence[Any], data: Any, path: str, field: Field) -> Any:
        problems = []
        for option in options:
            try:
                return self.value(option, data, path, field)
            except SerdeError as e:
                problems.append(e)
        raise problems[0]

    def _tuple(self, args: Sequence[Any], data: Sequence[Any], path: str, field: Field) -> Any:
        if len(args) == 2 and args[1] is Ellipsis:
            args = [args[0]] * len(data)
        if len(data) != len(args):
            raise SerdeError(f"{path}: {len(args)} values are needed, not {len(data)}")
        return tuple(self.value(a, v, f"{path}[{i}]", field) for i, (a, v) in enumerate(zip(args, data)))


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _needed(data: Any, kinds: Any, name: str, path: str) -> Any:
    if not isinstance(data, kinds):
        raise SerdeError(f"{path}: {name} is needed, not {_kind(data)}")
    return data


def _one_of(data: Any, known: Sequence[Any], path: str) -> Any:
    if data not in known:
        names = [str(k) for k in known]
        raise SerdeError(f"{path}: {shown(data)} is not one of {', '.join(names)}{suggest(str(data)[:80], names)}")
    return data


def _scalar(kind: Any, data: Any, path: str) -> Any:
    if kind is Any:
        return data
    if kind is float and type(data) is int:
        try:
            return float(data)
        except OverflowError:
            raise SerdeError(f"{path}: the number is too large") from None
    if type(data) is not kind:  # bool is an int in Python, never in a file
        raise SerdeError(f"{path}: {_NAMES[kind]} is needed, not {_kind(data)}")
    return data


def _kind(data: Any) -> str:
    return _NAMES.get(type(data), "a list" if isinstance(data, (list, tuple)) else "a table")


_REQUIRED: Any = object()


class Section:
    """One (nested) object of config.json (or another `file`) with its path, for error messages.

    A key that is null counts as missing. Every method raises CheckpointError where the value doesn't fit, or where a
    key without a default is missing.
    """

    def __init__(self, data: Mapping[str, Any], path: str = "", file: str = "config.json") -> None:
        self.data, self.path, self.file = data, path, file

    def fail(self, key: str, why: str) -> CheckpointError:
        """The error to raise for `key`."""
        return CheckpointError(f"{self.file}: {_join(self.path, key)} {why}")

    def has(self, key: str) -> bool:
        """The key is there and not null."""
        return self.data.get(key) is not None

    def _get(self, key: str, default: Any, what: str, fits: Callable[[Any], bool]) -> Any:
        value = self.data.get(key)
        if value is None:
            if default is _REQUIRED:
                raise self.fail(key, "is missing")
            return default
        if not fits(value):
            raise self.fail(key, f"must be {what}, not {shown(value)}")
        return value

    def section(self, *keys: str) -> Section:
        """The first of `keys` that is there, as an object; an empty one when none is."""
        key = next((k for k in keys if self.has(k)), keys[0])
        found = self._get(key, {}, "an object", lambda v: isinstance(v, Mapping))
        return Section(found, _join(self.path, key), self.file)

    def integer(self, key: str, default: int = _REQUIRED, minimum: int = 1) -> int:
        """A whole number of at least `minimum`."""
        value: int = self._get(key, default, "a whole number", _is_integer)
        if self.has(key) and value < minimum:
            raise self.fail(key, f"must be at least {minimum}, not {value}")
        return value

    def size(self, key: str, default: int = _REQUIRED) -> int:
        """A whole number, also when written as a pair of two equal ones ([16, 16])."""
        value = self.data.get(key)
        if not isinstance(value, (list, tuple)):
            return self.integer(key, default)
        if len(set(value)) != 1:
            raise self.fail(key, f"must be square, not {shown(value)}")
        return Section({key: value[0]}, self.path, self.file).integer(key)

    def number(self, key: str, default: float = _REQUIRED) -> float:
        """A positive number."""
        return float(self._get(key, default, "a positive number", _is_positive))

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        return bool(self._get(key, default, "true or false", lambda v: isinstance(v, bool)))

    def text(self, key: str, default: str) -> str:
        """A string."""
        return str(self._get(key, default, "a string", lambda v: isinstance(v, str)))

    def integers(self, key: str, default: tuple[int, ...] = _REQUIRED) -> tuple[int, ...]:
        """A list of whole numbers of at least 0."""
        value = self._get(key, default, "a list of whole numbers", _is_integers)
        if any(v < 0 for v in value):
            raise self.fail(key, f"must not hold negative numbers: {shown(value)}")
        return tuple(value)

    def ids(self, key: str) -> tuple[int, ...]:
        """Token ids: one number or a list; empty when missing."""
        if not self.has(key):
            return ()
        return self.integers(key) if isinstance(self.data[key], (list, tuple)) else (self.integer(key, minimum=0),)

    def choice(self, key: str, allowed: tuple[str, ...], default: str) -> str:
        """One of a few strings: anything else can't be exported right, so it is refused."""
        value = self.text(key, default)
        if value not in allowed:
            raise self.fail(key, f"is {shown(value)}; gog-edge exports {' or '.join(allowed)} only")
        return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_integers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_integer, value))


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
