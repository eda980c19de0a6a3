"""The local index as a provider: kinds, errors of the tree only, deadlines, real images through a real encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gog_edge.errors import EngineError, SearchError, SearchIndexError, SearchTimeoutError
from gog_edge.image.frame import Frame
from gog_edge.search.base import Deadline, ImageQuery, SearchProvider
from gog_edge.search.encoder import EncoderOptions, OnnxEncoder
from gog_edge.search.local.index import LocalIndex
from gog_edge.search.local.ingest import add_records
from gog_edge.search.local.provider import LocalProvider
from gog_edge.types import Region
from tests.search.fakes import FakeEmbedder, record
from tests.search.test_encoder import make_encoder

COLOURS = {"red": (255, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 255)}
NEVER = Deadline.never()


@pytest.fixture
def world(tmp_path: Path) -> tuple[Path, OnnxEncoder]:
    options = EncoderOptions(mean=(0, 0, 0), std=(1, 1, 1))
    encoder = OnnxEncoder(make_encoder(tmp_path / "e.onnx", [1, 3, 16, 16]), options)
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{name}.png")
    with LocalIndex(tmp_path / "index", create=True) as index:
        rows = [record(name, f"The {name} flag", f"It is {name}.", tmp_path / f"{name}.png") for name in COLOURS]
        add_records(index, rows, embedder=encoder)
    return tmp_path / "index", encoder


def test_glance_and_gaze_find_the_right_entry(world: tuple[Path, OnnxEncoder]) -> None:
    provider = LocalProvider(*world)
    assert isinstance(provider, SearchProvider)
    assert provider.kinds == {"text", "image", "page"}
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:, :40] = COLOURS["green"]
    pixels[:, 40:] = COLOURS["blue"]
    frame = Frame.open(pixels)
    hit = provider.search_image(ImageQuery(frame, Region(45, 5, 75, 55)), k=3, deadline=NEVER)[0]
    assert (hit.entity, round(hit.score or 0, 2)) == ("blue", 1.0)
    whole = Frame.open(np.full((20, 20, 3), COLOURS["red"], np.uint8))
    assert provider.search_image(ImageQuery(whole, label="what is this?"), k=3, deadline=NEVER)[0].entity == "red"
    assert provider.search_text("the blue flag", k=1, deadline=NEVER)[0].title == "The blue flag"
    assert provider.read_page("red", deadline=NEVER).text == "It is red."


def test_without_an_encoder_pictures_are_refused_as_search_error(world: tuple[Path, OnnxEncoder]) -> None:
    provider = LocalProvider(world[0])
    assert provider.kinds == {"text", "page"}
    with pytest.raises(SearchError, match="can't search with an image"):
        provider.search_image(ImageQuery(Frame.open(np.zeros((4, 4, 3), np.uint8))), k=1, deadline=NEVER)


def test_another_encoder_is_refused_at_once(world: tuple[Path, OnnxEncoder]) -> None:
    with pytest.raises(SearchIndexError, match="rebuild"):
        LocalProvider(world[0], FakeEmbedder())


def test_failures_are_search_errors(world: tuple[Path, OnnxEncoder], monkeypatch: pytest.MonkeyPatch) -> None:
    provider = LocalProvider(*world)
    frame = Frame.open(np.full((8, 8, 3), 9, np.uint8))
    with pytest.raises(SearchTimeoutError):
        provider.search_text("red", k=1, deadline=Deadline.after(0))
    with pytest.raises(SearchError, match="outside"):
        provider.search_image(ImageQuery(frame, Region(50, 50, 60, 60)), k=1, deadline=NEVER)
    with pytest.raises(SearchError, match="no entry"):
        provider.read_page("http://example.com/", deadline=NEVER)

    def fail(*_: object) -> None:
        raise EngineError("out of memory")

    monkeypatch.setattr(provider, "embedder", FakeEmbedder())
    monkeypatch.setattr(FakeEmbedder, "embed", fail)
    with pytest.raises(SearchError, match="out of memory"):
        provider.search_image(ImageQuery(frame), k=1, deadline=NEVER)
    provider.close()
    with pytest.raises(SearchError, match="closed"):
        provider.search_text("red", k=1, deadline=NEVER)
