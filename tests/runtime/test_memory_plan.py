"""The memory planner: parameter counts of the published models, and arithmetic that stays consistent."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gog_edge.errors import UsageError
from gog_edge.runtime.memory_plan import (
    BITS,
    DEVICES,
    GIB,
    fitting,
    kv_bytes_per_token,
    largest_context,
    plan,
    recurrent_bytes,
    scratch,
    suggestion,
)
from gog_edge.shapes import SHAPES

# parameters in billions as the model cards give them, from the sizes of the published weight files (bf16: 2 bytes
# each); for mixtures of experts, what transformers' own models have
PUBLISHED = {
    "qwen3-vl-2b": 2.13,
    "qwen3-vl-4b": 4.44,
    "qwen3-vl-8b": 8.77,
    "qwen3-vl-32b": 33.4,
    "qwen3-vl-30b-a3b": 31.1,
    "qwen3-vl-235b-a22b": 236,
    "qwen2.5-vl-3b": 3.75,
    "qwen2.5-vl-7b": 8.29,
    "qwen2.5-vl-32b": 33.45,
    # less the head that predicts several tokens, which is left out: 0.02, 0.06, 0.12, 0.24, 0.42 and 0.84
    "qwen3.5-0.8b": 0.853,
    "qwen3.5-2b": 2.213,
    "qwen3.5-4b": 4.539,
    "qwen3.5-9b": 9.410,
    "qwen3.5-27b": 27.36,
    "qwen3.5-35b-a3b": 35.11,
}


@pytest.mark.parametrize("name", SHAPES)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    assert SHAPES[name].parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=0.01)


def test_a_token_uses_few_of_the_experts() -> None:
    assert SHAPES["qwen3-vl-30b-a3b"].active_parameters / 1e9 == pytest.approx(2.72, rel=0.01)  # A3B, with both tables
    assert SHAPES["qwen3-vl-235b-a22b"].active_parameters / 1e9 == pytest.approx(21.0, rel=0.01)
    assert SHAPES["qwen3.5-35b-a3b"].active_parameters / 1e9 == pytest.approx(2.44, rel=0.01)
    assert SHAPES["qwen3-vl-8b"].active_parameters == SHAPES["qwen3-vl-8b"].decoder_parameters


def test_kv_of_the_8b_model() -> None:
    # 2 * 36 layers * 8 heads * 128 * 2 bytes
    assert kv_bytes_per_token(SHAPES["qwen3-vl-8b"]) == 147456


def test_recurrent_states_of_the_4b_model() -> None:
    # 24 layers: 87 MiB a copy, of which three; 195 MiB in use; keys and values of 8 layers only
    shape = SHAPES["qwen3.5-4b"]
    assert round(recurrent_bytes(shape) / 2**20) == 195 + 260
    assert kv_bytes_per_token(shape) == 32768 and recurrent_bytes(SHAPES["qwen3-vl-8b"]) == 0


@pytest.mark.parametrize("precision", BITS)
@pytest.mark.parametrize("name", SHAPES)
def test_the_longest_context_fits_and_a_longer_one_does_not(name: str, precision: str) -> None:
    available = 24 * GIB
    tokens = largest_context(name, precision, available)
    if tokens == 0:
        assert not plan(name, precision, available, context=256).fits
        return
    assert plan(name, precision, available, context=tokens).fits
    if tokens < SHAPES[name].context:
        assert not plan(name, precision, available, context=tokens + 512).fits


@pytest.mark.parametrize(
    ("name", "part", "sizes", "measured"),
    [  # studies/engine_scratch.md
        ("qwen2.5-vl-7b", "vision", {"patches": 16384}, 834_797_568),
        ("qwen2.5-vl-7b", "vision", {"patches": 3072}, 164_511_744),
        ("qwen3-vl-2b", "vision", {"patches": 16384}, 482_148_352),
        ("qwen3-vl-2b", "vision", {"patches": 3072}, 101_056_512),
        ("qwen2.5-vl-7b", "decoder", {"capacity": 4096}, 114_823_168),
        ("qwen2.5-vl-7b", "decoder", {"capacity": 8192}, 144_183_296),
        ("qwen3-vl-2b", "decoder", {"capacity": 4096}, 47_218_688),
        ("qwen3-vl-2b", "decoder", {"capacity": 8192}, 68_190_208),
        ("qwen3-vl-8b", "decoder", {"capacity": 4096}, 87_834_624),
        ("qwen3-vl-8b", "decoder", {"capacity": 8192}, 108_806_144),
    ],
)
def test_working_memory_of_engines_is_what_the_build_logs_say(
    name: str, part: str, sizes: dict[str, int], measured: int
) -> None:
    shape = SHAPES[name]
    if part == "vision":
        found = scratch(shape, 0, 0, **sizes)
    else:
        found = scratch(shape, **sizes, patches=0) - scratch(shape, 0, 0, 0)
    assert measured <= found <= measured * 1.2 if part == "decoder" else measured * 0.9 <= found <= measured * 1.1


def test_a_board_plans_with_engines_where_there_are_graphs() -> None:
    seven = plan("qwen2.5-vl-7b", "int4", int(6.5 * GIB), engine="tensorrt")
    assert not seven.fits and seven.activations > 6 * plan("qwen2.5-vl-7b", "int4", GIB).activations
    engines = {p.policy: p.engine for p, _ in fitting(28 * GIB, 4096, list(SHAPES), board=True)}
    assert engines["qwen3-vl-4b"] == "tensorrt" and engines["qwen3.5-4b"] == engines["qwen3-vl-30b-a3b"] == "cpu"
    assert {p.engine for p, _ in fitting(28 * GIB, 4096, list(SHAPES))} == {"cpu"}
    rows = fitting(28 * GIB, 4096, list(SHAPES), board=True)
    assert {p.engine for p, _ in rows if p.precision == "int5"} == {"cpu"}  # an operator of ours


def test_the_longest_context_counts_the_engines_too() -> None:
    tokens = largest_context("qwen3-vl-4b", "int8", int(6.5 * GIB), "tensorrt")
    assert plan("qwen3-vl-4b", "int8", int(6.5 * GIB), context=tokens, engine="tensorrt").fits
    assert not plan("qwen3-vl-4b", "int8", int(6.5 * GIB), context=tokens + 512, engine="tensorrt").fits


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


def test_no_context_is_longer_than_the_checkpoint_knows() -> None:
    assert largest_context("qwen2.5-vl-7b", "int4", 1000 * GIB) == 128_000
    assert largest_context("qwen3-vl-8b", "int4", 1000 * GIB) == 262_144


def test_the_page_about_boards_says_what_the_plan_says() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "jetson.md").read_text("utf-8")
    rows = re.findall(r"^\| ([\w ]+) GB \| ([\d.]+) GiB \| Qwen(\S+) at (\w+) \(([\d.]+) GiB", page, re.MULTILINE)
    assert [f"{board.lower().replace(' ', '-')}gb" for board, *_ in rows] == list(DEVICES)
    for (_, free, policy, precision, size), (_, usable) in zip(rows, DEVICES.values()):
        best = suggestion(fitting(int(usable * GIB), 4096, list(SHAPES), board=True), 4096)
        assert best is not None and float(free) == usable
        assert (best.policy, best.precision) == (f"qwen{policy.lower()}", precision)
        assert round(best.total / GIB, 1) == float(size)
