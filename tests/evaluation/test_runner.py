"""Running: resuming, other settings, errors, processes that die, reports, the gallery, the judge, the command."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gog_edge.cli.main import run as run_cli
from gog_edge.errors import EngineError, SearchError, UsageError
from gog_edge.evaluation.datasets import read_dataset
from gog_edge.evaluation.gallery import failures, write_gallery
from gog_edge.evaluation.images import ImageStore
from gog_edge.evaluation.llm_judge import JudgeSpec, LlmJudge
from gog_edge.evaluation.report import group, summarise, table_rows, wilson
from gog_edge.evaluation.results import ResultsFile, read_results
from gog_edge.evaluation.runner import run_samples
from gog_edge.evaluation.worker import AgentSpec, WorkerSpec
from tests.evaluation.fakes import make_agent, make_broken, own_dataset, write_lines
from tests.search import server as web
from tests.search.server import WebServer

SETTINGS = {"bundle": "x", "seed": 0}


def evaluate(
    folder: Path,
    *questions: str,
    workers: int = 1,
    make: Any = make_agent,
    settings: dict[str, Any] = SETTINGS,
    at_once: int = 1,
    one_picture: bool = False,
) -> list[dict[str, Any]]:
    samples, _ = read_dataset(own_dataset(folder, *questions))
    if not one_picture:  # the data set has one; a reference that differs counts as another
        samples = [replace(s, images=(replace(s.images[0], index=i),)) for i, s in enumerate(samples)]
    results = ResultsFile(folder / "out.jsonl", settings)
    spec = WorkerSpec(AgentSpec("bundle", at_once=at_once), (str(folder),), make=make)
    try:
        run_samples(samples, spec, results, workers=workers)
    finally:
        results.close()
    return read_results(folder / "out.jsonl")[1]


def test_results_hold_scores_steps_and_boxes(tmp_path: Path) -> None:
    right, wrong, failed = evaluate(tmp_path, "say the Gold!", "say silver", "fail now")
    assert right["scores"] == {"em": 1.0, "subem": 1.0, "f1": 1.0, "recall": 1.0}
    assert wrong["scores"]["subem"] == 0.0
    assert right["target_iou"] == 1.0
    assert right["actions"]["gaze"] == 1
    assert right["steps"][0]["actions"][0]["box"] == [4.0, 4.0, 20.0, 20.0]
    assert right["steps"][0]["observations"][0]["hits"][0]["entity"] == "e"
    assert failed["error"] == "EngineError: out of memory"
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["settings"] == SETTINGS


def test_questions_run_side_by_side_in_one_process(tmp_path: Path) -> None:
    """By default as many as the policy decodes together; one that fails is its own row; neighbours about the same
    picture wait for each other."""
    for at_once, met in ((3, 3), (0, 4)):
        folder = tmp_path / str(at_once)
        folder.mkdir()
        asked = [f"meet {met}"] * 3 + ["fail now"] + [f"meet {met}"] * 4
        rows = evaluate(folder, *asked, at_once=at_once)
        assert sorted(r["id"] for r in rows) == [f"q{i}" for i in range(8)]
        by_id = {r["id"]: r for r in rows}
        assert by_id.pop("q3")["error"] == "EngineError: out of memory"
        assert {r["prediction"] for r in by_id.values()} == {str(met)}
    same = tmp_path / "same"
    same.mkdir()
    rows = evaluate(same, *["meet 1"] * 4, at_once=4, one_picture=True)
    assert [(r["id"], r["prediction"]) for r in rows] == [(f"q{i}", "1") for i in range(4)]


def test_an_unexpected_error_ends_all_of_them(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        evaluate(tmp_path, "say a", "break", "sleep", "sleep", at_once=2)


def test_running_again_asks_only_what_is_missing(tmp_path: Path) -> None:
    evaluate(tmp_path, "say gold", "say x")
    before = (tmp_path / "out.jsonl").read_bytes()
    evaluate(tmp_path, "say gold", "say x")
    assert (tmp_path / "out.jsonl").read_bytes() == before
    rows = evaluate(tmp_path, "say gold", "say x", "say gold")
    assert [r["id"] for r in rows] == ["q0", "q1", "q2"]
    with (tmp_path / "out.jsonl").open("ab") as stream:
        stream.write(b'{"id": "q3", "cut')  # killed while writing
    rows = evaluate(tmp_path, "say gold", "say x", "say gold", "say gold")
    assert [r["id"] for r in rows] == ["q0", "q1", "q2", "q3"]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    evaluate(tmp_path, "say gold")
    with pytest.raises(UsageError, match=r"seed: 0 then, 1 now.*--restart"):
        evaluate(tmp_path, "say gold", settings={"bundle": "x", "seed": 1})
    (tmp_path / "out.jsonl").write_text("something else\n", encoding="utf-8")
    with pytest.raises(UsageError, match="not a results file"):
        evaluate(tmp_path, "say gold")


def test_processes_share_the_work(tmp_path: Path) -> None:
    rows = evaluate(tmp_path, *["sleep a"] * 6, workers=2)
    assert sorted(r["id"] for r in rows) == [f"q{i}" for i in range(6)]
    assert all(r["prediction"] == f"{r['id']} bundle" for r in rows)


def test_a_process_that_dies_costs_only_its_question(tmp_path: Path) -> None:
    rows = {r["id"]: r for r in evaluate(tmp_path, "say gold", "die always", workers=2)}
    assert sorted(rows) == ["q0", "q1"]
    assert rows["q0"]["scores"]["em"] == 1.0
    assert "died twice" in rows["q1"]["error"]
    # A death is the machine's trouble: the question is asked again next time.
    assert "q1" not in ResultsFile(tmp_path / "out.jsonl", SETTINGS).done


def test_a_process_that_dies_once_is_no_error(tmp_path: Path) -> None:
    rows = {r["id"]: r for r in evaluate(tmp_path, "say gold", f"die once {tmp_path / 'died'}", workers=2)}
    assert sorted(rows) == ["q0", "q1"]
    assert not rows["q1"].get("error")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_agent_that_can_not_be_made_is_reported(tmp_path: Path, workers: int) -> None:
    with pytest.raises(EngineError, match="no such bundle"):
        evaluate(tmp_path, "say gold", "say gold", workers=workers, make=make_broken)


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    own_dataset(tmp_path, *["sleep a"] * 40)
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from gog_edge.evaluation.datasets import read_dataset
        from gog_edge.evaluation.results import ResultsFile
        from gog_edge.evaluation.runner import run_samples
        from gog_edge.evaluation.worker import AgentSpec, WorkerSpec
        from tests.evaluation.fakes import make_agent
        folder = Path(sys.argv[1])
        samples, _ = read_dataset(folder / "set.jsonl")
        spec = WorkerSpec(AgentSpec("bundle"), (str(folder),), make=make_agent)
        results = ResultsFile(folder / "out.jsonl", {"bundle": "x", "seed": 0})
        run_samples(samples, spec, results, progress=lambda row: print("done", flush=True))
        """
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert child.stdout is not None
    for _ in range(5):
        assert child.stdout.readline().strip() == "done"
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    child.stdout.close()
    kept = read_results(tmp_path / "out.jsonl")[1]
    assert 5 <= len(kept) < 40
    assert len(evaluate(tmp_path, *["sleep a"] * 40)) == 40


