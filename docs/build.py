"""`make docs`: the Markdown pages as HTML under build/docs, every link and every command in them checked.

python docs/build.py            # write the pages; exit code 1 if a link leads nowhere, a command does not exist, or an
                                # option is on no page
python docs/build.py --check    # check only
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

import click
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "docs"
STYLE = """
body { font: 16px/1.6 system-ui, sans-serif; color: #1f2933; margin: 0 auto; max-width: 56rem; padding: 1.5rem; }
a { color: #0b7285; } nav { font-size: .9rem; border-bottom: 1px solid #e4e7eb; padding-bottom: .6rem; }
code { font-size: .9em; background: #f1f3f5; padding: .1em .25em; border-radius: 3px; }
pre { background: #f8f9fb; padding: .8rem 1rem; overflow-x: auto; border-radius: 6px; }
pre code { padding: 0; background: none; }
table { border-collapse: collapse; }
td, th { border-bottom: 1px solid #e4e7eb; padding: .25rem .8rem; text-align: left; }
img { max-width: 100%; }
"""
NAVIGATION = ("README.md", "docs/guide.md", "docs/search.md", "docs/dialects.md", "docs/evaluation.md", "docs/log.md")


def pages() -> list[Path]:
    """Every Markdown page of the project, relative to its root."""
    found = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("models/**/*.md"),
        *ROOT.glob("studies/*.md"),
        *ROOT.glob("peers/*.md"),
    ]
    return sorted(p.relative_to(ROOT) for p in found)


def problems() -> Iterator[str]:
    """One line for each link that leads nowhere and each `gog-edge` command that does not exist."""
    parsed = {page: _parse(page) for page in pages()}
    anchors = {page: {anchor for anchor, _ in _headings(tokens)} for page, tokens in parsed.items()}
    for page, tokens in parsed.items():
        for link in _links(tokens):
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = link.partition("#")
            target = (ROOT / page.parent / name).resolve() if name else ROOT / page
            if not target.exists():
                yield f"{page}: {link} leads nowhere"
            elif anchor and target.suffix == ".md" and anchor not in anchors[target.relative_to(ROOT)]:
                yield f"{page}: {link}: there is no such heading"
        for line in _commands(tokens):
            problem = _wrong(line)
            if problem:
                yield f"{page}: {line}: {problem}"


def unnamed_options() -> Iterator[str]:
    """One line for each option of a command that no page names, long or short."""
    from gog_edge.cli.main import cli

    text = "\n".join((ROOT / page).read_text("utf-8") for page in pages())
    words = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text))
    left: list[tuple[str, click.Command]] = [("gog-edge", cli)]
    for path, command in left:
        if isinstance(command, click.Group):
            context = click.Context(command)
            found = ((name, command.get_command(context, name)) for name in command.list_commands(context))
            left += [(f"{path} {name}", c) for name, c in found if c is not None]
        for option in command.params:
            if isinstance(option, click.Option) and not words & {*option.opts, *option.secondary_opts}:
                yield f"{path} {option.opts[0]} is named on no page"


def build() -> None:
    """Write build/docs anew."""
    shutil.rmtree(OUT, ignore_errors=True)
    for page in pages():
        target = (OUT / page).with_suffix(".html")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_html(page), "utf-8")
    for picture in ROOT.glob("docs/**/*.png"):
        target = OUT / picture.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, target)


def _html(page: Path) -> str:
    tokens = _parse(page)
    titles = _headings(tokens)
    anchors = iter(titles)
    for token in _walk(tokens):
        if token.type == "heading_open":
            token.attrSet("id", next(anchors)[0])
        href = token.attrGet("href") if token.type == "link_open" else None
        if isinstance(href, str) and not re.match(r"[a-z]+:", href):
            token.attrSet("href", re.sub(r"\.md(#|$)", r".html\1", href))
    up = "../" * (len(page.parts) - 1)
    links = " · ".join(f'<a href="{up}{Path(n).with_suffix(".html")}">{Path(n).stem}</a>' for n in NAVIGATION)
    body = _markdown().renderer.render(tokens, _markdown().options, {})
    title = escape(titles[0][1] if titles else page.stem)
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f"{head}<nav>{links}</nav>{body}</html>\n"


def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark").enable("table")


def _parse(page: Path) -> list[Token]:
    return _markdown().parse((ROOT / page).read_text("utf-8"))


def _walk(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from _walk(token.children or [])


def _headings(tokens: list[Token]) -> list[tuple[str, str]]:
    """(anchor as GitHub makes it, text) of every heading."""
    texts = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    return [(re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"), text) for text in texts]


def _links(tokens: list[Token]) -> Iterator[str]:
    for token in _walk(tokens):
        target = token.attrGet({"link_open": "href", "image": "src"}.get(token.type, ""))
        if isinstance(target, str):
            yield target


def _commands(tokens: list[Token]) -> Iterator[str]:
    """`gog-edge …` lines of code blocks, continued lines joined."""
    for token in tokens:
        if token.type in ("fence", "code_block"):
            for line in token.content.replace("\\\n", " ").splitlines():
                if re.match(r"(\$ )?gog-edge \w", line.strip()):
                    yield line.strip().removeprefix("$ ")


def _wrong(line: str) -> str | None:
    """Why click would not know the command or one of its options; None if it would."""
    from gog_edge.cli.main import cli

    words = shlex.split(line, comments=True)[1:]
    for stop in ("|", ">", "2>", "&&", "<"):
        words = words[: words.index(stop)] if stop in words else words
    command: click.Command = cli
    context = click.Context(cli, info_name="gog-edge")
    while isinstance(command, click.Group) and words:
        name = words[0]
        found = command.get_command(context, name)
        if found is None and command.name == "bench":  # scenarios may stand in the place of `run`
            found, name = command.get_command(context, "run"), ""
        if found is None:
            return f"no command {name!r}"
        command, words = found, words[1:] if name else words
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"-h", "--help", "--version"}
    unknown = [w for w in words if re.match(r"--?[a-z]", w) and w.partition("=")[0] not in known]
    return f"no option {unknown[0]}" if unknown else None


def main() -> int:
    """Exit code 1 if anything is wrong; every problem is printed."""
    if "--check" not in sys.argv[1:]:
        build()
        print(f"{len(pages())} pages in {OUT.relative_to(ROOT)}")
    wrong = [*problems(), *unnamed_options()]
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
