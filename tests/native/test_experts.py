"""Route and ExpertLinear against plain numpy; rows that do not depend on their neighbours; experts that stay unread."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from gog_edge.native import dispatch, packing
from gog_edge.native.contract import DOMAIN, VERSION
from tests.native import reference
from tests.native.graphs import needs_ops

pytestmark = needs_ops
F32 = np.float32
MOST = 40
Array = NDArray[Any]
COUNT, TOP = 13, 3
# kind -> (K, bits, block, zero points)
KINDS = {
    "W4": (160, 4, 32, False),
    "W4, zero points": (160, 4, 32, True),
    "W4, K ends inside a block": (100, 4, 64, False),
    "W8": (100, 8, 0, False),
    "F16": (100, 16, 0, False),
    "F32": (101, 32, 0, False),
}


def route(x: Array, router: Array, top: int, threads: int = 1) -> tuple[Array, Array]:
    made = _session("Route", {"x": x, "router": router}, ("ids", "shares"), threads, top=top)
    ids, shares = made.run(None, {"x": x, "router": router})
    return ids, shares


def _session(op: str, inputs: dict[str, Array], outputs: tuple[str, ...], threads: int, **attributes: int) -> Any:
    """A session for one node, for any number of rows; inputs that are None are left out."""
    given = {name: array for name, array in inputs.items() if array is not None}
    node = helper.make_node(op, [n if n in given else "" for n in inputs], outputs, domain=DOMAIN, **attributes)
    value = helper.make_tensor_value_info
    kinds = [TensorProto.INT32 if name == "ids" else TensorProto.FLOAT for name in outputs]
    graph = helper.make_graph(
        [node],
        "one_node",
        [value(n, helper.np_dtype_to_tensor_dtype(a.dtype), [None] * a.ndim) for n, a in given.items()],
        [value(n, kind, None) for n, kind in zip(outputs, kinds)],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    assert dispatch.register(options) is None
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Layer:
    """COUNT experts of one kind, packed, and what they stand for."""

    def __init__(self, kind: str, n: int, gated: bool) -> None:
        self.k, self.bits, block, zeros = KINDS[kind]
        self.op, self.n, self.gated = f"ExpertLinear{kind[:3].rstrip(',')}", n, gated
        rng, rows = np.random.default_rng(n + self.k), 2 * n if gated else n
        self.packed: list[Any] = []
        if self.bits >= 16:
            dtype = np.float16 if self.bits == 16 else F32
            self.weight = (rng.standard_normal((COUNT, rows, self.k)) * 0.1).astype(dtype)
            self.scales = self.zeros = None
            return
        order = packing.gate_up_order(n) if gated else None
        for _ in range(COUNT):
            if self.bits == 8:
                q = rng.integers(-127, 128, (rows, self.k), np.int8)
                self.packed.append(packing.pack_w8(q, (rng.random(rows) * 0.01).astype(F32), order))
                continue
            blocks = -(-self.k // block)
            zero = rng.integers(0, 16, (rows, blocks), np.uint8) if zeros else None
            scale = (rng.standard_normal((rows, blocks)) * 0.1).astype(np.float16)
            self.packed.append(packing.pack_w4(rng.integers(0, 16, (rows, self.k), np.uint8), scale, zero, order))
        self.weight = np.stack([p.weight for p in self.packed])
        self.scales = np.stack([p.scales for p in self.packed])
        self.zeros = np.stack([p.zero_points for p in self.packed]) if zeros else None

    def inputs(self, x: Array, ids: Array, shares: Array | None) -> dict[str, Any]:
        found = {"x": x, "ids": ids, "shares": shares, "weight": self.weight}
        if self.bits < 16:
            found["scales"] = self.scales
        return found | ({"zeros": self.zeros} if self.bits == 4 else {})

    def session(self, x: Array, ids: Array, shares: Array | None, threads: int) -> Any:
        attributes = {"N": self.n, **({"gated": 1} if self.gated else {})}
        return _session(self.op, self.inputs(x, ids, shares), ("y",), threads, **attributes)

    def run(self, made: Any, x: Array, ids: Array, shares: Array | None) -> Array:
        given = self.inputs(x, ids, shares)
        return np.asarray(made.run(None, {name: array for name, array in given.items() if array is not None})[0])

    def one(self, x: Array, expert: int) -> Array:
        """What an expert makes of a row, by the reference."""
        activation = "silu_mul" if self.gated else "none"
        if self.bits < 16:
            exact = {"exact": True} if self.bits == 4 else {}
            packed = self.packed[expert]
            return reference.linear(x[None], packed, self.n, bits=self.bits, activation=activation, **exact)[0]
        y = self.weight[expert].astype(np.float64) @ x
        if self.gated:
            y = y[: self.n] / (1 + np.exp(-y[: self.n])) * y[self.n :]
        return y.astype(F32)


def _rows(kind: str, per_place: bool, seed: int = 5) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((MOST * (TOP if per_place else 1), KINDS[kind][0])).astype(F32)
    x *= np.exp(rng.standard_normal((len(x), 1))).astype(F32)
    ids = np.sort(np.stack([rng.permutation(COUNT)[:TOP] for _ in range(MOST)]).astype(np.int32))
    return x, ids, rng.random((MOST, TOP), F32)


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "mixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_linear(kind: str, gated: bool) -> None:
    """Gate and up from one row for all its experts, down from a row for each, summed by their shares."""
    layer = Layer(kind, 37, gated)
    x, ids, shares = _rows(kind, per_place=not gated)
    got = layer.run(layer.session(x, ids, None if gated else shares, 2), x, ids, None if gated else shares)
    want = np.zeros_like(got)
    for row in range(MOST):
        for place in range(TOP):
            y = layer.one(x[row] if gated else x[row * TOP + place], ids[row, place])
            if gated:
                want[row * TOP + place] = y
            else:
                want[row] += shares[row, place] * y
    assert np.abs(got - want).max() < 4e-6 * np.abs(want).max()


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "mixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_their_neighbours(kind: str, gated: bool) -> None:
    layer = Layer(kind, 70, gated)
    x, ids, shares = _rows(kind, per_place=not gated)
    each = 1 if gated else TOP  # rows of x for a row of ids
    out = TOP if gated else 1
    for threads in (1, 2, 3):
        made = layer.session(x, ids, None if gated else shares, threads)

        def run(begin: int, end: int, made: Any = made) -> Array:
            part = slice(begin, end)
            return layer.run(made, x[begin * each : end * each], ids[part], None if gated else shares[part])

        if threads == 1:
            alone = np.concatenate([run(i, i + 1) for i in range(MOST)])
        for count in range(1, MOST + 1):
            for first in {0, MOST - count}:
                got = run(first, first + count)
                assert np.array_equal(got, alone[first * out : (first + count) * out]), (threads, first, count)


@pytest.mark.parametrize(("count", "top", "k"), [(4, 1, 16), (6, 2, 56), (64, 8, 100), (128, 8, 512), (5, 5, 33)])
def test_route(count: int, top: int, k: int) -> None:
    rng = np.random.default_rng(count)
    x, router = rng.standard_normal((MOST, k)).astype(F32), rng.standard_normal((count, k)).astype(F32)
    router[count // 2] = router[0]  # a tie: the lower id wins
    ids, shares = route(x, router, top, threads=2)
    logits = x.astype(np.float64) @ router.T.astype(np.float64)
    logits[:, count // 2] -= 1e-9
    want = np.sort(np.argsort(-logits, axis=1)[:, :top], axis=1)
    assert np.array_equal(ids, want)
    weights = np.exp(np.take_along_axis(logits, want, 1) - logits.max(1, keepdims=True))
    assert np.abs(shares - weights / weights.sum(1, keepdims=True)).max() < 1e-5
    for rows in (1, 2, 3, 5, 17, 33):
        for threads in (1, 3):
            part = route(x[:rows], router, top, threads)
            assert np.array_equal(part[0], ids[:rows]) and np.array_equal(part[1], shares[:rows])


def test_wrong_arguments_are_named() -> None:
    layer = Layer("W8", 37, gated=True)
    x, ids, _ = _rows("W8", per_place=False)
    made = layer.session(x, ids, None, 1)
    for changed, message in (
        ((x, ids + COUNT), "ids must name experts"),
        ((x[:7], ids), "x must have a row for each row of ids, or for each id"),
        ((np.tile(x, (1, 2)), ids), "the last axis of x does not fit"),
    ):
        with pytest.raises(Exception, match=f"ExpertLinearW8: {message}"):
            layer.run(made, *changed, None)
    with pytest.raises(Exception, match="at least top experts"):
        route(x, np.zeros((2, x.shape[1]), F32), 3)


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="this system does not say which pages are resident")
def test_only_what_is_routed_is_read(tmp_path: Path) -> None:
    """64 experts of 1 MiB in a mapped file, 6 of them used: pages of the others are not touched."""
    count, k, n = 64, 1024, 1024
    file, each = tmp_path / "layer.experts.data", k * n
    with file.open("wb") as f:
        for expert in range(count):
            f.write(bytes([120 + expert % 16]) * each)
    weight = TensorProto(name="weight", data_type=TensorProto.UINT8, data_location=TensorProto.EXTERNAL)
    weight.dims.extend((count, n // 16, k // 4, 16, 4))
    for key, text in (("location", file.name), ("offset", "0"), ("length", str(count * each))):
        weight.external_data.add(key=key, value=text)
    scales = helper.make_tensor("scales", TensorProto.FLOAT, (count, n // 16, 1, 16), np.ones(count * n, F32))
    names = ["x", "ids", "", "weight", "scales"]
    node = helper.make_node("ExpertLinearW8", names, ["y"], domain=DOMAIN, N=n)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "layer",
        [value("x", TensorProto.FLOAT, [None, k]), value("ids", TensorProto.INT32, [None, None])],
        [value("y", TensorProto.FLOAT, None)],
        [weight, scales],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)]
    (tmp_path / "layer.onnx").write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    )
    options = onnxruntime.SessionOptions()
    assert dispatch.register(options) is None
    made = onnxruntime.InferenceSession(str(tmp_path / "layer.onnx"), options, providers=["CPUExecutionProvider"])
    assert _resident(file) <= each
    ids = np.array([[3, 17], [3, 40], [5, 63]], np.int32)
    made.run(None, {"x": np.ones((3, k), F32), "ids": ids})
    used = len(np.unique(ids))
    assert used * each <= _resident(file) <= used * (each + (256 << 10))  # the kernel maps some pages around


def _resident(file: Path) -> int:
    """Bytes of a mapped file that this process holds in memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(file))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total
