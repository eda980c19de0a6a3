"""The evaluation set: 500 questions over scenes of seeds that training never saw, half of them about held-out flags.

``python -m recipe.evalset write`` makes ``eval/eval.jsonl`` (small, committed); ``python -m recipe.evalset render --out
DIR`` draws its pictures again from the seeds. ``probe --out DIR`` makes a smaller set of other seeds, to look at while
training: choices are made on probes, the set itself is for figures. Every number comes from the seed, so both always agree.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from . import scenes, world
from .questions import ATTRIBUTES, Question, ask

EVAL = Path(__file__).resolve().parent.parent / "eval"
FIRST_SEED = 90_000_000
COUNTS = {
    "direct": 50,
    "glance": 60,
    "gaze": 110,
    "two-hop": 120,
    "comparison": 50,
    "reflection": 40,
    "look-alike": 40,
    "unknown": 30,
}
# Pairs that are hard to tell apart and lie on different continents.
LOOK_ALIKES = (
    ("td", "ro"),
    ("id", "mc"),
    ("ie", "ci"),
    ("in", "ne"),
    ("mx", "it"),
    ("bo", "gh"),
    ("eg", "ye"),
    ("eg", "iq"),
    ("eg", "sy"),
    ("sd", "jo"),
    ("lr", "us"),
    ("lr", "my"),
    ("gr", "uy"),
    ("tr", "tn"),
    ("jp", "pw"),
    ("bd", "pw"),
)
# Flags that no picture can tell from each other: asked about only where the question says the continent.
TWINS = frozenset({"td", "ro", "id", "mc"})


def _scene(seed: int, skill: str, held_out: bool, rng: np.random.Generator) -> scenes.Scene:
    pool = [e.id for e in world.flags(held_out)]
    if skill == "glance":
        if rng.random() < 0.12:
            return scenes.plan(seed, [e.id for e in world.photos(held_out)], kind=scenes.PHOTO)
        return scenes.plan(seed, pool, kind=scenes.SINGLE)
    count = int(rng.integers(2, 6))
    if skill == "unknown":
        return scenes.plan(seed, pool, count=count, made_up=0.999)
    if skill == "look-alike":
        known = {e.id for e in world.flags()}
        twins = [k for pair in LOOK_ALIKES for k in pair if k in known and world.entity(k).held_out == held_out]
        first = str(rng.choice(twins))
        others = [k for k in pool if k != first]
        plan = scenes.plan(seed, others, count=count)
        return replace(plan, items=(replace(plan.items[0], entity=first), *plan.items[1:]))
    return scenes.plan(seed, pool, count=count)


def _truth(scene: scenes.Scene, question: Question) -> list[str] | None:
    """The right answers, or None where the world does not know."""
    if question.rule in ("direct", "absent"):
        return [question.answer]
    keys = [scene.items[t].entity for t in question.targets]
    if any(k.startswith("made-") for k in keys):
        return ["unknown"]
    found = [world.entity(k) for k in keys]
    if question.rule in ("name", "hint"):
        return [found[0].name]
    values = [e.facts.get(question.attribute) for e in found]
    if any(v is None for v in values):
        return None
    if question.rule == "value":
        return [str(values[0])]
    if question.rule == "same":
        return ["yes" if values[0] == values[1] else "no"]
    a, b = (int(str(v).replace(",", "")) for v in values)
    return None if max(a, b) < 1.5 * min(a, b) else [found[0].name if a > b else found[1].name]


def question_of(seed: int, skill: str, held_out: bool) -> tuple[scenes.Scene, Question, list[str], str]:
    """Scene, question, answers and the fault to inject; tries further seeds until the world knows the answer."""
    while True:
        rng = np.random.default_rng([31, seed])
        scene = _scene(seed, skill, held_out, rng)
        _, scene = scenes.render(scene)
        fault = ""
        asked = skill
        attribute = ""
        if skill == "reflection":
            asked, fault = str(rng.choice(["gaze", "two-hop"])), str(rng.choice(["image", "text"]))
            asked = "two-hop" if fault == "text" else asked
        if (
            asked == "two-hop"
            or (skill == "glance" and rng.random() < 0.5)
            or (skill == "unknown" and rng.random() < 0.5)
        ):
            choice = list(world.entity(scene.items[0].entity).facts) if scene.type == scenes.PHOTO else list(ATTRIBUTES)
            attribute = str(rng.choice(choice))
        if asked == "comparison":
            attribute = "population" if rng.random() < 0.5 else ""
        hint = world.entity(scene.items[0].entity).facts.get("continent", "") if skill == "look-alike" else ""
        enough = len(scene.items) >= 2 or skill in ("glance", "direct")
        if enough and (skill != "look-alike" or hint):
            question = ask(scene, asked, rng, attribute, hint)
            answers = _truth(scene, question)
            asked_for = {scene.items[t].entity for t in question.targets}
            proper = question.targets == (0,) if skill == "look-alike" else not asked_for & TWINS
            if answers is not None and proper:
                return scene, replace(question, skill=skill), answers, fault
        seed += 100_000


def records(first: int = FIRST_SEED, every: int = 1) -> list[dict[str, Any]]:
    """``every``: a set that many times smaller."""
    out: list[dict[str, Any]] = []
    for skill, count in COUNTS.items():
        for number in range(count // every):
            held_out = number % 2 == 1
            seed = first + len(out)
            scene, question, answers, fault = question_of(seed, skill, held_out)
            if skill == "look-alike":  # the first item is the twin; items are in order, so look it up again
                held_out = world.entity(scene.items[question.targets[0]].entity).held_out
            single = scene.type != scenes.CLUTTERED
            out.append(
                {
                    "id": f"{skill}-{number:03d}",
                    "image": f"images/{skill}-{number:03d}.jpg",
                    "seed": seed,
                    "question": question.text,
                    "answers": answers,
                    "skill": skill,
                    "rule": question.rule,
                    "held_out": held_out and skill not in ("direct", "unknown"),
                    "target_boxes": []
                    if single
                    else [[round(v, 1) for v in scene.items[t].box] for t in question.targets],
                    "entities": [scene.items[t].entity for t in question.targets],
                    "fault": fault,
                    "items": len(scene.items),
                }
            )
    return out


def asked(record: dict[str, Any]) -> tuple[scenes.Scene, Question, list[str], str]:
    """Scene, question, answers and fault of a record again: odd numbers ask about held-out flags."""
    return question_of(record["seed"], record["skill"], int(record["id"].rsplit("-", 1)[1]) % 2 == 1)


def render(out: Path, given: list[dict[str, Any]]) -> None:
    (out / "images").mkdir(parents=True, exist_ok=True)
    for record in given:
        scene, _, _, _ = asked(record)
        image, _ = scenes.render(scene)
        image.save(out / record["image"], quality=92)


def load(path: Path = EVAL / "eval.jsonl") -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["write", "render", "probe"])
    parser.add_argument("--out", type=Path, default=EVAL, help="where the pictures go (render), or all of it (probe)")
    parser.add_argument("--first", type=int, default=95_000_000, help="first seed of a probe")
    parser.add_argument("--every", type=int, default=5, help="a probe is so many times smaller than the set")
    options = parser.parse_args()
    if options.action == "render":
        render(options.out, load())
        return
    options.out.mkdir(parents=True, exist_ok=True)
    given = records() if options.action == "write" else records(options.first, options.every)
    with (options.out / "eval.jsonl").open("w", encoding="utf-8") as sink:
        sink.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in given)
    if options.action == "probe":
        render(options.out, given)


if __name__ == "__main__":
    main()
