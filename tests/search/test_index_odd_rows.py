"""One odd row or file of a source neither stops an index build nor costs another row, and no pipe hangs it."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from gog_edge.errors import SearchIndexError
from gog_edge.search.local.index import LocalIndex
from gog_edge.search.local.ingest import add_records
from gog_edge.search.local.readers import read_source
from gog_edge.search.local.record import IngestReport
from tests.search.fakes import FakeEmbedder, load_fake

NFC, NFD = "café", unicodedata.normalize("NFD", "café")
GOOD = {"id": "good", "title": "Good", "text": "kept"}


def built(tmp_path: Path, source: Path) -> tuple[LocalIndex, IngestReport]:
    index = LocalIndex(tmp_path / "index", create=True)
    return index, add_records(index, read_source(source), embedder=FakeEmbedder(), load_frame=load_fake)


def titles(index: LocalIndex) -> list[str]:
    return sorted(e.title for e in index.entities())


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "dangling"])
def test_an_image_that_is_no_regular_file_is_reported(tmp_path: Path, kind: str) -> None:
    image = tmp_path / "x.png"
    if kind == "fifo":
        os.mkfifo(image)
    elif kind == "folder":
        image.mkdir()
    else:
        image.symlink_to("/dev/zero" if kind == "device" else tmp_path / "nowhere")
    source = tmp_path / "s.jsonl"
    source.write_text(json.dumps({"id": "x", "title": "X", "image": "x.png"}) + "\n" + json.dumps(GOOD))
    index, report = built(tmp_path, source)
    assert titles(index) == ["Good", "X"] and report.counts() == {"missing image": 1}


ODD: list[dict[str, Any]] = [
    {"id": "a\ud800b", "title": "Odd \udce9", "text": "t\udfff"},
    {"id": "o", "title": "Odd", "relations": {"r\ud800": ["x\udce9"]}},
    {"id": "o", "title": "Odd", "relations": {"r": 5, "s": ["x", 7]}},
    {"id": "o", "title": "Odd", "relations": {"r": {"deep": []}}},
    {"id": "o", "title": "Odd", "relations": "none"},
    {"id": "o", "title": "Odd", "relations": [["r", "x"], ["r"]]},
    {"id": "o", "title": "Odd", "image": "\ud800.png"},
    {"id": "o", "title": "Odd", "image": "https://x.example/\ud800.png"},
    {"id": "o", "title": "Odd", "source": "\ud800"},
    {"id": "o", "title": "Odd", "image": "x" * 5000},
]


@pytest.mark.parametrize("row", ODD, ids=range(len(ODD)))
def test_odd_rows_are_kept_with_what_makes_sense(tmp_path: Path, row: dict[str, Any]) -> None:
    source = tmp_path / "s.jsonl"
    source.write_text(f"{json.dumps(row)}\n{json.dumps(GOOD)}\n")
    index, report = built(tmp_path, source)
    assert report.added == 2
    assert [h.entity for h in index.search("odd", k=2)] == [index.find(row["id"]).id]  # type: ignore[union-attr]


def test_relations_by_number_and_composition_lead_somewhere(tmp_path: Path) -> None:
    rows = [{"id": 7, "title": "Seven"}, {"id": NFC, "title": "House"}]
    rows.append({"id": "o", "title": "Odd", "relations": {"r": [7], "s": NFD}})
    source = tmp_path / "s.jsonl"
    source.write_text("".join(f"{json.dumps(r)}\n" for r in rows))
    index, report = built(tmp_path, source)
    assert report.problems == {}
    assert {h.title for h in index.search("odd", k=1, expand=5)} == {"Odd", "Seven", "House"}
    assert index.find(NFD) == index.find(NFC) is not None


@pytest.mark.parametrize("cell", ["[1]", "null", "5", "{", '{"r": null}', "[" * 3000])
def test_odd_relations_in_a_table(tmp_path: Path, cell: str) -> None:
    source = tmp_path / "s.csv"
    quoted = cell.replace('"', '""')
    source.write_text(f'id,title,relations,relation:in\no,Odd,"{quoted}",x\ngood,Good,,x\n')
    index, _ = built(tmp_path, source)
    assert "Good" in titles(index)


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_files_of_other_programs_are_read(tmp_path: Path, encoding: str, ending: str) -> None:
    source = tmp_path / f"s{ending}"
    title = "Café – naïve"
    row = json.dumps({"id": "a", "title": title}, ensure_ascii=False) if ending == ".jsonl" else f"id,title\na,{title}"
    source.write_bytes((row + "\n").encode(encoding))
    index, report = built(tmp_path, source)
    assert titles(index) == [title]
    assert report.counts() == ({"not UTF-8": 1} if encoding == "cp1252" else {})


def test_one_line_in_another_encoding_keeps_the_others(tmp_path: Path) -> None:
    source = tmp_path / "s.jsonl"
    lines = [json.dumps({"title": t}, ensure_ascii=False) for t in ("Zoë", "Café", "北京")]
    source.write_bytes(b"\n".join([lines[0].encode(), lines[1].encode("cp1252"), lines[2].encode()]))
    index, _ = built(tmp_path, source)
    assert titles(index) == ["Café", "Zoë", "北京"]


def test_names_that_are_no_text_are_indexed_and_found_again(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    names = [os.fsdecode(b"caf\xe9.png"), os.fsdecode(b"caf\xe8.png")]
    for name in names:
        (pictures / name).write_bytes(os.fsencode(name))
    index, report = built(tmp_path, pictures)
    assert report.added == 2 and titles(index) == ["cafè", "café"]
    assert sorted(i for e in index.entities() for i in e.images) == sorted(str(pictures / n) for n in names)
    assert all(Path(i).is_file() for e in index.entities() for i in e.images)


@pytest.mark.parametrize(("disk", "written"), [(NFC, NFD), (NFD, NFC)])
def test_composed_and_decomposed_names_are_one(tmp_path: Path, disk: str, written: str) -> None:
    folder = tmp_path / "pictures" / disk
    folder.mkdir(parents=True)
    (folder / f"{disk}.png").write_bytes(b"1")
    (folder / f"{written}.txt").write_text("# Coffee house", "utf-8")
    source = tmp_path / "s.jsonl"
    source.write_text(json.dumps({"title": "A", "image": f"pictures/{written}/{written}.png"}))
    index, report = built(tmp_path, source)
    assert report.problems == {} and next(index.entities()).images == (str(folder / f"{disk}.png"),)
    assert [i.title for i in read_source(tmp_path / "pictures")] == ["Coffee house"]  # type: ignore[union-attr]


@pytest.mark.parametrize("sidecar", ["{", "[1]", '{"title": ["x"]}', '{"kind": "x"}'])
def test_a_bad_sidecar_costs_only_itself(tmp_path: Path, sidecar: str) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"1")
    (tmp_path / "pictures" / "a.json").write_text(sidecar)
    index, report = built(tmp_path, tmp_path / "pictures")
    assert titles(index) == ["a"] and report.counts() == {"bad sidecar": 1}


@pytest.mark.parametrize(
    ("damage", "mend"),
    [("read-only", "make its folder writable"), ("gone", "check that its folder is there"), ("garbage", "--force")],
)
def test_an_index_that_fails_says_what_helps(tmp_path: Path, damage: str, mend: str) -> None:
    index = LocalIndex(tmp_path / "i", create=True)
    index.close()
    with LocalIndex(tmp_path / "i", writable=damage != "read-only") as index:
        index.database._idle.clear()
        if damage == "gone":
            shutil.rmtree(tmp_path / "i")
        elif damage == "garbage":
            (tmp_path / "i" / "index.db").write_bytes(b"x" * 4096)
        with pytest.raises(SearchIndexError, match=mend), index.database.transaction() as c:
            c.execute("DELETE FROM meta")
