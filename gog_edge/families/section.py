"""Typed reading of config.json: every complaint names the key and what it should be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gog_edge.errors import CheckpointError


class Section:
    """One (nested) object of config.json (or another `file`) with its path, for error messages."""

    def __init__(self, data: Mapping[str, Any], path: str = "", file: str = "config.json") -> None:
        self.data = data
        self.path = path
        self.file = file

    def _name(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def fail(self, key: str, why: str) -> CheckpointError:
        """The error to raise for `key`."""
        return CheckpointError(f"{self.file}: {self._name(key)} {why}")

    def has(self, key: str) -> bool:
        """The key is there and not null."""
        return self.data.get(key) is not None

    def section(self, *keys: str) -> Section:
        """The first of `keys` that is there, as an object; an empty one when none is.

        Raises:
            CheckpointError: the value is not an object.
        """
        for key in keys:
            value = self.data.get(key)
            if value is None:
                continue
            if not isinstance(value, Mapping):
                raise self.fail(key, f"must be an object, not {value!r}")
            return Section(value, self._name(key), self.file)
        return Section({}, self._name(keys[0]), self.file)

    def integer(self, key: str, default: int | None = None, minimum: int = 1) -> int:
        """A whole number of at least `minimum`.

        Raises:
            CheckpointError: missing without a default, not a whole number, or too small.
        """
        value = self.data.get(key)
        if value is None:
            if default is None:
                raise self.fail(key, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(key, f"must be a whole number, not {value!r}")
        if value < minimum:
            raise self.fail(key, f"must be at least {minimum}, not {value}")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number, also when written as a pair of two equal ones ([16, 16])."""
        value = self.data.get(key)
        if isinstance(value, (list, tuple)):
            if len(set(value)) != 1:
                raise self.fail(key, f"must be square, not {value!r}")
            return Section({key: value[0]}, self.path, self.file).integer(key)
        return self.integer(key, default)

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = self.data.get(key)
        if value is None:
            if default is None:
                raise self.fail(key, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise self.fail(key, f"must be a positive number, not {value!r}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.data.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(key, f"must be true or false, not {value!r}")
        return value

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self.data.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.fail(key, f"must be a string, not {value!r}")
        return value

    def integers(self, key: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """A list of whole numbers of at least 0."""
        value = self.data.get(key)
        if value is None:
            if default is None:
                raise self.fail(key, "is missing")
            return default
        if not isinstance(value, (list, tuple)) or any(isinstance(v, bool) or not isinstance(v, int) for v in value):
            raise self.fail(key, f"must be a list of whole numbers, not {value!r}")
        if any(v < 0 for v in value):
            raise self.fail(key, f"must not hold negative numbers: {value!r}")
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
            raise self.fail(key, f"is {value!r}; gog-edge exports {' or '.join(allowed)} only")
        return value
