"""The teacher: what a perfect policy writes, turn by turn, and what the runtime answers.

``Sheet`` holds what is known about the things in the scene under names that may be made up, so that copying from
results, not remembering, is what is learned. ``demonstrate`` gives a conversation as pieces: context (segments of the
runtime's own dialect) and policy text (with or without loss).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from gog_edge.dialects.dialect import Dialect
from gog_edge.dialects.registry import load
from gog_edge.types import Action, ActionKind, Hit, Observation, Region, RegisteredImage, Segment

from . import foreign, geometry, scenes
from .questions import Question, box_of, line
from .slips import Slip, slip

ROOT = Path(__file__).resolve().parent.parent
UNKNOWN = "unknown"
FOREIGN = 0.55  # share of the conversations whose results hold foreign text
SLIPS = 0.2  # share of the conversations with a copy that goes wrong, where something is copied
LOW = 0.75  # cosine of the best picture under which the teacher does not believe it (measured: see README.md)


@cache
def dialect() -> Dialect:
    template = (ROOT / "recipe" / "chat_template.jinja").read_text(encoding="utf-8")
    return load(ROOT / "dialect.toml", frame="thousand", chat_template=template)


@dataclass
class Piece:
    """Context (``segments``) or policy text (``text``); ``learn`` false: shown, but no loss. ``slip``: a mistake in the
    text, to recover from."""

    segments: list[Segment] = field(default_factory=list)
    text: str = ""
    learn: bool = True
    slip: Slip | None = None


@dataclass(frozen=True)
class Shown:
    """A picture of the conversation: the glance (``crop`` None) or the crop of a gaze (0..1000 box)."""

    crop: tuple[int, int, int, int] | None


ImageSearch = Callable[[int, tuple[int, int, int, int] | None], list[Hit]]
TextSearch = Callable[[str], list[Hit]]


@dataclass
class World:
    """What the teacher and the searches know. ``look(item, box)``: picture results; ``read(query)``: text results;
    ``name(item)``: the true name of an item; ``fact(item, attribute)``: its value or ''."""

    look: ImageSearch
    read: TextSearch
    name: Callable[[int], str]
    fact: Callable[[str, str], str]


def parse_list(scene: scenes.Scene) -> str:
    """The scene in words: carriers from left to right, each with the box of its flag (``questions.line``)."""
    if scene.type == scenes.SINGLE:
        return "One flag."
    if scene.type == scenes.PHOTO:
        return "One photo."
    return "\n".join(line(scene.items, index) for index in range(len(scene.items)))


def strip(title: str) -> str:
    return title.removeprefix("Flag of ")


class Conversation:
    """Builds pieces with the runtime's dialect, so that training text is what the runtime will write."""

    def __init__(
        self, scene: scenes.Scene, question: Question, world: World, rng: np.random.Generator, foreign_share: float
    ) -> None:
        self.scene, self.question, self.world, self.rng = scene, question, world, rng
        self.registry = [RegisteredImage(0, scenes.WIDTH, scenes.HEIGHT, 384, 288, None, 0)]
        self.shown = [Shown(None)]
        self.pieces = [Piece(list(dialect().opening(question.text)))]
        self.noise = np.random.default_rng(int(rng.integers(1 << 31)))  # its own: the teacher's dice stay the same
        self.foreign = 0.85 if self.noise.random() < foreign_share else 0.0  # share of results with foreign text
        self.slips = 0.4 if self.noise.random() < SLIPS else 0.0  # chance of a turn to hold the one mistake
        self.copied: list[str] = []  # names and values that came from results

    def act(self, thought: str, action: Action, hits: Sequence[Hit] = (), error: str = "", learn: bool = True) -> None:
        """One turn of the policy and, unless it answers, what comes back."""
        if action.kind is ActionKind.ANSWER:  # the space keeps the tokens of what is copied from a result
            action = Action(ActionKind.ANSWER, f" {action.text}")
        text = f"{thought}\n</think>\n{dialect().write(action, self.registry)}"
        wrong = slip(text, self.copied, self.noise) if self.copied and self.noise.random() < self.slips else None
        if wrong is not None:
            self.slips = 0.0
        self.pieces.append(Piece(text=text, learn=learn, slip=wrong))
        if action.kind is ActionKind.ANSWER:
            return
        turn = dialect().parse(text, self.registry)
        shown = None
        if action.kind is ActionKind.GAZE and action.region is not None:
            shown = len(self.registry)
            r = action.region
            size = geometry.smart_resize(r.x1 - r.x0, r.y1 - r.y0, geometry.GAZE_PIXELS)
            self.registry.append(RegisteredImage(shown, scenes.WIDTH, scenes.HEIGHT, *size, r, 0))
        if hits and self.noise.random() < self.foreign:
            hits = foreign.disturb(hits, self.noise)
        seen = Observation(turn.actions[0], tuple(hits), error, shown=shown)
        self.pieces.append(Piece(list(dialect().observe(turn, [seen], images=self.registry))))

    def gaze(
        self,
        thought: str,
        item: int,
        box: tuple[int, int, int, int],
        hits: Sequence[Hit],
        error: str = "",
        learn: bool = True,
    ) -> None:
        region = Region(*geometry.to_pixels(box, scenes.WIDTH, scenes.HEIGHT))
        self.shown.append(Shown(box))
        self.act(thought, Action(ActionKind.GAZE, region=region, label=self.scene.items[item].kind), hits, error, learn)

    def answer(self, thought: str, text: str) -> None:
        self.act(thought, Action(ActionKind.ANSWER, text))


