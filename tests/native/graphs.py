"""One-node ONNX models around a native operator, run on ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from gog_edge.native import dispatch
from gog_edge.native.contract import DOMAIN, VERSION

needs_ops = pytest.mark.skipif(dispatch.available() is not None, reason=dispatch.available() or "")


def session(
    op: str,
    inputs: Sequence[tuple[str, NDArray[np.generic] | None]],
    threads: int = 2,
    **attributes: float | int,
) -> onnxruntime.InferenceSession:
    """A session for one `op` node, for inputs of any size; inputs named None are left out of the node."""
    names = [name if value is not None else "" for name, value in inputs]
    while names and not names[-1]:
        names.pop()
    node = helper.make_node(op, names, ["y"], domain=DOMAIN, **attributes)
    given = [(name, value) for name, value in inputs if value is not None]
    graph = helper.make_graph(
        [node],
        "one_node",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
            for name, value in given
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=9,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", os.environ.get("SPIN", "0")
    )  # other tests share the cores
    assert dispatch.register(options) is None
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(
    op: str, inputs: Mapping[str, NDArray[np.generic] | None], threads: int = 2, **attributes: float | int
) -> NDArray[np.float32]:
    """y of one `op` node over `inputs`, in the node's order."""
    feeds = {name: value for name, value in inputs.items() if value is not None}
    made = session(op, list(inputs.items()), threads, **attributes)
    result: NDArray[np.float32] = made.run(None, feeds)[0]
    return result
