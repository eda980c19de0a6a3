"""What killed processes leave: it is told from what is still being written, and gone after the next start."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from gog_edge import library
from gog_edge.bundle import Bundle, BundleWriter
from gog_edge.disk import leftovers
from gog_edge.disk.files import write_text, write_whole
from gog_edge.disk.tensorfile import read_tensors, write_tensors
from gog_edge.errors import BundleError, UsageError
from gog_edge.export.synthetic.checkpoint import make_checkpoint
from tests.faults import damage
from tests.test_bundle import write as write_bundle

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(autouse=True)
def starts_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOG_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    leftovers._swept.clear()


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_file_killed_at_any_step_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "sessions" / "s.gogs"
    path.parent.mkdir()
    old, new = {"a": np.zeros(50_000, np.float32)}, {"a": np.ones(50_000, np.float32)}
    met = set()
    write_tensors(path, {}, old)
    for step in damage.deaths(lambda: write_tensors(path, {}, new)):
        values = set(read_tensors(path)[1]["a"].tolist())
        assert values in ({0.0}, {1.0}), step
        met |= values
        leftovers._swept.clear()
        write_tensors(path, {}, old)  # the next start
        assert hidden(path.parent) == [], step
    assert met == {0.0, 1.0}


def test_what_is_still_being_written_is_left_alone(tmp_path: Path) -> None:
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with leftovers.scratch_folder(tmp_path / "folder") as folder, leftovers.scratch_file(tmp_path / "file") as file:
            (folder / "x").write_text("half")
            os.write(ready[1], b"r")
            os.read(go[0], 1)
            os._exit(0 if file.exists() and (folder / "x").exists() else 1)
    os.read(ready[0], 1)
    leftovers.sweep(tmp_path)
    assert len(hidden(tmp_path)) == 2
    os.write(go[1], b"g")
    assert os.waitpid(child, 0)[1] == 0
    assert len(hidden(tmp_path)) == 2  # os._exit cleans nothing up
    leftovers.sweep(tmp_path)
    assert hidden(tmp_path) == []


def test_nothing_else_is_swept(tmp_path: Path) -> None:
    for name in (".partial", ".x.partial", "x.gog-1-2.partial", ".x.gog-a-2.partial", ".x.gog-1-2.partial.txt"):
        (tmp_path / name).write_text("somebody's")
    leftovers.sweep(tmp_path)
    leftovers.sweep(tmp_path / "nowhere")
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_killed_while_it_is_swapped_is_the_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(leftovers, "_exchange", lambda a, b: False)
    target = tmp_path / "home" / "index"

    def put(text: str) -> None:
        with leftovers.scratch_folder(target) as folder:
            (folder / "index.db").write_text(text)
            leftovers.swap_in(folder, target)

    target.mkdir(parents=True)
    (target / "index.db").write_text("old")
    met = set()
    for step in damage.deaths(lambda: put("new")):
        leftovers._swept.clear()
        leftovers.sweep_once(target.parent)
        met.add((target / "index.db").read_text())
        assert hidden(target.parent) == [], step
        (target / "index.db").write_text("old")
    assert met == {"old", "new"}


def test_a_file_behind_a_link_is_written_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/file")
    write_text(tmp_path / "link", "one")
    write_text(tmp_path / "link", "two")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "file").read_text() == "two"
    with pytest.raises(OSError, match=r"exists|directory"):
        write_whole(tmp_path / "link" / "under", [b"x"])


def test_what_a_killed_remove_leaves_of_the_library_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "library"
    monkeypatch.setenv(library.VARIABLE, str(home))
    write_bundle(home / "b")
    for step in damage.deaths(lambda: library.remove("b")):
        leftovers._swept.clear()
        assert library.names() in (["b"], []), step
        assert hidden(home) == [], step
        write_bundle(home / "b")
    write_bundle(tmp_path / "elsewhere")
    (home / "linked").symlink_to(tmp_path / "elsewhere")
    library.remove("linked")
    assert library.names() == [] and hidden(home) == []
    assert Bundle.open(tmp_path / "elsewhere").manifest.name == "test"


def test_a_checkpoint_killed_while_it_is_made_leaves_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    deaths = damage.deaths(lambda: make_checkpoint("tiny-qwen3-vl", home / "c"))
    next(deaths)
    next(deaths)
    leftovers._swept.clear()
    make_checkpoint("tiny-qwen3-vl", home / "c")
    assert [p.name for p in home.iterdir()] == ["c"]


RUN = """
import sys
from pathlib import Path
from gog_edge.evaluation.datasets import read_dataset
from gog_edge.evaluation.results import ResultsFile
from gog_edge.evaluation.runner import run_samples
from gog_edge.evaluation.worker import AgentSpec, WorkerSpec
from tests.evaluation.fakes import make_agent, own_dataset
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    samples, _ = read_dataset(own_dataset(folder, *["sleep a"] * 2000))
    spec = WorkerSpec(AgentSpec("bundle"), (str(folder),), make=make_agent)
    results = ResultsFile(folder / "r.jsonl", {})
    run_samples(samples, spec, results, workers=2, progress=lambda row: print("row", flush=True))
"""


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def test_evaluation_processes_end_with_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in [str(Path.cwd()), *sys.path] if p)}
    parent = subprocess.Popen([sys.executable, script, tmp_path], stdout=subprocess.PIPE, env=env)
    assert parent.stdout is not None
    while parent.stdout.readline() != b"row\n":
        assert parent.poll() is None
    children = [child.pid for child in psutil.Process(parent.pid).children(recursive=True)]
    assert len(children) >= 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(600):
        if not alive(children):
            break
        time.sleep(0.05)
    assert alive(children) == []
    assert multiprocessing.parent_process() is None  # and the one that tests run in has none to end with


def test_devices_and_pipes_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    """As root, a result for /dev/null would take its place."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "null").symlink_to("/dev/null")
    write_text(tmp_path / "null", "away")
    assert (tmp_path / "null").is_symlink() and Path("/dev/null").is_char_device()


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        with pytest.raises(OSError, match="too large"):
            write_whole(tmp_path / "file", [bytes(10_000)])
        with pytest.raises(BundleError, match="is full; nothing was changed"), BundleWriter(tmp_path / "b") as writer:
            (writer.root / "vision.onnx").write_bytes(bytes(10_000))
        with pytest.raises(UsageError, match="free some space"):
            write_text(tmp_path / "file", "x" * 10_000)

    write_text(tmp_path / "file", "old")
    old = write_bundle(tmp_path / "b").fingerprint
    child = os.fork()
    if child == 0:
        try:
            fill()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert (tmp_path / "file").read_text() == "old" and Bundle.open(tmp_path / "b").fingerprint == old
    assert hidden(tmp_path) == []