def demonstrate(
    scene: scenes.Scene,
    question: Question,
    world: World,
    rng: np.random.Generator,
    faults: float = 0.12,
    foreign_share: float = FOREIGN,
) -> Conversation:
    """The whole conversation of a perfect policy; ``faults``: how often a search goes wrong and is tried again;
    ``foreign_share``: of the conversations, how many have foreign text in most of their results."""
    talk = Conversation(scene, question, world, rng, foreign_share)
    words = parse_list(scene)
    thought = words
    if scene.type == scenes.CLUTTERED:
        thought = f"{words}\nTarget{' and'.join(question.clues)}."
    if question.rule in ("direct", "absent"):
        talk.answer(thought, question.answer)
        return talk
    names: list[str] = []
    for target in question.targets:
        hits = _see(talk, thought, target, faults)
        if not hits or (hits[0].score or 0.0) < LOW:
            talk.answer("Low score." if hits else "No result.", UNKNOWN)
            return talk
        if question.rule == "hint":
            _check(talk, hits)
            return talk
        names.append(strip(hits[0].title))
        talk.copied.append(names[-1])
        thought = f"It is {names[-1]}."
    if question.rule == "name":
        talk.answer(thought, names[0])
        return talk
    if len(names) > 1:
        thought += f" First {names[0]}."
    values: list[str] = []
    sentences: list[str] = []
    for order, name in enumerate(names):
        sentence, value = _look_up(talk, thought, question.attribute, name, faults)
        if not value:
            talk.answer("No fact.", UNKNOWN)
            return talk
        values.append(value)
        sentences.append(sentence)
        if order + 1 < len(names):
            thought = f"{sentence} Then {names[order + 1]}."
    _conclude(talk, names, values, sentences)
    return talk


def _conclude(talk: Conversation, names: list[str], values: list[str], sentences: list[str]) -> None:
    """The sentences that were found stand side by side, the last one first: what is compared is near."""
    said = " ".join(reversed(sentences))
    if talk.question.rule == "value":
        talk.answer(said, values[0])
    elif talk.question.rule == "same":
        same = values[0] == values[1]
        talk.answer(f"{said} {'Same' if same else 'Different'}.", "yes" if same else "no")
    else:
        first, second = (int(v.replace(",", "")) for v in values)
        word, more = (
            ("First", names[0]) if first > second else ("Then", names[1])
        )  # the words that stood before the names
        talk.answer(f"{said} More: {word} {more}.", more)


def _see(talk: Conversation, thought: str, target: int, faults: float) -> list[Hit]:
    """Glance or gaze at an item, sometimes with a search that fails first; the hits that the teacher ends with. A gaze's
    thought ends with the item's line of the list, so that the box of the call is what was just written."""
    rng, world = talk.rng, talk.world
    single = talk.scene.type != scenes.CLUTTERED
    if single:
        if rng.random() < faults:
            talk.act(thought, Action(ActionKind.GLANCE), (), "failed" if rng.random() < 0.4 else "")
            thought = "Nothing came. Again."
        hits = world.look(target, None)
        talk.act(thought, Action(ActionKind.GLANCE), hits)
        return hits
    box, which = box_of(talk.scene.items[target]), line(talk.scene.items, target)
    if rng.random() < faults:
        talk.gaze(f"{thought}\n{which}", target, box, (), "failed" if rng.random() < 0.4 else "")
        thought = "Nothing came. Again."
    hits = world.look(target, box)
    talk.gaze(f"{thought}\n{which}", target, box, hits)
    return hits


def _look_up(talk: Conversation, thought: str, attribute: str, name: str, faults: float) -> tuple[str, str]:
    """Reads one fact: the sentence that says it and its value. A search without a fitting result is tried once more in
    other words; ('', '') if there is none."""
    for query in (f"the {attribute} of {name}", f"country {name} {attribute}"):
        failing = query.startswith("the ") and talk.rng.random() < faults
        hits = [] if failing else talk.world.read(query)
        error = "failed" if failing and talk.rng.random() < 0.4 else ""
        talk.act(thought, Action(ActionKind.TEXT_SEARCH, query), hits, error)
        for hit in hits:
            if hit.title == f"{name}: {attribute}":
                value = talk.world.fact(name, attribute)
                talk.copied.append(value)
                return hit.text, value
        thought = "No fact. Other words." if hits else "Nothing came. Other words."
    return "", ""


def _check(talk: Conversation, hits: list[Hit]) -> None:
    """Look-alikes: the first picture result whose continent fits."""
    hint, thought = talk.question.hint, ""
    for hit in [h for h in hits if h.title.startswith("Flag of ")][:3]:
        name = strip(hit.title)
        talk.copied.append(name)
        sentence, value = _look_up(talk, f"{thought}Is {name} in {hint}?", "continent", name, 0.0)
        found = f"{sentence or 'No fact.'} Asked {hint}."
        if value == hint:
            talk.answer(f"{found} Yes, {name}.", name)
            return
        thought = f"{found} No. "
    talk.answer(thought.strip() or "No result.", UNKNOWN)
