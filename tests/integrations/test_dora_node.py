"""`gog-edge dora` in real dataflows, started by dora's own program: a camera, the node, a sink."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("dora", reason="needs the extra dora")
pytest.importorskip("dora_cli", reason="needs the extra dora")

from gog_edge.agent.camera.newest import newest_answers
from gog_edge.cli.main import run
from gog_edge.errors import ImageError
from gog_edge.integrations.inbox import Inbox
from gog_edge.integrations.pixels import frame_of_message
from tests.cli.asking import ANSWER, GAZE
from tests.integrations.command import environment
from tests.integrations.dora.camera import encoded

ROOT = Path(__file__).resolve().parents[2]
DORA = shutil.which("dora", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])) or "dora"
STUBS = Path(__file__).resolve().parent / "dora"


def dataflow(folder: Path, bundle: Path, *options: str) -> Path:
    """A description of camera -> gog-edge -> sink."""
    words = " ".join(["-m tests.integrations.command dora --no-index --bundle", str(bundle), *options])
    path = folder / "flow.yml"
    path.write_text(f"""
nodes:
  - {{id: camera, path: {STUBS / "camera.py"}, outputs: [image, question], inputs: {{tick: dora/timer/secs/60}}}}
  - id: policy
    path: {sys.executable}
    args: {words}
    outputs: [answer, boxes]
    inputs: {{image: {{source: camera/image, queue_size: 1}}, question: camera/question}}
  - {{id: sink, path: {STUBS / "sink.py"}, inputs: {{answer: policy/answer, boxes: policy/boxes}}}}
