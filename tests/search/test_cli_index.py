"""`gog-edge index`: every command and flag, through the real entry point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gog_edge.cli.main import run
from tests.search.test_encoder import make_encoder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    lines = []
    for name, colour in (("red", (255, 0, 0)), ("green", (0, 200, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{name}.png")
        lines.append({"id": name, "title": f"The {name} flag", "image": f"{name}.png", "relations": {"next": "blue"}})
    lines.append({"id": "copy", "title": "The red flag", "image": "red.png", "relations": {"next": "blue"}})
    path = tmp_path / "docs.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    make_encoder(tmp_path / "e.onnx", [1, 3, 8, 8])
    (tmp_path / "e.json").write_text('{"mean": [0, 0, 0], "std": [1, 1, 1]}', encoding="utf-8")
    return path


def call(capsys: pytest.CaptureFixture[str], *args: object, code: int = 0) -> Any:
    """Run; returns parsed stdout for --json, (stdout, stderr) otherwise."""
    assert run([str(a) for a in args]) == code
    out, err = capsys.readouterr()
    return json.loads(out) if "--json" in args else (out, err)


def test_build_add_search_info_remove(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, encoder = tmp_path / "index", tmp_path / "e.onnx"
    built = call(capsys, "index", "build", index, source, "--encoder", encoder, "--json")
    assert (built["added"], built["vectors"]) == (3, 3)
    assert built["problems"]["duplicate"]["count"] == 1
    again = call(capsys, "index", "add", index, source, "--encoder", encoder, "--json")
    assert (again["added"], again["unchanged"], again["vectors"]) == (0, 3, 0)
    facts = call(capsys, "index", "info", index, "--json")
    assert (facts["entries"], facts["vectors"], facts["dim"]) == (3, 3, 3)
    assert facts["encoder"].startswith("onnx:")
    hits = call(capsys, "index", "search", index, "blue flag", "-k", 1, "--json")
    assert [h["entity"] for h in hits] == ["blue"]
    hits = call(capsys, "index", "search", index, "--image", tmp_path / "green.png", "--encoder", encoder, "--json")
    assert [h["entity"] for h in hits] == ["green"]
    # The index remembers a given encoder's file.
    args = ("--image", tmp_path / "red.png", "--box", "1,1,9,9", "--all", "--json")
    assert len(call(capsys, "index", "search", index, *args)) == 3
    related = call(capsys, "index", "search", index, "red", "-k", 1, "--expand", 2, "--json")
    assert [h["entity"] for h in related] == ["red", "blue"]
    assert "The red flag" in call(capsys, "index", "search", index, "red")[0]
    assert "vectors" in call(capsys, "index", "info", index)[0]
    assert "1 of 2 removed" in call(capsys, "index", "remove", index, "red", "nobody")[0]
    assert call(capsys, "index", "info", index, "--json")["entries"] == 2
    assert call(capsys, "index", "build", index, source, "--force", "--json")["added"] == 3
    assert call(capsys, "index", "info", index, "--json")["encoder"] == ""
    assert sorted(p.name for p in tmp_path.iterdir() if "index" in p.name) == ["index"]


def test_pictures_above_the_limits_are_refused(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, encoder, limit = tmp_path / "index", ("--encoder", tmp_path / "e.onnx"), ("--image-pixels", 1199)
    built = call(capsys, "index", "build", index, source, *encoder, *limit, "--json")
    assert (built["vectors"], built["problems"]["unreadable image"]["count"]) == (0, 4)
    added = call(capsys, "index", "build", index, source, *encoder, "--force", "--image-pixels", 1200, "--json")
    assert added["vectors"] == 3
    search = ("index", "search", index, "--image", tmp_path / "red.png")
    assert "pixels" in call(capsys, *search, *limit, code=2)[1]
    call(capsys, *search)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("build", "index", "nowhere.jsonl"), "no such file"),
        (("build", "full", "docs.jsonl"), "--force"),
        (("add", "empty", "docs.jsonl"), "build one"),
        (("add", "full", "docs.jsonl"), "built with"),
        (("search", "full"), "nothing to search"),
        (("search", "textonly", "x", "--image", "red.png"), "no image vectors"),
        (("search", "full", "x", "--box", "1,2,3,4"), "--box"),
        (("search", "full", "--image", "red.png", "--encoder", "e.onnx", "--box", "1,2"), "four numbers"),
        (("search", "full", "--image", "red.png", "--encoder", "e2.onnx"), "rebuild"),
        (("build", "index", "docs.jsonl", "--encoder", "e.onnx", "--bundle", "b"), "either"),
        (("build", "index", "docs.jsonl", "--max-pixels", "100"), "--bundle"),
        (("info", "empty"), "no index"),
    ],
)
def test_mistakes_end_in_one_line_and_code_2(
    tmp_path: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GOG_EDGE_DEBUG", raising=False)
    make_encoder(tmp_path / "e2.onnx", [1, 3, 16, 16])
    (tmp_path / "empty").mkdir()
    call(capsys, "index", "build", "full", "docs.jsonl", "--encoder", "e.onnx", "--json")
    call(capsys, "index", "build", "textonly", "docs.jsonl", "--json")
    _, err = call(capsys, "index", *args, code=2)
    assert says in err
    assert len([line for line in err.splitlines() if line.startswith("gog-edge")]) == 1
