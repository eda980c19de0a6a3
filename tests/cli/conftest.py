"""A local server that speaks Serper's wire format, and a policy that plays a script behind the real commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.asking import KEY, TOWER, Play
from tests.runtime.fakes import Script, ScriptedEngine
from tests.search import server as web
from tests.search.server import WebServer


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WebServer]:
    """The server, its provider file in the working folder, and a key."""
    monkeypatch.setenv("SERPER_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    with WebServer() as running:
        running.routes["/search"] = web.answer({"organic": [TOWER]})
        running.routes["/lens"] = web.answer({"organic": [{**TOWER, "title": "Tower at night"}]})
        provider = f'[[provider]]\npreset = "serper"\nendpoint = "{running.url}"\nretries = 0\ncache_hours = 0\n'
        (tmp_path / "search.toml").write_text(provider)
        yield running


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Let the policy of the command write a script."""

    def set_script(script: Script) -> None:
        engine = "gog_edge.agent.loader.create_engine"
        monkeypatch.setattr(engine, lambda name, bundle, options: ScriptedEngine(bundle, script))

    return set_script