""")
    return path


def play(folder: Path, flow: Path, plan: list[Any], script: list[str], wanted: int, seconds: float = 0.0) -> list[Any]:
    """Run a dataflow until its sink has what it wants; what the sink got."""
    env = environment(script, seconds) | {
        "PLAN": "\n".join(map(json.dumps, plan)),
        "SEEN": str(folder / "seen"),
        "WANTED": str(wanted),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    command = [DORA, "run", str(flow), "--stop-after", "120s"]
    with subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            assert process.stdout is not None
            log = ""
            for line in process.stdout:
                log += line.decode(errors="replace")
                if "sink finished" in log:
                    process.terminate()
                    break
            log += process.stdout.read().decode(errors="replace")
        finally:
            process.kill()
    assert "Traceback" not in log, log
    return [json.loads(line) for line in (folder / "seen").read_text().splitlines()]


def test_pictures_of_every_kind_come_back_as_answers_and_boxes(tiny_bundle: Path, tmp_path: Path) -> None:
    kinds = ["bgr8", "rgb8", "jpeg", "short", "png", "yuv9"]
    plan = [[1.0 if n else 0, "image", [kind, [200, 30, 10]]] for n, kind in enumerate(kinds)]
    flow = dataflow(tmp_path, tiny_bundle, "--question", "'When was it finished?'")
    seen = play(tmp_path, flow, plan, [GAZE, ANSWER], len(kinds))
    answers = [json.loads(one["value"]) for one in seen if one["id"] == "answer"]
    assert [a["frame"] for a in answers] == list(range(6)) and not any(a["dropped"] for a in answers)
    assert {a["question"] for a in answers} == {"When was it finished?"}
    good = [a for a in answers if "error" not in a]
    assert [a["frame"] for a in good] == [0, 1, 2, 4]
    for answer in good:
        assert (answer["answer"], answer["stop"], answer["width"], answer["height"]) == ("1889", "answered", 160, 120)
        assert [box["box"] for box in answer["boxes"]] == [[0, 0, 80, 60]]
    assert answers[3]["error"] == "a rgb8 picture of 160x120 has 57600 bytes, not 100"
    assert answers[5]["error"].startswith("encoding 'yuv9' is not known: send rgb8, bgr8")
    boxes = [one for one in seen if one["id"] == "boxes"]
    assert [one["value"] for one in boxes] == [{"bbox": [0, 0, 80, 60], "conf": [1], "labels": ["x"]}] * 4
    about = {"primitive": "boxes2d", "format": "xyxy", "width": 160, "height": 120}
    assert [one["metadata"] for one in boxes] == [{**about, "frame": n} for n in (0, 1, 2, 4)]


def test_the_newest_picture_is_asked_about_within_its_deadline(tiny_bundle: Path, tmp_path: Path) -> None:
    """Steps of ten minutes: every question ends by its deadline, and the pictures of that time are dropped."""
    plan = [[0.1 if n else 0, "image", ["rgb8", [n, n, n]]] for n in range(30)]
    flow = dataflow(tmp_path, tiny_bundle, "--question", "q", "--deadline", "1s")
    seen = play(tmp_path, flow, plan, [ANSWER], 2, seconds=600)
    first, second = (json.loads(one["value"]) for one in seen if one["id"] == "answer")
    assert first["stop"] == second["stop"] == "deadline" and first["answer"] == ""
    assert second["frame"] - first["frame"] - 1 == second["dropped"] > 0


def test_a_question_is_asked_about_the_picture_that_is_there(tiny_bundle: Path, tmp_path: Path) -> None:
    plan = [
        [0, "image", ["rgb8", [1, 1, 1]]],
        [1, "question", "  "],  # is no question
        [1, "question", "What is it?"],
        [1, "question", "Where is it?"],
    ]
    seen = play(tmp_path, dataflow(tmp_path, tiny_bundle), plan, [ANSWER], 2)
    answers = [json.loads(one["value"]) for one in seen if one["id"] == "answer"]
    assert [(a["question"], a["frame"], a["answer"]) for a in answers] == [
        ("What is it?", 0, "1889"),
        ("Where is it?", 0, "1889"),
    ]


def test_the_example_dataflow(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    """As it is in examples/robots, with the installed gog-edge; a random policy writes whatever it writes."""
    folder = tmp_path / "robots"
    shutil.copytree(ROOT / "examples" / "robots", folder)
    env = environment(None) | {"PICTURE": str(photo), "FRAMES": "1", "GOG_EDGE_BUNDLE": str(tiny_bundle)}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [DORA, "run", "dataflow.yml", "--stop-after", "60s"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    log = done.stdout + done.stderr
    assert done.returncode == 0, log
    assert re.search(r"show: +frame 0: \S", log) and re.search(r"show: +looked at: \[", log), log


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "bgra8", "jpeg", "png", "mono8"])
def test_colours_are_where_they_belong(encoding: str) -> None:
    data, metadata = encoded(encoding, [200, 30, 10])
    frame = frame_of_message(data.to_numpy(), metadata)
    wanted = [200, 200, 200] if encoding == "mono8" else [200, 30, 10]
    assert (frame.width, frame.height) == (160, 120)
    assert np.abs(frame.pixels.astype(int) - wanted).max() <= 3


@pytest.mark.parametrize("size", [{}, {"width": 160}, {"width": "160", "height": 120}, {"width": 0, "height": 0}])
def test_pixels_without_a_size(size: dict[str, Any]) -> None:
    with pytest.raises(ImageError, match="a rgb8 picture needs width and height in its metadata"):
        frame_of_message(np.zeros(160 * 120 * 3, np.uint8), {"encoding": "rgb8", **size})


def test_the_last_picture_is_answered_before_the_end() -> None:
    inbox = Inbox("q")
    data, metadata = encoded("rgb8", [1, 2, 3])
    inbox.picture(lambda: frame_of_message(data.to_numpy(), metadata))
    inbox.end()
    asked = list(newest_answers(inbox, lambda taken, left: taken.content.open().width, 1e9, lambda: 0.0))
    assert [one.result for one in asked] == [160]


def test_outside_of_a_dataflow_it_says_so(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dora", "--bundle", str(tiny_bundle), "--no-index"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("gog-edge: this is no node of a dataflow")
