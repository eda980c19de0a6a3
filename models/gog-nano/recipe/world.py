"""The built world (``../world``): entities, their facts and pictures, and made-up flags for variety."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

CONTINENTS = ("Africa", "Asia", "Europe", "North America", "Oceania", "South America")
# attribute -> sentence. Each becomes one text document a country (../world/build.py), in made-up worlds too.
SENTENCES = {
    "capital": "The capital of {name} is {value}.",
    "currency": "The currency of {name} is {value}.",
    "language": "The main language of {name} is {value}.",
    "continent": "{name} lies in {value}.",
    "population": "The population of {name} is {value}.",
    "area": "The area of {name} is {value} square km.",
    "highest point": "The highest point of {name} is {value}.",
    "nationality": "A person from {name} is called {value}.",
    "internet code": "The internet code of {name} is {value}.",
    "national symbol": "The national symbol of {name} is {value}.",
}
WORLD = Path(__file__).resolve().parent.parent / "world"


@dataclass(frozen=True)
class Entity:
    """A country (``kind`` flag) or the subject of a photograph."""

    id: str
    kind: str
    name: str
    facts: dict[str, str]
    held_out: bool

    @property
    def document(self) -> str:
        return f"{self.kind}/{self.id}"

    @property
    def title(self) -> str:
        return f"Flag of {self.name}" if self.kind == "flag" else self.name


@cache
def entities() -> tuple[Entity, ...]:
    with (WORLD / "entities.jsonl").open(encoding="utf-8") as lines:
        return tuple(Entity(**json.loads(line)) for line in lines)


@cache
def documents() -> tuple[dict[str, Any], ...]:
    with (WORLD / "documents.jsonl").open(encoding="utf-8") as lines:
        return tuple(json.loads(line) for line in lines)


def flags(held_out: bool | None = None) -> list[Entity]:
    return [e for e in entities() if e.kind == "flag" and held_out in (None, e.held_out)]


def photos(held_out: bool | None = None) -> list[Entity]:
    return [e for e in entities() if e.kind == "photo" and held_out in (None, e.held_out)]


@cache
def entity(key: str) -> Entity:
    return next(e for e in entities() if e.id == key)


@cache
def picture(key: str) -> Image.Image:
    """The picture of an entity id, or of a made-up flag (ids ``made-<seed>``). RGB, do not modify."""
    if key.startswith("made-"):
        return made_up_flag(int(key[5:]))
    found = entity(key)
    with Image.open(WORLD / f"{found.kind}s" / f"{key}.webp") as image:
        return image.convert("RGB")


_PALETTE = [
    (206, 17, 38),
    (0, 56, 168),
    (0, 122, 61),
    (252, 209, 22),
    (255, 255, 255),
    (0, 0, 0),
    (255, 130, 0),
    (117, 170, 219),
    (128, 0, 32),
    (0, 45, 98),
    (110, 60, 140),
    (20, 160, 150),
    (150, 100, 50),
]


def made_up_flag(seed: int) -> Image.Image:
    """A flag no country flies: stripes, crosses, triangles, cantons, discs and stars in flag colours. 256x192."""
    rng = np.random.default_rng([7919, seed])
    w, h = 256, 192
    colours = [_PALETTE[i] for i in rng.permutation(len(_PALETTE))[:5]]
    image = Image.new("RGB", (w, h), colours[0])
    draw = ImageDraw.Draw(image)
    layout = rng.integers(6)
    if layout <= 2:  # stripes, upright or level, of equal or unequal width
        count = int(rng.choice([2, 3, 3, 3, 4, 5, 7, 9]))
        widths = np.ones(count) if rng.random() < 0.7 else rng.uniform(0.5, 2.0, count)
        edges = np.concatenate([[0], np.cumsum(widths) / widths.sum()])
        upright = rng.random() < 0.45
        for i in range(count):
            fill = colours[i % (2 if count > 4 else 3)]
            a, b = edges[i], edges[i + 1]
            draw.rectangle([a * w, 0, b * w, h] if upright else [0, a * h, w, b * h], fill=fill)
    elif layout == 3:  # a cross, centred or Nordic
        at = w * (0.5 if rng.random() < 0.4 else 0.36)
        for fill, t in ((colours[1], rng.uniform(0.09, 0.14)), (colours[2], rng.uniform(0.03, 0.07))):
            draw.rectangle([at - t * h, 0, at + t * h, h], fill=fill)
            draw.rectangle([0, h / 2 - t * h, w, h / 2 + t * h], fill=fill)
    elif layout == 4:  # a diagonal or a saltire
        t = rng.uniform(15, 40)
        draw.line([(0, h), (w, 0)], fill=colours[1], width=int(t))
        if rng.random() < 0.5:
            draw.line([(0, 0), (w, h)], fill=colours[1], width=int(t))
    if rng.random() < 0.3:
        draw.polygon([(0, 0), (w * rng.uniform(0.3, 0.5), h / 2), (0, h)], fill=colours[3])
    elif rng.random() < 0.25:
        draw.rectangle([0, 0, w * 0.42, h * 0.5], fill=colours[3])
    if rng.random() < 0.6:
        cx, cy, r = rng.choice([0.2, 0.5, 0.5, 0.75]) * w, rng.choice([0.25, 0.5, 0.5]) * h, rng.uniform(18, 48)
        shape = rng.integers(4)
        if shape == 0:
            draw.ellipse([cx - r, cy - r, cx + r, cy + r], fill=colours[4])
        elif shape == 1:
            _star(draw, cx, cy, r, colours[4])
        elif shape == 2:
            draw.ellipse([cx - r, cy - r, cx + r, cy + r], fill=colours[4])
            draw.ellipse([cx - r * 0.5, cy - r * 0.8, cx + r * 1.1, cy + r * 0.8], fill=colours[0])
        else:
            for k in range(int(rng.integers(2, 6))):
                angle = 2 * np.pi * k / 5
                _star(draw, cx + r * np.cos(angle), cy + r * np.sin(angle), r * 0.35, colours[4])
    return image


def _star(draw: ImageDraw.ImageDraw, cx: float, cy: float, r: float, fill: tuple[int, int, int]) -> None:
    points = []
    for k in range(10):
        radius, angle = (r if k % 2 == 0 else r * 0.4), np.pi * k / 5 - np.pi / 2
        points.append((cx + radius * float(np.cos(angle)), cy + radius * float(np.sin(angle))))
    draw.polygon(points, fill=fill)
