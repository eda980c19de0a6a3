"""Collect calibration: conversations through the HF model, sums over the inputs of every decoder layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gog_edge.allowance import available_memory
from gog_edge.errors import UsageError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.parity.reference import Reference
from gog_edge.export.parity.rollouts import Talk
from gog_edge.export.quantize.calibration import Calibration, CalibrationWriter
from gog_edge.families.weights import decoder_inputs


def calibrate(
    checkpoint: Checkpoint, talks: Sequence[Talk], folder: str | Path, memory: int | None = None
) -> Calibration:
    """Run the conversations and write the statistics into `folder`.

    Raises:
        UsageError: no conversations, or the sums do not fit into memory.
    """
    if not talks:
        raise UsageError("calibration needs at least one conversation")
    reference = Reference(checkpoint, memory=memory)
    writer = CalibrationWriter()
    handles, needed = [], 0
    for weights in decoder_inputs(checkpoint.config):
        name = weights[0].removesuffix(".weight")  # of those that share an input, the first is listened to
        module = reference.model.get_submodule(name)
        needed += 8 * module.in_features**2
        handles.append(module.register_forward_pre_hook(_listener(writer, name, weights)))
    available = available_memory()
    if needed > available:
        raise UsageError(
            f"calibration of this checkpoint needs {needed / 2**30:.1f} GiB for the sums of its layers, "
            f"{available / 2**30:.1f} are free: use method mse, which needs none"
        )
    try:
        for talk in talks:
            reference.logits(talk.tokens, talk.images)
    finally:
        for handle in handles:
            handle.remove()
    tokens = int(sum(len(t.tokens) for t in talks))
    return writer.save(folder, {"conversations": len(talks), "tokens": tokens, "reference": reference.describe()})


def _listener(writer: CalibrationWriter, key: str, weights: tuple[str, ...]) -> Any:
    def listen(_module: Any, inputs: Any) -> None:
        x = inputs[0].detach().float().reshape(-1, inputs[0].shape[-1]).numpy()
        writer.add(key, weights, x)

    return listen
