"""The index file: incremental adds, duplicates, missing images, encoder identity, kills, readers beside a writer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from gog_edge.errors import SearchIndexError
from gog_edge.search.local import vectors as vectors_module
from gog_edge.search.local.index import LocalIndex
from gog_edge.search.local.ingest import add_records, ensure_same_encoder
from gog_edge.search.local.readers import Problem, read_source
from gog_edge.search.local.record import Record
from tests.search.fakes import FakeEmbedder, FakeFrame, load_fake, record, unit


def picture(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def build(tmp_path: Path, *records: Record, embedder: FakeEmbedder | None = None) -> LocalIndex:
    index = LocalIndex(tmp_path / "i", create=True)
    add_records(index, records, embedder=embedder, load_frame=load_fake)
    return index


def test_the_picture_itself_is_found_with_cosine_one(tmp_path: Path) -> None:
    embedder = FakeEmbedder()
    index = build(
        tmp_path,
        *(record(f"e{i}", f"thing {i}", "", picture(tmp_path, f"{i}.png", b"%d" % i)) for i in range(8)),
        embedder=embedder,
    )
    hit = index.search(vector=embedder.embed(FakeFrame(b"5")), k=3)[0]
    assert hit.entity == "e5"
    assert hit.score == pytest.approx(1.0, abs=1e-3)
    assert Path(hit.image) == tmp_path / "5.png"


def test_adding_again_changes_nothing_and_embeds_nothing(tmp_path: Path) -> None:
    embedder = FakeEmbedder()
    records = [record(f"e{i}", f"thing {i}", "", picture(tmp_path, f"{i}.png", b"%d" % i)) for i in range(3)]
    index = build(tmp_path, *records, embedder=embedder)
    report = add_records(index, records, embedder=embedder, load_frame=load_fake)
    assert (report.added, report.unchanged, embedder.calls) == (0, 3, 3)
    assert index.store.counts()["vectors"] == 3


def test_changed_text_updates_in_place_and_old_words_are_gone(tmp_path: Path) -> None:
    index = build(tmp_path, record("a", "Chad", "capital Ndjamena"), record("b", "Niger", "capital Niamey"))
    row = index.search("ndjamena", k=1)
    report = add_records(index, [record("a", "Chad", "seat Moundou")])
    assert report.updated == 1
    assert row[0].entity == "a"
    assert index.search("ndjamena", k=1) == []
    assert index.search("moundou", k=1)[0].entity == "a"
    assert index.store.counts()["entries"] == 2


def test_duplicates_and_missing_and_broken_images_are_reported_not_fatal(tmp_path: Path) -> None:
    good = picture(tmp_path, "good.png", b"good")
    broken = picture(tmp_path, "bad.png", b"broken")
    index = LocalIndex(tmp_path / "i", create=True)
    report = add_records(
        index,
        [
            record("a", "same", "text", good),
            record("b", "same", "text", good),
            record("c", "no picture", "text", tmp_path / "nowhere.png"),
            record("d", "", "", broken),
            Problem("bad line", "x:7"),
        ],
        embedder=FakeEmbedder(),
        load_frame=load_fake,
    )
    assert report.counts() == {"duplicate": 1, "missing image": 1, "unreadable image": 1, "bad line": 1, "empty": 1}
    assert "duplicate of a" in report.problems["duplicate"][0]
    assert "nowhere.png" in report.problems["missing image"][0]
    assert report.added == 2
    assert json.loads(json.dumps(report.as_json()))["problems"]["duplicate"]["count"] == 1


def test_equal_pictures_are_embedded_once(tmp_path: Path) -> None:
    embedder = FakeEmbedder()
    one, two = picture(tmp_path, "1.png", b"same"), picture(tmp_path, "2.png", b"same")
    index = build(tmp_path, record("a", "first", "", one), record("b", "second", "", two), embedder=embedder)
    assert embedder.calls == 1
    assert index.store.counts()["vectors"] == 2


def test_another_encoder_is_refused_in_one_line(tmp_path: Path) -> None:
    index = build(tmp_path, record("a", "a", "", picture(tmp_path, "a.png", b"a")), embedder=FakeEmbedder())
    other = FakeEmbedder(fingerprint="fake-2")
    for act in (
        lambda: ensure_same_encoder(index, other),
        lambda: add_records(index, [record("b", "b")], embedder=other, load_frame=load_fake),
    ):
        with pytest.raises(SearchIndexError, match=r"fake-1.*fake-2") as caught:
            act()
        assert "\n" not in str(caught.value)


def test_wrong_length_and_unnormalised_vectors_are_refused(tmp_path: Path) -> None:
    index = build(tmp_path, record("a", "a", "", picture(tmp_path, "a.png", b"a")), embedder=FakeEmbedder())
    with pytest.raises(SearchIndexError, match="length 16"):
        index.search(vector=unit(1, 8))
    with pytest.raises(SearchIndexError, match="unit"):
        index.search(vector=unit(1) * 3)
    with pytest.raises(SearchIndexError, match="unit"):
        index.search(vector=unit(1) * np.float32(np.nan))


def test_vectors_come_later_when_an_encoder_does(tmp_path: Path) -> None:
    entry = record("a", "a", "", picture(tmp_path, "a.png", b"a"))
    index = build(tmp_path, entry)
    with pytest.raises(SearchIndexError, match="no image vectors"):
        index.search(vector=unit(1))
    embedder = FakeEmbedder()
    add_records(index, [entry], embedder=embedder, load_frame=load_fake)
    assert index.search(vector=embedder.embed(FakeFrame(b"a")))[0].entity == "a"


def test_hybrid_search_lets_a_label_decide_between_near_pictures(tmp_path: Path) -> None:
    embedder = FakeEmbedder()
    index = build(
        tmp_path,
        *(
            record(f"e{i}", title, "", picture(tmp_path, f"{i}.png", b"%d" % i))
            for i, title in enumerate(["red bus", "green bird", "blue boat"])
        ),
        embedder=embedder,
    )
    between = embedder.embed(FakeFrame(b"0")) + embedder.embed(FakeFrame(b"1")) * 0.999
    between /= np.linalg.norm(between)
    assert index.search(vector=between)[0].entity == "e0"
    assert index.search("a green bird", between)[0].entity == "e1"


def test_words_reorder_pictures_only_where_both_agree(tmp_path: Path) -> None:
    embedder = FakeEmbedder()
    index = build(
        tmp_path,
        *(record(f"e{i}", f"flag of country{i}", "", picture(tmp_path, f"{i}.png", b"%d" % i)) for i in range(40)),
        embedder=embedder,
    )
    near = embedder.embed(FakeFrame(b"9"))
    ranked = [h.entity for h in index.search(vector=near, k=40, cut="none")]
    assert ranked[0] == "e9"
    # Every title has the word, so it tells nothing apart, whoever comes first among equals.
    assert [h.entity for h in index.search("flag", near, cut="none")] == ranked[:5]
    # A wrong name brings its entry along, behind what the picture shows; the name of a near one wins.
    found = [h.entity for h in index.search(f"flag of country{ranked[-1][1:]}", near)]
    assert found[0] == "e9" and found[-1] == ranked[-1]
    assert index.search(f"flag of country{ranked[2][1:]}", near, cut="none")[0].entity == ranked[2]


def test_expansion_appends_related_entries_those_with_asked_words_first(tmp_path: Path) -> None:
    index = build(
        tmp_path,
        record("td", "Chad, republic", "a country", borders="ne"),
        record("ne", "Niger", "another country"),
        record("td/money", "Chad: money", "CFA franc", of="td"),
        record("zz", "unrelated", "nothing"),
    )
    assert [h.entity for h in index.search("Chad republic", k=1, expand=5)] == ["td", "ne", "td/money"]
    assert [h.entity for h in index.search("Chad republic money", k=1, expand=1)] == ["td", "td/money"]
    assert [h.entity for h in index.search("Chad republic", k=1)] == ["td"]


def test_removed_entries_are_not_found(tmp_path: Path) -> None:
    embedder = FakeEmbedder()
    index = build(
        tmp_path,
        *(record(f"e{i}", f"thing {i}", "", picture(tmp_path, f"{i}.png", b"%d" % i)) for i in range(3)),
        embedder=embedder,
    )
    query = embedder.embed(FakeFrame(b"1"))
    assert index.search(vector=query)[0].entity == "e1"
    with index.database.transaction() as c:
        assert index.store.remove(c, ["e1", "nobody"]) == 1
        index.store.touch(c)
    assert "e1" not in [h.entity for h in index.search(vector=query, cut="none")]
    assert index.search("thing 1", cut="none")[0].entity != "e1"


def test_a_reader_sees_what_a_writer_adds(tmp_path: Path) -> None:
    embedder = FakeEmbedder()
    writer = build(tmp_path, record("a", "alpha", "", picture(tmp_path, "a.png", b"a")), embedder=embedder)
    reader = LocalIndex(tmp_path / "i")
    assert reader.search("beta") == []
    add_records(
        writer, [record("b", "beta", "", picture(tmp_path, "b.png", b"b"))], embedder=embedder, load_frame=load_fake
    )
    assert reader.search("beta")[0].entity == "b"
    assert reader.search(vector=embedder.embed(FakeFrame(b"b")))[0].entity == "b"


def test_graph_is_made_reused_grown_and_rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_module, "EXACT_LIMIT", 50)
    monkeypatch.setattr(vectors_module, "TAIL_LIMIT", 20)
    embedder = FakeEmbedder()
    folder = tmp_path / "i"

    def add(start: int, stop: int) -> None:
        with LocalIndex(folder, writable=True) as index:
            rows = [record(f"e{i}", f"t{i}", "", picture(tmp_path, f"{i}.png", b"%d" % i)) for i in range(start, stop)]
            add_records(index, rows, embedder=embedder, load_frame=load_fake)

    def found(i: int) -> tuple[str, str, list[str]]:
        with LocalIndex(folder, writable=True) as index:
            hit = index.search(vector=embedder.embed(FakeFrame(b"%d" % i)), k=1)[0]
            searcher = index._current()
            assert searcher is not None
            return hit.entity, searcher.kind, sorted(p.name for p in folder.glob("*.usearch"))

    LocalIndex(folder, create=True).close()
    add(0, 40)
    assert found(7) == ("e7", "exact", [])
    add(40, 60)
    assert found(55) == ("e55", "usearch", ["vectors-0-60.usearch"])
    add(60, 70)  # behind the graph: searched exactly
    assert found(65) == ("e65", "usearch", ["vectors-0-60.usearch"])
    add(70, 90)  # too many behind: the graph grows
    assert found(85) == ("e85", "usearch", ["vectors-0-90.usearch"])
    graph = folder / "vectors-0-90.usearch"
    graph.write_bytes(graph.read_bytes()[:100])  # cut: rebuilt
    assert found(12) == ("e12", "usearch", ["vectors-0-90.usearch"])
    graph.unlink()
    assert found(13)[0] == "e13"
    with LocalIndex(folder, writable=True) as index, index.database.transaction() as c:
        index.store.remove(c, ["e13"])
        index.store.touch(c)
    assert found(13)[0] != "e13"
    assert found(14) == ("e14", "usearch", ["vectors-1-90.usearch"])


def test_bigger_graphs_are_searched_wider() -> None:
    assert [vectors_module.search_width(n) for n in (0, 50_000, 1_000_000, 100_000_000)] == [128, 128, 500, 1024]


def test_a_killed_build_keeps_whole_batches_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "i"
    script = textwrap.dedent(
        """
        import sys, time
        from gog_edge.search.local import ingest
        from gog_edge.search.local.index import LocalIndex
        from tests.search.fakes import record
        ingest.BATCH_RECORDS_TEXT = 10
        def endless():
            for i in range(10**6):
                if i == 35:
                    print("ready", flush=True)
                if i > 35:
                    time.sleep(0.05)
                yield record(f"e{i}", f"title {i}", f"text {i}")
        ingest.add_records(LocalIndex(sys.argv[1], create=True), endless())
        """
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "ready"
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    child.stdout.close()
    with LocalIndex(folder, writable=True) as index:
        entries = index.store.counts()["entries"]
        assert entries >= 30
        assert entries % 10 == 0
        report = add_records(index, [record(f"e{i}", f"title {i}", f"text {i}") for i in range(40)])
        assert report.unchanged == min(entries, 40)
        assert index.search("title 39", k=1)[0].entity == "e39"


def test_many_threads_search_one_index(tmp_path: Path) -> None:
    index = build(tmp_path, *(record(f"e{i}", f"word{i}", "") for i in range(50)))
    wrong: list[str] = []

    def work(start: int) -> None:
        for i in range(start, 50, 4):
            found = index.search(f"word{i}", k=1)
            if [h.entity for h in found] != [f"e{i}"]:
                wrong.append(f"word{i}: {found}")

    threads = [threading.Thread(target=work, args=(t,)) for t in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


@pytest.mark.parametrize("damage", ["missing", "garbage", "version", "twice"])
def test_unusable_indexes_end_in_one_clear_line(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "i"
    if damage != "missing":
        LocalIndex(folder, create=True).close()
    path = folder / "index.db"
    if damage == "garbage":
        path.write_bytes(b"not a database" * 100)
    if damage == "version":
        with LocalIndex(folder, writable=True) as index, index.database.use() as c:
            c.execute("PRAGMA user_version = 99")
    with pytest.raises(SearchIndexError) as caught:
        LocalIndex(folder, create=damage == "twice")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    index = build(tmp_path, record("a", "alpha", "text"))
    with index.database.use() as c:
        pages = c.execute("PRAGMA page_count").fetchone()[0]
        c.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(SearchIndexError, match="free some space") as caught:
        add_records(index, [record(f"b{i}", f"beta {i}", "x" * 20_000) for i in range(20)])
    assert "\n" not in str(caught.value)
    assert index.store.counts()["entries"] == 1
    assert index.search("alpha")[0].entity == "a"


def test_a_file_damaged_later_is_an_index_error(tmp_path: Path) -> None:
    index = build(tmp_path, *(record(f"e{i}", f"word{i}", "x" * 3000) for i in range(60)))
    index.close()
    path = tmp_path / "i" / "index.db"
    data = bytearray(path.read_bytes())
    data[8192:-4096] = b"\xff" * (len(data) - 12288)
    path.write_bytes(data)
    with pytest.raises(SearchIndexError), LocalIndex(tmp_path / "i") as damaged:
        for i in range(60):
            damaged.search(f"word{i}")
        list(damaged.entities())


def test_a_read_only_folder_can_be_searched(tmp_path: Path) -> None:
    build(tmp_path, record("a", "alpha", "text")).close()
    folder = tmp_path / "i"
    (folder / "index.db").chmod(0o444)
    folder.chmod(0o555)
    try:
        with LocalIndex(folder) as index:
            assert index.search("alpha")[0].entity == "a"
    finally:
        folder.chmod(0o755)


def test_the_folder_can_move_together_with_its_pictures(tmp_path: Path) -> None:
    old = tmp_path / "old"
    entry = record("a", "a", "", picture(old / "pics", "a.png", b"a"))
    with LocalIndex(old / "index", create=True) as index:
        add_records(index, [entry])
    new = old.rename(tmp_path / "new")
    with LocalIndex(new / "index") as index:
        assert Path(index.search("a")[0].image) == new / "pics" / "a.png"


def test_sources_folder_jsonl_csv(tmp_path: Path) -> None:
    pics = tmp_path / "pics"
    picture(pics, "mona_lisa.png", b"1")
    (pics / "mona_lisa.txt").write_text("# The Mona Lisa\nPainted by Leonardo.", encoding="utf-8")
    picture(pics, "sub/eiffel.jpg", b"2")
    (pics / "sub/eiffel.json").write_text('{"title": "Eiffel Tower", "relations": {"in": "paris"}}', encoding="utf-8")
    picture(pics, "plain-name.webp", b"3")
    picture(pics, "bad.png", b"4")
    (pics / "bad.json").write_text("[1]", encoding="utf-8")
    items = list(read_source(pics))
    records = {i.id: i for i in items if isinstance(i, Record)}
    assert records["mona_lisa"].title == "The Mona Lisa"
    assert records["mona_lisa"].text == "Painted by Leonardo."
    assert records["sub/eiffel"].relations == {"in": ("paris",)}
    assert records["plain-name"].title == "plain name"
    assert [i.kind for i in items if isinstance(i, Problem)] == ["bad sidecar"]

    lines = tmp_path / "docs.jsonl"
    lines.write_text(
        '{"id": "a", "title": "A", "image": "pics/bad.png", "relations": {"r": ["b", "c"]}}\n'
        "not json\n"
        '{"document": "manual", "page": 2, "text": "OCR text", "image": "pics/bad.png"}\n'
        '{"title": 3, "text": null, "image": null}\n'
        '{"id": "x"}\n',
        encoding="utf-8",
    )
    items = list(read_source(lines))
    first, page = (i for i in items if isinstance(i, Record) and i.images)
    assert first.relations == {"r": ("b", "c")}
    assert (page.id, page.kind, page.title) == ("manual#2", "page", "manual, page 2")
    assert page.relations == {"next page": ("manual#3",), "previous page": ("manual#1",)}
    assert [i.line.split(":")[1] for i in items if isinstance(i, Problem)] == ["2", "5"]

    table = tmp_path / "t.csv"
    table.write_text("id,title,image,relation:borders\nfr,France,pics/bad.png,de;es\nde,Germany,,\n", encoding="utf-8")
    rows = [i for i in read_source(table) if isinstance(i, Record)]
    assert rows[0].relations == {"borders": ("de", "es")}
    assert rows[1].images == ()
    for name, text in (("bad.csv", "1,2\n3,4\n"), ("x.docx", "x")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(SearchIndexError):
            list(read_source(tmp_path / name))
