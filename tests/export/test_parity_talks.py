"""Recorded conversations, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gog_edge.errors import DatasetError
from gog_edge.export.synthetic.checkpoint import make_checkpoint

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


def _questions(root: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (70 + i, 90, 3), dtype=np.uint8)).save(root / f"{i}.png")
        rows.append({"image": f"{i}.png", "question": f"What is {i}?", "answers": ["x"]})
    (root / "q.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + "\n\n")
    return root / "q.jsonl"


def test_questions_are_read_and_checked(tmp_path: Path) -> None:
    from gog_edge.export.parity.rollouts import read_questions

    file = _questions(tmp_path, 2)
    asks = read_questions(file)
    assert [a.question for a in asks] == ["What is 0?", "What is 1?"]
    assert asks[1].image == tmp_path / "1.png"
    assert read_questions(file, tmp_path) == asks
    for text, line in (
        ('{"image": "0.png"}', "line 1: needs"),
        ("[", "line 1: needs"),
        ('{"image": "n", "question": "q"}', "no image"),
    ):
        file.write_text(text)
        with pytest.raises(DatasetError, match=line):
            read_questions(file)
    with pytest.raises(DatasetError, match="can't be read"):
        read_questions(tmp_path / "missing")


def test_what_the_policy_wrote() -> None:
    from gog_edge.export.parity.rollouts import written

    tokens = np.array([1, 5, 5, 2, 1, 9, 7, 7, 2, 3, 1, 9, 8])
    assert np.flatnonzero(written(tokens, [1, 9], 2)).tolist() == [6, 7, 8, 12]
    assert not written(tokens, [4], 2).any()


def test_conversations_are_recorded_with_their_pixels(tmp_path: Path) -> None:
    import gog_edge
    from gog_edge.agent.options import RunOptions
    from gog_edge.export.checkpoint.reader import Checkpoint
    from gog_edge.export.options import ExportOptions
    from gog_edge.export.parity.reference import Reference
    from gog_edge.export.parity.rollouts import read_questions, record
    from gog_edge.export.pipeline import export_bundle

    checkpoint = Checkpoint.open(make_checkpoint("tiny-qwen3-vl", tmp_path / "c", 2, "float32"))
    bundle = export_bundle(checkpoint, tmp_path / "b", ExportOptions(precision="fp32"))
    options = RunOptions(grammar="off", turn_tokens=12, max_turns=2, prefix_cache=False)
    asks = read_questions(_questions(tmp_path, 2))
    with gog_edge.load(bundle, options=options) as agent:
        talks = record(agent, asks)
    for talk in talks:
        image_token = bundle.manifest.tokens.image_pad
        shown = sum(i.rows * i.columns // 4 for i in talk.images)
        assert shown == (talk.tokens == image_token).sum() > 0
        assert 0 < talk.written.sum() < len(talk.tokens)
        logits = Reference(checkpoint).logits(talk.tokens, talk.images)
        places = np.flatnonzero(talk.written)
        agrees = logits[places - 1].argmax(-1) == talk.tokens[places]
        assert agrees[:12].all()  # greedy: what it wrote is what the HF model would have written
