"""The manual's examples load, and its table lists what is shipped."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from gog_edge import dialects
from gog_edge.dialects import spec
from gog_edge.types import ActionKind
from tests.dialects.helpers import PHOTO

MANUAL = (Path(__file__).resolve().parents[2] / "docs" / "dialects.md").read_text(encoding="utf-8")


def test_the_table_is_complete() -> None:
    table = MANUAL.partition("## Shipped dialects")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([a-z0-9-]+)`", table, re.MULTILINE)
    assert sorted(listed) == dialects.names()


def test_every_key_is_described_where_it_is_defined() -> None:
    tables = [t for t in vars(spec).values() if dataclasses.is_dataclass(t) and t.__module__ == spec.__name__]
    assert len(tables) > 12
    missing = [
        f"{table.__name__}.{field.name}"
        for table in tables
        for field in dataclasses.fields(table)
        if not re.search(rf"\b{field.name}\b", f"{table.__doc__} {MANUAL}")
    ]
    assert missing == []


def test_examples_load(tmp_path: Path) -> None:
    for name in ("round_1.txt", "after_image_search.txt", "after_text_search.txt"):
        (tmp_path / name).write_text("{question} {images}" if name == "round_1.txt" else "Go on.")
    blocks = re.findall(r"```toml\n(.*?)```", MANUAL, re.DOTALL)
    assert len(blocks) == 2
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.toml"
        path.write_text(block)
        dialect = dialects.load(path)
        assert dialect.opening("q", 1)
    call = '<tool_call>{"name": "look", "arguments": {"box": [0, 0, 500, 500]}}</tool_call>'
    assert dialect.parse(call, [PHOTO]).actions[0].kind is ActionKind.GAZE
