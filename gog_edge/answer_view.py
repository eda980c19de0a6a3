"""What an answer can show of itself: its picture with the boxes, its crops, a page for notebooks, plain data.

Known here are only names of fields: `types.Answer` inherits this, and keeps the frames in `pictures`.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gog_edge.errors import ImageError
from gog_edge.sanitize import escape_html, printable
from gog_edge.serde import encode

if TYPE_CHECKING:
    from PIL.Image import Image

    from gog_edge.types import Hit, Observation, Region, Step, StopReason

FORMAT, VERSION = "gog-edge-answer", 1
STEP_COLOURS = ("#e8590c", "#5f3dc4", "#0b7285", "#c2255c", "#2b8a3e", "#1864ab", "#d9480f", "#6741d9")
_PAPER, _INK, _SOFT = "#ffffff", "#1f2933", "#616e7c"
_NOT_IN_NAMES = re.compile(r"[^0-9A-Za-z]+")


class AnswerView:
    """Inherited by `Answer`."""

    if TYPE_CHECKING:
        text: str
        stop: StopReason
        steps: tuple[Step, ...]
        evidence: tuple[Hit, ...]
        pictures: tuple[Any, ...]

    def plot(self, image: int = 0, *, side: int = 1280) -> Image:
        """The picture with every box that the policy looked at, numbered by step; below it the crops with what they
        were taken for and what was found, and the answer. A Pillow image of its own, for `show` and `save`.

        Args:
            image: which of the question's pictures.
            side: pixels of the picture's longer side, at most.

        Raises:
            ImageError: the answer has no such picture: it came from a session that was saved without them.
        """
        from PIL import Image

        frame = self._frame(image)
        picture = frame.image()
        scale = min(1.0, side / max(picture.size))
        if scale < 1:
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        unit = max(12, round(max(picture.size) / 64))
        boxes = list(self._boxes(frame))
        for step, region, label, _ in boxes:
            draw_box(picture, region.scale(scale, scale), f"{step + 1} {label}".strip(), step_colour(step), unit)
        strips = [_crop_strip(frame, boxes, max(picture.width, 320), unit)] if boxes else []
        strips.append(_text_strip(self.text or f"no answer ({self.stop.value})", max(picture.width, 320), unit))
        width = max(picture.width, *(s.width for s in strips))
        whole = Image.new("RGB", (width, picture.height + sum(s.height for s in strips)), _PAPER)
        whole.paste(picture, (0, 0))
        top = picture.height
        for strip in strips:
            whole.paste(strip, (0, top))
            top += strip.height
        return whole

    def save_crops(self, folder: str | Path) -> list[Path]:
        """Write every region that the policy looked at as PNG, in the pixels of the original, and say where:
        FOLDER/1-house.png for step 1. The folder is made.

        Raises:
            ImageError: the pictures are gone. OSError: the folder can't be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        for step in self.steps:
            for action in step.turn.actions:
                if action.region is None:
                    continue
                name = "-".join([str(step.index + 1), _NOT_IN_NAMES.sub("-", action.label).strip("-")[:40]]).strip("-")
                path = folder / f"{name}.png"
                copies = 1
                while path in written:
                    copies += 1
                    path = folder / f"{name}-{copies}.png"
                _cut(self._frame(action.image), action.region).save(path)
                written.append(path)
        return written

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `json.dump`: `format`, `version`, and the fields of `Answer` without the pictures. Its JSON
        schema is the package's file answer.schema.json; a change that readers would notice raises the version."""
        return {"format": FORMAT, "version": VERSION, **encode(self)}

    def _repr_html_(self) -> str:
        """For notebooks: the picture of `plot`, the answer and its evidence. No script, nothing from outside."""
        parts = [f"<p><b>{escape_html(self.text) or 'no answer'}</b> ({escape_html(self.stop.value)})</p>"]
        if self.pictures and self.pictures[0] is not None:
            out = io.BytesIO()
            self.plot(side=800).save(out, "JPEG", quality=85)
            data = base64.b64encode(out.getvalue()).decode()
            parts.insert(
                0, f'<img alt="what was looked at" style="max-width:100%" src="data:image/jpeg;base64,{data}">'
            )
        if self.evidence:
            hits = "".join(f"<li>{escape_html(h.title)}: {escape_html(h.text)}</li>" for h in self.evidence)
            parts.append(f"<ul>{hits}</ul>")
        return f"<div>{''.join(parts)}</div>"

    def _frame(self, image: int) -> Any:
        if not 0 <= image < len(self.pictures) or self.pictures[image] is None:
            raise ImageError(f"the answer has no picture {image}: ask with it, or resume the session with its images")
        return self.pictures[image]

    def _boxes(self, frame: Any) -> Iterator[tuple[int, Region, str, str]]:
        """(step, box, label, best result) of everything that was cut from `frame`."""
        for step in self.steps:
            found: dict[Any, Observation] = {o.action: o for o in step.observations}
            for action in step.turn.actions:
                if action.region is None or not 0 <= action.image < len(self.pictures):
                    continue
                if self.pictures[action.image] is frame or self.pictures[action.image] == frame:
                    hits = found[action].hits if action in found else ()
                    yield step.index, action.region, printable(action.label), printable(hits[0].title) if hits else ""


