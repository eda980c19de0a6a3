"""Every example runs against the demo's bundle and prints what its first lines promise."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gog_edge.agent.loader import load
from gog_edge.cli.main import run
from tests.serve.over_http import serving

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SHOWN = {
    "ask": r"^Luanda \(answered, .*\n  Angola: capital",
    "stream": r"looks at \[\d+, \d+, \d+, \d+\] px(.|\n)*found \['Flag of Angola'(.|\n)*answer: Luanda",
    # a crop that was encoded while its call was being written counts as found in the cache, if that was in time
    "conversation": r"Seychelles: [12] images(.|\n)*Luanda: [01] images encoded, \d+ tokens(.|\n)*Angola: 0 images",
    "deadline": r"^.+ (answered|forced|deadline)\n.+ (cancelled|answered)\n$",
    "batch": r'"picture": "flag.jpg", "answer": "Serbia"',
    "crops": r"step0-\d+-\d+-\d+-\d+\.png",
    "trace": r"(decode|prefill) +\d+\.\d ms(.|\n)*trace\.html",
    "own_search": r"it asks \['local', 'facts'\] in this order\nLuanda\n",
    "own_index": r"2 added(.|\n)*Kea: The kea(.|\n)*New Zealand: New Zealand lies",
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library in which `gog-edge demo` has run."""
    folder = tmp_path_factory.mktemp("library")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOG_EDGE_LIBRARY", str(folder))
        assert run(["demo"]) == 0
    return folder


def call(library: Path, *args: str | Path, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, args)], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "GOG_EDGE_LIBRARY": str(library), **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_example(demo: Path, name: str) -> None:
    assert re.search(SHOWN[name], call(demo, EXAMPLES / f"{name}.py"))


def test_client_of_the_server(demo: Path) -> None:
    with load(demo / "gog-nano", index=demo / ".demo" / "world.index") as agent, serving(agent) as port:
        shown = call(demo, EXAMPLES / "http_client.py", GOG_EDGE_SERVER=f"http://127.0.0.1:{port}")
    assert "Luanda" in shown.splitlines()[-1]


def test_opencv_draws_on_a_video(demo: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV")
    scene = cv2.imread(str(ROOT / "models" / "gog-nano" / "examples" / "scene.jpg"))
    clip, out = tmp_path / "clip.avi", tmp_path / "seen.mp4"
    film = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (scene.shape[1], scene.shape[0]))
    for _ in range(3):
        film.write(scene)
    film.release()
    shown = call(demo, EXAMPLES / "opencv_camera.py", "--source", clip, "--out", out)
    assert re.search(r"^frame \d: Luanda \(\d+\.\d\d s old\)$", shown, re.MULTILINE)
    there, frame = cv2.VideoCapture(str(out)).read()
    assert there and frame.shape == scene.shape
    edge = slice(312, 313), slice(620, 780)  # the upper edge of the box around the house
    away, before = (np.abs(one[edge].astype(int) - (12, 89, 232)).mean() for one in (frame, scene))
    assert away < 40 < before


def test_cells_of_the_notebook(demo: Path) -> None:
    cells = json.loads((EXAMPLES / "walk-through.ipynb").read_text("utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    shown = call(demo, "-c", code)
    assert "0 gaze Region(" in shown and "Luanda" in shown and "Seychelles" in shown


def test_every_example_is_listed_and_run() -> None:
    files = {p.stem for p in EXAMPLES.glob("*.py")} - {"given"}
    assert files == {*SHOWN, "http_client", "opencv_camera"}
    listed = (EXAMPLES / "README.md").read_text("utf-8")
    assert [name for name in files if f"[{name}.py]({name}.py)" not in listed] == []
