"""What `import gog_edge` offers: every event, every error, Trace; durations as texts wherever a number is taken."""

from __future__ import annotations

import ast
import inspect
import math
import typing
from pathlib import Path

import pytest

import gog_edge
from gog_edge import errors, types
from gog_edge.agent.options import RunOptions
from gog_edge.agent.request import AskRequest
from gog_edge.deadline import Budget, seconds_of
from gog_edge.errors import UsageError
from gog_edge.search.config import load_providers
from gog_edge.search.resilience import Resilient
from gog_edge.serve.wire import parse_ask
from tests.agent.virtual_clock import VirtualClock


def test_every_event_and_error_and_the_trace_are_at_the_top_level() -> None:
    named = [name for name, value in inspect.getmembers(errors, inspect.isclass) if value.__module__ == errors.__name__]
    named += [event.__name__ for event in typing.get_args(types.Event)]
    assert len(named) > 20
    assert {*named, "Trace", "Event", "Frame", "AskRequest", "Conversation"} <= set(gog_edge.__all__)
    for name in gog_edge.__all__:
        assert getattr(gog_edge, name) is not None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2s", 2), ("500ms", 0.5), ("1.5m", 90), ("2 min", 120), ("1h", 3600), (" 3 ", 3), (0.25, 0.25)],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert seconds_of(text) == seconds
    assert AskRequest(b"", "q", deadline=text).deadline == seconds
    assert RunOptions(search_timeout=text).search_timeout == seconds
    assert parse_ask({"image": "aGk=", "question": "q", "deadline": text}).request.deadline == seconds


@pytest.mark.parametrize("text", ["", "2 parsecs", "-1s", "0s", "s", "1e3s", "nan", "²s", 0, -1.0, math.nan])
def test_what_is_no_duration(text: str | float) -> None:
    for taker in (
        seconds_of,
        lambda value: AskRequest(b"", "q", deadline=value),
        lambda value: RunOptions(search_timeout=value),
        lambda value: parse_ask({"image": "aGk=", "question": "q", "deadline": value}),
    ):
        with pytest.raises(UsageError):
            taker(text)


def test_a_budget_takes_a_text_too() -> None:
    clock = VirtualClock()
    assert Budget("2s", clock=clock).remaining() == 2


def test_a_file_of_providers_takes_texts_too(tmp_path: Path) -> None:
    file = tmp_path / "search.toml"
    file.write_text('[[provider]]\nkind = "fetch"\ntimeout = "1500ms"\ncooldown = "1m"\n')
    (provider,) = load_providers(file)
    assert isinstance(provider, Resilient) and (provider.limits.timeout, provider.limits.cooldown) == (1.5, 60)
    file.write_text('[[provider]]\nkind = "fetch"\ntimeout = "soon"\n')
    with pytest.raises(UsageError, match="a timeout of 'soon' is no time"):
        load_providers(file)


def test_the_package_logs_and_prints_nothing() -> None:
    """But for the command line, and programs of the bench that are run by themselves."""
    package = Path(gog_edge.__file__).parent
    programs = ("cli/", "bench/peers/workers/", "bench/machine/kernel_table.py")
    printing = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in sorted(package.rglob("*.py"))
        if not path.relative_to(package).as_posix().startswith(programs)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "warnings.warn", "sys.stderr.write")
    ]
    assert printing == []
