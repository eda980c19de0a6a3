"""Files that users write: dialects and search providers in TOML."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from random import Random

from gog_edge import dialects
from gog_edge.search.config import load_providers
from gog_edge.types import Observation
from tests.dialects.helpers import PHOTO
from tests.dialects.script import QUESTION, kinds, write_turn
from tests.faults.harness.core import Area, Attempt
from tests.faults.harness.mutate import mutated_text
from tests.tools import ROOT

_LITERALS = ('""', '"x"', "0", "-1", "1e400", "nan", "true", "[]", "[[]]", "{}", "[1, 2]", '"{x}"', '"{"', "1979-05-27",
             '"\\u0000"', "99999999999999999999", '["<a>"]', '"(((("', '"../../x"', '"%s"', "'''\n'''")  # fmt: skip
_VALUE = re.compile(r"(?m)^([\w.\"-]+\s*=\s*)(.+)$")


def _changed(text: str, rng: Random) -> str:
    """Another value behind a key, or letters changed anywhere."""
    found = list(_VALUE.finditer(text))
    if found and rng.random() < 0.6:
        match = rng.choice(found)
        return text[: match.start(2)] + rng.choice(_LITERALS) + text[match.end(2) :]
    return mutated_text(text, rng)[1]


@contextmanager
def _open(folder: Path, seed: int) -> Iterator[Attempt]:
    for name in ("SERPAPI_API_KEY", "SERPER_API_KEY", "BRAVE_API_KEY", "JINA_API_KEY", "MY_KEY"):
        os.environ[name] = "k3y"
    own = resources.files("gog_edge.dialects")
    policies = {n: (own / f"{n}.toml").read_text("utf-8") for n in dialects.names()}
    blocks = re.findall(r"(?ms)^```toml\n(.*?)^```", (ROOT / "docs" / "search.md").read_text("utf-8"))
    searches = [b for b in blocks if "[[provider]]" in b]
    searches += [
        f'[[provider]]\npreset = "{n}"\n' for n in ("serper", "serpapi", "brave", "searxng", "wikipedia", "jina")
    ]

    def attempt(rng: Random, number: int) -> str:
        path = folder / "x.toml"
        if number % 2:
            path.write_bytes(_changed(rng.choice(searches), rng).encode("utf-8", "surrogatepass"))
            for provider in load_providers(path):
                provider.close()
            return "search set up"
        name = rng.choice(sorted(policies))
        path.write_bytes(_changed(policies[name], rng).encode("utf-8", "surrogatepass"))
        dialect = dialects.load(path)
        dialect.opening(QUESTION, 2, [PHOTO])
        for kind in kinds(dialect):
            turn = dialect.parse(write_turn(dialect, kind), [PHOTO])
            dialect.observe(turn, [Observation(a) for a in turn.actions], question=QUESTION, images=[PHOTO])
        dialect.forced_answer(QUESTION)
        return "a dialect"

    yield attempt


AREA = Area("settings", "one line, or what the file says", _open)
