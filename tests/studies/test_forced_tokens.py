"""Counting what a grammar forces: every dialect, and a decoder that really runs so many times less."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from gog_edge import dialects
from gog_edge.export.synthetic.text import tokenizer_json

pytest.importorskip("llguidance")


def test_every_dialect_is_counted(tmp_path: Path) -> None:
    from studies.forced_tokens import command

    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json(1000)))
    done = CliRunner().invoke(command, [str(path)], catch_exceptions=False)
    found = json.loads(done.output.splitlines()[-1])
    assert sorted(found) == dialects.names()
    for name, kinds in found.items():
        spec = dialects.load(name).spec
        assert set(kinds) == {a.kind for a in spec.actions} - {"refuse"}
        assert all(0 <= forced < tokens for tokens, forced in kinds.values())
        calls = [forced / tokens for kind, (tokens, forced) in kinds.items() if kind != "answer"]
        if any(a.via == "tool_call" for a in spec.actions):
            assert min(calls) > 0.3, name  # names, keys and punctuation
    assert found["direct"] == {}
