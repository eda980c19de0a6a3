"""JSON <-> frozen dataclasses, checked: a wrong key or type is named by its path, with what was expected.

Supports what the manifests use: dataclasses, int, float, str, bool, None, Optional, Literal, enums, tuple[T, ...],
fixed tuples and dict[str, T]. Unknown keys are refused, so that a newer format is never half understood.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


class CodecError(ValueError):
    """`path: problem`; callers re-raise it as the error of the thing that they read."""


def encode(value: Any) -> Any:
    """A value made of the supported types as plain JSON data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (tuple, list)):
        return [encode(v) for v in value]
    if isinstance(value, dict):
        return {str(k): encode(v) for k, v in value.items()}
    return value


def decode(cls: type[T], data: Any, path: str = "") -> T:
    """`data` as an instance of `cls`.

    Raises:
        CodecError: a key is missing or unknown, or a value has another type; names the path.
    """
    return typing.cast(T, _decode(cls, data, path or cls.__name__))


def _decode(kind: Any, data: Any, path: str) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data, path)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(kind, data, path)
    if origin is typing.Literal:
        if data not in typing.get_args(kind):
            raise CodecError(f"{path}: {data!r} is not one of {', '.join(map(repr, typing.get_args(kind)))}")
        return data
    if origin is tuple:
        return _decode_tuple(kind, data, path)
    if origin is dict:
        value_kind = typing.get_args(kind)[1]
        if not isinstance(data, dict):
            raise CodecError(f"{path}: a table was expected, not {type(data).__name__}")
        return {str(k): _decode(value_kind, v, f"{path}.{k}") for k, v in data.items()}
    if kind is Any:
        return data
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(data)
        except ValueError:
            choices = ", ".join(repr(m.value) for m in kind)
            raise CodecError(f"{path}: {data!r} is not one of {choices}") from None
    return _decode_scalar(kind, data, path)


def _decode_scalar(kind: Any, data: Any, path: str) -> Any:
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind is type(None):
        kind = type(None)
    # bool is an int in Python, never in a manifest
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise CodecError(f"{path}: {kind.__name__} was expected, not {data!r}")
    return data


def _decode_dataclass(kind: Any, data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise CodecError(f"{path}: a table was expected, not {type(data).__name__}")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in data:
        if key not in fields:
            raise CodecError(f"{path}.{key}: unknown key")
    values = {}
    for name, f in fields.items():
        if name in data:
            values[name] = _decode(hints[name], data[name], f"{path}.{name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise CodecError(f"{path}.{name}: missing")
    return kind(**values)


def _decode_union(kind: Any, data: Any, path: str) -> Any:
    problems = []
    for option in typing.get_args(kind):
        try:
            return _decode(option, data, path)
        except CodecError as e:
            problems.append(str(e))
    raise CodecError(problems[0])


def _decode_tuple(kind: Any, data: Any, path: str) -> Any:
    args = typing.get_args(kind)
    if not isinstance(data, (list, tuple)):
        raise CodecError(f"{path}: a list was expected, not {type(data).__name__}")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_decode(args[0], v, f"{path}[{i}]") for i, v in enumerate(data))
    if len(data) != len(args):
        raise CodecError(f"{path}: {len(args)} values were expected, not {len(data)}")
    return tuple(_decode(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, data)))
