"""Recall of an index under distortions: small, seeded, through the real command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gog_edge.cli.main import run as run_cli
from gog_edge.evaluation.recall import (
    DISTORTIONS,
    LABELS,
    measure_expansion,
    measure_pictures,
    measure_titles,
    misspell,
)
from gog_edge.search.encoder import EncoderOptions, OnnxEncoder
from gog_edge.search.local.index import LocalIndex
from gog_edge.search.local.ingest import add_records
from gog_edge.search.local.record import Record
from gog_edge.types import Region
from tests.search.fakes import record
from tests.search.test_encoder import make_encoder

COLOURS = {"crimson": (220, 20, 60), "forest": (34, 139, 34), "navy": (0, 0, 128), "amber": (255, 191, 0)}


@pytest.fixture
def index(tmp_path: Path) -> LocalIndex:
    """Four flat colours, told apart by an encoder that means colours; two entries share a picture."""
    encoder = OnnxEncoder(
        make_encoder(tmp_path / "e.onnx", [1, 3, 8, 8]), EncoderOptions(mean=(0, 0, 0), std=(1, 1, 1))
    )
    (tmp_path / "e.json").write_text('{"mean": [0, 0, 0], "std": [1, 1, 1]}', encoding="utf-8")
    for name, colour in COLOURS.items():
        Image.new("RGB", (90, 60), colour).save(tmp_path / f"{name}.png")
    index = LocalIndex(tmp_path / "index", create=True)
    rows = [record(n, f"{n.title()} banner", "", tmp_path / f"{n}.png") for n in COLOURS]
    add_records(index, [*rows, record("twin", "Another navy", "", tmp_path / "navy.png")], embedder=encoder)
    return index


def test_recall_is_counted_per_distortion_and_repeats(index: LocalIndex, tmp_path: Path) -> None:
    encoder = OnnxEncoder(tmp_path / "e.onnx")
    first = {k: r.as_json() for k, r in measure_pictures(index, encoder).items()}
    assert set(first) == set(DISTORTIONS)
    shown = first["none"].pop("results shown")
    assert 1 <= shown <= 5
    assert first["none"] == {"n": 5, "recall@1": 1.0, "recall@5": 1.0, "recall@shown": 1.0}
    first["none"]["results shown"] = shown
    assert first["jpeg"]["recall@1"] == first["blur"]["recall@1"] == 1.0
    assert first == {k: r.as_json() for k, r in measure_pictures(index, encoder).items()}
    assert measure_pictures(index, encoder, names=["none"], limit=2)["none"].tried == 2


def test_words_beside_pictures_are_counted_by_themselves(index: LocalIndex, tmp_path: Path) -> None:
    encoder = OnnxEncoder(tmp_path / "e.onnx")
    found = measure_pictures(index, encoder, names=["none"], labels=True)
    assert list(found) == ["none", *(f"none + {label}" for label in LABELS), *LABELS]
    assert found["none + misspelt title"].first == found["misspelt title"].first == 5
    # The picture leads: another entry's title beside it does not push its own out of the results.
    assert found["none + title of another"].fifth == 5 > found["title of another"].first


def test_expansion_brings_the_neighbour_that_the_label_names(tmp_path: Path) -> None:
    encoder = OnnxEncoder(
        make_encoder(tmp_path / "e.onnx", [1, 3, 8, 8]), EncoderOptions(mean=(0, 0, 0), std=(1, 1, 1))
    )
    records = []
    for name, colour in COLOURS.items():
        Image.new("RGB", (90, 60), colour).save(tmp_path / f"{name}.png")
        records.append(record(name, f"Flag of {name}", "", tmp_path / f"{name}.png"))
        for fact in ("capital", "currency"):
            records.append(Record(f"{name}/{fact}", f"{name}: {fact}", "", relations={"entity": (name,)}))
    with LocalIndex(tmp_path / "index", create=True) as index:
        add_records(index, records, embedder=encoder)
        found = measure_expansion(index, encoder)
    assert [r.tried for r in found.values()] == [8, 8, 8]
    assert found["related, expand 3"].kept == 8 > found["related, expand 0"].kept


def test_titles_are_found_misspelt(index: LocalIndex) -> None:
    found = measure_titles(index)
    assert found["as is"].first == found["misspelt"].fifth == 5
    assert measure_titles(index, limit=1)["as is"].tried == 1


def test_distortions_keep_the_picture_recognisable() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8))
    for name, distort in DISTORTIONS.items():
        changed, region = distort(picture, np.random.default_rng(1))
        assert min(changed.size) > 10, name
        assert (region is not None) == (name == "scene")
        if region is not None:
            assert region.iou(Region(0, 0, *changed.size)) < 0.3
    rng = np.random.default_rng(2)
    assert len({misspell("flag of Kyrgyzstan", rng) for _ in range(20)}) > 5
    assert misspell("abc of it", rng) == "abc of it"


def test_the_command_prints_recall(index: LocalIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index.close()
    assert run_cli(["index", "recall", str(tmp_path / "index"), "--distortion", "none", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["recall"]
    assert found["picture, none"]["recall@1"] == found["title, as is"]["recall@1"] == 1.0
    assert run_cli(["index", "recall", str(tmp_path / "index"), "--distortion", "none", "--labels", "--related"]) == 0
    out = capsys.readouterr().out
    assert "100.0 %" in out and "words alone, misspelt title" in out and "related, expand 3" in out
    assert run_cli(["index", "recall", str(tmp_path / "index"), "--distortion", "melt"]) == 2
    assert "melt" in capsys.readouterr().err
