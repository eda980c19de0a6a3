"""Scenes from seeds: what stands where (``plan``) and the picture of it (``render``).

A scene is 1280 x 960 pixels. Every carrier bears one flag; ``Item.box`` is the box of the flag itself, in pixels,
half-open (x0, y0, x1, y1): the target of a gaze.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from . import draw, world

WIDTH, HEIGHT = 1280, 960
APART = 40  # pixels between the centres of two flags, left to right: the order that questions count in must be clear
SIZES = {"small": (125, 155), "medium": (185, 225), "large": (275, 330)}
CLUTTERED, SINGLE, PHOTO = "scene", "flag", "photo"


@dataclass(frozen=True)
class Item:
    """One flag in a scene, or the only subject of a picture."""

    entity: str
    kind: str
    colour: str
    size: str
    box: draw.Box

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Scene:
    seed: int
    type: str
    items: tuple[Item, ...]  # from left to right


def plan(seed: int, pool: list[str], count: int | None = None, kind: str | None = None, made_up: float = 0.0) -> Scene:
    """Plans a scene whose flags come from ``pool`` (or are made up, with that probability each)."""
    rng = np.random.default_rng([11, seed])
    kind = kind or CLUTTERED
    if kind != CLUTTERED:
        key = str(rng.choice(pool))
        return Scene(seed, kind, (Item(key, kind, "", "large", (0.0, 0.0, WIDTH, HEIGHT)),))
    wanted = count or int(rng.choice([1, 2, 3, 4, 5], p=[0.08, 0.2, 0.3, 0.27, 0.15]))
    placed: list[Item] = []
    outer: list[draw.Box] = []
    unique_kinds = rng.random() < 0.5
    kinds = (
        list(rng.permutation(draw.KINDS))
        if unique_kinds
        else list(rng.choice(draw.KINDS[: int(rng.integers(2, 9))], 8))
    )
    keys = list(rng.permutation(pool)[:wanted])
    for index in range(wanted):
        key = f"made-{int(rng.integers(1 << 30))}" if rng.random() < made_up else str(keys[index])
        item = _place(rng, str(kinds[index]), key, outer, [i.centre[0] for i in placed])
        if item is not None:
            placed.append(item)
    placed.sort(key=lambda item: item.centre[0])
    return Scene(seed, kind, tuple(placed))


def _place(rng: np.random.Generator, kind: str, key: str, outer: list[draw.Box], centres: list[float]) -> Item | None:
    left, top, right, bottom = draw.REACH[kind]
    for attempt in range(40):
        size = str(rng.choice(["small", "medium", "large"], p=[0.4, 0.4, 0.2] if attempt < 20 else [0.8, 0.2, 0.0]))
        w = float(rng.uniform(*SIZES[size]))
        h = w * float(rng.uniform(0.64, 0.76))
        if (left + 1 + right) * w > WIDTH - 20 or (top + 1 + bottom) * h > HEIGHT - 20:
            continue
        x = float(rng.uniform(10 + left * w, WIDTH - 10 - (1 + right) * w))
        y = float(rng.uniform(10 + top * h, HEIGHT - 10 - (1 + bottom) * h))
        if any(abs(x + w / 2 - other) < APART for other in centres):
            continue
        whole = (x - left * w, y - top * h, x + (1 + right) * w, y + (1 + bottom) * h)
        if all(whole[2] < o[0] - 6 or whole[0] > o[2] + 6 or whole[3] < o[1] - 6 or whole[1] > o[3] + 6 for o in outer):
            outer.append(whole)
            return Item(key, kind, str(rng.choice(list(draw.COLOURS))), size, (x, y, x + w, y + h))
    return None


def render(scene: Scene) -> tuple[Image.Image, Scene]:
    """The picture and the scene with the boxes that the (tilted) flags really cover."""
    rng = np.random.default_rng([13, scene.seed])
    canvas = draw.background((WIDTH, HEIGHT), rng)
    items: list[Item] = []
    if scene.type == PHOTO:
        item = scene.items[0]
        canvas = _photo(world.picture(item.entity), rng)
        items.append(item)
    elif scene.type == SINGLE:
        item = scene.items[0]
        w = float(rng.uniform(0.72, 0.95)) * WIDTH
        h = min(w * float(rng.uniform(0.66, 0.76)), 0.94 * HEIGHT)
        x, y = float(rng.uniform(0.2, 0.8)) * (WIDTH - w), float(rng.uniform(0.2, 0.8)) * (HEIGHT - h)
        box = draw.paste_flag(canvas, world.picture(item.entity), (x, y, x + w, y + h), rng, tilt=3.0)
        items.append(replace(item, box=_clip(box)))
    else:
        brush = ImageDraw.Draw(canvas)
        for item in scene.items:
            jitter = np.clip(np.array(draw.COLOURS[item.colour]) * rng.uniform(0.9, 1.06) + rng.normal(0, 6, 3), 0, 255)
            colour = (int(jitter[0]), int(jitter[1]), int(jitter[2]))
            draw.draw_carrier(brush, item.kind, colour, item.box, rng)
            box = draw.paste_flag(canvas, world.picture(item.entity), item.box, rng)
            items.append(replace(item, box=_clip(box)))
    return draw.light(canvas, rng), replace(scene, items=tuple(items))


def _clip(box: draw.Box) -> draw.Box:
    return max(0.0, box[0]), max(0.0, box[1]), min(float(WIDTH), box[2]), min(float(HEIGHT), box[3])


def _photo(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A photograph cropped to the frame's shape with a little freedom."""
    scale = float(rng.uniform(0.82, 1.0))
    w = min(image.width, image.height * WIDTH / HEIGHT) * scale
    h = w * HEIGHT / WIDTH
    x, y = float(rng.uniform(0, image.width - w)), float(rng.uniform(0, image.height - h))
    return image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=(x, y, x + w, y + h))
