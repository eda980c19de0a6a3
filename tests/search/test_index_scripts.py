"""Words of many scripts: one word stays one; what is written without a mark is found with it, and the reverse."""

from __future__ import annotations

import sqlite3
import unicodedata
from pathlib import Path

import pytest

from gog_edge.errors import SearchIndexError
from gog_edge.search.local import database
from gog_edge.search.local.index import LocalIndex
from gog_edge.search.local.ingest import add_records
from gog_edge.search.local.text import parse_query, tokens
from tests.search.fakes import record


def found(tmp_path: Path, query: str, *entries: str) -> list[str]:
    """Which entries a query finds, whatever their score."""
    with LocalIndex(tmp_path / "i", create=True) as index:
        add_records(index, [record(str(n), title) for n, title in enumerate(entries)])
        return sorted(h.title for h in index.search(query, k=9, cut="none"))


@pytest.mark.parametrize(
    ("query", "right", "wrong"),
    [
        pytest.param("किला", "लाल किला", "केला", id="Hindi"),
        pytest.param("কলা", "পাকা কলা", "কালী", id="Bengali"),
        pytest.param("பால்", "பால்", "பல்", id="Tamil"),
        pytest.param("ಕಲೆ", "ಕಲೆ", "ಕಾಲ", id="Kannada"),
        pytest.param("น้ำ", "ดื่มน้ำเย็น", "นา", id="Thai"),
        pytest.param("ສະບາຍ", "ສະບາຍດີ", "ສີຫາງ", id="Lao"),
        pytest.param("ខ្មែរ", "ភាសាខ្មែរ", "ខមរា", id="Khmer"),
        pytest.param("မြန်မာ", "မြန်မာနိုင်ငံ", "မုန်းမေ", id="Burmese"),
        pytest.param("서울", "서울은 수도이다", "울산 서산", id="Korean"),
        pytest.param("がく", "がくせい", "かくせい", id="Japanese"),
        pytest.param("中国", "中国的首都", "国中", id="Chinese"),
    ],
)
def test_marks_belong_to_words(tmp_path: Path, query: str, right: str, wrong: str) -> None:
    assert found(tmp_path, query, right, wrong) == [right]


@pytest.mark.parametrize(
    ("plain", "marked"),
    [
        pytest.param("كتاب", "كِتَابٌ", id="Arabic vowels"),
        pytest.param("كتاب", "كتـــاب", id="Arabic tatweel"),
        pytest.param("احمد", "أحمد", id="Arabic hamza"),
        pytest.param("שלום", "שָׁלוֹם", id="Hebrew points"),
        pytest.param("किला", "क़िला", id="Devanagari dot"),
        pytest.param("क्ष", "क्\u200dष", id="joiner"),
        pytest.param("Lodz", "Łódź", id="Polish"),
        pytest.param("Tromso", "Tromsø", id="Norwegian"),
        pytest.param("Aero", "Ærø", id="Danish"),
        pytest.param("Dac Lak", "Đắc Lắk", id="Vietnamese"),
        pytest.param("coeur", "cœur", id="French"),
        pytest.param("Thor", "Þór", id="Icelandic"),
        pytest.param("Diyarbakir", "Diyarbakır", id="Turkish"),
        pytest.param("strasse", "Straße", id="German"),
        pytest.param("ελλαδα", "Ελλάδα", id="Greek"),
    ],
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_what_is_left_out_in_writing_is_folded(tmp_path: Path, plain: str, marked: str, form: str) -> None:
    marked = unicodedata.normalize(form, marked)
    assert tokens(plain) == tokens(marked)
    assert found(tmp_path, plain, marked, "zzz") == [marked]
    (tmp_path / "back").mkdir()
    assert found(tmp_path / "back", marked, plain, "zzz") == [plain]


def test_a_run_of_hangul_is_asked_by_pairs() -> None:
    assert parse_query("서울은").terms == ("서 울", "울 은")
    assert parse_query("강").terms == ("강",)
    assert parse_query("ก็ดี").terms == ("ก็ ดี",)


def old(folder: Path) -> None:
    """An index as version 1 left it: words without their marks, an id that is not composed."""
    with LocalIndex(folder, create=True) as index:
        add_records(index, [record("a", "किला", "fort"), record("b", "केला", "banana", part="cafe")])
    with sqlite3.connect(folder / "index.db") as c:
        c.execute("DROP TABLE entity_terms")
        c.execute("DROP TABLE entity_fts")
        c.execute(
            "CREATE VIRTUAL TABLE entity_fts USING fts5(title, text, content='', "
            "tokenize='porter unicode61 remove_diacritics 2')"
        )
        c.execute("CREATE VIRTUAL TABLE entity_terms USING fts5vocab(entity_fts, row)")
        c.executemany("INSERT INTO entity_fts (rowid, title, text) VALUES (?, 'क ल', '')", [(1,), (2,)])
        c.execute("UPDATE entities SET id = ? WHERE id = 'a'", (unicodedata.normalize("NFD", "café"),))
        c.execute("UPDATE relations SET target = ?", (unicodedata.normalize("NFD", "café"),))
        c.execute("PRAGMA user_version = 1")
    c.close()


@pytest.mark.parametrize("writable", [True, False])
def test_an_index_of_version_1_is_read_again_once(tmp_path: Path, writable: bool) -> None:
    old(tmp_path / "i")
    for _ in range(2):
        with LocalIndex(tmp_path / "i", writable=writable) as index:
            assert [h.title for h in index.search("केला", k=9, cut="none")] == ["केला"]
            assert [h.title for h in index.search("केला", k=1, expand=2)] == ["केला", "किला"]
            assert index.find("café") is not None
    with LocalIndex(tmp_path / "i", writable=True) as index:
        report = add_records(index, [record("café", "किला", "fort"), record("b", "केला", "new words", part="cafe")])
        assert (report.unchanged, report.updated) == (1, 1)  # words can be taken out again


def test_an_index_of_version_1_that_cannot_be_written_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old(tmp_path / "i")
    monkeypatch.setattr(database.os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(SearchIndexError, match="gog-edge index info"):
        LocalIndex(tmp_path / "i")
