"""The documentation: its links lead somewhere, its commands exist, `make docs` renders it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_and_commands_of_the_documentation(docs: ModuleType) -> None:
    assert list(docs.problems()) == []


def test_every_option_is_named_on_a_page(docs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(docs.unnamed_options()) == []
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text("`index build --force`, not `--forced` or `x--kind`; `-k`\n")
    found = list(docs.unnamed_options())
    assert "gog-edge index build --kind is named on no page" in found
    assert not [line for line in found if "--force" in line or "index search -k" in line]


def test_what_is_wrong_is_found(docs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text(
        "# A\n\n[x](gone.md) [y](#a) [z](#b)\n\n    gog-edge ask a b --bundle c | head\n    gog-edge ask --bundel c\n"
        "    gog-edge bench agent --bundle b\n    gog-edge index polish\n"
    )
    assert list(docs.problems()) == [
        "README.md: gone.md leads nowhere",
        "README.md: #b: there is no such heading",
        "README.md: gog-edge ask --bundel c: no option --bundel",
        "README.md: gog-edge index polish: no command 'polish'",
    ]


def test_pages_link_to_pages(docs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    monkeypatch.setattr(docs, "OUT", tmp_path / "out")
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# A & B\n\n[guide](docs/guide.md#one-two)\n")
    (tmp_path / "docs" / "guide.md").write_text("## One two\n\n|a|\n|-|\n|b|\n")
    docs.build()
    assert '<a href="docs/guide.html#one-two">' in (tmp_path / "out" / "README.html").read_text("utf-8")
    guide = (tmp_path / "out" / "docs" / "guide.html").read_text("utf-8")
    assert '<h2 id="one-two">' in guide and "<td>b</td>" in guide and 'href="../README.html"' in guide
