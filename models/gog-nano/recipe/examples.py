"""Draws the example pictures for `make demo` and `questions.json`: what to ask about them, with the right answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from . import questions, scenes, world

OUT = Path(__file__).resolve().parent.parent / "examples"
SCENE_SEED, FLAG_SEED, PHOTO_SEED = 70_000_003, 70_000_011, 70_000_020


def main() -> None:
    OUT.mkdir(exist_ok=True)
    rows = []
    image, scene = scenes.render(scenes.plan(SCENE_SEED, [e.id for e in world.flags()], count=4))
    image.save(OUT / "scene.jpg", quality=90)
    for target, item in enumerate(scene.items):
        ways = questions.references(scene.items, target)
        way = list(ways)[int(np.random.default_rng(target).integers(len(ways)))]
        facts = world.entity(item.entity).facts
        attribute = next(a for a in ("capital", "currency", "continent") if a in facts)
        rows.append(
            {
                "image": "scene.jpg",
                "question": f"What is the {attribute} of the country of {ways[way]}?",
                "answer": facts[attribute],
                "country": world.entity(item.entity).name,
                "held_out": world.entity(item.entity).held_out,
            }
        )
    flag_image, flag = scenes.render(scenes.plan(FLAG_SEED, [e.id for e in world.flags(True)], kind=scenes.SINGLE))
    flag_image.save(OUT / "flag.jpg", quality=90)
    rows.append(
        {
            "image": "flag.jpg",
            "question": "Which country has this flag?",
            "answer": world.entity(flag.items[0].entity).name,
        }
    )
    photo_image, _ = scenes.render(scenes.plan(PHOTO_SEED, ["windmill"], kind=scenes.PHOTO))
    photo_image.resize((1024, 768), Image.Resampling.LANCZOS).save(OUT / "windmill.jpg", quality=88)
    rows.append(
        {
            "image": "windmill.jpg",
            "question": "What is the country of the thing in this photo?",
            "answer": "United Kingdom",
        }
    )
    (OUT / "questions.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