def test_figures_by_skill_and_split(tmp_path: Path) -> None:
    rows = evaluate(tmp_path, "say gold", "say x", "say gold", "fail")
    found = summarise(rows, SETTINGS, {"q0": True, "q1": True})
    assert found["skills"]["even"]["em"] == 1.0
    assert found["skills"]["odd"] == found["skills"]["odd"] | {
        "n": 2,
        "errors": 1,
        "em": 0.0,
        "judge": 1.0,
        "judged": 1,
    }
    assert found["split"]["held out"]["n"] == found["split"]["seen"]["n"] == 2
    assert found["all"]["target_iou"] == 1.0
    assert found["all"]["stops"] == {"answered": 3, "error": 1}
    names, cells = table_rows(found)
    assert all(len(c) == len(names) for c in cells)
    assert [c[0] for c in cells] == ["even", "odd", "held out", "seen", "all"]
    assert group([])["n"] == 0


def test_wilson_interval() -> None:
    low, high = wilson(8, 10)
    assert (low, high) == (0.4902, 0.9433)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 5)[0] == 0.0 and wilson(5, 5)[1] == 1.0


def test_the_gallery_shows_failures_and_runs_nothing(tmp_path: Path) -> None:
    rows = evaluate(tmp_path, "say gold", "say <img src=x onerror=alert(1)>", "fail")
    wrong = failures(rows)
    assert [r["id"] for r in wrong] == ["q1", "q2"]
    assert [r["id"] for r in failures(rows, {"q1": True, "q0": False})] == ["q0", "q2"]
    samples = {s.id: s for s in read_dataset(tmp_path / "set.jsonl")[0]}
    store = ImageStore((tmp_path,))
    path = tmp_path / "g" / "gallery.html"
    assert write_gallery(path, wrong, lambda i: store.open(samples[i].images[0]), title="t") == 2
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page and "<img" not in page
    assert page.count("data:image/jpeg;base64,") == 2
    assert "stroke-dasharray" in page and "&lt;b&gt;thing" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    (tmp_path / "p.png").unlink()
    assert write_gallery(path, wrong, lambda i: store.open(samples[i].images[0]), title="t", limit=1) == 1
    assert "--images" in path.read_text(encoding="utf-8")


