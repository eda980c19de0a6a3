"""docs/structure.md is true: its map is drawn from the imports, and every folder and file it names exists."""

from __future__ import annotations

import re

from tests.tools import ROOT
from tests.tools.structure import PAGE, folders, page_with_map, reachable

TEXT = PAGE.read_text("utf-8")


def test_the_map_shows_the_imports_of_today() -> None:
    assert page_with_map(TEXT) == TEXT, "run: python -m tests.tools.structure --write"


def test_the_folders_form_no_circle() -> None:
    graph = folders()
    assert [name for name in graph if name in reachable(graph, name)] == []


def test_every_path_on_the_page_exists() -> None:
    named = set(re.findall(r"`((?:gog_edge|peers|tests|docs|models|studies)/[\w./-]*)`", TEXT))
    assert len(named) > 25
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


def test_every_folder_of_the_package_is_on_the_page() -> None:
    folders_here = {p.parent.relative_to(ROOT).as_posix() for p in (ROOT / "gog_edge").rglob("__init__.py")}
    assert sorted(f for f in folders_here if f"`{f}/" not in TEXT) == []
