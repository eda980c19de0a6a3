"""Every link of the Markdown pages leads somewhere, every `gog-edge` command in them exists, every option is on a page.

python docs/check.py            # exit code 1 if not; `make docs` calls it before mkdocs writes the site (mkdocs.yml)
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]


def pages() -> list[Path]:
    """Every Markdown page of the project, relative to its root."""
    found = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("models/**/*.md"),
        *ROOT.glob("studies/*.md"),
        *ROOT.glob("examples/*.md"),
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
    wrong = [*problems(), *unnamed_options()]
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
