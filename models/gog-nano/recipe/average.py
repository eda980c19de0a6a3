"""The mean of the weights of several checkpoints of one line of training: ``python -m recipe.average A.pt B.pt --out C.pt``.
Optimiser state, step and tower are those of the last one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from . import optim


def average(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Checkpoints as ``train_policy`` writes them; they must hold the same weights. Raises ``ValueError`` if not."""
    masters = [part["masters"]["masters"] for part in parts]
    if any(m.keys() != masters[0].keys() for m in masters):
        raise ValueError("the checkpoints hold different weights; average those of one model")
    mean = {key: torch.stack([m[key].float() for m in masters]).mean(0) for key in masters[0]}
    return {**parts[-1], "masters": {**parts[-1]["masters"], "masters": mean}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    optim.save(options.out, average([torch.load(p, weights_only=False) for p in options.checkpoints]))


if __name__ == "__main__":
    main()
