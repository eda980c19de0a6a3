"""Counting what is read while a search runs: every dialect that searches, every search, every outcome."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from gog_edge import dialects
from gog_edge.export.synthetic.text import tokenizer_json
from studies.read_ahead import SEARCHES, command


def test_every_dialect_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json(1000)))
    done = CliRunner().invoke(command, [str(path)], catch_exceptions=False)
    found = json.loads(done.output.splitlines()[-1])
    assert sorted(found) == dialects.names()
    for name, kinds in found.items():
        spec = dialects.load(name).spec
        assert set(kinds) == {a.kind for a in spec.actions} & set(SEARCHES)
        for kind, k in kinds.items():
            assert k["crop"] == (kind == "gaze" and bool(spec.observe["gaze"].crop)), name
            assert 0 < k["failed"] <= k["tokens"] and 0 < k["nothing"] <= k["tokens"]
            assert k["results"] == k["tokens"], (name, kind)  # nothing of a usual reply is guessed wrong
    crops = [name for name, kinds in found.items() if any(k["crop"] for k in kinds.values())]
    assert crops == ["gog", "gog-mmsearch"]
