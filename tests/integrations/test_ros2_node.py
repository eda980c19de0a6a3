"""The node of integrations/ros2 under ROS 2 itself: another node sends pictures, questions and goals over DDS."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.cli.asking import ANSWER, GAZE
from tests.integrations.command import environment
from tests.tools import ROOT
from tests.tools import ros2 as built

if built.environment() is None:
    pytest.skip("needs make ros2", allow_module_level=True)

HERE = Path(__file__).resolve().parent / "ros2"
SOURCE = ROOT / "integrations" / "ros2" / "gog_edge_ros2"
RED = [200, 30, 10]
SUCCEEDED, CANCELED, ABORTED = 4, 5, 6
_DOMAIN = 30 + os.getpid() % 70


def variables(script: list[str] | None, seconds: float = 0.0) -> dict[str, str]:
    found = built.environment()
    assert found is not None
    own = environment(script, seconds)
    path = os.pathsep.join([str(SOURCE), str(ROOT), found["PYTHONPATH"]])
    local = {"ROS_DOMAIN_ID": str(_DOMAIN), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "PYTHONUNBUFFERED": "1"}
    return {**own, **found, **local, "PYTHONPATH": path}


@contextmanager
def node(
    bundle: Path, script: list[str] | None, *parameters: str, seconds: float = 0.0, program: list[str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """The node while it runs. It ends by SIGINT, with code 0 and without a traceback."""
    env = variables(script, seconds)
    # pictures that are sent before the node knows of their sender are sent again
    certain = [f"qos_overrides./{topic}.subscription.reliability:=reliable" for topic in ("image", "image/compressed")]
    words = [word for p in (f"bundle:={bundle}", *certain, *parameters) for word in ("-p", p)]
    command = [*(program or [env["PYTHON"], str(HERE / "node.py")]), "--ros-args", *words]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and "Traceback" not in said, said
        process.said = said  # type: ignore[attr-defined]
    except BaseException:
        process.kill()
        print(process.communicate()[0])
        raise


def play(*plan: list[Any], **more: str) -> list[tuple[str, Any]]:
    """What the other node heard while it did this."""
    env = {**variables(None), "PLAN": "\n".join(map(json.dumps, [["wait", "", 0], *plan])), **more}
    command = [env["PYTHON"], str(HERE / "client.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def heard(seen: list[tuple[str, Any]], kind: str) -> list[Any]:
    return [content for name, content in seen if name == kind]


def test_pictures_become_answers_detections_and_markers(tiny_bundle: Path) -> None:
    kinds = ["rgb8", "bgr8", "mono8", "rgba8", "bgra8", "yuv422", "32FC1", "32FC1"]
    files = ["jpeg", "rgb8; png compressed ", "16UC1; compressedDepth png", "damaged"]
    plan: list[list[Any]] = []
    for number, kind in enumerate([*kinds, *files]):
        word = "image" if number < len(kinds) else "file"
        plan += [[word, kind, RED, 1000 + number, "front"], ["wait", "answer_json", number + 1]]
    with node(tiny_bundle, [GAZE, ANSWER], "question:=When was it finished?") as process:
        seen = play(*plan, ["wait", "markers", 8], ["wait", "detections", 8], ANNOTATED="1")
    said = [json.loads(text) for text in heard(seen, "answer_json")]
    good = [0, 1, 2, 3, 4, 5, 8, 9]
    assert [one["frame"] for one in said if "error" not in one] == good
    assert [one["header"]["stamp"]["sec"] for one in said] == list(range(1000, 1012))
    assert {one["header"]["frame_id"] for one in said} == {"front"} and said[0]["header"]["stamp"]["nanosec"] == 5
    for one in (said[number] for number in good):
        assert (one["answer"], one["stop"], one["width"], one["height"]) == ("1889", "answered", 160, 120)
        assert [box["box"] for box in one["boxes"]] == [[0, 0, 80, 60]]
    assert said[6]["error"].startswith("encoding '32FC1' is not known: send rgb8, bgr8")
    assert said[10]["error"] == "format '16UC1; compressedDepth png' is a depth map: send pictures"
    assert "its format is 'damaged'" in said[11]["error"]
    assert process.said.count("encoding '32FC1' is not known") == 1  # type: ignore[attr-defined]
    assert heard(seen, "answer") == ["1889"] * 8
    for number, one in zip(good, heard(seen, "detections")):
        header = [1000 + number, 5, "front"]
        box = {"box": [40, 30, 80, 60], "id": "1", "what": ["x", 1.0], "header": header}
        assert one == {"header": header, "detections": [box]}
    [marker, *_] = heard(seen, "markers")
    assert marker["points"] == [[0, 0], [80, 0], [80, 0], [80, 60], [80, 60], [0, 60], [0, 60], [0, 0]]
    assert (marker["header"], marker["action"], marker["type"]) == ([1000, 5, "front"], 0, 2)
    drawn = heard(seen, "annotated")
    assert drawn and all(one["size"] == [120, 160] and one["edge"] == [232, 89, 12] for one in drawn)
    assert max(abs(a - b) for a, b in zip(drawn[0]["outside"], RED)) <= 3


def test_the_newest_picture_is_asked_about_within_its_deadline(tiny_bundle: Path) -> None:
    """Steps of ten minutes: every question ends by its deadline, and the pictures of that time are dropped."""
    burst: list[list[Any]] = []
    for number in range(30):
        burst += [["image", "rgb8", RED, number, "front"], ["sleep", 0.1]]
    plan = [*burst, ["until", 29]]
    with node(tiny_bundle, [ANSWER], "question:=q", "deadline:=1.0", seconds=600):
        seen = play(*plan)
    said = [json.loads(text) for text in heard(seen, "answer_json")]
    assert {one["stop"] for one in said} == {"deadline"}
    assert said[-1]["header"]["stamp"]["sec"] == 29  # the newest one is never lost
    assert [b["frame"] - a["frame"] - 1 for a, b in pairwise(said)] == [one["dropped"] for one in said[1:]]
    assert sum(one["dropped"] for one in said) > 0


def test_questions_come_by_topic_and_by_parameter(tiny_bundle: Path) -> None:
    with node(tiny_bundle, [ANSWER]) as process:
        seen = play(
            ["image", "rgb8", RED, 7, "front"],
            ["question", "  "],
            ["question", "What is it?"],
            ["wait", "answer_json", 1],
            ["set", "question", "Where is it?"],
            ["wait", "answer_json", 2],
            ["set", "bundle", "other"],
            ["set", "rate", -1.0],
            ["describe", "deadline"],
        )
    said = [json.loads(text) for text in heard(seen, "answer_json")]
    assert [(one["question"], one["frame"], one["answer"]) for one in said] == [
        ("What is it?", 0, "1889"),
        ("Where is it?", 0, "1889"),
    ]
    assert [ok for ok, _ in heard(seen, "set")] == [True, False, False]
    assert heard(seen, "describe") == [["Seconds from a picture's arrival to its answer. 0: none.", True]]
    assert "a question must not be empty" in process.said  # type: ignore[attr-defined]


def test_a_goal_has_feedback_and_a_result(tiny_bundle: Path) -> None:
    with node(tiny_bundle, [GAZE, ANSWER]):
        seen = play(
            ["goal", "When was it finished?", 0, False, -1],
            ["goal", "When was it finished?", 0, True, -1],
            ["image", "rgb8", RED, 12, "front"],
            ["goal", "When was it finished?", 60, False, -1],
        )
    none, own, newest = heard(seen, "result")
    assert (none["status"], none["error"]) == (ABORTED, "no picture has come yet, and the goal has none")
    for result, header in ((own, [77, 5, "goal"]), (newest, [12, 5, "front"])):
        assert (result["status"], result["answer"], result["stop"]) == (SUCCEEDED, "1889", "answered")
        assert result["header"] == header == result["detections"]["header"]
        assert [one["box"] for one in result["detections"]["detections"]] == [[40, 30, 80, 60]]
        assert json.loads(result["json"])["header"]["frame_id"] == header[2]
    _, progress, _ = heard(seen, "feedback")
    assert {kind for _, kind, _, _ in progress} == {"notice", "token", "box", "call", "result"}
    assert [1, "call", "gaze x", [[40, 30, 80, 60]]] in progress
    assert "crop_search" in "".join(text for _, kind, text, _ in progress if kind == "token")


def test_a_goal_is_cancelled_and_has_its_own_deadline(tiny_bundle: Path) -> None:
    """Steps of ten minutes: only what interrupts them lets a goal return at all."""
    with node(tiny_bundle, [ANSWER], seconds=600):
        seen = play(["goal", "q", 0, True, 0], ["goal", "q", 0.5, True, -1])
    cancelled, late = heard(seen, "result")
    assert (cancelled["status"], cancelled["stop"], cancelled["answer"]) == (CANCELED, "cancelled", "")
    assert (late["status"], late["stop"]) == (SUCCEEDED, "deadline")


def test_the_installed_program_with_a_policy_that_writes_what_it_writes(tiny_bundle: Path) -> None:
    program = [variables(None)["PYTHON"], str(built.place() / "install" / "lib" / "gog_edge_ros2" / "node")]
    with node(tiny_bundle, None, "question:=What is it?", "deadline:=20.0", program=program):
        seen = play(["image", "bgr8", RED, 3, "front"], ["wait", "answer_json", 1])
    [said] = [json.loads(text) for text in heard(seen, "answer_json")]
    assert said["question"] == "What is it?" and said["header"]["stamp"] == {"sec": 3, "nanosec": 5}


@pytest.mark.parametrize("given", ["./gone", "''"])
def test_without_a_bundle_it_says_so(given: str, tmp_path: Path) -> None:
    env = variables(None) | {"GOG_EDGE_LIBRARY": str(tmp_path)}
    env.pop("GOG_EDGE_BUNDLE", None)
    command = [env["PYTHON"], str(HERE / "node.py"), "--ros-args", "-p", f"bundle:={given}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("gog_edge: "), done.stderr
