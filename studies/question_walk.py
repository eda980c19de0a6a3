"""How far a question walks through the package: files, functions, calls, and moves from one file to another.

    python -m studies.question_walk BUNDLE INDEX IMAGE QUESTION

Counts Python calls on the thread that asks, with sys.setprofile, after one question that warms everything up. Grammar
and speculation are off, so that runs can be compared. Needs the base install.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import gog_edge
from gog_edge.runtime.speculation import Speculation

PACKAGE = str(Path(gog_edge.__file__).parent)


class Walk:
    """What was called. `moves`: calls and returns of the package that change the file."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.functions: set[tuple[str, str, int]] = set()
        self.calls = self.moves = 0
        self._here = ""

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        if event not in ("call", "return"):
            return
        code = frame.f_code
        name = code.co_filename
        if event == "return":
            back = frame.f_back
            name = back.f_code.co_filename if back is not None else ""
        if not name.startswith(PACKAGE):
            return
        if event == "call":
            self.calls += 1
            self.files.add(name)
            self.functions.add((name, code.co_name, code.co_firstlineno))
        if name != self._here:
            self.moves += 1
            self._here = name


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(prog="python -m studies.question_walk", description=__doc__)
    for name in ("bundle", "index", "image", "question"):
        parser.add_argument(name)
    options = parser.parse_args()
    settings = gog_edge.RunOptions(grammar="off", speculation=Speculation(0))
    with gog_edge.load(options.bundle, index=options.index, options=settings) as agent:
        agent.ask(options.image, options.question)
        walk = Walk()
        sys.setprofile(walk.profile)
        try:
            answer = agent.ask(options.image, options.question)
        finally:
            sys.setprofile(None)
    print(f"{answer.text!r}, {answer.usage.generated_tokens} tokens written")
    print(f"{len(walk.files)} files, {len(walk.functions)} functions, {walk.calls} calls, {walk.moves} moves")


if __name__ == "__main__":
    main()
