"""How many decoder steps the grammar saves: the tokens of each dialect's calls that it forces.

    python -m studies.forced_tokens tokenizer.json        # or a bundle

Each action is written as the dialect writes it, without reasoning, and followed through the dialect's grammar. A forced
token is appended without a step of its own: it is read together with the next token that the policy chooses.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from gog_edge import dialects
from gog_edge.dialects import Dialect
from gog_edge.errors import GrammarError, UsageError
from gog_edge.runtime.constraint import TokenConstraint, TokenGrammar
from gog_edge.runtime.tokenizer import Tokenizer
from gog_edge.types import Action, ActionKind, Region, RegisteredImage

PHOTO = RegisteredImage(0, 1000, 800, 1024, 832, None, 0)
BOX = Region(120, 80, 640, 512)
ACTIONS = {
    "glance": Action(ActionKind.GLANCE),
    "gaze": Action(ActionKind.GAZE, region=BOX, label="the iron tower"),
    "zoom": Action(ActionKind.ZOOM, region=BOX, label="the iron tower"),
    "text_search": Action(ActionKind.TEXT_SEARCH, "when was the iron tower finished"),
    "visit": Action(ActionKind.VISIT, "https://example.com/tower", label="the year"),
    "answer": Action(ActionKind.ANSWER, "The tower was finished in 1889."),
}


@dataclass(frozen=True)
class Saving:
    """One action of one dialect: its tokens, and how many of them the grammar forces."""

    dialect: str
    kind: str
    tokens: int
    forced: int


def savings(grammar: TokenGrammar, tokenizer: Tokenizer, dialect: Dialect) -> list[Saving]:
    """Every action of a dialect that has a form; nothing for one without a grammar.

    Raises:
        GrammarError: the grammar doesn't admit what the dialect writes.
    """
    lark = dialect.grammar()
    if lark is None:
        return []
    own = {action.kind for action in dialect.spec.actions}
    out = []
    for kind in (k for k in ACTIONS if k in own):
        ids = tokenizer.encode_control(dialect.write(ACTIONS[kind], [PHOTO]))
        out.append(Saving(dialect.name, kind, len(ids), _forced(grammar.constraint(lark), ids)))
    return out


def _forced(constraint: TokenConstraint, ids: Sequence[int]) -> int:
    at = forced = 0
    while at < len(ids):
        known = constraint.forced()
        if known and list(ids[at : at + len(known)]) != known:
            raise GrammarError(f"the grammar forces {known}, the dialect writes {list(ids[at : at + len(known)])}")
        if known:
            at, forced = at + len(known), forced + len(known)
            continue
        constraint.accept(ids[at])
        at += 1
    return forced


def load_tokenizer(path: Path) -> Tokenizer:
    """Of a tokenizer.json, or of the folder that one is in."""
    return Tokenizer.load(path / "tokenizer.json" if path.is_dir() else path)


@click.command()
@click.argument("tokenizer", type=click.Path(path_type=Path, exists=True))
def command(tokenizer: Path) -> None:
    """Count forced tokens of every shipped dialect with TOKENIZER, a tokenizer.json or a bundle."""
    loaded = load_tokenizer(tokenizer)
    end = loaded.special.get("<|im_end|>")
    if end is None:
        raise UsageError(f"{tokenizer}: has no <|im_end|>; a Qwen tokenizer is needed")
    grammar = TokenGrammar(loaded.backend, [end])
    total: dict[str, dict[str, tuple[int, int]]] = {}
    for name in dialects.names():
        found = savings(grammar, loaded, dialects.load(name))
        total[name] = {s.kind: (s.tokens, s.forced) for s in found}
        cells = "  ".join(f"{s.kind} {s.tokens} - {s.forced}" for s in found)
        click.echo(f"{name:20} {cells or 'no grammar'}")
    click.echo(json.dumps(total))


if __name__ == "__main__":
    command()
