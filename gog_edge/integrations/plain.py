"""An answer as the programs around us take it: plain data with boxes in pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gog_edge.answer_view import draw_box, step_colour
from gog_edge.errors import RegionError
from gog_edge.image.frame import Frame
from gog_edge.types import ActionKind, Answer, Hit, Region


@dataclass(frozen=True)
class Looked:
    """A region that the policy cut out of a picture. `step`: from 1; `box`: inside of the picture, in pixels of the
    upright original; `found`: the best result of searching with it, "" if there is none."""

    step: int
    kind: ActionKind
    box: Region
    label: str
    found: str

    def plain(self) -> dict[str, Any]:
        """{"step", "kind", "box": [x0, y0, x1, y1], "label", "found"}."""
        box = [round(v, 1) for v in self.box.as_tuple()]
        return {"step": self.step, "kind": self.kind.value, "box": box, "label": self.label, "found": self.found}


def looked_at(answer: Answer, picture: int = 0) -> Iterator[Looked]:
    """What was cut out of the question's picture number `picture`, in order. Boxes that lie outside are left out."""
    frame = answer.pictures[picture] if picture < len(answer.pictures) else None
    for step in answer.steps:
        titles = {o.action: o.hits[0].title for o in step.observations if o.hits}
        for action in step.turn.actions:
            inside = 0 <= action.image < len(answer.pictures)
            if frame is None or action.region is None or not inside or answer.pictures[action.image] != frame:
                continue
            try:
                box = action.region.clamp(frame.width, frame.height)
            except RegionError:
                continue
            yield Looked(step.index + 1, action.kind, box, action.label, titles.get(action, ""))


def plain_answer(answer: Answer) -> dict[str, Any]:
    """{"answer", "stop", "seconds", "evidence": […], "boxes": […]}: boxes are of the first picture (see `Looked`)."""
    return {
        "answer": answer.text,
        "stop": answer.stop.value,
        "seconds": round(answer.seconds, 3),
        "evidence": [plain_hit(hit) for hit in answer.evidence],
        "boxes": [one.plain() for one in looked_at(answer)],
    }


def plain_hit(hit: Hit) -> dict[str, Any]:
    """{"title", "text", "source", "score"}."""
    return {"title": hit.title, "text": hit.text, "source": hit.source, "score": hit.score}


def boxed(frame: Frame, looked: Sequence[Looked]) -> Any:
    """The picture with the boxes and their labels drawn on it, as a Pillow image of its own."""
    picture = frame.image()
    unit = max(12, round(max(picture.size) / 64))
    for one in looked:
        draw_box(picture, one.box, f"{one.step} {one.label}".strip(), step_colour(one.step - 1), unit)
    return picture


def rgb_of_step(step: int) -> tuple[int, int, int]:
    """The colour of a step's boxes, counted from 0."""
    value = int(step_colour(step)[1:], 16)
    return value >> 16, value >> 8 & 255, value & 255


def crop_of(frame: Frame, box: Region, side: int) -> Any:
    """The pixels of a box as a Pillow image; larger ones are scaled down to `side` pixels."""
    x0, y0, x1, y1 = int(box.x0), int(box.y0), -int(-box.x1 // 1), -int(-box.y1 // 1)
    crop = frame.image().crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))
    crop.thumbnail((side, side))
    return crop
