"""The commands at work, in process, on a tiny policy: export, inspect, ask, bench, and what they write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gog_edge.cli.main import run


def test_export_then_inspect(
    tiny_checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    assert run(["export", str(tiny_checkpoints["qwen2_5_vl"]), "-o", str(bundle), "--precision", "int4"]) == 0
    assert run(["inspect", str(bundle), "--hashes", "--graphs"]) == 0
    text = capsys.readouterr().out
    assert "qwen2_5_vl, int4, backend " in text
    assert "window_gather" in text
    assert run(["inspect", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "int4"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["export", "no-such-folder", "-o", "out"], "no-such-folder"),
        (["export", "{bundle}", "-o", "out"], "is a bundle already"),
        (["export", "{checkpoint}", "-o", "out", "--verify-image", "x.jpg"], "--verify-image needs --verify"),
        (["export", "{checkpoint}", "-o", "out", "--ops", "stock"], "--ops stock is now --backend ort"),
        (["export", "{checkpoint}", "-o", "out", "--flavour", "standard"], "standard is now --backend portable"),
        (["export", "{checkpoint}", "-o", "out", "--target", "cpu"], "--target cpu is now --backend native or ort"),
        (["export", "{checkpoint}", "-o", "out", "--target", "tensorrt"], "tensorrt is now --backend tensorrt"),
        (["ask", "What is this?", "--bundle", "{bundle}"], "'What is this?' is no picture"),
        (["ask", "{photo}", "--bundle", "{bundle}", "--dialect", "agile"], "a question is needed"),
        (["ask", "{photo}", "what?"], "there is no bundle yet: gog-edge export CHECKPOINT makes one"),
        (["ask", "{photo}", "what?", "--bundle", "nono"], "there is no bundle 'nono', neither here nor in the library"),
        (["ask", "-", "-", "what?", "--bundle", "{bundle}"], "- (standard input) can be one picture only"),
        (["remove", "nono"], "there is no bundle 'nono' in the library, which is empty"),
        (["remove", "../x"], "'../x' can't be the name of a bundle"),
        (["export", "{checkpoint}", "--name", "a/b"], "'a/b' can't be the name of a bundle"),
        (
            ["ask", "{photo}", "what?", "--bundle", "{bundle}", "--trace", "x.pdf"],
            "must end in .html, .perfetto.json or .json",
        ),
        (["ask", "{photo}", "what?", "--bundle", "{bundle}", "--engine", "cpuu"], "did you mean 'cpu'?"),
        (["ask", "{photo}", "what?", "--bundle", "{bundle}", "--dialect", "gogg"], "gog"),
        (["ask", "missing.jpg", "what?", "--bundle", "{bundle}"], "missing.jpg"),
        (["ask", "{photo}", "what?", "--bundle", "{bundle}", "--index", "no-index"], "no-index"),
        (["export", "{checkpoint}", "-o", "out", "--dialect", "zz"], "no dialect 'zz'"),
        (["bench", "encod", "--bundle", "{bundle}"], "there is no scenario 'encod'"),
        (["bench", "diff", "a.json", "b.json"], "a.json"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    args: list[str],
    message: str,
    tiny_bundle: Path,
    tiny_checkpoints: dict[str, Path],
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"bundle": str(tiny_bundle), "checkpoint": str(tiny_checkpoints["qwen3_vl"]), "photo": str(photo)}
    assert run([a.format(**names) for a in args]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_ask_writes_answer_and_traces(
    tiny_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = [
        "ask",
        str(photo),
        "What is <b>it</b>?",
        "--bundle",
        str(tiny_bundle),
        "--max-turns",
        "1",
        "--deadline",
        "60s",
    ]
    assert run([*base, "--json", "--trace", str(tmp_path / "t.html"), "--grammar", "off"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["question"] == "What is <b>it</b>?"
    assert answer["stop"] in ("forced", "deadline", "exhausted", "answered")
    page = (tmp_path / "t.html").read_text()
    assert "What is &lt;b&gt;it&lt;/b&gt;?" in page
    assert "data:image/jpeg;base64," in page
    assert run([*base, "--quiet", "--trace", str(tmp_path / "t.json"), "--grammar", "off"]) == 0
    trace = json.loads((tmp_path / "t.json").read_text())
    assert {"encode", "prefill", "decode"} <= set(trace["stages"])


def test_bench_reports_and_diffs(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, page = tmp_path / "r.json", tmp_path / "r.html"
    args = ["bench", "encode", "questions", "--bundle", str(tiny_bundle), "--repeats", "2", "--no-roofline"]
    assert run([*args, "--out", str(out), "--html", str(page), "--json"]) == 0
    text = capsys.readouterr().out
    assert "every other question" in text
    assert json.loads(text.strip().splitlines()[-1])["format"] == "gog-edge-bench"
    assert page.read_text().count("<svg") >= 2
    assert run(["bench", "diff", str(out), str(out)]) == 0
    slower = json.loads(out.read_text())
    for cell in slower["cells"]:
        cell["samples"] = [s * 4 for s in cell["samples"]]
    (tmp_path / "slow.json").write_text(json.dumps(slower))
    assert run(["bench", "diff", str(out), str(tmp_path / "slow.json")]) == 1
    assert "worse" in capsys.readouterr().out
