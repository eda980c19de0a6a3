"""Drawing of one carrier with its flag, of backgrounds and of clutter. Pixels of the scene, y down."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]

COLOURS: dict[str, RGB] = {
    "red": (205, 35, 35),
    "yellow": (240, 205, 30),
    "green": (35, 145, 55),
    "blue": (35, 75, 200),
    "purple": (130, 45, 160),
    "orange": (240, 130, 20),
    "white": (240, 240, 240),
    "black": (28, 28, 30),
}
KINDS = ("boat", "house", "balloon", "kite", "truck", "tent", "sign", "shirt")

# How far a carrier reaches beyond its flag, in flag widths / heights: left, top, right, bottom.
REACH: dict[str, Box] = {
    "boat": (0.35, 0.15, 0.45, 0.75),
    "house": (0.22, 0.85, 0.22, 0.35),
    "balloon": (0.42, 0.55, 0.42, 1.15),
    "kite": (0.55, 0.65, 0.55, 1.0),
    "truck": (0.12, 0.14, 0.6, 0.5),
    "tent": (0.65, 0.95, 0.65, 0.15),
    "sign": (0.16, 0.2, 0.16, 0.9),
    "shirt": (0.7, 0.45, 0.7, 0.65),
}


def _shade(colour: RGB, by: float) -> RGB:
    return tuple(int(max(0, min(255, c * by))) for c in colour)  # type: ignore[return-value]


def draw_carrier(draw: ImageDraw.ImageDraw, kind: str, colour: RGB, box: Box, rng: np.random.Generator) -> None:
    """Draws the body of a carrier around ``box``, where the flag will be pasted."""
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    cx, dark, brown = (x0 + x1) / 2, _shade(colour, 0.72), (95, 70, 45)
    line = max(3, int(w * 0.03))
    if kind == "boat":
        draw.line([(x0 - line / 2, y0 - 0.12 * h), (x0 - line / 2, y1 + 0.3 * h)], fill=brown, width=line + 2)
        hull = [
            (x0 - 0.33 * w, y1 + 0.22 * h),
            (x1 + 0.43 * w, y1 + 0.22 * h),
            (x1 + 0.2 * w, y1 + 0.72 * h),
            (x0 - 0.15 * w, y1 + 0.72 * h),
        ]
        draw.polygon(hull, fill=colour)
        draw.line([hull[0], hull[1]], fill=dark, width=line * 2)
    elif kind == "house":
        draw.rectangle([x0 - 0.2 * w, y0 - 0.15 * h, x1 + 0.2 * w, y1 + 0.33 * h], fill=colour)
        draw.polygon([(x0 - 0.22 * w, y0 - 0.15 * h), (cx, y0 - 0.85 * h), (x1 + 0.22 * w, y0 - 0.15 * h)], fill=dark)
        draw.rectangle([cx - 0.08 * w, y1 + 0.08 * h, cx + 0.08 * w, y1 + 0.33 * h], fill=brown)
    elif kind == "balloon":
        draw.ellipse([x0 - 0.4 * w, y0 - 0.55 * h, x1 + 0.4 * w, y1 + 0.55 * h], fill=colour, outline=dark, width=line)
        for side in (-1, 1):
            draw.line(
                [(cx + side * 0.3 * w, y1 + 0.45 * h), (cx + side * 0.1 * w, y1 + 0.9 * h)],
                fill=(60, 50, 40),
                width=max(2, line // 2),
            )
        draw.rectangle([cx - 0.12 * w, y1 + 0.88 * h, cx + 0.12 * w, y1 + 1.13 * h], fill=brown)
    elif kind == "kite":
        draw.polygon(
            [(cx, y0 - 0.63 * h), (x1 + 0.53 * w, (y0 + y1) / 2), (cx, y1 + 0.63 * h), (x0 - 0.53 * w, (y0 + y1) / 2)],
            fill=colour,
        )
        points = [(cx + (0.06 * w if k % 2 else -0.06 * w), y1 + (0.62 + 0.07 * k) * h) for k in range(6)]
        draw.line(points, fill=dark, width=line)
    elif kind == "truck":
        draw.rectangle([x0 - 0.1 * w, y0 - 0.12 * h, x1 + 0.1 * w, y1 + 0.12 * h], fill=dark)
        draw.polygon(
            [
                (x1 + 0.12 * w, y0 + 0.25 * h),
                (x1 + 0.4 * w, y0 + 0.25 * h),
                (x1 + 0.58 * w, y0 + 0.65 * h),
                (x1 + 0.58 * w, y1 + 0.25 * h),
                (x0 - 0.1 * w, y1 + 0.25 * h),
                (x0 - 0.1 * w, y1 + 0.1 * h),
                (x1 + 0.12 * w, y1 + 0.1 * h),
            ],
            fill=colour,
        )
        draw.rectangle([x1 + 0.2 * w, y0 + 0.33 * h, x1 + 0.38 * w, y0 + 0.6 * h], fill=(170, 205, 225))
        for at in (x0 + 0.15 * w, x1 + 0.3 * w):
            draw.ellipse([at - 0.13 * w, y1 + 0.15 * h, at + 0.13 * w, y1 + 0.15 * h + 0.26 * w], fill=(35, 35, 35))
    elif kind == "tent":
        draw.polygon([(cx, y0 - 0.93 * h), (x1 + 0.63 * w, y1 + 0.13 * h), (x0 - 0.63 * w, y1 + 0.13 * h)], fill=colour)
        draw.polygon([(cx, y0 - 0.93 * h), (x1 + 0.63 * w, y1 + 0.13 * h), (x1 + 0.45 * w, y1 + 0.13 * h)], fill=dark)
    elif kind == "sign":
        draw.rectangle([cx - 0.06 * w, y1, cx + 0.06 * w, y1 + 0.9 * h], fill=(110, 110, 115))
        draw.rectangle(
            [x0 - 0.15 * w, y0 - 0.18 * h, x1 + 0.15 * w, y1 + 0.18 * h], fill=colour, outline=dark, width=line
        )
    elif kind == "shirt":
        draw.rectangle([x0 - 0.2 * w, y0 - 0.4 * h, x1 + 0.2 * w, y1 + 0.62 * h], fill=colour)
        for side, edge in ((-1, x0 - 0.15 * w), (1, x1 + 0.15 * w)):
            out = edge + side * 0.5 * w
            draw.polygon(
                [
                    (edge, y0 - 0.42 * h),
                    (out, y0 + 0.15 * h),
                    (out - side * 0.22 * w, y0 + 0.5 * h),
                    (edge, y0 + 0.2 * h),
                ],
                fill=colour,
            )
        draw.ellipse([cx - 0.16 * w, y0 - 0.55 * h, cx + 0.16 * w, y0 - 0.25 * h], fill=dark)
    else:
        raise ValueError(f"unknown carrier kind {kind!r}")


def paste_flag(canvas: Image.Image, flag: Image.Image, box: Box, rng: np.random.Generator, tilt: float = 7.0) -> Box:
    """Pastes a flag, waved, shaded and tilted a little, centred in ``box``; returns the box that it really covers."""
    x0, y0, x1, y1 = box
    w, h = max(8, round(x1 - x0)), max(8, round(y1 - y0))
    cloth = flag.resize((w, h), Image.Resampling.BILINEAR, reducing_gap=2.0)
    phase, waves, depth = rng.uniform(0, 6.28), rng.uniform(0.5, 2.2), rng.uniform(0.0, 0.22)
    column = 1.0 - depth * (0.5 + 0.5 * np.sin(phase + waves * 6.28 * np.arange(w) / w))
    shade = Image.fromarray(np.broadcast_to((column * 255).astype(np.uint8), (h, w)).copy())
    cloth = ImageChops.multiply(cloth, Image.merge("RGB", (shade, shade, shade)))
    mask = Image.new("L", (w, h), 255)
    angle = float(rng.uniform(-tilt, tilt))
    if abs(angle) > 0.5:
        cloth = cloth.rotate(angle, Image.Resampling.BILINEAR, expand=True)
        mask = mask.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    left, top = round((x0 + x1 - cloth.width) / 2), round((y0 + y1 - cloth.height) / 2)
    canvas.paste(cloth, (left, top), mask)
    return (float(left), float(top), float(left + cloth.width), float(top + cloth.height))


def background(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Sky over ground (or a wall), with coarse texture and muted clutter that carries no flag."""
    w, h = size
    small = np.zeros((12, 16, 3), np.float32)
    top, bottom = rng.uniform(90, 235, 3), rng.uniform(60, 210, 3)
    horizon = int(rng.integers(4, 10))
    small[:horizon], small[horizon:] = top, bottom
    small += rng.normal(0, rng.uniform(2, 16), small.shape)
    mode = Image.Resampling.BICUBIC if rng.random() < 0.5 else Image.Resampling.BILINEAR
    canvas = Image.fromarray(np.clip(small, 0, 255).astype(np.uint8)).resize(size, mode)
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(4, 22))):
        x, y, r = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(15, 110)
        fill = tuple(int(c) for c in np.clip(rng.uniform(40, 225) + rng.normal(0, 28, 3), 0, 255))
        shape = rng.integers(5)
        if shape == 0:
            draw.ellipse([x - r, y - r * 0.6, x + r, y + r * 0.6], fill=fill)
        elif shape == 1:
            draw.rectangle([x - r, y - r * 0.5, x + r, y + r * 0.5], fill=fill)
        elif shape == 2:
            draw.line(
                [(x, y), (x + rng.normal(0, 160), y + rng.normal(0, 160))], fill=fill, width=int(rng.integers(2, 14))
            )
        elif shape == 3:  # a tree
            draw.rectangle([x - r * 0.12, y, x + r * 0.12, y + r], fill=(92, 68, 44))
            draw.ellipse(
                [x - r * 0.6, y - r * 0.8, x + r * 0.6, y + r * 0.35], fill=(50, int(rng.integers(90, 150)), 50)
            )
        else:
            points = [(x + rng.normal(0, r), y + rng.normal(0, r)) for _ in range(4)]
            draw.polygon(points, fill=fill)
    return canvas


