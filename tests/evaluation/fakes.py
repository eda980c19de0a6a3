"""An agent that needs no model, and small data-set files in the published formats."""

from __future__ import annotations

import base64
import io
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gog_edge.errors import EngineError
from gog_edge.evaluation.worker import AgentSpec
from gog_edge.types import Action, ActionKind, Answer, Hit, Observation, Region, Step, StopReason, Turn, Usage


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> bytes:
    """A PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


class ScriptedAgent:
    """Does what the question says: "say X", "fail", "sleep", "die", "die once PATH", "break", "meet N" (at a time)."""

    most_together = 4

    def __init__(self, spec: AgentSpec) -> None:
        self.spec = spec
        self.closed = False
        self.most = 0  # questions at a time so far
        self._met = threading.Condition()
        self._here = 0

    def _meet(self, count: int) -> bool:
        """Whether `count` questions were here at the same time."""
        with self._met:
            self._here += 1
            self.most = max(self.most, self._here)
            self._met.notify_all()
            met = self._met.wait_for(lambda: self.most >= count, 0.1 if count == 1 else 20)
            self._here -= 1
            return met

    def ask(self, image: Any, question: str, *, deadline: float | None = None, urls: Any = (), key: str = "") -> Answer:
        assert all(frame.width for frame in image)
        verb, _, rest = question.partition(" ")
        if verb == "fail":
            raise EngineError("out of\nmemory")
        if verb == "die" and (not rest.startswith("once") or not Path(rest[5:]).exists()):
            if rest.startswith("once"):
                Path(rest[5:]).touch()
            os._exit(9)
        if verb == "break":
            raise ZeroDivisionError
        if verb == "meet":
            rest = str(self._meet(int(rest)) and self.most)
        if verb == "sleep":
            time.sleep(0.05)
        gaze = Action(ActionKind.GAZE, region=Region(4, 4, 20, 20), label="<b>thing</b>")
        found = Observation(gaze, (Hit("A <i>title</i>", "text", entity="e", score=0.5),), provider="local")
        turn = Turn("thinking <script>alert(1)</script>", (gaze,), "raw")
        last = Step(1, Turn("", (Action(ActionKind.ANSWER, rest),), "raw"))
        text = rest if verb in ("say", "meet") else f"{key} {self.spec.bundle}"
        return Answer(text, StopReason.ANSWERED, (Step(0, turn, (found,)), last), usage=Usage(searches=1), seconds=0.1)

    def close(self) -> None:
        self.closed = True


def make_agent(spec: AgentSpec) -> ScriptedAgent:
    """For `WorkerSpec.make`."""
    return ScriptedAgent(spec)


def make_broken(spec: AgentSpec) -> ScriptedAgent:
    raise EngineError("no such bundle")


def write_lines(path: Path, *rows: Any) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A parquet file with small row groups, so that finding a row crosses them."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    return path


def own_dataset(folder: Path, *questions: str) -> Path:
    """Our own format: the answer of every question is "gold"."""
    (folder / "p.png").write_bytes(picture())
    rows = [
        {
            "id": f"q{i}",
            "image": "p.png",
            "question": question,
            "answers": ["gold"],
            "skill": "even" if i % 2 == 0 else "odd",
            "held_out": i % 3 == 0,
            **({"target_box": [4, 4, 20, 20]} if i % 2 == 0 else {"target_boxes": [[4, 4, 20, 20], [9, 1, 2]]}),
        }
        for i, question in enumerate(questions)
    ]
    return write_lines(folder / "set.jsonl", *rows)


def b64(seed: int = 0) -> str:
    return base64.b64encode(picture(seed)).decode()
