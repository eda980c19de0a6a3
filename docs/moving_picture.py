"""Draw docs/images/question.gif: a question being answered, as it happens (slowed down, so that it can be read).

python docs/moving_picture.py      # after `gog-edge demo`, which makes the bundle and the index
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import gog_edge
from gog_edge import library
from gog_edge.types import AnswerEvent, BoxEvent, ObservationEvent, TokenEvent

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "models" / "gog-nano" / "examples" / "scene.jpg"
QUESTION = "What is the capital of the country of the second flag from the left?"
WIDTH, HEIGHT, SCENE = 900, 420, 480  # of the drawing, and how wide the picture is in it
PAPER, INK, FAINT, MARK = "#ffffff", "#1f2933", "#66788a", "#d9480f"


class Drawing:
    """The frames of the film: the picture with its boxes on the left, what was said and found on the right."""

    def __init__(self) -> None:
        self.scene = Image.open(PICTURE).convert("RGB")
        self.scale = SCENE / self.scene.width
        self.scene = self.scene.resize((SCENE, round(self.scene.height * self.scale)))
        self.boxes: list[tuple[float, ...]] = []
        self.lines: list[tuple[str, str]] = []
        self.frames: list[Image.Image] = []
        self.pauses: list[int] = []

    def say(self, text: str, colour: str = INK) -> None:
        """Add lines to the right-hand side."""
        self.lines += [(line, colour) for part in text.splitlines() for line in textwrap.wrap(part, 50) or [""]]

    def shoot(self, milliseconds: int, writing: str = "") -> None:
        """One frame; `writing`: what the policy is writing, below what was said."""
        page = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
        page.paste(self.scene, (10, 10))
        pen = ImageDraw.Draw(page)
        for box in self.boxes:
            pen.rectangle([10 + v * self.scale for v in box], outline=MARK, width=3)
        font = ImageFont.load_default(size=14)
        now = [(line, FAINT) for part in writing.splitlines() for line in textwrap.wrap(part, 50)]
        for row, (line, colour) in enumerate([*self.lines, *now][-21:]):
            pen.text((SCENE + 26, 12 + 19 * row), line, fill=colour, font=font)
        self.frames.append(page.quantize(48))
        self.pauses.append(milliseconds)

    def save(self, path: Path) -> None:
        self.frames[0].save(path, save_all=True, append_images=self.frames[1:], duration=self.pauses, loop=0)


def main() -> None:
    film = Drawing()
    film.say(QUESTION)
    film.say("")
    film.shoot(1500)
    written, writing = 0, ""
    with gog_edge.load("gog-nano", index=library.directory() / ".demo" / "world.index") as agent:
        for event in agent.stream(PICTURE, QUESTION):
            if isinstance(event, TokenEvent):
                written, writing = written + 1, writing + event.text
                if written % 3 == 0:
                    film.shoot(200, writing)
            elif isinstance(event, BoxEvent):
                film.boxes.append(event.region.as_tuple())
                film.shoot(700, writing)
            elif isinstance(event, ObservationEvent):
                film.say(writing, FAINT)
                writing = ""
                for hit in event.observation.hits[:2]:
                    film.say(f"> {hit.title}: {hit.text}", MARK)
                film.say("")
                film.shoot(1400)
            elif isinstance(event, AnswerEvent):
                film.say(writing, FAINT)
                film.say(event.answer.text)
                film.shoot(3500)
    film.save(ROOT / "docs" / "images" / "question.gif")


if __name__ == "__main__":
    main()
