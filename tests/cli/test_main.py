"""The command line as a user meets it: help that lists everything, one clear line for bad input, exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gog_edge.cli.main import COMMANDS, run


def test_help_lists_every_command_and_imports_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    assert "Usage: gog-edge" in capsys.readouterr().out


def test_a_misspelt_command_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["exprt"]) == 2
    assert "did you mean 'export'?" in capsys.readouterr().err


def test_bad_input_is_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("gog-edge: ")
    assert err.count("\n") == 1


def test_a_missing_file_names_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", str(tmp_path / "no.jpg"), "what?", "--bundle", str(tmp_path / "no-bundle")]) == 2
    err = capsys.readouterr().err
    assert "no-bundle" in err or "no.jpg" in err
    assert err.count("\n") == 1


def test_doctor_plan_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--plan", "--memory", "8GiB", "--policy", "qwen3-vl-2b", "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)
    assert [p["precision"] for p in plans] == ["int4", "int5", "int8", "fp16", "fp32"]
    assert plans[0]["fits"] and plans[0]["largest_context"] > 8192
    assert plans[0]["weights"] < plans[1]["weights"] < plans[2]["weights"] < plans[3]["weights"]


@pytest.mark.parametrize("size", ["eight", "8XB", "", "1.2.3G"])
def test_doctor_refuses_what_is_no_size(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--plan", "--memory", size or " "]) == 2
    assert "is not a size" in capsys.readouterr().err


def test_output_into_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m gog_edge --help | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
