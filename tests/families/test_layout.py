"""Host-side layout: permutations, interpolation, windows and positions, against their definitions and transformers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gog_edge.engines.base import causal_bias
from gog_edge.errors import ImageError
from gog_edge.families import layout
from gog_edge.manifest import DecoderSpec, VisionSpec
from gog_edge.runtime.decoder import Rotary
from gog_edge.runtime.vision import vision_inputs
from tests.families import sequence

sides = st.integers(1, 17)
merges = st.integers(1, 3)


@given(sides, sides, merges)
def test_merge_order_is_a_permutation_of_whole_blocks(h: int, w: int, merge: int) -> None:
    row, column = layout.merge_order(h * merge, w * merge, merge)
    assert sorted((row * w * merge + column).tolist()) == list(range(h * w * merge * merge))
    blocks = np.stack([row // merge, column // merge], 1).reshape(h * w, merge * merge, 2)
    assert (blocks == blocks[:, :1]).all()  # m*m rows of one block stand together
    assert (blocks[:, 0, 0] * w + blocks[:, 0, 1] == np.arange(h * w)).all()  # and blocks in reading order


@pytest.mark.parametrize(("rows", "columns"), [(0, 2), (3, 2), (2, 5), (-2, 2)])
def test_grids_that_do_not_merge_are_refused(rows: int, columns: int) -> None:
    with pytest.raises(ImageError, match="multiple of the merge size"):
        layout.merge_order(rows, columns, 2)


@given(sides, sides)
def test_vision_rope_is_a_rotation_by_row_and_column(h: int, w: int) -> None:
    cos, sin = layout.vision_rope(2 * h, 2 * w, 2, 16)
    assert cos.shape == sin.shape == (4 * h * w, 8)
    np.testing.assert_allclose(cos**2 + sin**2, 1, atol=1e-6)
    row, column = layout.merge_order(2 * h, 2 * w, 2)
    np.testing.assert_allclose(cos[:, 0], np.cos(row), atol=1e-5)  # the first frequency of each half is 1
    np.testing.assert_allclose(sin[:, 4], np.sin(column), atol=1e-5)


@given(sides, sides, st.integers(2, 48))
def test_position_corners_interpolate_linear_functions_exactly(h: int, w: int, side: int) -> None:
    index, weight = layout.position_corners(2 * h, 2 * w, 2, side)
    assert index.min() >= 0
    assert index.max() < side * side
    np.testing.assert_allclose(weight.sum(0), 1, atol=1e-6)
    assert weight.min() >= 0
    row, column = layout.merge_order(2 * h, 2 * w, 2)
    for axis, size, table in ((row, 2 * h, index // side), (column, 2 * w, index % side)):
        want = axis * (side - 1) / max(size - 1, 1)
        np.testing.assert_allclose((table * weight).sum(0), want, atol=1e-4)


@given(sides, sides, st.integers(1, 5))
def test_windows_hold_every_row_once(h: int, w: int, side: int) -> None:
    cut = layout.windows(2 * h, 2 * w, 2, side)
    rows = 4 * h * w
    assert cut.gather.shape == cut.mask.shape
    assert cut.mask.sum() == rows
    assert cut.mask[:, 0].all()
    assert (np.diff(cut.mask, axis=1) <= 0).all()  # real slots first
    assert (cut.gather[cut.mask == 0] == 0).all()
    assert (cut.gather.reshape(-1)[cut.scatter] == np.arange(rows)).all()
    row, column = layout.merge_order(2 * h, 2 * w, 2)
    window = np.repeat(np.arange(len(cut.gather)), cut.gather.shape[1])[cut.scatter]
    same = (row[:, None] // (2 * side) == row // (2 * side)) & (column[:, None] // (2 * side) == column // (2 * side))
    assert ((window[:, None] == window) == same).all()


@given(st.integers(0, 10_000), sides, sides)
def test_image_positions_and_what_follows(start: int, h: int, w: int) -> None:
    positions = sequence.image_positions(start, 2 * h, 2 * w, 2)
    assert positions.shape == (3, h * w)
    assert (positions[0] == start).all()
    assert sequence.next_position(start, 2 * h, 2 * w, 2) == positions.max() + 1


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6), st.integers(1, 6)), max_size=4),
    st.integers(0, 5),
    st.integers(0, 100),
)
def test_sequence_positions_are_pieces_put_together(parts: list[tuple[int, int, int]], tail: int, start: int) -> None:
    tokens: list[int] = []
    want: list[np.ndarray] = []
    at = start
    for words, h, w in parts:
        tokens += [1] * words + [7] * (h * w)
        want += [sequence.text_positions(at, words), sequence.image_positions(at + words, 2 * h, 2 * w, 2)]
        at = sequence.next_position(at + words, 2 * h, 2 * w, 2)
    tokens += [1] * tail
    want.append(sequence.text_positions(at, tail))
    grids = [(2 * h, 2 * w) for _, h, w in parts]
    got, after = sequence.sequence_positions(np.array(tokens, np.int64), 7, grids, 2, start)
    np.testing.assert_array_equal(got, np.concatenate(want, axis=1))
    assert after == at + tail


def test_image_tokens_must_match_their_grids() -> None:
    with pytest.raises(ImageError, match="has 3 image tokens"):
        sequence.sequence_positions(np.array([1, 7, 7, 7]), 7, [(4, 4)], 2)
    with pytest.raises(ImageError, match="not contiguous"):
        sequence.sequence_positions(np.array([7, 7, 1, 7, 7]), 7, [(4, 4)], 2)


def test_mrope_axes_of_the_published_models() -> None:
    def axes(section: tuple[int, int, int], interleaved: bool) -> list[int]:
        return layout.mrope(DecoderSpec(1, 512, 4, 4, 128, 10, 1e6, section, interleaved, 4096))[1].tolist()

    assert axes((16, 24, 24), False) == [0] * 16 + [1] * 24 + [2] * 24
    assert axes((24, 20, 20), True) == [0, 1, 2] * 20 + [0] * 4


@pytest.mark.parametrize(("past", "count", "capacity"), [(0, 3, 5), (4, 1, 5), (2, 2, 8)])
def test_causal_bias(past: int, count: int, capacity: int) -> None:
    bias = causal_bias(past, count, capacity)
    assert bias.shape == (1, 1, count, capacity)
    for i in range(count):
        assert (bias[0, 0, i, : past + i + 1] == 0).all()
        assert (bias[0, 0, i, past + i + 1 :] < -1e38).all()
    assert np.isfinite(bias).all()


def test_vision_inputs_are_cached_and_protected() -> None:
    manifest = SimpleNamespace(
        family="qwen2_5_vl", vision=VisionSpec(2, 32, 2, 16, 8, window=2), preprocessing=SimpleNamespace(merge_size=2)
    )
    first = vision_inputs(manifest, 6, 4)  # type: ignore[arg-type]
    again = vision_inputs(manifest, 6, 4)  # type: ignore[arg-type]
    assert set(first) == {"rope_cos", "rope_sin", "window_gather", "window_mask", "window_scatter"}
    assert all(first[name] is again[name] for name in first)
    with pytest.raises(ValueError, match="read-only"):
        first["rope_cos"][0, 0] = 3
    again.clear()
    assert vision_inputs(manifest, 6, 4)  # type: ignore[arg-type]


# -- against transformers -----------------------------------------------------------------------------------------


@pytest.mark.parity
@settings(max_examples=25, deadline=None)
@given(h=sides, w=sides)
def test_transformers_agrees_on_vision(h: int, w: int) -> None:
    torch = pytest.importorskip("torch")
    utils = pytest.importorskip("transformers.vision_utils")
    grid = torch.tensor([[1, 2 * h, 2 * w]])
    row, column = layout.merge_order(2 * h, 2 * w, 2)
    np.testing.assert_array_equal(np.stack([row, column], 1), utils.get_vision_position_ids(grid, 2).numpy())
    index, weight = layout.position_corners(2 * h, 2 * w, 2, 48)
    their_index, their_weight = utils.get_vision_interpolation_indices_and_weights(
        grid, 48, mode="bilinear", align_corners=True, spatial_merge_size=2
    )
    np.testing.assert_array_equal(index.T, their_index.numpy())
    np.testing.assert_allclose(weight.T, their_weight.numpy(), atol=1e-6)
    order, lengths = utils.get_vision_window_index(grid, 2, 112, 14)
    cut = layout.windows(2 * h, 2 * w, 2, 4)
    assert (np.diff(lengths.numpy()) == cut.mask.sum(1)).all()
    np.testing.assert_array_equal(cut.gather[cut.mask == 1][::4] // 4, order.numpy())


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen2_5_vl"])
def test_transformers_agrees_on_decoder_rope(kind: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    section = (24, 20, 20) if kind == "qwen3_vl" else (16, 24, 24)
    parameters = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(section)}
    if kind == "qwen3_vl":
        from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextConfig, Qwen3VLTextRotaryEmbedding

        rotary = Qwen3VLTextRotaryEmbedding(Qwen3VLTextConfig(head_dim=128, rope_parameters=parameters))
    else:
        from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as module

        config = module.Qwen2_5_VLTextConfig(hidden_size=512, num_attention_heads=4, rope_parameters=parameters)
        rotary = module.Qwen2_5_VLRotaryEmbedding(config)
    spec = DecoderSpec(1, 512, 4, 4, 128, 10, 1e6, section, kind == "qwen3_vl", 4096)
    positions = np.random.default_rng(0).integers(0, 30_000, (3, 40))
    ours = Rotary(SimpleNamespace(family=kind, decoder=spec))  # type: ignore[arg-type]
    cos, sin = ours(positions)
    theirs = rotary(torch.zeros(1), torch.tensor(positions)[:, None])
    np.testing.assert_allclose(cos, theirs[0][0, :, :64].numpy(), atol=2e-3)  # angles of 30000 are coarse in float32
    np.testing.assert_allclose(sin, theirs[1][0, :, :64].numpy(), atol=2e-3)
    near = ours(positions % 100)
    theirs = rotary(torch.zeros(1), torch.tensor(positions % 100)[:, None])
    np.testing.assert_allclose(near[0], theirs[0][0, :, :64].numpy(), atol=1e-5)
