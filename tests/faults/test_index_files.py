"""Files of an index: a vector graph that is damaged is made anew, a build that is killed leaves the old index."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gog_edge.cli.main import run
from gog_edge.disk import leftovers
from gog_edge.search.local import vectors as vectors_module
from gog_edge.search.local.index import LocalIndex
from gog_edge.search.local.ingest import add_records
from tests.faults import damage
from tests.search.fakes import FakeEmbedder, FakeFrame, load_fake, record

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
COUNT = 80


@pytest.fixture(autouse=True)
def starts_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOG_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(vectors_module, "EXACT_LIMIT", 50)
    leftovers._swept.clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An index of 80 vectors with its graph."""
    rows = []
    for i in range(COUNT):
        (tmp_path / f"{i}.png").write_bytes(b"%d" % i)
        rows.append(record(f"e{i}", f"t{i}", "", tmp_path / f"{i}.png"))
    with LocalIndex(tmp_path / "i", create=True) as index:
        add_records(index, rows, embedder=FakeEmbedder(), load_frame=load_fake)
        index.prepare()
    return tmp_path / "i"


def found(folder: Path, *, writable: bool = False) -> list[str]:
    """The nearest entry of a few pictures."""
    with LocalIndex(folder, writable=writable) as index:
        return [
            index.search(vector=FakeEmbedder().embed(FakeFrame(b"%d" % i)), k=1, cut="none")[0].entity
            for i in range(0, COUNT, 9)
        ]


def test_a_damaged_graph_is_never_read_by_native_code(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    want = [f"e{i}" for i in range(0, COUNT, 9)]
    (graph,) = folder.glob("*.usearch")
    good = graph.read_bytes()
    assert found(folder) == want
    assert caplog.text == ""
    tried = 0
    for what, bad in [*damage.damages(good, 60), ("nothing", b"")]:
        fresh = folder / "fresh"
        fresh.write_bytes(bad)
        fresh.replace(graph)
        caplog.clear()
        assert found(folder) == want, what
        assert "is damaged or cut: it is made anew" in caplog.text, what
        tried += 1
    assert tried > 50
    assert found(folder, writable=True) == want  # whoever may write mends it
    caplog.clear()
    assert found(folder) == want and caplog.text == ""


def test_a_graph_is_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gog_edge.disk import stamps

    hashed = []
    real = stamps.hash_of
    monkeypatch.setattr(stamps, "hash_of", lambda path: (hashed.append(path), real(path))[1])
    found(folder)
    found(folder)
    assert len(hashed) == 1
    (graph,) = folder.glob("*.usearch")
    graph.with_name(graph.name + ".sha256").unlink()
    found(folder)
    assert len(hashed) == 1  # without its hash it is nothing


def test_a_graph_that_cannot_be_kept_is_a_line_in_the_log(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for path in folder.glob("*.usearch*"):
        path.unlink()

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vectors_module, "seal", full)
    assert found(folder, writable=True)[1] == "e9"
    assert "the vector graph is not kept" in caplog.text
    monkeypatch.undo()


def texts(folder: Path, *titles: str) -> Path:
    path = folder / f"{titles[0]}.jsonl"
    path.write_text("".join(f'{{"id": "{t}", "title": "{t}"}}\n' for t in titles))
    return path


@pytest.mark.parametrize("exchange", [True, False])
def test_a_killed_build_with_force_leaves_one_whole_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(leftovers, "_exchange", lambda a, b: False)
    home = tmp_path / "home"
    home.mkdir()
    index, old, new = home / "i", texts(tmp_path, "heron"), texts(tmp_path, "stork", "crane")
    assert run(["index", "build", str(index), str(old)]) == 0
    met = set()
    for step in damage.deaths(lambda: run(["index", "build", str(index), str(new), "--force"])):
        leftovers._swept.clear()
        with LocalIndex(index) as opened:
            titles = sorted(e.title for e in opened.entities())
        assert titles in (["heron"], ["crane", "stork"]), step
        met.add(len(titles))
        assert run(["index", "build", str(index), str(old), "--force"]) == 0
        assert [p.name for p in home.iterdir()] == ["i"], step
    assert met == {1, 2}


def test_a_build_onto_a_link_keeps_the_link(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["index", "build", str(tmp_path / "v1"), str(texts(tmp_path, "heron"))]) == 0
    (tmp_path / "now").symlink_to("v1")
    assert run(["index", "build", str(tmp_path / "now"), str(texts(tmp_path, "stork")), "--force"]) == 0
    assert (tmp_path / "now").is_symlink()
    with LocalIndex(tmp_path / "v1") as opened:
        assert [e.title for e in opened.entities()] == ["stork"]
    shutil.rmtree(tmp_path / "v1")


def test_an_engine_can_be_loaded_after_a_graph_was_searched() -> None:
    """onnxruntime imported after usearch ended the process."""
    code = "from gog_edge.search.local.vectors import _new_graph; _new_graph(4); import onnxruntime; print('alive')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "alive", done.returncode
