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

from gog_edge.runtime.dialects.dialect import Dialect
from gog_edge.runtime.dialects.registry import load
from gog_edge.types import Action, ActionKind, Hit, Observation, Region, RegisteredImage, Segment

from . import geometry, scenes
from .questions import Question, box_of

ROOT = Path(__file__).resolve().parent.parent
UNKNOWN = "unknown"
LOW = 0.75  # cosine of the best picture under which the teacher does not believe it (measured: see README.md)


@cache
def dialect() -> Dialect:
    template = (ROOT / "recipe" / "chat_template.jinja").read_text(encoding="utf-8")
    return load(ROOT / "dialect.toml", family="qwen3_vl", chat_template=template)


@dataclass
class Piece:
    """Context (``segments``) or policy text (``text``); ``learn`` false: shown, but no loss (a mistake to recover from)."""

    segments: list[Segment] = field(default_factory=list)
    text: str = ""
    learn: bool = True


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
    """The scene in words: carriers from left to right, each with the box of its flag. The number stands before a carrier,
    where reading the picture needs it, and behind it, where looking up by kind finds it."""
    if scene.type == scenes.SINGLE:
        return "One flag."
    if scene.type == scenes.PHOTO:
        return "One photo."
    lines = []
    for number, item in enumerate(scene.items, 1):
        lines.append(f"{number}: {item.size} {item.colour} {item.kind}{number} [{', '.join(map(str, box_of(item)))}]")
    return "\n".join(lines)


def strip(title: str) -> str:
    return title.removeprefix("Flag of ")


class Conversation:
    """Builds pieces with the runtime's dialect, so that training text is what the runtime will write."""

    def __init__(self, scene: scenes.Scene, question: Question, world: World, rng: np.random.Generator) -> None:
        self.scene, self.question, self.world, self.rng = scene, question, world, rng
        self.registry = [RegisteredImage(0, scenes.WIDTH, scenes.HEIGHT, 384, 288, None, 0)]
        self.shown = [Shown(None)]
        self.pieces = [Piece(list(dialect().opening(question.text)))]

    def act(self, thought: str, action: Action, hits: Sequence[Hit] = (), error: str = "", learn: bool = True) -> None:
        """One turn of the policy and, unless it answers, what comes back."""
        if action.kind is ActionKind.ANSWER:  # the space keeps the tokens of what is copied from a result
            action = Action(ActionKind.ANSWER, f" {action.text}")
        text = f"{thought}\n</think>\n{dialect().write(action, self.registry)}"
        self.pieces.append(Piece(text=text, learn=learn))
        if action.kind is ActionKind.ANSWER:
            return
        turn = dialect().parse(text, self.registry)
        shown = None
        if action.kind is ActionKind.GAZE and action.region is not None:
            shown = len(self.registry)
            r = action.region
            size = geometry.smart_resize(r.x1 - r.x0, r.y1 - r.y0, geometry.GAZE_PIXELS)
            self.registry.append(RegisteredImage(shown, scenes.WIDTH, scenes.HEIGHT, *size, r, 0))
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
    scene: scenes.Scene, question: Question, world: World, rng: np.random.Generator, faults: float = 0.12
) -> Conversation:
    """The whole conversation of a perfect policy; ``faults``: how often a search goes wrong and is tried again."""
    talk = Conversation(scene, question, world, rng)
    words = parse_list(scene)
    if question.rule == "direct":
        talk.answer(words, question.answer)
        return talk
    if question.rule == "absent":
        talk.answer(f"{words}\nNot there.", UNKNOWN)
        return talk
    if scene.type == scenes.CLUTTERED:
        opening = f"{words}\nTarget{' and'.join(question.clues)}."
    else:
        opening = words
    names: list[str] = []
    thought = opening
    for order, target in enumerate(question.targets):
        hits = _see(talk, thought, target, faults)
        if not hits or (hits[0].score or 0.0) < LOW:
            talk.answer("Low score." if hits else "No result.", UNKNOWN)
            return talk
        if question.rule == "hint":
            _check(talk, hits)
            return talk
        names.append(strip(hits[0].title))
        if order + 1 < len(question.targets):
            thought = f"It is {names[-1]}. Next {question.targets[order + 1] + 1}."
    if question.rule == "name":
        talk.answer(f"It is {names[0]}.", names[0])
        return talk
    values: list[str] = []
    thought = f"It is {names[-1]}." if len(names) == 1 else f"It is {names[-1]}. First {names[0]}."
    for order, name in enumerate(names):
        value = _look_up(talk, thought, question.attribute, name, faults)
        if not value:
            talk.answer("No fact.", UNKNOWN)
            return talk
        values.append(value)
        if order + 1 < len(names):
            thought = f"It is {value}. Then {names[order + 1]}."
    _conclude(talk, names, values)
    return talk


def _conclude(talk: Conversation, names: list[str], values: list[str]) -> None:
    rule = talk.question.rule
    if rule == "value":
        talk.answer(f"It is {values[0]}.", values[0])
    elif rule == "same":
        same = values[0] == values[1]
        talk.answer(f"These are {values[0]} and {values[1]}.", "yes" if same else "no")
    else:
        first, second = (int(v.replace(",", "")) for v in values)
        talk.answer(
            f"These are {values[0]} and {values[1]}: {'first' if first > second else 'second'}.",
            names[0] if first > second else names[1],
        )


def _see(talk: Conversation, thought: str, target: int, faults: float) -> list[Hit]:
    """Glance or gaze at an item, sometimes with a search that fails first; the hits that the teacher ends with."""
    rng, world = talk.rng, talk.world
    single = talk.scene.type != scenes.CLUTTERED
    box = None if single else box_of(talk.scene.items[target])
    if rng.random() < faults:
        error = "failed" if rng.random() < 0.4 else ""
        if single:
            talk.act(thought, Action(ActionKind.GLANCE), (), error)
        else:
            talk.gaze(thought, target, box_of(talk.scene.items[target]), (), error)
        thought = "Nothing came. Again." if single else f"Nothing came. Target {target + 1} again."
    if box is None:
        hits = world.look(target, None)
        talk.act(thought, Action(ActionKind.GLANCE), hits)
        return hits
    hits = world.look(target, box)
    talk.gaze(thought, target, box, hits)
    return hits


def _look_up(talk: Conversation, thought: str, attribute: str, name: str, faults: float) -> str:
    """Reads one fact; a search without a fitting result is tried once more in other words. '' if there is none."""
    for query in (f"the {attribute} of {name}", f"country {name} {attribute}"):
        failing = query.startswith("the ") and talk.rng.random() < faults
        hits = [] if failing else talk.world.read(query)
        error = "failed" if failing and talk.rng.random() < 0.4 else ""
        talk.act(thought, Action(ActionKind.TEXT_SEARCH, query), hits, error)
        if any(hit.title == f"{name}: {attribute}" for hit in hits):
            return talk.world.fact(name, attribute)
        thought = "No fact. Other words." if hits else "Nothing came. Other words."
    return ""


def _check(talk: Conversation, hits: list[Hit]) -> None:
    """Look-alikes: the first picture result whose continent fits."""
    thought = ""
    for hit in [h for h in hits if h.title.startswith("Flag of ")][:3]:
        name = strip(hit.title)
        value = _look_up(talk, thought + f"Is {name} in {talk.question.hint}?", "continent", name, 0.0)
        if value == talk.question.hint:
            talk.answer(f"It is {value}. Yes, {name}.", name)
            return
        thought = f"It is {value or UNKNOWN}. No. "
    talk.answer(thought.strip(), UNKNOWN)
