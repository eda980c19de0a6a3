"""Names and paths are data: markup, escape sequences and bytes that are no text reach neither rich nor a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from gog_edge.cli.common.console import stderr, stdout, styled
from gog_edge.cli.main import run
from gog_edge.deadline import Budget
from gog_edge.search.base import Deadline

MARKUP = "a[/b] [red]c[link=x] :smile: \\"
ESCAPES = "t\x1b]0;owned\x07\x1b[2J\x9b1m"
BYTES = os.fsdecode(b"caf\xe9")  # a lone surrogate, as argv has it


@pytest.mark.parametrize("text", [MARKUP, ESCAPES])
def test_every_way_to_print_keeps_text_and_drops_escapes(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    for console in (stdout(), stderr()):
        console.print(text)
        console.print(styled("[bold]{}[/] {}", text, text))
        console.print(table)
    out, err = capsys.readouterr()
    for shown in (out, err):
        assert not {"\x1b", "\x07", "\x9b"} & set(shown)
        assert text is ESCAPES or shown.count(MARKUP) == 6


@pytest.mark.parametrize("name", [MARKUP, ESCAPES])
def test_commands_print_such_paths_after_success(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = tmp_path / name.replace("/", "|")
    (tmp_path / "e.jsonl").write_text(json.dumps({"title": name, "text": "capital", "id": name}) + "\nno json [/]\n")
    assert run(["index", "build", str(index), str(tmp_path / "e.jsonl")]) == 0
    assert run(["index", "search", str(index), "capital"]) == 0
    assert run(["index", "info", str(index)]) == 0
    assert run(["index", "search", str(index / "no"), "capital"]) == 2
    assert run(["ask", "a.jpg", "q", "--bundle", name, "--deadline", name]) == 2
    assert run([name]) == 2
    shown = "".join(capsys.readouterr())
    assert "1 added" in shown and not {"\x1b", "\x07", "\x9b"} & set(shown)


def test_bytes_that_are_no_text_can_be_asked_and_traced(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    picture = tmp_path / (BYTES + photo.suffix)
    picture.write_bytes(photo.read_bytes())
    trace = tmp_path / f"{BYTES}.json"
    command = [sys.executable, "-m", "gog_edge", "ask", picture, BYTES, "--bundle", tiny_bundle, "--max-turns", "1"]
    done = subprocess.run(
        [*map(str, command), "--json", "--trace", str(trace), "--deadline", "10000000000"],
        capture_output=True,
        check=False,
    )
    assert b"Traceback" not in done.stderr and done.returncode in (0, 1), done.stderr
    assert json.loads(done.stdout)["question"] == BYTES
    assert json.loads(trace.read_text("utf-8"))["question"] == BYTES
    html = subprocess.run(
        [*map(str, command), "--trace", str(trace.with_suffix(".html"))], capture_output=True, check=False
    )
    assert b"Traceback" not in html.stderr and trace.with_suffix(".html").is_file(), html.stderr


@pytest.mark.parametrize("streams", ["| head -c 1", "2>&1 | head -c 1", "2>&1 >/dev/null | true"])
@pytest.mark.parametrize("command", ["doctor", "bench --list", "no-such-command"])
def test_a_reader_that_goes_away_is_no_error(command: str, streams: str) -> None:
    line = f"set -o pipefail; {sys.executable} -m gog_edge {command} {streams}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    assert done.returncode == (2 if command.startswith("no") and "2>&1" not in streams else done.returncode)
    assert done.returncode in (0, 2)


@pytest.mark.parametrize("seconds", [1e7, 1e10, 1e300, float("inf")])
def test_a_deadline_beyond_what_can_be_waited_for_is_none(seconds: float) -> None:
    with Budget(seconds) as budget:
        assert budget.remaining() == float("inf")
    assert Deadline.after(seconds).timeout() is None and Deadline.never().within(seconds).timeout() is None
