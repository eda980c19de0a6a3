"""Two targets at once: a family builds its graph on one while the other computes what it would, step by step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, cast

from gog_edge.export.calibration.eager import Eager
from gog_edge.families.target import Target


@dataclass(frozen=True)
class _Both:
    """What each target knows one thing as."""

    eager: Any
    built: Any

    def finish(self) -> None:
        """Of the caches: the graph's declare their outputs."""
        self.built.finish()


class Paired:
    """A `Target` that passes every step to both, to the eager one first: when a matrix is quantised for the graph, its
    inputs are known, and no more than a layer has been computed ahead."""

    def __init__(self, eager: Eager, built: Target) -> None:
        self._eager, self._built = eager, built

    def scope(self, name: str) -> AbstractContextManager[None]:
        """That of the graph."""
        return self._built.scope(name)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        computes, builds = getattr(self._eager, name), getattr(self._built, name)

        def step(*given: Any, **named: Any) -> Any:
            first = computes(*_side(given, "eager"), **_side(named, "eager"))
            return _pair(first, builds(*_side(given, "built"), **_side(named, "built")))

        return step


def paired(eager: Eager, built: Target) -> Target:
    """Both as one (see `Paired`)."""
    return cast(Target, Paired(eager, built))


def _side(value: Any, which: str) -> Any:
    """`value` with each pair in it, however deep, replaced by one of its sides."""
    if isinstance(value, _Both):
        return getattr(value, which)
    if isinstance(value, (tuple, list)):
        return type(value)(_side(part, which) for part in value)
    if isinstance(value, dict):
        return {key: _side(part, which) for key, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: part for f in fields(value) if isinstance(part := getattr(value, f.name), _Both)}
        return replace(value, **{name: getattr(part, which) for name, part in changed.items()}) if changed else value
    return value


def _pair(first: Any, second: Any) -> Any:
    if isinstance(first, (tuple, list)):
        return type(first)(_pair(a, b) for a, b in zip(first, second))
    return None if first is None and second is None else _Both(first, second)
