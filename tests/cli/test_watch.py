"""`gog-edge watch` on a video file made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gog_edge.cli.main import run
from tests.cli.asking import ANSWER, Play


@pytest.fixture
def film(tmp_path: Path) -> Path:
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV")
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30.0, (64, 48))
    for n in range(4):
        writer.write(np.full((48, 64, 3), 60 * n, np.uint8))
    writer.release()
    return path


def test_a_film_is_watched(film: Path, tiny_bundle: Path, play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    play([ANSWER] * 20)
    words = ["watch", str(film), "When was it finished?", "--bundle", str(tiny_bundle), "--every"]
    assert run([*words, "--deadline", "60s"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"frame {n}" for n in range(4)]
    assert all(line.endswith(" 0 dropped 1889") for line in lines)
    assert run([*words, "--json", "--count", "2"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(f["frame"], f["answer"], f["stop"]) for f in found] == [(0, "1889", "answered"), (1, "1889", "answered")]


def test_what_cannot_be_watched_is_one_line(
    tiny_bundle: Path, play: Play, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    play([ANSWER])
    assert run(["watch", str(tmp_path / "gone.mp4"), "q", "--bundle", str(tiny_bundle)]) == 2
    assert capsys.readouterr().err.rstrip().endswith("gone.mp4 is no video: there is no such file")
