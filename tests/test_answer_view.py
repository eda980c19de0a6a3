"""What an answer shows of itself: the drawing, the crops, plain data with a schema, a page for notebooks."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gog_edge.answer_view import FORMAT, STEP_COLOURS, VERSION
from gog_edge.errors import ImageError
from gog_edge.image.frame import Frame
from gog_edge.types import Action, ActionKind, Answer, Hit, Observation, Region, Step, StopReason, Turn

BOX = Region(20.0, 30.0, 80.5, 70.0)
HOUSE = Action(ActionKind.GAZE, region=BOX, label="the <house>/\u202e../x")
GREY = Frame(np.full((120, 200, 3), 127, np.uint8), "grey")
HIT = Hit("Flag <b>", "of & Angola", "s", 0.5)


def answer(*actions: Action, text: str = "Luanda", pictures: tuple[Any, ...] = (GREY,)) -> Answer:
    turn = Turn("", actions, "raw")
    steps = (Step(0, turn, tuple(Observation(a, (HIT,)) for a in actions)),)
    return Answer(text, StopReason.ANSWERED, steps, (HIT,), pictures=pictures)


def colour(name: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(name[1:]))


def test_the_box_is_drawn_where_it_is() -> None:
    drawn = answer(HOUSE).plot()
    pixels = np.asarray(drawn)
    orange = colour(STEP_COLOURS[0])
    for x, y in ((20, 50), (80, 50), (50, 70), (50, 30)):
        assert tuple(pixels[y, x]) == orange
    assert tuple(pixels[50, 50]) == tuple(pixels[110, 150]) == (127, 127, 127)
    assert drawn.height > GREY.height + 100  # the crops and the answer stand below
    assert answer().plot().height < drawn.height


def test_a_large_picture_is_scaled_with_its_boxes() -> None:
    large = Frame(np.full((1200, 2000, 3), 127, np.uint8))
    drawn = np.asarray(answer(replace(HOUSE, region=BOX.scale(10, 10)), pictures=(large,)).plot(side=200))
    assert tuple(drawn[50, 21]) == colour(STEP_COLOURS[0]) and tuple(drawn[50, 50]) == (127, 127, 127)


def test_boxes_of_another_picture_and_of_a_crop_of_this_one() -> None:
    other = Frame(np.full((90, 60, 3), 10, np.uint8))
    pictures = (GREY, other, GREY)  # image 2 is a crop of image 0: boxes are in pixels of the original
    seen = answer(replace(HOUSE, image=2), replace(HOUSE, image=1, region=Region(1, 1, 9, 9)), pictures=pictures)
    first, second = np.asarray(seen.plot(0)), np.asarray(seen.plot(1))
    assert tuple(first[50, 20]) == colour(STEP_COLOURS[0]) and tuple(first[5, 1]) == (127, 127, 127)
    assert second.shape[0] > 90 and tuple(second[5, 1]) == colour(STEP_COLOURS[0])


@pytest.mark.parametrize("text", ["", "a" * 5000, "wort " * 900, "東京 \x1b[31m"])
def test_any_text_can_be_drawn(text: str) -> None:
    drawn = answer(replace(HOUSE, label=text), text=text, pictures=(Frame(np.zeros((3, 5, 3), np.uint8)),))
    drawn = replace(
        drawn,
        steps=tuple(
            replace(s, turn=replace(s.turn, actions=(replace(HOUSE, region=Region(0, 0, 2, 2)),))) for s in drawn.steps
        ),
    )
    assert isinstance(drawn.plot(), Image.Image)


def test_crops_are_saved_in_their_own_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    seen = answer(HOUSE, replace(HOUSE, region=Region(-5, 100, 30, 500)), pictures=(Frame(pixels),))
    written = seen.save_crops(tmp_path / "new" / "crops")
    assert [p.name for p in written] == ["1-the-house-x.png", "1-the-house-x-2.png"]
    assert [p.parent for p in written] == [tmp_path / "new" / "crops"] * 2
    assert np.array_equal(np.asarray(Image.open(written[0])), pixels[30:70, 20:81])
    assert np.array_equal(np.asarray(Image.open(written[1])), pixels[100:120, 0:30])


def test_without_pictures_there_is_nothing_to_draw(tmp_path: Path) -> None:
    for pictures in ((), (None,)):
        bare = answer(HOUSE, pictures=pictures)
        with pytest.raises(ImageError, match="has no picture 0"):
            bare.plot()
        with pytest.raises(ImageError, match="has no picture 0"):
            bare.save_crops(tmp_path)
        assert "<img" not in bare._repr_html_() and "Luanda" in bare._repr_html_()


def test_the_page_for_notebooks_is_inert() -> None:
    page = answer(HOUSE, text="<script>alert(1)</script>")._repr_html_()
    assert "<script" not in page and "&lt;script&gt;" in page and "Flag &lt;b&gt;" in page
    assert page.count("data:image/jpeg;base64,") == 1 and "http" not in page


def test_pictures_are_no_part_of_the_value_and_are_not_written() -> None:
    assert answer(HOUSE) == answer(HOUSE, pictures=()) and "pictures" not in repr(answer(HOUSE))
    assert "pictures" not in answer(HOUSE).to_dict()


def schema() -> dict[str, Any]:
    return json.loads(resources.files("gog_edge").joinpath("answer.schema.json").read_text("utf-8"))


def test_plain_data_fits_the_schema_that_is_shipped() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema())
    validator = jsonschema.Draft202012Validator(schema())
    data = json.loads(json.dumps(answer(HOUSE, Action(ActionKind.TEXT_SEARCH, "q", limit=3)).to_dict()))
    validator.validate(data)
    validator.validate({"question": "q", **data})
    assert (data["format"], data["version"]) == (FORMAT, VERSION)
    for wrong in ({**data, "more": 1}, {**data, "version": 2}, {**data, "stop": "tired"}):
        assert not validator.is_valid(wrong)


def test_the_schema_has_every_field() -> None:
    """Without jsonschema as well: a field that is added or renamed is found, and wants a new version."""

    def fields(data: Any, place: dict[str, Any]) -> None:
        place = schema()["$defs"][place["$ref"].rpartition("/")[2]] if "$ref" in place else place
        for option in place.get("anyOf", []):
            if "$ref" in option and isinstance(data, dict):
                place = schema()["$defs"][option["$ref"].rpartition("/")[2]]
        if isinstance(data, dict):
            assert set(data) == set(place["required"])
            for key, value in data.items():
                fields(value, place["properties"][key])
        if isinstance(data, list):
            for value in data:
                fields(value, place["items"])

    fields(answer(HOUSE).to_dict(), schema())
