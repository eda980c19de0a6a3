"""`--rerun`: recordings are read back with Rerun's own SDK, and a live log arrives at Rerun's own server."""

from __future__ import annotations

import io
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rerun", reason="needs the extra rerun")

from PIL import Image
from rerun.chunk import RrdReader

from gog_edge.cli.main import run
from tests.cli.asking import ANSWER, GAZE, TEXT, Play, ask
from tests.cli.conftest import play, site
from tests.cli.test_watch import film
from tests.search.server import WebServer

__all__ = ["film", "play", "site"]  # fixtures


def rows(path: Path, entity: str) -> list[dict[str, Any]]:
    """What was logged to an entity, in order of its time line, by the components' names."""
    found: list[dict[str, Any]] = []
    for chunk in RrdReader(path).stream().to_chunks():
        if chunk.entity_path != f"/{entity}":
            continue
        batch = chunk.to_record_batch()
        names = [name for name in batch.schema.names if name not in ("rerun.controls.RowId", "log_time", "taken_at")]
        columns = {n: batch.column(n).cast("int64") if n == "time" else batch.column(n) for n in names}
        for i in range(batch.num_rows):
            found.append({name: column[i].as_py() for name, column in columns.items() if column[i].as_py() is not None})
    return sorted(found, key=lambda row: int(row["time"]))


def texts(path: Path, entity: str, component: str = "TextLog:text") -> list[str]:
    return [row[component][0] for row in rows(path, entity) if component in row]


def picture(row: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(bytes(row["EncodedImage:blob"][0])))


def boxes(row: dict[str, Any]) -> list[tuple[float, ...]]:
    """Corners, from centres and half sizes."""
    return [(x - w, y - h, x + w, y + h) for (x, y), (w, h) in zip(row["Boxes2D:centers"], row["Boxes2D:half_sizes"])]


def check_question(path: Path) -> None:
    [shown] = rows(path, "pictures/0")
    assert picture(shown).size == (160, 120)
    drawn = [row for row in rows(path, "pictures/0/boxes") if "Boxes2D:centers" in row]
    assert all(boxes(row) == [(0, 0, 80, 60)] for row in drawn)
    assert drawn[-1]["Boxes2D:labels"] == ["1 x"]
    [crop] = [row for row in rows(path, "pictures/0/crop") if "EncodedImage:blob" in row]
    assert picture(crop).size == (80, 60)
    assert "".join(texts(path, "tokens")).count("crop_search") == 1
    steps = texts(path, "steps")
    assert steps[0] == "question: When was it finished?"
    assert "1 gaze x [0, 0, 80, 60]" in steps and "1. Iron tower: Finished in 1889." in steps
    document = texts(path, "answer", "TextDocument:text")
    assert document == ["1889\nevidence: Iron tower: Finished in 1889."]
    at = [
        int(row["time"]) for entity in ("pictures/0", "pictures/0/crop", "answer/seconds") for row in rows(path, entity)
    ]
    assert at == sorted(at) and at[-1] > at[0]


def test_a_question_is_a_recording(tiny_bundle: Path, photo: Path, play: Play, site: WebServer, tmp_path: Path) -> None:
    play([GAZE, TEXT, ANSWER])
    out = tmp_path / "out.rrd"
    options = ["--search", "search.toml", "--rerun", str(out)]
    assert ask(tiny_bundle, photo, *options) == 0
    check_question(out)


def test_a_question_arrives_at_a_viewer(
    tiny_bundle: Path, photo: Path, play: Play, site: WebServer, tmp_path: Path
) -> None:
    """Rerun's own program listens without a window, and saves what it hears."""
    program = shutil.which("rerun", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("needs the extra rerun: its program is not there")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    out = tmp_path / "live.rrd"
    command = [program, "--save", str(out), "--port", str(port), "--bind", "127.0.0.1"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as viewer:
        try:
            wait_for(port)
            play([GAZE, TEXT, ANSWER])
            target = f"rerun+http://127.0.0.1:{port}/proxy"
            options = ["--search", "search.toml", "--rerun", target]
            assert ask(tiny_bundle, photo, *options) == 0
            end = time.monotonic() + 60
            while time.monotonic() < end and not (out.exists() and texts_or_none(out)):
                time.sleep(0.2)
        finally:
            viewer.terminate()
    check_question(out)


def texts_or_none(path: Path) -> list[str] | None:
    try:
        return texts(path, "answer", "TextDocument:text")
    except Exception:  # not written to its end yet
        return None


def wait_for(port: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("Rerun's program did not listen")


def test_a_film_is_a_recording(film: Path, tiny_bundle: Path, play: Play, tmp_path: Path) -> None:
    play([GAZE, ANSWER])
    out = tmp_path / "film.rrd"
    words = ["watch", str(film), "When was it finished?", "--bundle", str(tiny_bundle), "--every", "--no-index"]
    assert run([*words, "--count", "3", "--rerun", str(out)]) == 0
    shown = [row for row in rows(out, "pictures/0") if "EncodedImage:blob" in row]
    assert [row["frame"] for row in shown] == [0, 1, 2]
    assert [round(float(np.asarray(picture(row)).mean()), -1) for row in shown] == [0, 60, 120]
    drawn = [(row["frame"], boxes(row)) for row in rows(out, "pictures/0/boxes") if row.get("Boxes2D:centers")]
    assert drawn == [(n, [(0, 0, 32, 24)]) for n in range(3)]
    assert texts(out, "answer", "TextDocument:text") == ["1889"] * 3


def test_what_cannot_be_logged_to_is_one_line(
    tiny_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for target, message in (
        (str(tmp_path / "gone" / "a.rrd"), "No such file or directory"),
        (str(tmp_path / "a.txt"), "a recording's name ends in .rrd"),
        ("rerun+http://[", "--rerun rerun+http://["),
    ):
        assert ask(tiny_bundle, photo, "--rerun", target) == 2
        err = capsys.readouterr().err.splitlines()
        assert err[-1].startswith("gog-edge: --rerun") and message in err[-1], err
    assert list(tmp_path.iterdir()) == []
