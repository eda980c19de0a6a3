"""What the tests of `gog-edge ask` share: turns of a policy, a result, the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gog_edge.cli.main import run
from tests.runtime.fakes import Script
from tests.search import server as web
from tests.search.server import WebServer

Play = Callable[[Script], None]
KEY = "k3y-that-must-not-leak"
TEXT = '<tool_call>\n{"name": "text_search", "arguments": {"query": "tower year"}}\n</tool_call>'
GLANCE = '<tool_call>\n{"name": "image_search", "arguments": {}}\n</tool_call>'
GAZE = '<tool_call>\n{"name": "crop_search", "arguments": {"bbox_2d": [0, 0, 500, 500], "label": "x"}}\n</tool_call>'
ANSWER = "<think>\nfound\n</think>\n<answer>1889</answer>"
TOWER = {"title": "Iron tower", "link": "https://a.example/tower", "snippet": "Finished in 1889.", "position": 1}


def ask(bundle: Path, photo: Path, *options: str, deadline: str = "60s") -> int:
    fixed = ["--bundle", str(bundle), "--grammar", "off", "--deadline", deadline]
    return run(["ask", str(photo), "When was it finished?", *fixed, *options])


def sent(site: WebServer, path: str) -> list[web.Call]:
    return [call for call in site.calls if call.path == path]