def step_colour(step: int) -> str:
    """Of the boxes of a step, counted from 0: "#rrggbb"."""
    return STEP_COLOURS[step % len(STEP_COLOURS)]


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _cut(frame: Any, region: Region) -> Image:
    box = region.clamp(frame.width, frame.height)
    x0, y0, x1, y1 = int(box.x0), int(box.y0), -int(-box.x1 // 1), -int(-box.y1 // 1)
    cut: Image = frame.image().crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))
    return cut


def draw_box(picture: Image, box: Region, label: str, colour: str, unit: int) -> None:
    """Draw a box in pixels of `picture` on it, with a label in letters of `unit` pixels."""
    from PIL import ImageDraw

    draw, font = ImageDraw.Draw(picture), _font(unit)
    draw.rectangle(box.as_tuple(), outline=colour, width=max(2, unit // 6))
    left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
    width, height = right - left + unit // 2, bottom - top + unit // 2
    x = max(0.0, min(box.x0, picture.width - width))
    y = box.y0 - height if box.y0 >= height else min(box.y0, picture.height - height)
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + unit // 4 - left, y + unit // 4 - top), label, fill="white", font=font)


def _crop_strip(frame: Any, boxes: list[tuple[int, Region, str, str]], width: int, unit: int) -> Image:
    """The crops in rows, each with its step, what it was taken for and the best result."""
    from PIL import Image, ImageDraw

    side, gap, line = 8 * unit, unit // 2, round(1.3 * unit)
    across = max(1, (width - gap) // (side + gap))
    rows = -(-len(boxes) // across)
    strip = Image.new("RGB", (width, rows * (side + 2 * line + gap) + gap), _PAPER)
    draw = ImageDraw.Draw(strip)
    for number, (step, region, label, found) in enumerate(boxes):
        x = gap + number % across * (side + gap)
        y = gap + number // across * (side + 2 * line + gap)
        crop = _cut(frame, region)
        factor = side / max(crop.size)
        crop = crop.resize((max(1, round(crop.width * factor)), max(1, round(crop.height * factor))))
        strip.paste(crop, (x + (side - crop.width) // 2, y + (side - crop.height) // 2))
        draw.rectangle((x, y, x + side, y + side), outline=step_colour(step), width=2)
        for row, (words, colour) in enumerate(((f"{step + 1} {label}", step_colour(step)), (found, _SOFT))):
            draw.text((x, y + side + row * line), _fitting(draw, words, side, unit), fill=colour, font=_font(unit - 1))
    return strip


def _text_strip(text: str, width: int, unit: int) -> Image:
    """The answer in as many lines as it needs, at most six."""
    from PIL import Image, ImageDraw

    size, lines, line = round(1.5 * unit), list[str](), ""
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    for word in printable(text).split():
        longer = f"{line} {word}".strip()
        if line and draw.textlength(longer, font=_font(size)) > width - 2 * unit:
            lines.append(line)
            longer = word
        line = longer
    lines = [*lines, line]
    lines = lines if len(lines) <= 6 else [*lines[:5], lines[5] + " …"]
    strip = Image.new("RGB", (width, round(1.4 * size * len(lines)) + unit), _PAPER)
    draw = ImageDraw.Draw(strip)
    for number, words in enumerate(lines):
        fitting = _fitting(draw, words, width - 2 * unit, size + 1)
        draw.text((unit, unit // 2 + round(1.4 * size * number)), fitting, fill=_INK, font=_font(size))
    return strip


def _fitting(draw: Any, words: str, width: int, unit: int) -> str:
    """`words` on one line, cut to a width in pixels."""
    words = " ".join(words.split())[:200]
    if draw.textlength(words, font=_font(unit - 1)) <= width:
        return words
    while words and draw.textlength(words + "…", font=_font(unit - 1)) > width:
        words = words[:-1]
    return words + "…"
