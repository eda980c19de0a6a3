"""Each kind of operator of a decoder by itself, on one row and with the bundle's own weights.

A profile of ONNX Runtime takes its time out of short operators (a step of 42 ms became one of 47), so decoding is split
in another way: all nodes of one kind are put side by side into a graph of their own. What a whole step takes beyond the
sum of its kinds is what they cost each other: going from one to the next, and caches that others have emptied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.allowance import usable_threads
from gog_edge.engines.ort import weights
from gog_edge.engines.ort.cache import PAST
from gog_edge.engines.ort.options import OrtOptions, session_options
from gog_edge.errors import BenchError
from gog_edge.native import dispatch
from gog_edge.native.contract import DOMAIN, VERSION

_RESIDUAL = 4  # input of LinearW4 and LinearW8 that is another node's output


def read_graph(path: Path) -> Any:
    """The graph of an ONNX file, without its external weights.

    Raises:
        BenchError: the onnx package is missing.
    """
    try:
        import onnx
    except ImportError as e:
        raise BenchError("reading a graph's operators needs onnx: pip install 'gog-edge[export]'") from e
    return onnx.load(str(path), load_external_data=False).graph


def random_rows(rng: np.random.Generator, shape: Sequence[int], dtype: Any) -> NDArray[Any]:
    """What may be in a cache or an input: int8 of the whole range, floats from -0.5 to 0.5."""
    if dtype == np.int8:
        return rng.integers(-127, 128, shape, np.int8)
    return (rng.random(shape, np.float32) - 0.5).astype(dtype)


class DecoderFile:
    """A native decoder graph and its weights in memory, in huge pages where the runtime would have them there."""

    def __init__(self, path: Path, graph: Any) -> None:
        """Read the weights of `graph`, which is in `path`.

        Raises:
            BenchError: the graph has no native operators.
        """
        from onnx import numpy_helper

        self.graph = graph
        if not any(node.domain == DOMAIN for node in self.graph.node):
            raise BenchError("this bundle was exported without native operators: export with --backend native")
        self.inputs = {i.name: i for i in self.graph.input}
        names, arrays = weights.load(path, usable_threads())
        self.weights: dict[str, NDArray[Any]] = dict(zip(names, arrays))
        for tensor in self.graph.initializer:
            if tensor.name not in self.weights:
                self.weights[tensor.name] = numpy_helper.to_array(tensor)


class Alone:
    """The nodes `names` of a decoder in a graph of their own, each on one row."""

    def __init__(self, file: DecoderFile, names: Sequence[str], context: int) -> None:
        """Make the session. `context`: tokens that attention sees; its cache holds random rows.

        Raises:
            BenchError: the native operators are not available here.
        """
        import onnxruntime

        options = session_options(OrtOptions(optimize="none"))
        if (reason := dispatch.register(options)) is not None:
            raise BenchError(reason)
        nodes = [n for n in file.graph.node if n.name in set(names)]
        model, feeds = _extract(file, nodes, context)
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self._kept = list(feeds.values())
        for name, array in feeds.items():
            self._binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name, "cpu")
        self.run()

    def run(self) -> None:
        """All nodes once."""
        self._session.run_with_iobinding(self._binding)


def _extract(file: DecoderFile, nodes: Sequence[Any], context: int) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """(serialised model, its inputs): the nodes without their residuals, all on the same row."""
    from onnx import ModelProto, TensorProto, helper

    rng = np.random.default_rng(len(nodes))
    feeds: dict[str, NDArray[Any]] = {}
    made = []
    for number, node in enumerate(nodes):
        copy = type(node)()
        copy.CopyFrom(node)
        width = _width(file, node)
        feeds.setdefault(f"x{width}", rng.standard_normal((1, width), np.float32))
        copy.input[0], copy.output[0] = f"x{width}", f"y{number}"
        if "Attention" not in node.op_type and len(copy.input) > _RESIDUAL:
            copy.input[_RESIDUAL] = ""
        for name in (n for n in copy.input[1:] if n):
            feeds[name] = file.weights[name] if name in file.weights else _noise(rng, file.inputs[name], context)
        made.append(copy)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    outputs = [helper.make_tensor_value_info(f"y{n}", TensorProto.FLOAT, None) for n in range(len(made))]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)]
    graph = helper.make_graph(made, "alone", inputs, outputs)
    model: ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    data: bytes = model.SerializeToString()
    return data, feeds


def _width(file: DecoderFile, node: Any) -> int:
    """Length of the row that a node takes."""
    numbers: Mapping[str, int] = {a.name: a.i for a in node.attribute}
    if "Attention" in node.op_type:
        cache = file.inputs[next(name for name in node.input if name.startswith(PAST))]
        return (numbers["heads"] + 2 * numbers["kv_heads"]) * int(cache.type.tensor_type.shape.dim[3].dim_value)
    norms = [file.weights[name] for name in node.input[5:6] if name]
    packed = file.weights[node.input[1]].shape  # [panels, K / step, 16, 4]
    return int(norms[0].size) if norms else int(packed[1]) * (4 if node.op_type.endswith("8") else 8)


def _noise(rng: np.random.Generator, info: Any, context: int) -> NDArray[Any]:
    """What a graph input holds when one token follows `context` others."""
    from onnx import helper

    dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    shape = tuple(d.dim_value or (context + 1 if d.dim_param == "cap" else 1) for d in info.type.tensor_type.shape.dim)
    if dtype == np.int32:
        return np.full(shape, context if shape == (1,) else 0, np.int32)  # seqlens_k; prefill_rows: it is written
    return random_rows(rng, shape, dtype)
