"""examples/home-assistant: its files are what Home Assistant reads, its requests are answered by the real server."""

from __future__ import annotations

import importlib.util
import json
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gog_edge.agent.loader import load
from tests.runtime.fakes import ScriptedEngine
from tests.serve.over_http import serving

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "home-assistant"
COMPONENT = EXAMPLE / "custom_components" / "gog_edge"
GAZE = '<tool_call>\n{"name": "crop_search", "arguments": {"bbox_2d": [0, 0, 500, 500], "label": "x"}}\n</tool_call>'


def parsed(path: Path) -> Any:
    """YAML with Home Assistant's !secret."""
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        pass

    Loader.add_constructor("!secret", lambda loader, node: f"secret {node.value}")
    return yaml.load(path.read_text("utf-8"), Loader)


def requests() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gog_edge_requests", COMPONENT / "request.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [GAZE, "<answer>1889</answer>"]
    engine = "gog_edge.agent.loader.create_engine"
    monkeypatch.setattr(engine, lambda name, bundle, options: ScriptedEngine(bundle, turns))


def test_the_files_fit_together() -> None:
    config, services = parsed(EXAMPLE / "configuration.yaml"), parsed(COMPONENT / "services.yaml")
    manifest = json.loads((COMPONENT / "manifest.json").read_text("utf-8"))
    assert manifest["domain"] == COMPONENT.name and set(config["gog_edge"]) == {"url", "api_key"}
    asked, told = config["automation"][0]["action"]
    assert asked["service"] == "gog_edge.ask" and set(asked["data"]) == set(services["ask"]["fields"])
    assert "seen.text" in told["data"]["message"] and "seen.stop" in told["data"]["message"]


def test_its_request_is_answered_by_the_server(tiny_bundle: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch)
    data = parsed(EXAMPLE / "configuration.yaml")["automation"][0]["action"][0]["data"]
    made = requests()
    with load(tiny_bundle) as agent, serving(agent) as port:
        sent = made.request(f"http://127.0.0.1:{port}/", "key", photo.read_bytes(), data["question"], data["deadline"])
        assert sent["headers"] == {"Authorization": "Bearer key"}
        headers = {**sent["headers"], "Content-Type": "application/json"}
        call = urllib.request.Request(sent["url"], json.dumps(sent["json"]).encode(), headers)
        with urllib.request.urlopen(call, timeout=60) as reply:
            answer = made.response(json.loads(reply.read()))
    assert (answer["text"], answer["stop"], answer["evidence"]) == ("1889", "answered", [])
