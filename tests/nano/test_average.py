"""Averaged checkpoints."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")


def _part(value: float, name: str = "w") -> dict[str, Any]:
    return {"step": int(value), "masters": {"masters": {name: torch.full((2, 2), value)}, "lr": value}}


def test_the_mean_of_the_weights_and_the_rest_of_the_last() -> None:
    from recipe.average import average

    mean = average([_part(1.0), _part(2.0), _part(6.0)])
    assert torch.equal(mean["masters"]["masters"]["w"], torch.full((2, 2), 3.0))
    assert mean["step"] == 6 and mean["masters"]["lr"] == 6.0


def test_other_weights_are_refused() -> None:
    from recipe.average import average

    with pytest.raises(ValueError, match="one model"):
        average([_part(1.0), _part(2.0, "v")])
