"""Questions about a scene, with their answers: referring expressions, attributes, comparisons.

A ``Question`` says what is asked and what the teacher has to know to act: which items to look at (``targets``,
numbers into the scene's items, from left to right), which attribute to look up, and the rule that gives the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import draw, geometry, scenes

ORDINALS = ("", "first", "second", "third", "fourth", "fifth")
PLURALS = {kind: kind + "s" for kind in draw.KINDS}
ATTRIBUTES = (
    "capital",
    "currency",
    "language",
    "continent",
    "population",
    "area",
    "highest point",
    "nationality",
    "internet code",
    "national symbol",
)


@dataclass(frozen=True)
class Question:
    """``rule``: name (title's country), value (attribute), same / more (two targets), hint (first result whose
    continent is ``hint``), direct (``answer`` is given by the scene alone), absent (nothing of the kind is there)."""

    skill: str
    text: str
    rule: str
    targets: tuple[int, ...] = ()
    attribute: str = ""
    hint: str = ""
    answer: str = ""
    clues: tuple[str, ...] = ()  # how the teacher says which item each target is, see ``clue``


def box_of(item: scenes.Item) -> tuple[int, int, int, int]:
    return geometry.expert_box(item.box, scenes.WIDTH, scenes.HEIGHT)


def references(items: tuple[scenes.Item, ...], target: int) -> dict[str, str]:
    """Ways to say which flag is meant, by kind of expression; every one names exactly one item."""
    item, n = items[target], len(items)
    kinds = [i.kind for i in items]
    pairs = [(i.colour, i.kind) for i in items]
    found: dict[str, str] = {}
    if kinds.count(item.kind) == 1:
        found["kind"] = f"the flag on the {item.kind}"
    if pairs.count((item.colour, item.kind)) == 1:
        found["colour"] = f"the flag on the {item.colour} {item.kind}"
    if n >= 2:
        if target == 0:
            found["leftmost"] = "the leftmost flag"
        if target == n - 1:
            found["rightmost"] = "the rightmost flag"
        if target > 0:
            found["ordinal"] = f"the {ORDINALS[target + 1]} flag from the left"
        if n - 2 >= target >= 0 and n >= 3:
            found["ordinal-right"] = f"the {ORDINALS[n - target]} flag from the right"
        sizes = [i.size for i in items]
        if item.size == "large" and sizes.count("large") == 1:
            found["largest"] = "the largest flag"
        if item.size == "small" and sizes.count("small") == 1:
            found["smallest"] = "the smallest flag"
        tops = [box_of(i)[1] for i in items]
        others = [t for i, t in enumerate(tops) if i != target]
        if tops[target] <= min(others) - 100:
            found["highest"] = "the highest flag"
        if tops[target] >= max(others) + 100:
            found["lowest"] = "the lowest flag"
        for side, other in (("right", target - 1), ("left", target + 1)):
            if 0 <= other < n and kinds.count(kinds[other]) == 1:
                found[f"{side}-of"] = f"the flag just {side} of the {kinds[other]}"
    return found


def clue(items: tuple[scenes.Item, ...], target: int, way: str) -> str:
    """The thought that leads from a reference to the target's number. What the question names is said again and the list
    answers with what followed there: a lookup by content is copying, which a small decoder can do. The highest and the
    lowest are found flag by flag: the corner of each is said again, then the best one so far."""
    item = items[target]
    if way == "kind":
        return f" {item.kind}{target + 1}"
    if way == "colour":
        return f" {item.colour} {item.kind}{target + 1}"
    if way in ("largest", "smallest"):
        return f" {item.size} {item.colour} {item.kind}{target + 1}"
    if way in ("right-of", "left-of"):
        other = target - 1 if way == "right-of" else target + 1
        return f" of {items[other].kind}{other + 1}: {target + 1}"
    if way in ("highest", "lowest"):
        corners = [box_of(i)[:2] for i in items]
        return f" {way}" + "".join(words for words, _ in climb(corners, way))
    return f" {target + 1}"


def climb(corners: list[tuple[int, int]], way: str) -> list[tuple[str, bool]]:
    """The corners one after another, with the highest (lowest) so far after each from the second on, and at the end its
    number: pieces, and whether a piece follows from those before."""
    said = [(f" {number}", f" [{x}, {y}]") for number, (x, y) in enumerate(corners, 1)]
    pieces, best = [(part, False) for part in said[0]], 0
    for index in range(1, len(corners)):
        better = corners[index][1] < corners[best][1] if way == "highest" else corners[index][1] > corners[best][1]
        best = index if better else best
        pieces += [*((part, False) for part in said[index]), (" so", False), *((part, True) for part in said[best])]
    return [*pieces, (":", False), (said[best][0], True)]


def refer(items: tuple[scenes.Item, ...], target: int, rng: np.random.Generator) -> tuple[str, str]:
    """Words for a target and the clue to them."""
    ways = references(items, target)
    if not ways:
        return f"flag number {target + 1} from the left", f" {target + 1}"
    way = list(ways)[int(rng.integers(len(ways)))]
    return ways[way], clue(items, target, way)


def ask(scene: scenes.Scene, skill: str, rng: np.random.Generator, attribute: str = "", hint: str = "") -> Question:
    """A question of a skill (of ``evalset.COUNTS``) about a scene."""
    if scene.type != scenes.CLUTTERED:
        what = "this flag" if scene.type == scenes.SINGLE else "this photo"
        if attribute and scene.type == scenes.SINGLE:
            return Question(skill, f"What is the {attribute} of the country of {what}?", "value", (0,), attribute)
        if attribute:
            return Question(skill, f"What is the {attribute} of the thing in {what}?", "value", (0,), attribute)
        return Question(
            skill,
            "Which country has this flag?" if scene.type == scenes.SINGLE else "What is in this photo?",
            "name",
            (0,),
        )
    items = scene.items
    if skill == "direct":
        return _direct(items, rng)
    target = int(rng.integers(len(items)))
    if skill == "comparison":
        first, second = (int(i) for i in rng.permutation(len(items))[:2])
        (a, by_a), (b, by_b) = refer(items, first, rng), refer(items, second, rng)
        clues = (by_a, by_b)
        if attribute == "population":
            return Question(
                skill,
                f"Which country has more people, that of {a} or that of {b}?",
                "more",
                (first, second),
                attribute,
                clues=clues,
            )
        return Question(
            skill,
            f"Are the countries of {a} and {b} on the same continent?",
            "same",
            (first, second),
            "continent",
            clues=clues,
        )
    if skill == "unknown" and rng.random() < 0.5:
        absent = [k for k in draw.KINDS if k not in {i.kind for i in items}]
        kind = str(rng.choice(absent))
        about = f"the {attribute} of the country of the flag on the {kind}" if attribute else ""
        text = f"What is {about}?" if about else f"Which country has the flag on the {kind}?"
        return Question(skill, text, "absent", answer="unknown", clues=(f" {kind} none",))
    where, by = refer(items, target, rng)
    if skill == "look-alike":
        return Question(
            skill, f"Which country in {hint} has {where}?", "hint", (target,), "continent", hint, clues=(by,)
        )
    if attribute:
        return Question(
            skill, f"What is the {attribute} of the country of {where}?", "value", (target,), attribute, clues=(by,)
        )
    return Question(skill, f"Which country has {where}?", "name", (target,), clues=(by,))


def _direct(items: tuple[scenes.Item, ...], rng: np.random.Generator) -> Question:
    """A question that the list answers, with the lines of the list that do it as clue."""
    kinds = [i.kind for i in items]
    named = [f"{i.kind}{number}" for number, i in enumerate(items, 1)]
    asked, some = str(rng.choice(draw.KINDS)), str(rng.choice(kinds))
    those = [n for n, k in zip(named, kinds, strict=True) if k == some]
    seen = ("yes", f" {named[kinds.index(asked)]}") if asked in kinds else ("no", f" {asked} none")
    options = [
        ("How many flags are there?", str(len(items)), f" {len(items)}"),
        (f"Is there a {asked}?", *seen),
        (f"How many {PLURALS[some]} are there?", str(len(those)), f" {' '.join(those)}: {len(those)}"),
    ]
    if len(those) == 1:
        at = kinds.index(some)
        options += [(f"What colour is the {some}?", items[at].colour, f" {those[0]}. {line(items, at)}")] * 2
    for word, index in (("leftmost", 0), ("rightmost", len(items) - 1)):
        options.append((f"What carries the {word} flag?", kinds[index], f" {line(items, index)}"))
    text, answer, by = options[int(rng.integers(len(options)))]
    return Question("direct", text, "direct", answer=answer, clues=(by,))


def line(items: tuple[scenes.Item, ...], index: int) -> str:
    """An item's line of the list. The number stands before a carrier, where reading the picture needs it, and behind it,
    where looking up by kind finds it."""
    item = items[index]
    return f"{index + 1}: {item.size} {item.colour} {item.kind}{index + 1} [{', '.join(map(str, box_of(item)))}]"
