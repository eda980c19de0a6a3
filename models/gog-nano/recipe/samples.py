"""Training conversations: a scene, a question, worlds under made-up or true names, and the tokens of it all."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from gog_edge.runtime.tokenizer import Tokenizer
from gog_edge.search.local.index import LocalIndex
from gog_edge.types import Hit, ImagePart

from . import names, scenes, teacher, world
from .questions import ATTRIBUTES, Question, ask

# share of each skill among training conversations
MIX = {
    "direct": 0.13,
    "glance": 0.1,
    "gaze": 0.18,
    "two-hop": 0.24,
    "comparison": 0.24,
    "look-alike": 0.09,
    "unknown": 0.08,
}


@dataclass
class Faces:
    """What the pictures of a scene look like to the search: for an item and box, entities with scores, best first.

    The text-only phase makes them up; the joint phase takes them from the tower's own features.
    """

    rng: np.random.Generator
    rank: dict[tuple[int, tuple[int, int, int, int] | None], list[tuple[str, float]]] | None = None

    def look(self, scene: scenes.Scene, item: int, box: tuple[int, int, int, int] | None) -> list[tuple[str, float]]:
        if self.rank is not None:
            return self.rank[(item, box)]
        rng, key = self.rng, scene.items[item].entity
        pool = _training_keys()
        others = [k for k in (pool[int(i)] for i in rng.integers(0, len(pool), 3)) if k != key]
        if key.startswith("made-"):
            top = float(rng.uniform(teacher.LOW - 0.28, teacher.LOW - 0.01))
            found = [(k, top - 0.04 * i) for i, k in enumerate(others)]
        else:
            top = float(rng.uniform(teacher.LOW + 0.01, 0.98))
            gap = float(rng.uniform(0.01, 0.3))
            found = [(key, top)] + [(k, max(0.2, top - gap - 0.05 * i)) for i, k in enumerate(others)]
            if rng.random() < 0.12:  # a look-alike came first
                found[0], found[1] = (found[1][0], top), (key, max(0.2, top - 0.02))
        return found[: int(rng.choice([1, 2, 3, 3]))] if found[0][1] > teacher.LOW else found


@lru_cache(maxsize=1)
def _training_keys() -> tuple[str, ...]:
    return tuple(e.id for e in world.entities() if not e.held_out)


@dataclass
class Cast:
    """Who the entities are called in one conversation, and what is true of them."""

    rng: np.random.Generator
    invent: bool
    index: LocalIndex | None = None
    names: dict[str, str] = field(default_factory=dict)
    facts: dict[tuple[str, str], str] = field(default_factory=dict)

    def name(self, key: str) -> str:
        if key not in self.names:
            real = not (self.invent or key.startswith("made-"))
            self.names[key] = world.entity(key).name if real else names.name(self.rng)
        return self.names[key]

    def fact(self, who: str, attribute: str) -> str:
        if (who, attribute) not in self.facts:
            key = next((k for k, v in self.names.items() if v == who), "")
            real = key and not self.invent and not key.startswith("made-")
            if real:
                value = world.entity(key).facts.get(attribute, "")
            else:
                value = self._made(who, attribute) if self.rng.random() > 0.03 else ""
            self.facts[(who, attribute)] = value
        return self.facts[(who, attribute)]

    def _made(self, who: str, attribute: str) -> str:
        """A new fact. Continents agree with an earlier one half of the time, so that "same" is as likely as not."""
        earlier = [v for (_, a), v in self.facts.items() if a == attribute == "continent"]
        if earlier and self.rng.random() < 0.5:
            return earlier[-1]
        return names.value(attribute, self.rng, who)

    def picture(self, key: str, score: float | None) -> Hit:
        who = self.name(key)
        flag = key.startswith("made-") or world.entity(key).kind == "flag"
        title, text = (f"Flag of {who}", f"National flag of {who}.") if flag else (who, f"Photograph: {who}.")
        return Hit(title, text, score=score)

    def read(self, query: str) -> list[Hit]:
        if self.index is not None and not self.invent:
            hits = _search(self.index, query)
            banned = _held_names()
            return [h for h in hits if not any(n in h.title for n in banned)]
        return self._imagine(query)

    def _imagine(self, query: str) -> list[Hit]:
        """Results as the index would give them for names that it does not have."""
        rng = self.rng
        if query.startswith("the "):
            attribute, who = query[4:].split(" of ", 1)
        else:
            who = max((n for n in self.names.values() if f"country {n} " in query), key=len)
            attribute = query[len(f"country {who} ") :]
        value = self.fact(who, attribute)
        score = float(rng.uniform(11, 42))
        hits = [Hit(f"{who}: {attribute}", names.sentence(attribute, who, value, rng), score=score)] if value else []
        others = []
        for _ in range(int(rng.choice([0, 1, 2, 2, 3]))):
            same = rng.random() < 0.6
            other = str(rng.choice([a for a in ATTRIBUTES if a != attribute])) if same else attribute
            owner = (
                who if same else (names.name(rng) if rng.random() < 0.7 else f"{names.word(rng).capitalize()} {who}")
            )
            what = names.value(other, rng, owner)
            others.append(
                Hit(
                    f"{owner}: {other}",
                    names.sentence(other, owner, what, rng),
                    score=score * float(rng.uniform(0.45, 0.8)),
                )
            )
        if rng.random() < 0.15:
            others.append(Hit(f"Flag of {who}", f"National flag of {who}.", score=score * 0.6))
        ranked = sorted(others, key=lambda h: -(h.score or 0.0))
        if hits and ranked and rng.random() < 0.1:
            return [ranked[0], *hits, *ranked[1:]][:3]
        return [*hits, *ranked][:3]


@lru_cache(maxsize=20000)
def _search(index: LocalIndex, query: str) -> list[Hit]:
    return index.search(query, k=3)


@lru_cache(maxsize=1)
def _held_names() -> tuple[str, ...]:
    return tuple(e.name for e in world.entities() if e.held_out)


def converse(
    scene: scenes.Scene,
    rng: np.random.Generator,
    faces: Faces,
    index: LocalIndex | None = None,
    invent: float = 0.7,
    skill: str | None = None,
    foreign_share: float = teacher.FOREIGN,
) -> teacher.Conversation:
    """One training conversation about a scene."""
    cast = Cast(rng, bool(rng.random() < invent), index)
    skill = skill or str(rng.choice(list(MIX), p=np.array(list(MIX.values())) / sum(MIX.values())))
    if scene.type != scenes.CLUTTERED:
        skill = "glance"
    elif skill == "glance" or (skill == "comparison" and len(scene.items) < 2):
        skill = "gaze"
    question = _question(scene, skill, rng, cast)
    talk_world = teacher.World(
        look=lambda item, box: _pictures(cast, _shuffled(faces.look(scene, item, box), skill, rng), rng, scene, item),
        read=cast.read,
        name=lambda item: cast.name(scene.items[item].entity),
        fact=cast.fact,
    )
    return teacher.demonstrate(scene, question, talk_world, rng, foreign_share=foreign_share)


def _shuffled(ranked: list[tuple[str, float]], skill: str, rng: np.random.Generator) -> list[tuple[str, float]]:
    """For look-alikes the picture search is often wrong first: the best entity and a later one change places."""
    if skill != "look-alike" or len(ranked) < 2 or ranked[0][1] < teacher.LOW or rng.random() < 0.4:
        return ranked
    other = int(rng.integers(1, len(ranked)))
    keys = [k for k, _ in ranked]
    keys[0], keys[other] = keys[other], keys[0]
    return [(k, s) for k, (_, s) in zip(keys, ranked, strict=True)]


def _pictures(
    cast: Cast, ranked: list[tuple[str, float]], rng: np.random.Generator, scene: scenes.Scene, item: int
) -> list[Hit]:
    banned = _held_names()
    hits = [cast.picture(k, s) for k, s in ranked]
    hits = [h for h in hits if cast.invent or not any(n in h.title for n in banned)]
    # The label of a gaze joins the ranking: 'kite' and 'tent' find text entries, which carry no picture score.
    if scene.items[item].kind in ("kite", "tent") and len(hits) < 3 and rng.random() < 0.9:
        who, attribute = names.name(rng), str(rng.choice(ATTRIBUTES))
        hits.append(Hit(f"{who}: {attribute}", names.sentence(attribute, who, names.value(attribute, rng), rng)))
    return hits


def _question(scene: scenes.Scene, skill: str, rng: np.random.Generator, cast: Cast) -> Question:
    attribute = ""
    if skill in ("two-hop", "unknown") or (skill == "glance" and rng.random() < 0.55):
        attribute = names.attribute(rng) if cast.invent else str(rng.choice(ATTRIBUTES))
        if scene.type == scenes.PHOTO:
            facts = list(world.entity(scene.items[0].entity).facts)
            attribute = names.attribute(rng) if cast.invent else str(rng.choice(facts))
        if skill == "unknown" and rng.random() < 0.4:
            attribute = ""
    if skill == "comparison" and rng.random() < 0.5:
        attribute = "population"
    if skill != "look-alike":
        return ask(scene, skill, rng, attribute)
    state = rng.bit_generator.state
    probe = ask(scene, skill, rng, hint="Africa")
    true = cast.fact(cast.name(scene.items[probe.targets[0]].entity), "continent")
    rng.bit_generator.state = state
    return ask(scene, skill, rng, hint=true or "Africa")


@dataclass
class Encoded:
    """Tokens of one conversation. ``labels``: the id where a loss is taken, else -100. ``images``: (position of the
    first image token, its picture: None for the glance or the 0..1000 box of a crop, rows, columns)."""

    ids: list[int]
    labels: list[int]
    images: list[tuple[int, tuple[int, int, int, int] | None, int, int]]


def encode(talk: teacher.Conversation, tokenizer: Tokenizer, with_images: bool, short: bool = False) -> Encoded:
    """Token by token as the session does it. Without images the pictures are left out and what only a picture can
    tell (the list of what stands where) carries no loss. ``short``: the policy's first turn only."""
    pad, start, end, stop = (
        tokenizer.special[t] for t in ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_end|>")
    )
    out = Encoded([], [], [])
    words = teacher.parse_list(talk.scene) + "\n"
    first = True
    for piece in talk.pieces:
        if piece.text:
            head = piece.text[: len(words)] if first and piece.text.startswith(words) else ""
            first = False
            spans = [(head, piece.learn and with_images), (piece.text[len(head) :], piece.learn)]
            if (s := piece.slip) is not None:  # no loss on the mistake, nor where it can't be told what is meant
                ends = (s.first, s.end, s.until, len(s.text))
                cuts = zip((0, *ends), ends, (True, False, True, False), strict=False)
                spans = [(s.text[a:b], learn and piece.learn) for a, b, learn in cuts]
            for text, learn in spans:
                ids = tokenizer.encode_control(text) if text else []
                out.ids += ids
                out.labels += ids if learn else [-100] * len(ids)
            if short:
                break
            continue
        opened = bool(out.ids)
        for part in tokenizer.encode(piece.segments):
            if isinstance(part, ImagePart):
                shown = talk.registry[part.image]
                rows, columns = shown.shown_height // 32, shown.shown_width // 32
                out.ids.append(start)
                if with_images:
                    out.images.append((len(out.ids), talk.shown[part.image].crop, rows, columns))
                    out.ids += [pad] * (rows * columns)
                out.ids.append(end)
                out.labels += [-100] * (len(out.ids) - len(out.labels))
                continue
            out.ids += part
            out.labels += [-100] * len(part)
            if opened and part and part[0] == stop:  # the end of the policy's own turn
                out.labels[len(out.labels) - len(part)] = stop
                opened = False
    out.ids.append(stop)
    out.labels.append(stop)
    return out


def bare(example: Encoded, tokenizer: Tokenizer) -> Encoded:
    """The same without the system message: a third fewer tokens to practise on."""
    cut = example.ids.index(tokenizer.special["<|im_start|>"], 1)
    images = [(first - cut, *rest) for first, *rest in example.images]
    return Encoded(example.ids[cut:], example.labels[cut:], images)  # type: ignore[arg-type]


def reading(talk: teacher.Conversation) -> bool:
    """Cuts a conversation down to the question and its text searches: practice in reading results. False if it has
    none. The first thought and query that stay have no loss: what they go by was cut."""
    call = next((n for n, p in enumerate(talk.pieces) if '"text_search"' in p.text), 0)
    if call:
        first = replace(talk.pieces[call], learn=False)
        talk.pieces = [talk.pieces[0], first, *talk.pieces[call + 1 :]]
    return bool(call)


def open_index(folder: Path) -> LocalIndex:
    return LocalIndex(folder)
