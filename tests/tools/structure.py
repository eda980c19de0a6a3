"""The drawn map of docs/structure.md, made from the imports themselves.

    python -m tests.tools.structure            print it
    python -m tests.tools.structure --write    put it into docs/structure.md

An arrow A --> B says that A imports B. Arrows that follow from others (A --> B --> C makes A --> C) are not drawn, nor
are those to the base modules that everybody may use.
"""

from __future__ import annotations

import sys

from tests.test_import_law import BASE, MODULES, arrows, unit
from tests.tools import ROOT

PAGE = ROOT / "docs" / "structure.md"
BEGIN, END = "<!-- map: begin -->", "<!-- map: end -->"
_QUIET = BASE | {"__init__", "__main__", "prompts"}


def folders() -> dict[str, set[str]]:
    """unit -> units that it imports, base modules left out."""
    found: dict[str, set[str]] = {}
    for module in MODULES:
        home = unit(module)
        if home not in _QUIET:
            found.setdefault(home, set()).update({unit(m) for m in arrows(module)} - _QUIET - {home})
    return found


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Everything that can be reached from `start`."""
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        here = waiting.pop()
        if here not in seen:
            seen.add(here)
            waiting += graph[here]
    return seen


def drawn(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that do not follow from others."""
    return sorted(
        (a, b)
        for a, targets in graph.items()
        for b in targets
        if not any(b in reachable(graph, c) for c in targets - {b})
    )


def map_text() -> str:
    """The block between the marks."""
    arrows_text = "\n".join(
        f"    {a.replace('.', '_')}[{a}] --> {b.replace('.', '_')}[{b}]" for a, b in drawn(folders())
    )
    return f"{BEGIN}\n```mermaid\ngraph TD\n{arrows_text}\n```\n{END}"


def page_with_map(page: str) -> str:
    """`page` with the block replaced by the map of today."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + map_text() + tail


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page_with_map(PAGE.read_text("utf-8")), "utf-8")
    else:
        print(map_text())
