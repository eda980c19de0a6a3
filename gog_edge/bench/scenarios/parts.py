"""Scenarios that are not conversations: one part of the runtime by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gog_edge.agent.loader import load as load_agent
from gog_edge.bench.local_subject import LocalSubject
from gog_edge.bench.machine.roofline import Roofline
from gog_edge.bench.result import Cell
from gog_edge.bench.scenarios.batch import batch_cells
from gog_edge.bench.scenarios.camera import Stream, camera_cells
from gog_edge.bench.scenarios.conversation import conversation_cells
from gog_edge.bench.scenarios.crop import crop_cells
from gog_edge.bench.scenarios.export import export_cells
from gog_edge.bench.scenarios.index import index_cells
from gog_edge.bench.scenarios.reuse import prompt_cells, question_cells
from gog_edge.bench.scenarios.search import search_cells
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.errors import BenchError


@dataclass(frozen=True)
class Given:
    """What a scenario has to work with. `roofline`: the machine's limits, None where they were not measured. `stream`:
    what the camera shows. `checkpoint`: what is exported."""

    bundle: Path | None
    repeats: int
    roofline: Roofline | None = None
    stream: Stream = field(default_factory=Stream)
    checkpoint: Path | None = None

    def path(self) -> Path:
        """The bundle, of which there must be one."""
        if self.bundle is None:
            raise BenchError("this scenario needs a bundle: --bundle DIR (gog-edge bench make-checkpoint makes one)")
        return self.bundle

    @contextmanager
    def subject(self, engine_options: OrtOptions | None = None) -> Iterator[LocalSubject]:
        """Ourselves, loaded."""
        subject = LocalSubject(self.path(), engine_options=engine_options)
        subject.load()
        try:
            yield subject
        finally:
            subject.close()


Piece = Callable[[Given], Iterator[Cell]]


def crop(given: Given) -> Iterator[Cell]:
    """A fifth of a 12-megapixel frame to 448x336 pixels: one and two threads, Pillow, transformers."""
    yield from crop_cells(max(given.repeats, 20))


def load(given: Given) -> Iterator[Cell]:
    """From loading to the first token, files in the page cache; a fresh process each time would add the imports."""
    subject = LocalSubject(given.path())
    subject.load()
    subject.close()
    samples = []
    for _ in range(given.repeats):
        samples.append(subject.load())
        subject.close()
    yield Cell("load", "gog-edge", "warm load to first token", "s", tuple(samples))


def questions(given: Given) -> Iterator[Cell]:
    """1 to 100 questions about one frame: all but the first cost only their own words."""
    with given.subject() as subject:
        yield from question_cells(subject, roofline=given.roofline)


def conversation(given: Given) -> Iterator[Cell]:
    """20 turns, 2k to 24k tokens, a picture every third: a turn costs what is new in it, and memory is given back."""
    options = OrtOptions(spin=False)  # processor time is compared
    with given.subject(options) as subject:
        yield from conversation_cells(subject, given.repeats)


def prompt(given: Given) -> Iterator[Cell]:
    """System prompt and tool schema into the KV cache: computed, kept in memory, kept on disk."""
    yield from prompt_cells(given.path(), given.repeats)


def batch(given: Given) -> Iterator[Cell]:
    """1, 2, 4 and 8 conversations that write at the same time, and one that joins 7: tokens a second, first token."""
    with given.subject() as subject:
        yield from batch_cells(subject, given.repeats)


def camera(given: Given) -> Iterator[Cell]:
    """A camera at N frames a second and a deadline: age of the answers, frames dropped, deadlines missed."""
    with load_agent(given.path(), index=given.stream.index) as agent:
        yield from camera_cells(
            lambda pixels, left: agent.ask(pixels, given.stream.question, deadline=left), given.stream, given.repeats
        )


def search(given: Given) -> Iterator[Cell]:
    """A provider that takes 0.2, 1 and 3 s: how much of it the early start hides."""
    with given.subject() as subject:
        yield from search_cells(subject, given.repeats)


def index(given: Given) -> Iterator[Cell]:
    """The local index from 1,000 to 100,000 entries: inserting, searching with pictures, text and both."""
    yield from index_cells(given.repeats)


def export(given: Given) -> Iterator[Cell]:
    """A checkpoint to int8 and to int4: seconds, memory, size of the bundle."""
    if given.checkpoint is None:
        raise BenchError(
            "this scenario needs a checkpoint: --checkpoint DIR (gog-edge bench make-checkpoint makes one)"
        )
    yield from export_cells(given.checkpoint, given.repeats)


PIECES: dict[str, Piece] = {
    "crop": crop,
    "load": load,
    "questions": questions,
    "conversation": conversation,
    "prompt": prompt,
    "batch": batch,
    "camera": camera,
    "search": search,
    "index": index,
    "export": export,
}
