"""The memory planner: parameter counts of the published models, and arithmetic that stays consistent."""

from __future__ import annotations

import pytest

from gog_edge.errors import UsageError
from gog_edge.runtime.plan import (
    BITS,
    DEVICES,
    GIB,
    SHAPES,
    fitting,
    kv_bytes_per_token,
    largest_context,
    plan,
    suggestion,
)

# parameters in billions as the model cards give them, from the sizes of the published weight files (bf16: 2 bytes each)
PUBLISHED = {
    "qwen3-vl-2b": 2.13,
    "qwen3-vl-4b": 4.44,
    "qwen3-vl-8b": 8.77,
    "qwen3-vl-32b": 33.4,
    "qwen2.5-vl-3b": 3.75,
    "qwen2.5-vl-7b": 8.29,
    "qwen2.5-vl-32b": 33.45,
}


@pytest.mark.parametrize("name", SHAPES)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    assert SHAPES[name].parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=0.01)


def test_kv_of_the_8b_model() -> None:
    # 2 * 36 layers * 8 heads * 128 * 2 bytes
    assert kv_bytes_per_token(SHAPES["qwen3-vl-8b"]) == 147456


@pytest.mark.parametrize("precision", BITS)
@pytest.mark.parametrize("name", SHAPES)
def test_the_longest_context_fits_and_a_longer_one_does_not(name: str, precision: str) -> None:
    available = 24 * GIB
    tokens = largest_context(name, precision, available, limit=10**9)
    if tokens == 0:
        assert not plan(name, precision, available, context=256).fits
        return
    assert plan(name, precision, available, context=tokens).fits
    assert not plan(name, precision, available, context=tokens + 512).fits


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown policy shape"):
        plan("llama", "int4", GIB)
    with pytest.raises(UsageError, match="unknown precision"):
        plan("qwen3-vl-2b", "int3", GIB)


def test_only_what_fits_is_listed_and_the_largest_is_suggested() -> None:
    available = int(DEVICES["orin-nano-8gb"][1] * GIB)
    rows = fitting(available, 4096, list(SHAPES))
    assert all(p.fits and p.context <= longest for p, longest in rows)
    assert ("qwen3-vl-8b", "int4") in {(p.policy, p.precision) for p, _ in rows}  # with less than 4,096 tokens
    best = suggestion(rows, 4096)
    assert best is not None and (best.policy, best.precision) == ("qwen2.5-vl-7b", "int4")
    assert suggestion(fitting(GIB, 4096, list(SHAPES)), 4096) is None


def test_boards_leave_room_for_the_system() -> None:
    assert all(0.8 <= free / total < 1 for total, free in DEVICES.values())
