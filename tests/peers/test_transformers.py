"""The transformers worker: turn by turn it computes what one run over everything computes."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from gog_edge.bench.subject import Words, picture
from gog_edge_peers.create import create
from gog_edge_peers.registry import parse
from gog_edge_peers.workers import wire
from gog_edge_peers.workers.run_transformers import Transformers

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


def image(width: int, height: int, seed: int) -> wire.Image:
    return wire.Image(width, height, random.Random(seed).randbytes(width * height * 3))


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_turns_are_one_conversation(tiny_checkpoints: dict[str, Path], family: str) -> None:
    worker = Transformers()
    worker.load(str(tiny_checkpoints[family]), {})
    worker.model.float()
    seen: list[list[int]] = []
    logits: list[torch.Tensor] = []
    forward = worker.model.forward

    def record(*args: object, **given: object) -> object:
        out = forward(*args, **given)
        seen.append(given["input_ids"][0].tolist())  # type: ignore[index]
        logits.append(out.logits[0, -1].clone())
        return out

    worker.model.forward = record
    pictures = [image(112, 84, 1), image(56, 84, 2)]
    first = worker.turn([pictures[0], wire.Words(7, 1)], 3)
    second = worker.turn([pictures[1], wire.Words(5, 2)], 2)
    assert (first.generated, second.generated) == (3, 2)
    assert second.computed == second.new_tokens + 1  # the last token of the turn before was written, not run
    assert set(second.stages) == {"crop", "encode", "prefill", "decode"}
    assert sum(len(s) for s in seen) == first.new_tokens + 3 + second.new_tokens + 1

    # the same tokens at once, by the model's own rules for positions
    ids = torch.tensor([[i for s in seen for i in s]])
    arrays = [torch.frombuffer(bytearray(p.data), dtype=torch.uint8).reshape(p.height, p.width, 3) for p in pictures]
    inputs = [worker.processor(images=[a.permute(2, 0, 1)], return_tensors="pt") for a in arrays]
    whole = forward(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=torch.cat([i["pixel_values"] for i in inputs]),
        image_grid_thw=torch.cat([i["image_grid_thw"] for i in inputs]),
        mm_token_type_ids=(ids == worker.ids[1]).int(),
    )
    assert torch.allclose(whole.logits[0, -1], logits[-1], atol=2e-4, rtol=1e-3)
    worker.close()


@pytest.mark.slow
def test_the_worker_runs_in_a_process_of_its_own(tiny_checkpoints: dict[str, Path]) -> None:
    wanted = parse("transformers")[0]
    model = str(tiny_checkpoints["qwen3_vl"])
    subject = create(wanted, {"transformers": model}, {"transformers": sys.executable}, 1)
    try:
        assert subject.load() > 0
        times = subject.turn([picture(160, 96, 1), Words(20, 1)], 5)
        assert times.new_tokens == 15 + 2 + 20
        assert sum(times.stages.values()) <= times.total
        assert times.resident > 0 and times.peak > 0
        subject.reset()
        assert subject.turn([Words(20, 1)], 1).computed == 20
    finally:
        subject.close()