@cache
def _noise() -> Image.Image:
    rng = np.random.default_rng(5)
    return Image.fromarray(np.clip(rng.normal(128, 26, (1024, 1344, 3)), 0, 255).astype(np.uint8))


def light(canvas: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Light from one side, a colour cast, grain and a little blur."""
    a, b = rng.uniform(0.72, 1.0, 2)
    ramp = np.linspace(a, b, 16)[None, :, None] * np.linspace(1.0, rng.uniform(0.82, 1.0), 12)[:, None, None]
    cast = ramp * rng.uniform(0.9, 1.0, 3)[None, None]
    overlay = Image.fromarray((np.clip(cast, 0, 1) * 255).astype(np.uint8)).resize(
        canvas.size, Image.Resampling.BILINEAR
    )
    canvas = ImageChops.multiply(canvas, overlay)
    if rng.random() < 0.4:
        canvas = canvas.filter(ImageFilter.BoxBlur(float(rng.uniform(0.4, 1.8))))
    if rng.random() < 0.5:
        dx, dy = int(rng.integers(0, 60)), int(rng.integers(0, 60))
        grain = _noise().crop((dx, dy, dx + canvas.width, dy + canvas.height))
        canvas = Image.blend(canvas, grain, float(rng.uniform(0.02, 0.09)))
    return canvas
