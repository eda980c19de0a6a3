"""Parts that packages bring: found by entry points, loaded when asked for, ours declared as those of others are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gog_edge import registry
from gog_edge.engines.registry import ENGINES, EngineEntry
from gog_edge.errors import UsageError
from gog_edge.families import FAMILIES
from gog_edge.families.base import Family
from gog_edge.registry import Registry

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """(entry points, source of a module parts_of_test) as an installed package."""

    def made(points: str, source: str) -> None:
        info = tmp_path / "parts_of_test-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: parts-of-test\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[gog_edge.test]\n{points}\n")
        (tmp_path / "parts_of_test.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "parts_of_test", raising=False)
        registry._installed.cache_clear()

    return made


def test_a_package_brings_parts(install: Install) -> None:
    install("one = parts_of_test:ONE\nlost = parts_of_test:LOST\ntext = parts_of_test:TEXT", "ONE = 1\nTEXT = 'x'\n")
    parts = Registry("gog_edge.test", int)
    assert parts.names() == ("lost", "one", "text")
    assert "parts_of_test" not in sys.modules
    assert parts.get("one") == 1
    assert parts.get("two") is None
    with pytest.raises(UsageError, match="lost can't be loaded from parts_of_test:LOST"):
        parts.get("lost")
    with pytest.raises(UsageError, match="parts_of_test:TEXT is not a int"):
        parts.get("text")


def test_parts_may_be_added_to_a_process(install: Install) -> None:
    install("one = parts_of_test:ONE", "ONE = 1\n")
    parts = Registry("gog_edge.test", int)
    parts.add("two", 2)
    assert (parts.names(), parts.get("two")) == (("one", "two"), 2)
    for name in ("one", "two"):
        with pytest.raises(UsageError, match=f"'{name}' is registered already"):
            parts.add(name, 3)


def test_unknown_names_get_advice() -> None:
    parts = Registry("gog_edge.none", int)
    assert "install gog-edge again" in parts.advice("x")
    parts.add("three", 3)
    assert parts.advice("thre") == "did you mean 'three'?"
    assert parts.advice("x") == "known: three"


def test_ours_are_declared_and_load() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]
    for name, point in declared["gog_edge.families"].items():
        family = FAMILIES.get(name)
        assert isinstance(family, Family), f"{name} is not installed: pip install -e ."
        assert (family.name, point) == (name, f"gog_edge.families.{name}:FAMILY")
    for name in declared["gog_edge.engines"]:
        assert isinstance(ENGINES.get(name), EngineEntry), f"{name} is not installed: pip install -e ."


def test_every_family_of_the_folder_is_declared() -> None:
    files = {p.stem for p in (ROOT / "gog_edge" / "families").glob("*.py") if "\nFAMILY = " in p.read_text("utf-8")}
    assert files <= set(FAMILIES.names())


def test_ours_are_found_without_a_look_through_all_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(**_: str) -> None:
        raise AssertionError("all installed packages were looked through")

    registry._installed.cache_clear()
    monkeypatch.setattr(registry, "entry_points", looked)
    assert FAMILIES.get("qwen3_vl") is not None
    assert ENGINES.get("cpu") is not None


def test_no_other_package_takes_the_place_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "parts_of_test-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: parts-of-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gog_edge.families]\nqwen3_vl = json:loads\nelse = json:loads\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._installed.cache_clear()
    assert "else" in FAMILIES.names()
    assert isinstance(FAMILIES.get("qwen3_vl"), Family)
    registry._installed.cache_clear()
