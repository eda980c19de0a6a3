"""`gog-edge eval` over a small file in every published format: recognised, asked, scored, resumed, shown. The policy
plays a script; data sets, recorded searches, agent loop, scores and command are the real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gog_edge.cli.main import run
from tests.cli.asking import GAZE, GLANCE, Play
from tests.evaluation.fakes import b64, picture, write_lines, write_parquet
from tests.search import server as web
from tests.search.server import WebServer


def fvqa(folder: Path, source: str = "mmsearch_r1/fvqa_test") -> Path:
    def row(number: int, gold: str) -> dict[str, Any]:
        return {
            "prompt": [{"role": "user", "content": "Here is the image and the question:\n<image>Who won?"}],
            "images": [{"bytes": picture(number), "path": None}],
            "reward_model": {"ground_truth": gold, "candidate_answers": json.dumps([f"{gold}!"]), "style": "rule"},
            "data_source": source,
            "image_urls": [f"https://x.example/{number}.jpg"],
            "data_id": f"fvqa_test_{number}",
            "category": "search_required" if number else "search_free",
        }

    return write_parquet(folder / "test.parquet", [row(0, "Spain"), row(1, "Peru")])


def infoseek(folder: Path) -> Path:
    return fvqa(folder, "infoseek")


def simplevqa(folder: Path) -> Path:
    row = {"image": b64(), "question": "Who won?", "atomic_question": "What is it?", "vqa_category": "Time & Event"}
    return write_lines(folder / "s.jsonl", *({**row, "data_id": i, "answer": a} for i, a in enumerate(("Spain", 7))))


def mmsearch(folder: Path) -> Path:
    (folder / "a.png").write_bytes(picture())
    row = {"query": "Who won?", "query_image": "a.png", "area": "news", "gt_requery": "x"}
    golds = ({"gt_answer": "x", "alternative_gt_answers": ["Spain"]}, {"gt_answer": "Peru"})
    return write_lines(folder / "m.jsonl", *({**row, "sample_id": f"m{i}", **gold} for i, gold in enumerate(golds)))


def livevqa(folder: Path) -> Path:
    (folder / "imgs").mkdir()
    (folder / "imgs/17.jpg").write_bytes(picture())
    article = {
        "id": "17",
        "img_path": "imgs/17.jpg",
        "level1_qas": [{"question": "Who?", "Ground_Truth": "Spain", "Ground_Truth_List": ["Spain", "ESP"]}],
        "level2_qas": [{"question": "Where?", "Ground_Truth": "Lima"}],
    }
    (folder / "live.json").write_text(json.dumps([article]))
    return folder / "live.json"


def dynvqa(folder: Path) -> Path:
    (folder / "a b.png").write_bytes(picture())
    row = {"image_url": "https://x.example/p/a%20b.png", "question": "谁赢了?"}
    return write_lines(
        folder / "d.jsonl",
        {**row, "question_id": "en_1", "answer": [["Spain", None]], "golden_query": "q"},
        {**row, "question_id": "en_2", "answer": ["Peru"], "gloden_query": "q"},
        {**row, "question_id": "en_3", "answer": None, "golden_query": "q"},
    )


def webwatcher(folder: Path) -> Path:
    (folder / "a.png").write_bytes(picture())
    row = {"prompt": "Who won?", "file_path": "a.png", "source": "level1"}
    golds = (["x", "Spain"], ["Peru"])
    return write_lines(folder / "w.jsonl", *({**row, "question_id": i, "answers": g} for i, g in enumerate(golds)))


def gog(folder: Path) -> Path:
    (folder / "a.png").write_bytes(picture())
    row = {"image": "a.png", "question": "Who won?", "skill": "one-hop", "target_boxes": [[0, 0, 20, 15]]}
    return write_lines(folder / "g.jsonl", *({**row, "id": g, "answers": [g]} for g in ("Spain", "Peru")))


@pytest.mark.parametrize("write", [fvqa, infoseek, simplevqa, mmsearch, livevqa, dynvqa, webwatcher, gog])
def test_every_format_is_asked_and_scored(
    write: Callable[[Path], Path],
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    play: Play,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two questions a file, the first with an answer that the policy gives, "Spain"."""
    monkeypatch.chdir(tmp_path)
    play(["<answer>It was Spain.</answer>"])
    command = ["eval", str(write(tmp_path)), "--bundle", str(tiny_bundle), "--grammar", "off", "--out", "o.jsonl"]
    assert run([*command, "--gallery", "g.html", "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)["all"]
    assert (found["n"], found["errors"], found["subem"], found["em"]) == (2, 0, 0.5, 0.0)
    assert 0 < found["f1"] < 1
    assert ("skipped" in shown.err) == (write is dynvqa)  # the row without an answer is named
    assert Path("g.html").read_text().count("<article>") == 1
    first = Path("o.jsonl").read_text()
    assert run([*command, "--json"]) == 0  # nothing is left to ask
    assert Path("o.jsonl").read_text() == first


def test_fvqa_with_its_recorded_image_searches(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    """MMSearch-R1's evaluation offline: the question's id finds the recorded results; a crop has none recorded."""
    monkeypatch.chdir(tmp_path)
    recorded = {
        f"fvqa_test_{i}": {"tool_returned_web_title_list": [f"Title {i}"], "tool_returned_images_urls": [None]}
        for i in range(2)
    }
    Path("cache.json").write_text(json.dumps(recorded))
    Path("search.toml").write_text('[[provider]]\nkind = "fvqa-cache"\npath = "cache.json"\n')
    play([GLANCE, "<answer>Spain</answer>"])
    command = ["eval", str(fvqa(tmp_path)), "--bundle", str(tiny_bundle), "--grammar", "off", "--out", "o.jsonl"]
    assert run([*command, "--search", "search.toml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["all"]["subem"], found["skills"]["search_free"]["subem"]) == (0.5, 1.0)
    rows = [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()[1:]]
    seen = {row["id"]: [h["title"] for h in row["steps"][0]["observations"][0]["hits"]] for row in rows}
    assert seen == {"fvqa_test_0": ["Title 0"], "fvqa_test_1": ["Title 1"]}


def test_the_data_sets_addresses_reach_web_providers_and_a_judge_scores(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SERPER_API_KEY", "k3y")
    play([GLANCE, "<answer>Iberia</answer>"])
    with WebServer() as site:
        site.routes["/lens"] = web.answer({"organic": [{"title": "Final", "link": "https://a.example"}]})
        site.routes["/v1/chat/completions"] = web.answer({"choices": [{"message": {"content": "[CORRECT]"}}]})
        Path("search.toml").write_text(f'[[provider]]\npreset = "serper"\nendpoint = "{site.url}"\n')
        command = ["eval", str(fvqa(tmp_path)), "--bundle", str(tiny_bundle), "--grammar", "off", "--json"]
        command += ["--search", "search.toml", "--judge-url", f"{site.url}/v1", "--judge-model", "m"]
        assert run(command) == 0
        asked = [call.json["url"] for call in site.calls if call.path == "/lens"]
    found = json.loads(capsys.readouterr().out)["all"]
    assert asked == ["https://x.example/0.jpg", "https://x.example/1.jpg"]
    assert (found["subem"], found["judge"]) == (0.0, 1.0)


def test_boxes_are_compared_with_their_targets(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    play([GAZE, "<answer>Spain</answer>"])
    command = ["eval", str(gog(tmp_path)), "--bundle", str(tiny_bundle), "--grammar", "off", "--json"]
    assert run(command) == 0
    assert json.loads(capsys.readouterr().out)["all"]["target_iou"] == pytest.approx(1.0)
