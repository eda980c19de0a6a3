"""Hooks of mkdocs: pages that live outside docs/ (README, CHANGELOG, the model card, …) become pages of the site, and
links follow them. A link to a source file has no page to go to; on the site it is the file's name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?P<bang>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
NAMES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "models/gog-nano/README.md": "gog-nano.md",
    "models/gog-nano/recipe/README.md": "gog-nano-recipe.md",
    "models/gog-nano/eval/report.md": "gog-nano-eval.md",
    "studies/README.md": "studies.md",
    "examples/README.md": "examples.md",
    "peers/README.md": "peers.md",
}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages and pictures from outside docs/."""
    from mkdocs.structure.files import File

    for source, name in sources().items():
        if not source.startswith("docs/"):
            files.append(File.generated(config, name, content=(ROOT / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of a page, from where it stands in the repository to where things are on the site."""
    named = {name: source for source, name in sources().items()}
    source = named.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return "".join(_rewritten(part, source, page.file.src_uri) for part in _prose_and_code(markdown))


def sources() -> dict[str, str]:
    """Every page and picture of the site: its path in the repository -> its path on the site."""
    found = {s: n for s, n in NAMES.items() if (ROOT / s).is_file()}
    found |= {f"studies/{p.name}": f"studies/{p.name}" for p in ROOT.glob("studies/*.md") if p.name != "README.md"}
    pages = (p for kind in ("md", "png", "gif", "webp") for p in ROOT.glob(f"docs/**/*.{kind}"))
    return found | {p.relative_to(ROOT).as_posix(): p.relative_to(ROOT / "docs").as_posix() for p in pages}


def _prose_and_code(markdown: str) -> list[str]:
    """The text cut at fenced code blocks, which are kept as they are."""
    return re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)


def _rewritten(part: str, source: str, here: str) -> str:
    if part.startswith("```"):
        return part

    def link(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = os.path.normpath(os.path.join(os.path.dirname(source), target))  # noqa: PTH118, PTH120
        name = sources().get(path)
        if name is None:
            return match["text"]
        relative = os.path.relpath(name, os.path.dirname(here) or ".")  # noqa: PTH120
        return f"{match['bang']}[{match['text']}]({relative}{'#' + anchor if anchor else ''})"

    return LINK.sub(link, part)
