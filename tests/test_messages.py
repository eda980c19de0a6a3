"""Messages send users to commands and options that exist: read from every string of the package."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from gog_edge.cli.main import cli

ROOT = Path(__file__).resolve().parents[1]
_COMMAND = re.compile(r"gog-edge((?: +[a-z][a-z-]*)+)([^;,.()\n]*)")
_OPTION = re.compile(r"(?<![\w(-])--[a-z][\w-]*(?![\w-]*:)")  # not a variable of a style sheet
FOREIGN = {"--system-site-packages", "--force-reinstall", "--no-deps", "--index-url"}  # of venv and pip


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every string but docstrings; values of f-strings are `…`."""
    tree = ast.parse(path.read_text("utf-8"))
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    inner |= {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.lineno, node.value


def commands() -> dict[str, set[str]]:
    """`index build` -> its options."""
    found: dict[str, set[str]] = {}
    left: list[tuple[str, click.Command]] = [("", cli)]
    for name, command in left:
        context = click.Context(command)
        found[name] = {o for p in command.get_params(context) for o in (*p.opts, *p.secondary_opts)} | {"--version"}
        if isinstance(command, click.Group):
            inner = ((n, command.get_command(context, n)) for n in command.list_commands(context))
            left += [(f"{name} {n}".strip(), c) for n, c in inner if c is not None]
    return found


def wrong(text: str, known: dict[str, set[str]]) -> Iterator[str]:
    """What `text` names and does not exist."""
    for words, rest in _COMMAND.findall(text):
        name = ""
        for word in words.split():
            if f"{name} {word}".strip() not in known:
                break
            name = f"{name} {word}".strip()
        if name:
            yield from (f"{name} {o}" for o in _OPTION.findall(rest) if o not in known[name] and name != "bench")
    everything = set().union(*known.values())
    yield from (o for o in _OPTION.findall(text) if " " in text and o not in everything | FOREIGN)


KNOWN = commands()
# the other files of peers name options of other programs
FILES = [*sorted((ROOT / "gog_edge").rglob("*.py")), *(ROOT / "peers" / "gog_edge_peers").glob("c*.py")]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_and_options_in_messages_exist(path: Path) -> None:
    found = [f"{path.name}:{line}: {what}" for line, text in strings(path) for what in wrong(text, KNOWN)]
    assert found == []


def test_a_wrong_one_is_found() -> None:
    assert list(wrong("run gog-edge doctor --bundle X", KNOWN)) == ["doctor --bundle"]
    assert list(wrong("use `gog-edge index build --forse`", KNOWN)) == ["index build --forse", "--forse"]
    assert list(wrong("see gog-edge inspect BUNDLE --hashes", KNOWN)) == []
