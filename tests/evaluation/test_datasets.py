"""Every published format from a small file as its authors write it: ids, questions, answers, pictures, skills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gog_edge.errors import DatasetError, ImageError
from gog_edge.evaluation.datasets import read_dataset
from gog_edge.evaluation.formats import answer_texts, detect, question_text, samples_of
from gog_edge.evaluation.images import ImageStore
from gog_edge.evaluation.samples import ImageRef, Sample
from gog_edge.image.frame import ImageLimits
from gog_edge.search.web.address import AddressPolicy
from gog_edge.search.web.page import PageReader
from tests.evaluation.fakes import b64, own_dataset, picture, write_lines, write_parquet
from tests.search import server as web
from tests.search.server import WebServer


def only(path: Path, **options: Any) -> Sample:
    samples, problems = read_dataset(path, **options)
    assert problems == []
    assert len(samples) == 1
    return samples[0]


def fvqa_row(number: int) -> dict[str, Any]:
    return {
        "prompt": [
            {"role": "user", "content": f"Answer well. Here is the image and the question:\n<image>What is {number}?"}
        ],
        "images": [{"bytes": picture(number, (30 + number, 20)), "path": None}],
        "reward_model": {
            "ground_truth": f"answer {number}",
            "candidate_answers": json.dumps([f"Answer {number}!", f"a{number}"]),
            "style": "rule",
        },
        "data_source": "mmsearch_r1/fvqa_test",
        "image_urls": [f"https://x.example/{number}.jpg"],
        "data_id": f"fvqa_test_{number}",
        "category": "search_required" if number % 2 else "search_free",
    }


def test_fvqa_and_infoseek_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "fvqa_test.parquet", [fvqa_row(i) for i in range(5)])
    samples, problems = read_dataset(path)
    assert problems == []
    third = samples[3]
    assert (third.id, third.question, third.skill) == ("fvqa_test_3", "What is 3?", "search_required")
    assert third.answers == ("answer 3", "Answer 3!", "a3")
    assert third.urls == ("https://x.example/3.jpg",)
    store = ImageStore(())
    assert [store.open(s.images[0]).width for s in samples] == [30, 31, 32, 33, 34]
    assert len(read_dataset(path, limit=2)[0]) == 2


def test_simplevqa_with_base64_pictures_and_numbers(tmp_path: Path) -> None:
    row = {
        "data_id": 7,
        "image": b64(3),
        "image_description": "",
        "language": "EN",
        "question": "In which year?",
        "answer": 1889,
        "original_category": "landmark",
        "source": "x",
        "atomic_question": "What is it?",
        "atomic_fact": "Eiffel Tower",
        "vqa_category": "Time & Event",
    }
    sample = only(write_lines(tmp_path / "simplevqa.jsonl", row))
    assert (sample.id, sample.answers, sample.skill) == ("7", ("1889",), "Time & Event")
    assert ImageStore(()).open(sample.images[0]).width == 40


def test_mmsearch(tmp_path: Path) -> None:
    (tmp_path / "imgs").mkdir()
    (tmp_path / "imgs" / "a.png").write_bytes(picture())
    rows = [
        {
            "sample_id": "m1",
            "query": "Who won?",
            "query_image": "a.png",
            "area": "news",
            "subfield": "sports",
            "gt_requery": "x",
            "gt_answer": "Spain",
            "alternative_gt_answers": ["España", "ESP"],
        },
        {"sample_id": "m2", "query": "text only", "query_image": None, "gt_answer": "x", "alternative_gt_answers": []},
    ]
    samples, problems = read_dataset(write_lines(tmp_path / "mm.jsonl", *rows))
    assert [(s.id, s.answers, s.skill) for s in samples] == [("m1", ("Spain", "España", "ESP"), "news")]
    assert problems == ["mm.jsonl:2: m2: no picture (mmsearch format)"]
    assert ImageStore((tmp_path / "imgs",)).open(samples[0].images[0]).height == 30
    parquet = write_parquet(
        tmp_path / "end2end.parquet", [{**rows[0], "query_image": {"bytes": picture(), "path": "a.png"}}]
    )
    assert ImageStore(()).open(only(parquet).images[0]).height == 30


def test_livevqa_articles_become_questions(tmp_path: Path) -> None:
    article = {
        "id": "17",
        "topic": "politics",
        "img_path": "imgs/17.jpg",
        "text": "…",
        "level1_qas": [
            {"question": "Who?", "options": ["A", "B"], "Ground_Truth": "Ada", "Ground_Truth_List": ["Ada", "A. L."]}
        ],
        "level2_qas": [
            {"question": "Where?", "Ground_Truth": "Oslo"},
            {"question": "When?", "Ground_Truth": None, "Ground_Truth_List": [["May", None], "June"]},
        ],
    }
    (tmp_path / "live.json").write_text(json.dumps([article]), encoding="utf-8")
    samples, problems = read_dataset(tmp_path / "live.json")
    assert problems == []
    assert [(s.id, s.answers, s.skill) for s in samples] == [
        ("17/level1/0", ("Ada", "A. L."), "level1"),
        ("17/level2/0", ("Oslo",), "level2"),
        ("17/level2/1", ("May", "June"), "level2"),
    ]
    flat = {"question": "Who?", "Ground_Truth": "Ada", "img_path": "a.jpg", "sample_id": 3, "topic": "x"}
    assert only(write_lines(tmp_path / "flat.jsonl", flat)).id == "3"


@pytest.mark.parametrize("spelling", ["golden_query", "gloden_query"])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [(["a", "b"], ("a", "b")), ([["a", "b"], None, ["c"]], ("a", "b", "c")), ("a", ("a",)), ([3, 4.5], ("3", "4.5"))],
)
def test_dynvqa(tmp_path: Path, spelling: str, answer: Any, expected: tuple[str, ...]) -> None:
    row = {
        "image_url": "https://x.example/a%20b.jpg",
        "question": "那是什么?",
        "question_id": "en_1",
        "answer": answer,
        spelling: "q",
    }
    sample = only(write_lines(tmp_path / "dyn.jsonl", row))
    assert (sample.id, sample.question, sample.answers) == ("en_1", "那是什么?", expected)
    assert sample.urls == ("https://x.example/a%20b.jpg",)


def test_dynvqa_without_answer_or_picture_is_reported(tmp_path: Path) -> None:
    rows = [
        {
            "image_url": "https://x.example/a.jpg",
            "question": "q",
            "question_id": i,
            "answer": answer,
            "golden_query": "g",
        }
        for i, answer in enumerate([None, [None, []], ["ok"]])
    ]
    samples, problems = read_dataset(
        write_lines(tmp_path / "d.jsonl", *rows, {**rows[2], "question_id": 9, "image_url": None})
    )
    assert [s.id for s in samples] == ["2"]
    assert [p.partition(": ")[2] for p in problems] == [
        "0: no answer (dynvqa format)",
        "1: no answer (dynvqa format)",
        "9: no picture (dynvqa format)",
    ]


def test_webwatcher(tmp_path: Path) -> None:
    row = {
        "prompt": "What is it?",
        "file_path": "img/1.png",
        "answers": ["x", "y"],
        "source": "level1",
        "question_id": "w1",
    }
    sample = only(write_lines(tmp_path / "w.jsonl", row))
    assert (sample.id, sample.answers, sample.skill) == ("w1", ("x", "y"), "level1")
    assert sample.images == (ImageRef("file", "img/1.png"),)


def test_our_own_format(tmp_path: Path) -> None:
    samples, _ = read_dataset(own_dataset(tmp_path, "say gold", "say x"))
    assert samples[0].target_boxes == ((4.0, 4.0, 20.0, 20.0),)
    assert [s.held_out for s in samples] == [True, False]
    assert [s.skill for s in samples] == ["even", "odd"]
    assert read_dataset(tmp_path)[0] == samples


def test_wrong_files_are_named(tmp_path: Path) -> None:
    for name, text, says in (
        ("a.jsonl", '{"foo": 1}\n', "unknown format: fields foo"),
        ("b.jsonl", "not json\n", "no usable question"),
        ("c.json", "{", "not valid JSON"),
        ("d.parquet", "PAR1", "can't be read as parquet"),
        ("e.txt", "x", "can't read this"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(DatasetError, match=says) as caught:
            read_dataset(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(DatasetError, match="no data set"):
        read_dataset(tmp_path / "none.jsonl")
    twice = {"id": "a", "question": "q", "answers": ["x"], "image": "p.png"}
    with pytest.raises(DatasetError, match="there twice"):
        read_dataset(write_lines(tmp_path / "t.jsonl", twice, twice))
    with pytest.raises(DatasetError, match="no format 'x'"):
        read_dataset(tmp_path / "t.jsonl", form="x")
    assert only(write_lines(tmp_path / "f.jsonl", {**twice, "prompt": "p"}), form="gog").question == "q"


def test_pictures_are_found_fetched_once_or_refused(tmp_path: Path) -> None:
    with WebServer() as site:
        site.routes["/a.png"] = web.answer(picture(), content_type="image/png")
        reader = PageReader(AddressPolicy(frozenset({f"127.0.0.1:{site.port}"})))
        url = ImageRef("url", f"{site.url}/a.png")
        with pytest.raises(DatasetError, match="--download"):
            ImageStore(()).open(url)
        for _ in range(2):
            assert ImageStore((), tmp_path / "kept", reader).open(url).width == 40
        assert len(site.calls) == 1
        with pytest.raises(DatasetError, match="HTTP 404"):
            ImageStore((), tmp_path / "kept", reader).open(ImageRef("url", f"{site.url}/none.png"))
        with pytest.raises(DatasetError, match="refused to contact"):
            ImageStore((), tmp_path / "kept").open(ImageRef("url", f"{site.url}/other.png"))
    (tmp_path / "a.png").write_bytes(picture(1))
    assert ImageStore((tmp_path,)).open(url).width == 40
    with pytest.raises(DatasetError, match="--images"):
        ImageStore((tmp_path,)).open(ImageRef("file", "none.png"))
    with pytest.raises((DatasetError, ImageError)):
        ImageStore(()).open(ImageRef("base64", "!!!!"))


def test_limits_hold_for_every_kind_of_reference(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    rows = write_parquet(tmp_path / "fvqa_test.parquet", [fvqa_row(1)])
    (sample,) = read_dataset(rows)[0]
    refs = [ImageRef("file", "a.png"), ImageRef("url", "https://x.example/a.png"), ImageRef("base64", b64(1))]
    for ref in (*refs, sample.images[0]):
        ImageStore((tmp_path,)).open(ref)
        with pytest.raises(ImageError, match="max_pixels"):
            ImageStore((tmp_path,), limits=ImageLimits(max_pixels=9)).open(ref)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(json_values)
def test_any_answer_value_gives_texts(value: Any) -> None:
    assert all(isinstance(a, str) and a for a in answer_texts(value))
    assert isinstance(question_text(value), str)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["fvqa", "gog", "mmsearch"]), json_values, json_values, json_values)
def test_odd_rows_are_samples_or_dataset_errors(name: str, a: Any, b: Any, c: Any) -> None:
    row = {
        "fvqa": {"prompt": a, "reward_model": b, "images": c},
        "gog": {"question": a, "answers": b, "image": c, "target_boxes": a},
        "mmsearch": {"query": a, "gt_answer": b, "query_image": c},
    }[name]
    try:
        for sample in samples_of(row, detect(row), number=1):
            assert sample.question and sample.answers and sample.images
    except DatasetError as e:
        assert str(e)


def test_a_folder_that_is_named_twice_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        ImageStore((tmp_path, tmp_path)).path("gone.jpg")
    assert str(caught.value).count(str(tmp_path)) == 1
