"""Real conversations as data: what a policy reads and writes while it answers questions with its tools.

Calibration and quantisation studies need tokens and images as the policy meets them: opening, reasoning, calls,
search results, crops. They come from the runtime itself, by answering questions with an exported bundle.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.crop import crop_patches
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.parity.conversation import BundleTalk, converse, generated_frames, masked_tokens
from gog_edge.export.parity.reference import ReferenceImage
from gog_edge.prompts import Ask, read_questions
from gog_edge.runtime.session import Session

if TYPE_CHECKING:
    from gog_edge.agent.agent import Agent


@dataclass(frozen=True)
class Talk:
    """One conversation: token ids [s], its images in order of appearance, and which tokens the policy wrote [s]."""

    tokens: NDArray[np.int64]
    images: tuple[ReferenceImage, ...] = ()
    written: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))


@dataclass(frozen=True)
class Source:
    """Where conversations come from: questions (JSON lines), the folder of their images, an index, a dialect."""

    questions: Path | None = None
    images: Path | None = None
    index: Path | None = None
    dialect: str | None = None

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """The options that `of` reads."""
        parser.add_argument("--questions", type=Path, help="JSON lines with image and question")
        parser.add_argument("--images", type=Path, help="folder that the images are relative to")
        parser.add_argument("--index", type=Path, help="local index to search")
        parser.add_argument("--dialect", help="a shipped dialect's name or a TOML file; default: the checkpoint's own")

    @classmethod
    def of(cls, given: argparse.Namespace) -> Source:
        return cls(given.questions, given.images, given.index, given.dialect)


def sample(checkpoint: Checkpoint, source: Source, count: int, folder: Path) -> list[Talk]:
    """`count` conversations of a checkpoint: an fp32 bundle is made in `folder` and asked.

    Without questions the conversations are about generated pictures.

    Raises:
        DatasetError: the questions can't be read. SearchIndexError: nor can the index.
    """
    import gog_edge
    from gog_edge.agent.options import NO_PREFETCH, RunOptions
    from gog_edge.export.options import ExportOptions
    from gog_edge.export.pipeline import export_bundle
    from gog_edge.sampling_options import GREEDY

    asks = read_questions(source.questions, source.images) if source.questions else []
    bundle = export_bundle(checkpoint, folder / "fp32", ExportOptions(precision="fp32", dialect=source.dialect))
    options = RunOptions(sampling=GREEDY, prefix_cache=False, prefetch=NO_PREFETCH, grammar="off")
    with gog_edge.load(bundle, index=source.index, options=options) as agent:
        if source.questions:
            chosen = [asks[i * len(asks) // count] for i in range(count)] if count < len(asks) else asks
            return record(agent, chosen)
        masked = masked_tokens(bundle.manifest, checkpoint.config.get("video_token_id"))
        talks = [converse(agent.model, generated_frames(seed), 32, masked) for seed in range(count)]
        return [_talk(talk) for talk in talks]


def shown_images(talk: BundleTalk) -> tuple[ReferenceImage, ...]:
    """The images of a gate's conversation."""
    parts = zip(talk.patches, talk.plans, talk.starts)
    return tuple(ReferenceImage(p, plan.grid.rows, plan.grid.columns, start) for p, plan, start in parts)


def _talk(talk: BundleTalk) -> Talk:
    shown = shown_images(talk)
    mask = np.zeros(len(talk.tokens), np.bool_)
    mask[talk.places] = True
    return Talk(talk.tokens, shown, mask)


def record(agent: Agent, asks: Sequence[Ask], done: Callable[[int], None] | None = None) -> list[Talk]:
    """Answer every question and keep the conversations."""
    talks = []
    for ask in asks:
        with agent.session(ask.image) as conversation:
            conversation.ask(ask.question)
            talks.append(talk_of(conversation.session))
        if done:
            done(1)
    return talks


def talk_of(session: Session) -> Talk:
    """The conversation of a session, with the pixels of its images."""
    tokens = session.tokens.astype(np.int64)
    images = []
    preprocessing = session.model.manifest.preprocessing
    for span in session.sequence.spans:
        plan = session.image(span.image).plan
        if plan is None:
            session.frame(span.image)  # raises, and says that pixels are missing
            continue
        patches = crop_patches(plan.frame, plan.region, plan.grid, preprocessing)
        images.append(ReferenceImage(patches, plan.grid.rows, plan.grid.columns, span.start))
    return Talk(tokens, tuple(images), written(tokens, *_marks(session)))


def written(tokens: NDArray[np.int64], start: Sequence[int], end: int) -> NDArray[np.bool_]:
    """Which tokens are between `start` (the ids that open a turn of the policy) and the next `end`, that included."""
    mask = np.zeros(len(tokens), np.bool_)
    opening = list(start)
    at = 0
    while at + len(opening) <= len(tokens):
        if tokens[at : at + len(opening)].tolist() != opening:
            at += 1
            continue
        first = at + len(opening)
        ends = np.flatnonzero(tokens[first:] == end)
        stop = first + int(ends[0]) + 1 if ends.size else len(tokens)
        mask[first:stop] = True
        at = stop
    return mask


def _marks(session: Session) -> tuple[list[int], int]:
    from gog_edge.types import Control

    def ids(text: str) -> list[int]:
        parts: list[Any] = list(session.model.tokenizer.encode([Control(text)]))
        return [int(i) for part in parts for i in part]

    return ids("<|im_start|>assistant\n"), ids("<|im_end|>")[0]
