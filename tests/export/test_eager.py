"""The target that computes at once has what a decoder may use, with the values of torch."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from gog_edge.export.calibration.eager import Eager
from gog_edge.families.target import Target

OF_TOWERS = {"vision_attention", "folded_patches"}
RNG = np.random.default_rng(0)
X = RNG.normal(0, 3, (7, 16)).astype(np.float32)
WEIGHTS = {"w": RNG.normal(1, 1, 16).astype(np.float32), "b": RNG.normal(0, 1, 16).astype(np.float32)}


class Source:
    def read(self, name: str, _: Any) -> Any:
        return WEIGHTS[name]


def eager() -> Eager:
    return Eager(Source(), {}, 7, lambda *_: None)  # type: ignore[arg-type]


def test_it_has_every_step_that_a_family_may_take_in_a_decoder() -> None:
    steps = {name for name, _ in inspect.getmembers(Target, inspect.isfunction) if not name.startswith("_")}
    assert len(steps) > 25
    assert sorted(name for name in steps - OF_TOWERS if not hasattr(Eager, name)) == []


def test_values_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    x, weights = torch.from_numpy(X), {name: torch.from_numpy(values) for name, values in WEIGHTS.items()}
    for tanh in (True, False):
        want = torch.nn.functional.gelu(x, approximate="tanh" if tanh else "none")
        np.testing.assert_allclose(eager().gelu(X, tanh=tanh), want, atol=2e-6)
    want = torch.nn.functional.layer_norm(x, (16,), weights["w"], weights["b"], 1e-6)
    np.testing.assert_allclose(eager().layer_norm(X, "w", "b", 1e-6), want, atol=2e-6)
    normed, total = eager().add_layer_norm(X, X, "w", "b", 1e-6)
    np.testing.assert_allclose(total, 2 * X)
    np.testing.assert_allclose(normed, torch.nn.functional.layer_norm(2 * x, (16,), *weights.values(), 1e-6), atol=2e-6)
    index, share = RNG.integers(0, 7, (4, 3)), RNG.random((4, 3), np.float32)
    want = (x[torch.from_numpy(index)] * torch.from_numpy(share)[..., None]).sum(0)
    np.testing.assert_allclose(eager().weighted_rows(X, index, share), want, atol=1e-5)
    assert eager().stack([X, X]).shape == (2, 7, 16) and eager().parameter("w", (4, 4)).shape == (4, 4)
