"""What of each dialect's observations is known before the search is over, and how much of that holds in the end.

    python -m studies.read_ahead tokenizer.json        # or a bundle

Counted are the tokens that `gog_edge.agent.prefetch` reads while a search runs (a crop as one, and named), and how many
of them stay when results come, when none come, and when the search fails.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from gog_edge import dialects
from gog_edge.agent.prefetch import guesses
from gog_edge.dialects import Dialect
from gog_edge.runtime.sequence import shared
from gog_edge.runtime.tokenizer import EncodedPart, Tokenizer
from gog_edge.types import ActionKind, Hit, ImagePart, Observation, RegisteredImage, Turn
from studies.forced_tokens import ACTIONS, PHOTO, load_tokenizer

SEARCHES = ("glance", "gaze", "text_search", "visit")
HITS = tuple(Hit(f"The tower, part {n}", "Finished in 1889.", f"https://example.com/{n}", 0.5) for n in (1, 2, 3))


@dataclass(frozen=True)
class Known:
    """One search of one dialect: tokens that are read ahead, whether the crop is among them, and how many stay."""

    tokens: int
    crop: bool
    results: int
    nothing: int
    failed: int


def known(tokenizer: Tokenizer, dialect: Dialect, kind: str) -> Known:
    """For the search `kind` of SEARCHES, the only call of its turn."""
    action = ACTIONS[kind]
    crop = RegisteredImage(1, PHOTO.width, PHOTO.height, 512, 416, action.region, 0)
    shown = 1 if action.region is not None and dialect.shows_crop(ActionKind(kind)) else None
    waiting = Observation(action, shown=shown)

    def words(observation: Observation) -> list[EncodedPart]:
        turn = Turn("", (action,), "")
        return tokenizer.encode(dialect.observe(turn, [observation], question="When?", images=[PHOTO, crop]))

    one, two = guesses([], waiting)
    read = shared(words(one[0]), words(two[0]))
    outcomes = (
        Observation(action, HITS, text="A page.", shown=shown),
        waiting,
        Observation(action, error="it is down", shown=shown),
    )
    stay = [_count(shared(read, words(outcome))) for outcome in outcomes]
    return Known(_count(read), ImagePart(1) in read, *stay)


def _count(parts: Sequence[EncodedPart]) -> int:
    return sum(len(part) if isinstance(part, list) else 1 for part in parts)


@click.command()
@click.argument("tokenizer", type=click.Path(path_type=Path, exists=True))
def command(tokenizer: Path) -> None:
    """Count what every shipped dialect lets read ahead with TOKENIZER, a tokenizer.json or a bundle."""
    loaded = load_tokenizer(tokenizer)
    total: dict[str, dict[str, dict[str, object]]] = {}
    for name in dialects.names():
        dialect = dialects.load(name)
        own = {action.kind for action in dialect.spec.actions}
        found = {kind: known(loaded, dialect, kind) for kind in SEARCHES if kind in own}
        total[name] = {kind: asdict(k) for kind, k in found.items()}
        cells = "  ".join(
            f"{kind} {'crop + ' if k.crop else ''}{k.tokens - k.crop} ({k.results}/{k.nothing}/{k.failed})"
            for kind, k in found.items()
        )
        click.echo(f"{name:20} {cells or 'no searches'}")
    click.echo(json.dumps(total))


if __name__ == "__main__":
    command()
