"""`bench budget`: of a bundle, with what is cached, on a board's GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from gog_edge import families
from gog_edge.bench.budget import BOARDS, GLANCES, Cached, Policy, bundled, published, seconds
from gog_edge.bench.machine.roofline import Roofline
from gog_edge.bundle import Bundle
from gog_edge.cli.main import cli
from gog_edge.manifest import DecoderSpec, LinearSpec
from gog_edge.runtime.memory_plan import DEVICES
from gog_edge.shapes import LINEAR_DIM, SHAPES

LIMITS = Roofline(2, 50.0, {"int8": 800.0})
NANO = Path(__file__).resolve().parents[2] / "models" / "gog-nano"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    pytest.importorskip("onnx")
    from gog_edge.export.options import ExportOptions
    from gog_edge.export.pipeline import export_bundle

    return export_bundle(NANO, tmp_path_factory.mktemp("budget") / "nano", ExportOptions(precision="int8"))


def test_a_bundle_counts_by_its_files(bundle: Bundle) -> None:
    policy = bundled(bundle)
    assert policy.step_bytes == (bundle.root / "decoder.onnx.data").stat().st_size
    spec = bundle.manifest.decoder
    linears = 6 * (192 * 64 * (2 * 4 + 2 * 2) + 3 * 192 * 512)  # layers, attention, MLP of gog-nano's config.json
    assert policy.decoder == pytest.approx(
        linears, rel=0.4
    )  # norms and scales lie in the same file; in small layers they count
    size = {"float32": 4, "float16": 2, "int8": 1 + 4 / 64}[spec.kv_dtype]
    assert policy.kv_bytes == 2 * 6 * 2 * 64 * size


def test_what_is_cached_costs_less() -> None:
    policy = published(SHAPES["qwen3-vl-2b"], "int4")
    kinds: tuple[Cached, ...] = ("nothing", "features", "prompt")
    for glance in GLANCES:
        nothing, features, prompt = (seconds(policy, LIMITS, glance, 310, 100, kind) for kind in kinds)
        assert nothing > features > prompt
        # what is left is decoding, a gaze and the words: as if the glance had not been there, but for its KV rows
        gaze = max(64, glance // 5)
        rows = 100 * glance * policy.kv_bytes / 50e9 / 0.7
        alone = seconds(_without_glance(policy), LIMITS, 0, gaze + 310 - 64, 100, "prompt")
        encode = (2 * policy.vision * 4 * gaze + 64 * policy.vision_width * gaze**2) / 800e9 / 0.7
        assert prompt == pytest.approx(alone + rows + encode, rel=1e-6)


def _without_glance(policy: Policy) -> Policy:
    return Policy(policy.name, "int4", policy.decoder, 0.0, 0, policy.step_bytes, policy.kv_bytes)


def test_every_board_that_is_planned_for_has_limits() -> None:
    assert BOARDS.keys() == DEVICES.keys()
    assert all(board.read_gbs > 60 and board.gemm["fp16"] > 1e4 for board in BOARDS.values())


def test_the_command(bundle: Bundle, tmp_path: Path) -> None:
    run = CliRunner().invoke
    args = ["bench", "budget", "--deadline", "2s", "--device", "orin-nano-8gb", "--cached", "features"]
    mine = run(cli, [*args, "--bundle", str(bundle.root)])
    assert mine.exit_code == 0, mine.output
    assert "gog-nano" in mine.output and "qwen" not in mine.output
    assert "data sheet of orin-nano-8gb" in mine.output and "features of the glance cached" in mine.output
    assert "qwen3-vl-2b" in run(cli, args).output
    both = run(cli, [*args, "--limits", str(tmp_path / "report.json")])
    assert "give one of them" in str(both.exception)


def test_recurrent_states_of_a_bundle_are_those_of_its_shape() -> None:
    shape = SHAPES["qwen3.5-2b"]
    assert shape.linear is not None
    full = tuple(range(3, shape.layers, 4))
    keys, values = shape.linear
    linear = LinearSpec(full, keys, values, LINEAR_DIM, LINEAR_DIM, 4)
    spec = DecoderSpec(
        shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim, shape.vocab, 1e7, (8, 12, 12), True,
        shape.context, "float16", linear=linear,
    )  # fmt: skip
    expected = published(shape, "int4")
    assert families.named(shape.family).cache_bytes(spec) == (expected.kv_bytes, expected.state_bytes)