def judge_route(handler: Any, call: web.Call) -> None:
    assert call.headers["authorization"] == "Bearer judge-key"
    body = call.json
    assert body["temperature"] == 0
    asked = json.loads(body["messages"][1]["content"])
    said = asked["answer to judge"]
    if said == "busy" and not handler.server.__dict__.setdefault("busy", 0):
        handler.server.__dict__["busy"] = 1
        return web.send(handler, b"{}", 429, retry_after="0")
    if said == "broken":
        return web.send(handler, b'{"error": "judge-key is bad"}', 400)
    verdict = {"gold": "[CORRECT]", "vague": "hmm"}.get(said, "not [CORRECT] but [INCORRECT]")
    web.send(handler, json.dumps({"choices": [{"message": {"role": "assistant", "content": verdict}}]}).encode())


def test_the_judge_is_asked_once_per_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "judge-key")
    said = ["gold", "wrong", "vague", "broken", "busy", ""]
    rows = [{"id": str(i), "question": "q", "answers": ["gold"], "prediction": s} for i, s in enumerate(said)]
    with WebServer() as site:
        site.routes["/v1/chat/completions"] = judge_route
        judge = LlmJudge(JudgeSpec(f"{site.url}/v1", "m"), sleep=lambda s: None)
        verdicts, problems = judge.judge_all(rows, tmp_path / "v")
        assert verdicts == {"0": True, "1": False, "4": False, "5": False}
        assert sorted(re.sub(r"'.*", "", p) for p in problems)[0].startswith("2: judge m: no verdict")
        assert "judge-key" not in " ".join(problems)
        asked = len(site.calls)
        rows[1]["prediction"] = "gold"  # a new answer is judged anew, old ones are not
        verdicts, _ = judge.judge_all([rows[0], rows[1], rows[4]], tmp_path / "v")
        assert (verdicts["1"], len(site.calls)) == (True, asked + 1)
        judge.close()


def test_a_dead_judge_is_a_search_error() -> None:
    with WebServer() as site:
        site.routes["/v1/chat/completions"] = web.silent()
        judge = LlmJudge(JudgeSpec(f"{site.url}/v1", "m", timeout=0.1), sleep=lambda s: None)
        with pytest.raises(SearchError):
            judge.verdict("q", ["a"], "b")


def test_the_command_measures_a_real_bundle(
    tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own_dataset(tmp_path, "What is this?", "And this?")
    options = ["--bundle", str(tiny_bundle), "--max-turns", "1", "--deadline", "2s", "--no-gaze", "--grammar", "off"]
    options += ["--summary", "s.json", "--gallery", "g.html"]
    assert run_cli(["eval", "set.jsonl", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["all"]["n"], found["all"]["errors"]) == (2, 0)
    assert found["settings"]["without"] == ["gaze", "zoom"]
    assert json.loads((tmp_path / "s.json").read_text()) == found
    assert (tmp_path / "g.html").exists()
    began = time.monotonic()
    assert run_cli(["eval", "set.jsonl", *options]) == 0
    assert time.monotonic() - began < 10
    assert "SubEM" in capsys.readouterr().out
    assert run_cli(["eval", "set.jsonl", "--report", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["all"]["n"] == 2
    assert run_cli(["eval", "set.jsonl", *options, "--seed", "3"]) == 2
    assert "seed: 0 then, 3 now" in capsys.readouterr().err


def test_questions_that_can_not_be_asked_are_told(
    tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": n, "image": f"gone{n}.jpg", "question": "q", "answers": ["a"]} for n in range(5)]
    write_lines(tmp_path / "set.jsonl", *rows)
    assert run_cli(["eval", "set.jsonl", "--bundle", str(tiny_bundle)]) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "no answer to 1 DatasetError: picture 'gone0.jpg' is not in" in err
    assert "no answer to 2 more see `error` in the results" in err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["none.jsonl", "--bundle", "."], "no data set"),
        (["set.jsonl"], "there is no bundle yet"),
        (["set.jsonl", "--bundle", "nowhere"], "nowhere"),
        (["set.jsonl", "--bundle", ".", "--judge-url", "http://x/v1"], "--judge-model"),
        (["set.jsonl", "--report", "--out", "none"], "no such results file"),
    ],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, args: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GOG_EDGE_BUNDLE", raising=False)
    own_dataset(tmp_path, "q")
    assert run_cli(["eval", *args]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err
