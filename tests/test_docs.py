"""The documentation: its links lead somewhere, its commands exist, mkdocs renders it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import gog_edge

ROOT = Path(__file__).resolve().parents[1]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def docs() -> ModuleType:
    return script("check")


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


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """`strict` in mkdocs.yml: a link of a page or of a docstring that leads nowhere ends the build."""
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    home = (tmp_path / "index.html").read_text("utf-8")
    assert (
        'href="guide/"' in home and 'src="images/trace.png"' in home and (tmp_path / "images" / "trace.png").is_file()
    )
    assert "fonts.googleapis" not in home
    commands = (tmp_path / "cli" / "index.html").read_text("utf-8")
    assert "gog-edge index build" in commands and "Sentinel" not in commands
    assert "AskRequest" in (tmp_path / "api" / "index.html").read_text("utf-8")


def test_every_page_is_on_the_site_and_every_public_name_on_the_python_page() -> None:
    found = {ROOT / source for source in script("site_hooks").sources() if source.endswith(".md")}
    assert {ROOT / page for page in script("check").pages()} == found
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    homes = {f"{home}.{name}" for name, home in gog_edge._HOMES.items() if not home.endswith((".errors", "types"))}
    assert [name for name in sorted(homes) if f"::: {name}\n" not in page] == []
