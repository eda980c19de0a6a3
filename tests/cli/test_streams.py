"""What becomes of results when something outside goes wrong: full disks, closed pipes, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gog_edge.cli.main import run
from gog_edge.disk.files import write_text
from gog_edge.errors import UsageError

ASK = (sys.executable, "-m", "gog_edge", "ask")


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["ask"], ("gog-edge ask: ", "Missing argument", "see gog-edge ask --help")),
        (["ask", "a.jpg", "q", "--deadline", "soon"], ("'soon' is not a duration",)),
        (["ask", "--temperatur", "1"], ("No such option", "--temperature")),
        (["index", "serch"], ("gog-edge index: ", "serch")),
    ],
)
def test_usage_errors_are_one_line(args: list[str], parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(args) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert all(part in err for part in parts), err


def test_an_answer_that_was_paid_for_is_printed_before_its_trace_fails(
    tiny_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    trace = tmp_path / "file" / "trace.html"
    assert run(["ask", str(photo), "q", "--bundle", str(tiny_bundle), "--json", "--trace", str(trace)]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("{")
    assert f"{trace} can't be written" in err


def test_no_answer_is_exit_code_1_and_nothing_on_stdout(
    tiny_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ask", str(photo), "q", "--bundle", str(tiny_bundle), "--deadline", "1ms"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "no answer: the deadline passed" in err


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_full_disk_under_stdout_is_one_line(tiny_bundle: Path, form: list[str], unbuffered: str) -> None:
    if not Path("/dev/full").exists():
        return
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "gog_edge", "inspect", str(tiny_bundle), *form]
        env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=env)
    assert done.returncode == 2
    assert done.stderr == "gog-edge: No space left on device\n"


def test_closed_streams_are_no_error(tiny_bundle: Path) -> None:
    command = f'"{sys.executable}" -m gog_edge inspect "{tiny_bundle}" >&-'
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_ends_in_one_line(tiny_bundle: Path, photo: Path) -> None:
    command = [*ASK, str(photo), "q", "--bundle", str(tiny_bundle), "--max-turns", "9999", "--stream"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a job of nohup ignores it
    )
    try:
        assert process.stderr is not None
        process.stderr.read(1)  # the policy writes: the loop runs
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert out == ""
    assert err.endswith("gog-edge: interrupted\n")
    assert "Traceback" not in err


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "report.json"
    write_text(path, "old")

    def full(descriptor: int) -> None:  # what was written reaches the disk here at the latest
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"report\.json can't be written: No space left on device"):
        write_text(path, "new and longer")
    assert path.read_text("utf-8") == "old"
    assert list(path.parent.iterdir()) == [path]
