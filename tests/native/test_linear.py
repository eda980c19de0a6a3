"""LinearW8, LinearW5 and LinearW4 against the numpy reference.

Integer sums are exact in both, so the error is that of a few f32 roundings: the bound is 2e-6 of the largest
magnitude of y plus what one quantisation step that rounds the other way (a tie met by a norm's last bit) may do.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gog_edge.native import packing
from gog_edge.native.contract import ACTIVATIONS, NORMS
from gog_edge.native.rotation import rotate
from tests.native import reference
from tests.native.graphs import needs_ops, run

pytestmark = needs_ops
F32 = np.float32


def _packed(rng: np.random.Generator, bits: int, n: int, k: int, block: int, zeros: bool, order: object = None):  # type: ignore[no-untyped-def]
    if bits == 8:
        q, block = rng.integers(-127, 128, (n, k), np.int8), block or k
        return packing.pack_w8(q, (rng.random((n, -(-k // block))) * 0.01).astype(F32), order, block)  # type: ignore[arg-type]
    if bits == 5:
        scales = (rng.random((n, -(-k // 32))) * 0.1).astype(np.float16)
        return packing.pack_w5(rng.integers(0, 32, (n, k), np.uint8), scales, order)  # type: ignore[arg-type]
    groups = -(-k // block)
    q4 = rng.integers(0, 16, (n, k), np.uint8)
    scales = (rng.random((n, groups)) * 0.1).astype(np.float16)
    zero_points = rng.integers(0, 16, (n, groups), np.uint8) if zeros else None
    return packing.pack_w4(q4, scales, zero_points, order)  # type: ignore[arg-type]


def _both(  # type: ignore[no-untyped-def]
    x: NDArray[np.float32], packed: packing.PackedLinear, n: int, bits: int, threads: int = 2, **options
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    activation, norm = options.get("activation", "none"), options.get("norm", "none")
    inputs = {"x": x, "weight": packed.weight, "scales": packed.scales}
    for name in ("bias", "residual", "norm_weight", "norm_bias"):
        inputs[name] = options.get(name)
    if bits == 4:
        inputs["zero_points"] = packed.zero_points
    got = run(
        f"LinearW{bits}",
        inputs,
        threads,
        N=n,
        activation=ACTIVATIONS[activation],
        norm=NORMS[norm],
        epsilon=1e-5,
        exact=int(options.get("exact", False)),
        rotation=options.get("rotation", 0),
    )
    want = reference.linear(x.reshape(-1, x.shape[-1]), packed, n, bits=bits, epsilon=1e-5, **options)
    return got.reshape(want.shape), want


def _close(got: NDArray[np.float32], want: NDArray[np.float32], tolerance: float = 4e-6) -> None:
    assert got.shape == want.shape
    error = np.abs(got - want).max() / max(float(np.abs(want).max()), 1e-6)
    assert error < tolerance, f"relative error {error:.2e}"


@pytest.mark.parametrize("bits, exact", [(8, False), (5, False), (5, True), (4, False), (4, True)])
@pytest.mark.parametrize("rows", list(range(1, 34)))
def test_every_number_of_rows(bits: int, exact: bool, rows: int) -> None:
    rng = np.random.default_rng(rows)
    packed = _packed(rng, bits, 48, 160, 32, zeros=False)
    x = rng.standard_normal((rows, 160), F32)
    _close(*_both(x, packed, 48, bits, exact=exact))


@pytest.mark.parametrize("n, k", [(1, 1), (5, 7), (16, 64), (33, 100), (31, 129), (70, 300), (96, 8)])
@pytest.mark.parametrize(
    "bits, block, zeros", [(8, 0, False), (8, 48, False), (5, 32, False), (4, 32, False), (4, 32, True), (4, 128, True)]
)
def test_odd_shapes(n: int, k: int, bits: int, block: int, zeros: bool) -> None:
    rng = np.random.default_rng(n * k)
    packed = _packed(rng, bits, n, k, block, zeros)
    for rows in (1, 3, 17):
        for exact in (False, True):
            _close(*_both(rng.standard_normal((rows, k), F32), packed, n, bits, exact=exact))


@pytest.mark.parametrize("block", [8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("zeros", [False, True])
def test_blocks(block: int, zeros: bool) -> None:
    rng = np.random.default_rng(block)
    packed = _packed(rng, 4, 64, 512, block, zeros)
    for rows in (1, 2, 20):
        for exact in (False, True):
            _close(*_both(rng.standard_normal((rows, 512), F32), packed, 64, 4, exact=exact))


@pytest.mark.parametrize("rows", [1, 23, 40])
@pytest.mark.parametrize("block", [8, 32, 64, 128, 256, 512])
@pytest.mark.parametrize("k", [512, 768, 1536])
@pytest.mark.parametrize("zeros", [False, True])
def test_widened_weights(rows: int, block: int, k: int, zeros: bool) -> None:
    rng = np.random.default_rng(k + block)
    packed = _packed(rng, 4, 64, k, block, zeros)
    x = rng.standard_normal((rows, k), F32)
    got, want = _both(x, packed, 64, 4)
    _close(got, want)
    exact = _both(x, packed, 64, 4, exact=True)[0]
    # What widening costs: rounding to 1/127 (zeros: 1/254 of a wider range) of each group's largest weight.
    assert np.linalg.norm(got - exact) / np.linalg.norm(exact) < 0.02


@pytest.mark.parametrize("rows", [1, 23, 40])
@pytest.mark.parametrize("k", [512, 576, 1536])
def test_widened_weights_of_five_bits(rows: int, k: int) -> None:
    rng = np.random.default_rng(k)
    packed = _packed(rng, 5, 64, k, 32, zeros=False)
    x = rng.standard_normal((rows, k), F32)
    got, want = _both(x, packed, 64, 5)
    _close(got, want)
    exact = _both(x, packed, 64, 5, exact=True)[0]
    assert 0 < np.linalg.norm(got - exact) / np.linalg.norm(exact) < 0.02


def test_five_bits_are_packed_and_read_back() -> None:
    rng = np.random.default_rng(5)
    q = rng.integers(0, 32, (40, 100), np.uint8)
    packed = packing.pack_w5(q, np.ones((40, 4), np.float16))
    assert packed.weight.shape == (4, 4, 320)
    back = packing.unpack_w5(packed.weight)
    np.testing.assert_array_equal(back[:40, :100], q)
    assert (back[40:] == 16).all() and (back[:, 100:] == 16).all()
    with pytest.raises(ValueError, match="0 … 31"):
        packing.pack_w5(q + np.uint8(1), np.ones((40, 4), np.float16))
    with pytest.raises(ValueError, match="K/32"):
        packing.pack_w5(q, np.ones((40, 3), np.float16))


def test_scales_of_either_sign_and_zero() -> None:
    rng = np.random.default_rng(8)
    q = rng.integers(0, 16, (32, 256), np.uint8)
    scales = (rng.standard_normal((32, 8)) * 0.1).astype(np.float16)
    scales[3] = 0
    scales[4, :] *= np.float16(0.001)
    scales[4, 0] = 1
    packed = packing.pack_w4(q, scales)
    for rows in (2, 30):
        for exact in (False, True):
            _close(*_both(rng.standard_normal((rows, 256), F32), packed, 32, 4, exact=exact))


@pytest.mark.parametrize("bits", [8, 5, 4])
@pytest.mark.parametrize("activation", ["none", "gelu_tanh", "gelu", "silu"])
@pytest.mark.parametrize("rows", [1, 19])
def test_epilogue(bits: int, activation: str, rows: int) -> None:
    rng = np.random.default_rng(3)
    n, k = 72, 96
    packed = _packed(rng, bits, n, k, 32, zeros=False)
    bias = packing.pack_columns(rng.standard_normal(n).astype(F32))
    residual = rng.standard_normal((rows, n)).astype(F32)
    x = rng.standard_normal((rows, k), F32)
    _close(*_both(x, packed, n, bits, activation=activation, bias=bias, residual=residual))


@pytest.mark.parametrize("bits", [8, 5, 4])
@pytest.mark.parametrize("intermediate", [16, 40, 100])
@pytest.mark.parametrize("rows", [1, 16])
def test_silu_mul(bits: int, intermediate: int, rows: int) -> None:
    rng = np.random.default_rng(5)
    order = packing.gate_up_order(intermediate)
    packed = _packed(rng, bits, 2 * intermediate, 64, 32, False, order)
    bias = packing.pack_columns(rng.standard_normal(2 * intermediate).astype(F32), order)
    residual = rng.standard_normal((rows, intermediate)).astype(F32)
    x = rng.standard_normal((rows, 64), F32)
    got, want = _both(x, packed, intermediate, bits, activation="silu_mul", bias=bias, residual=residual)
    _close(got, want)
    # And the interleaving means what it says: the same from the plain weights.
    if bits == 8:
        q, scales = reference.unpack_w8(packed)
        steps, step = reference.quantize_rows(x, 32)
        products = np.einsum("mgk,ngk->mgn", steps.astype(F32), q.reshape(len(q), 2, 32).astype(F32))
        plain = np.einsum("mgn,mg,ng->mn", products, step, scales) + bias
        columns = [int(np.flatnonzero(order == c)[0]) for c in range(2 * intermediate)]
        gate, up = plain[:, columns[:intermediate]], plain[:, columns[intermediate:]]
        _close(got, reference.activate(gate, "silu") * up + residual, 1e-5)


@pytest.mark.parametrize("bits", [8, 5, 4])
@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("k", [64, 100])
def test_norm(bits: int, norm: str, k: int) -> None:
    rng = np.random.default_rng(11)
    packed = _packed(rng, bits, 32, k, 32, zeros=False)
    weight = rng.random(k).astype(F32) + F32(0.5)
    bias = rng.standard_normal(k).astype(F32) if norm == "layer" else None
    x = (rng.standard_normal((9, k)) * 3 + 1).astype(F32)
    # One int8 step is 1/127 of a row's peak: a value on a tie may go either way in the two norms.
    _close(*_both(x, packed, 32, bits, norm=norm, norm_weight=weight, norm_bias=bias), 2e-3)


@pytest.mark.parametrize(
    "k, rotation", [(16, 16), (64, 64), (100, 64), (576, 512), (576, 64), (2048, 2048), (1000, 128)]
)
@pytest.mark.parametrize("bits, norm", [(8, "none"), (8, "rms"), (5, "rms"), (4, "rms")])
def test_rotation(k: int, rotation: int, bits: int, norm: str) -> None:
    rng = np.random.default_rng(k)
    packed = _packed(rng, bits, 40, k, 0 if bits == 8 else 32, zeros=False)
    x = rng.standard_normal((9, k), F32)
    weight = rng.random(k).astype(F32) + F32(0.5)
    options = {"norm": norm, "norm_weight": None if norm == "none" else weight}
    # As with norms: a value on a tie may go either way, as additions are not made in numpy's order.
    _close(*_both(x, packed, 40, bits, rotation=rotation, **options), 4e-3)


@pytest.mark.parametrize("rows", [1, 12])
def test_rotated_weights_make_the_plain_product(rows: int) -> None:
    """And where a column stands out, the loss is a small part of what one scale for all of them costs."""
    rng = np.random.default_rng(rows)
    w, x = rng.standard_normal((48, 576)).astype(F32), rng.standard_normal((rows, 576)).astype(F32)
    x[:, 100] *= 60
    errors = []
    for rotation in (0, 64):
        turned = rotate(w, rotation)
        scale = (np.abs(turned).max(axis=1) / 127).astype(F32)
        packed = packing.pack_w8(np.rint(turned / scale[:, None]).astype(np.int8), scale)
        y = run("LinearW8", {"x": x, "weight": packed.weight, "scales": packed.scales}, N=48, rotation=rotation)
        errors.append(np.linalg.norm(y - x @ w.T))
    assert errors[1] < 0.35 * errors[0]


@pytest.mark.parametrize("rotation", [8, 48, 128])
def test_a_rotation_that_does_not_fit_is_refused(rotation: int) -> None:
    packed = _packed(np.random.default_rng(1), 8, 32, 64, 0, False)
    with pytest.raises(Exception, match="attribute rotation"):
        run("LinearW8", {"x": np.ones((2, 64), F32), "weight": packed.weight, "scales": packed.scales}, N=32,
            rotation=rotation)  # fmt: skip


@pytest.mark.parametrize("bits", [8, 5, 4])
def test_zero_rows_zero_input_and_leading_axes(bits: int) -> None:
    rng = np.random.default_rng(2)
    packed = _packed(rng, bits, 32, 64, 32, zeros=False)
    inputs = {"x": np.zeros((0, 64), F32), "weight": packed.weight, "scales": packed.scales}
    assert run(f"LinearW{bits}", inputs, N=32).shape == (0, 32)
    inputs["x"] = np.zeros((2, 3, 64), F32)
    y = run(f"LinearW{bits}", inputs, N=32)
    assert y.shape == (2, 3, 32) and not y.any()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_large_enough_for_several_tasks(threads: int) -> None:
    rng = np.random.default_rng(4)
    for bits in (8, 5, 4):
        packed = _packed(rng, bits, 320, 512, 128, zeros=False)
        _close(*_both(rng.standard_normal((150, 512), F32), packed, 320, bits, threads))


def test_the_mathematics_not_only_the_reference() -> None:
    """Against float weights and float activations: what quantising to int8 and int4 costs, and no more."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((64, 512)).astype(F32)
    x = rng.standard_normal((12, 512), F32)
    exact = x @ w.T
    scale8 = (np.abs(w).max(axis=1) / 127).astype(F32)
    w8 = packing.pack_w8(np.rint(w / scale8[:, None]).astype(np.int8), scale8)
    got = _both(x, w8, 64, 8)[0]
    assert np.linalg.norm(got - exact) / np.linalg.norm(exact) < 0.015
    blocks = w.reshape(64, 16, 32)
    scale4 = (np.abs(blocks).max(axis=2) / 7).astype(np.float16)
    q4 = np.clip(np.rint(blocks / scale4[:, :, None].astype(F32)) + 8, 0, 15).astype(np.uint8).reshape(64, 512)
    got = _both(x, packing.pack_w4(q4, scale4), 64, 4)[0]
    assert np.linalg.norm(got - exact) / np.linalg.norm(exact) < 0.12


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scales": np.ones((3, 1, 16), F32)}, "scales must be"),
        ({"x": np.ones((2, 99), F32)}, "does not fit"),
        ({"bias": np.ones(5, F32)}, "bias must be packed"),
        ({"residual": np.ones((1, 5), F32)}, "residual must have"),
        ({"norm_weight": np.ones(5, F32)}, "norm_weight must have"),
    ],
)
def test_bad_input_is_one_clear_line(change: dict[str, NDArray[np.float32]], message: str) -> None:
    packed = _packed(np.random.default_rng(1), 8, 32, 64, 0, False)
    inputs: dict[str, NDArray[np.generic] | None] = {
        "x": np.ones((2, 64), F32), "weight": packed.weight, "scales": packed.scales,
        "bias": None, "residual": None, "norm_weight": None,
    }  # fmt: skip
    inputs.update(change)
    with pytest.raises(Exception, match=message):
        run("LinearW8", inputs, N=32)
    with pytest.raises(Exception, match="attribute N"):
        run("LinearW8", {"x": inputs["x"], "weight": packed.weight, "scales": packed.scales})
