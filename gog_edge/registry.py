"""Parts that packages bring under a name (model families, engines): listed by entry points, loaded when asked for.

Ours stand in pyproject.toml like those of others, and are looked for first: another package's part of the same name
does not take their place, and whoever wants one of ours does not wait until all packages are looked through. A part
that no package brings is registered with `Registry.add`.
"""

from __future__ import annotations

import difflib
import functools
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points
from typing import Generic, TypeVar

from gog_edge.errors import UsageError

T = TypeVar("T")


class Registry(Generic[T]):
    """Parts of one kind by name. `group`: of entry points, each of which leads to a `kind`."""

    def __init__(self, group: str, kind: type[T]) -> None:
        self._group = group
        self._kind = kind
        self._added: dict[str, T] = {}

    def names(self) -> tuple[str, ...]:
        """All that are known, sorted; nothing is loaded."""
        return tuple(sorted({*_installed(self._group), *_ours(self._group), *self._added}))

    def add(self, name: str, part: T) -> None:
        """Make `part` known in this process.

        Raises:
            UsageError: the name is taken.
        """
        if name in self.names():
            raise UsageError(f"{self._group}: {name!r} is registered already")
        self._added[name] = part

    def get(self, name: str) -> T | None:
        """The part of this name, None if there is none.

        Raises:
            UsageError: a package names it, but it can't be loaded from there.
        """
        if name in self._added:
            return self._added[name]
        point = _ours(self._group).get(name) or _installed(self._group).get(name)
        if point is None:
            return None
        try:
            part = point.load()
        except (ImportError, AttributeError) as e:
            raise UsageError(f"{self._group}: {name} can't be loaded from {point.value} ({e}); reinstall it") from e
        if not isinstance(part, self._kind):
            raise UsageError(f"{self._group}: {point.value} is not a {self._kind.__name__}")
        return part

    def advice(self, name: str) -> str:
        """What to say to someone who wrote an unknown name."""
        near = difflib.get_close_matches(name, self.names(), 1)
        return f"did you mean {near[0]!r}?" if near else self.listed()

    def listed(self) -> str:
        """All names for people, or how to get any."""
        names = ", ".join(self.names())
        if not names:
            return "none is installed: install gog-edge again (in a checkout: pip install -e .)"
        return f"known: {names}"


@functools.lru_cache(maxsize=8)
def _ours(group: str) -> dict[str, EntryPoint]:
    """What this package declares: one file is read."""
    try:
        points = distribution("gog-edge").entry_points
    except PackageNotFoundError:  # a copy of the sources that was not installed
        return {}
    return {point.name: point for point in points if point.group == group}


@functools.lru_cache(maxsize=8)
def _installed(group: str) -> dict[str, EntryPoint]:
    """Looking through all installed packages takes tens of milliseconds: once a process."""
    return {point.name: point for point in entry_points(group=group)}
