"""Builds one ONNX graph node by node; weights go to a WeightFile and are referred to as external data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gog_edge._version import __version__
from gog_edge.export.graph.weightfile import Blob, WeightFile
from gog_edge.families.target import Value
from gog_edge.manifest import Dim, DType, GraphSpec, TensorSpec

_ELEMENT: dict[str, int] = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int4": TensorProto.INT4,
    "bool": TensorProto.BOOL,
}
IR_VERSION = 11


class GraphBuilder:
    """One graph in the making. Constants are inline and deduplicated, weights are external."""

    def __init__(self, name: str, data: WeightFile, domains: dict[str, int]) -> None:
        self.name = name
        self.data = data
        self.domains = domains
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: list[TensorSpec] = []
        self._outputs: list[TensorSpec] = []
        self._scope: list[str] = []
        self._count: dict[str, int] = {}
        self._files: set[str] = set()

    # -- interface ------------------------------------------------------------------------------------------------

    def input(self, name: str, dtype: DType, shape: tuple[Dim, ...]) -> Value:
        """Declare a graph input."""
        self._inputs.append(TensorSpec(name, dtype, shape))
        return Value(name, dtype)

    def output(self, value: Value, name: str, dtype: DType, shape: tuple[Dim, ...]) -> None:
        """Declare `value` as a graph output called `name` (casting where the type differs); its last use."""
        if value.dtype != dtype:
            self.node("Cast", [value], [name], to=_ELEMENT[dtype])
        elif self._nodes and value.name in self._nodes[-1].output:  # no copy: the node writes under that name
            outputs = self._nodes[-1].output
            outputs[list(outputs).index(value.name)] = name
        else:
            self.node("Identity", [value], [name])
        self._outputs.append(TensorSpec(name, dtype, shape))

    def result(self, name: str, dtype: DType, shape: tuple[Dim, ...]) -> Value:
        """Declare a graph output that a node writes itself under this name."""
        self._outputs.append(TensorSpec(name, dtype, shape))
        return Value(name, dtype)

    def width(self, value: Value) -> int:
        """Fixed size of a graph input's last axis."""
        size = next(spec.shape[-1] for spec in self._inputs if spec.name == value.name)
        if not isinstance(size, int):
            raise ValueError(f"graph {self.name}: the last axis of {value.name} has no fixed size")
        return size

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix of the names of nodes and values made inside: `layer.3/…`."""
        self._scope.append(name)
        try:
            yield
        finally:
            self._scope.pop()

    # -- nodes ----------------------------------------------------------------------------------------------------

    def op(
        self, kind: str, *inputs: Value | None, dtype: DType | None = None, domain: str = "", **attributes: Any
    ) -> Value:
        """A node with one output; its type is that of the first input unless given. None is an omitted input."""
        return self.ops(kind, *inputs, dtypes=(dtype,), domain=domain, **attributes)[0]

    def ops(
        self, kind: str, *inputs: Value | None, dtypes: Sequence[DType | None], domain: str = "", **attributes: Any
    ) -> list[Value]:
        """A node with `len(dtypes)` outputs; None stands for the type of the first input."""
        first = next(value for value in inputs if value is not None)
        outputs = [Value(self._fresh(kind), dtype or first.dtype) for dtype in dtypes]
        self.node(kind, inputs, [o.name for o in outputs], domain, **attributes)
        return outputs

    def node(
        self, kind: str, inputs: Sequence[Value | None], outputs: Sequence[str], domain: str = "", **attributes: Any
    ) -> None:
        """A node with named outputs; an empty name is an omitted output."""
        if domain not in self.domains:
            raise ValueError(f"graph {self.name}: domain {domain!r} of {kind} is not imported")
        names = [value.name if value is not None else "" for value in inputs]
        while names and not names[-1]:
            names.pop()
        self._nodes.append(
            helper.make_node(kind, names, list(outputs), name=self._fresh(f"n_{kind}"), domain=domain, **attributes)
        )

    def loop(self, count: Value, start: Value, body: Callable[[Value, Value], Value]) -> Value:
        """`start` after `count` (int64 []) rounds of body(round, value) -> value: a node Loop.

        Tensors that the body asks for are stored in the graph around it.
        """
        outer, self._nodes = self._nodes, []
        turn, going, held = (Value(self._fresh(f"loop_{name}"), dtype) for name, dtype in _loop_values(start.dtype))
        after = body(turn, held)
        still = self.op("Identity", going)
        inputs = [(turn, ()), (going, ()), (held, None)]
        graph = helper.make_graph(
            self._nodes,
            self._fresh("loop"),
            [helper.make_tensor_value_info(v.name, _ELEMENT[v.dtype], shape) for v, shape in inputs],
            [helper.make_tensor_value_info(v.name, _ELEMENT[v.dtype], None) for v in (still, after)],
        )
        self._nodes = outer
        return self.op("Loop", count, None, start, dtype=start.dtype, body=graph)

    @staticmethod
    def element(dtype: DType) -> int:
        """ONNX's number of an element type, for nodes that name it."""
        return _ELEMENT[dtype]

    def cast(self, value: Value, dtype: DType) -> Value:
        """Cast, or the value itself where it has that type already."""
        return value if value.dtype == dtype else self.op("Cast", value, dtype=dtype, to=_ELEMENT[dtype])

    # -- tensors --------------------------------------------------------------------------------------------------

    def constant(self, array: NDArray[Any]) -> Value:
        """A small constant, stored in the graph; equal ones are stored once."""
        array = np.asarray(array)
        key = hashlib.sha1(array.tobytes(), usedforsecurity=False).hexdigest()[:12]
        name = f"const_{array.dtype}_{'x'.join(map(str, array.shape)) or 'scalar'}_{key}"
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(array, name)
        return Value(name, str(array.dtype))  # type: ignore[arg-type]

    def weight(self, name: str, array: NDArray[Any]) -> Value:
        """A weight, appended to the weight file. Asking for the same name again gives the same tensor."""
        if name not in self._initializers:
            self.external(name, self.data.append(array), str(array.dtype), array.shape)
        return Value(name, str(array.dtype))  # type: ignore[arg-type]

    def external(self, name: str, blob: Blob, element: str, shape: tuple[int, ...]) -> Value:
        """A weight that lies in a file already (`element` may be int4, which has no Value type of its own)."""
        tensor = TensorProto(name=name, data_type=_ELEMENT[element], data_location=TensorProto.EXTERNAL, dims=shape)
        for key, text in (("location", blob.file), ("offset", str(blob.offset)), ("length", str(blob.length))):
            tensor.external_data.add(key=key, value=text)
        self._initializers[name] = tensor
        self._files.add(blob.file)
        return Value(name, element)  # type: ignore[arg-type]

    def has(self, name: str) -> bool:
        """A tensor of this name is stored already."""
        return name in self._initializers

    # -- result ---------------------------------------------------------------------------------------------------

    def rewrite(self, change: Callable[[list[onnx.NodeProto], set[str]], list[onnx.NodeProto]]) -> None:
        """Let a pass change the nodes; it is given the names of the graph's outputs too."""
        self._nodes = change(self._nodes, {spec.name for spec in self._outputs})

    def save(self, path: Path) -> GraphSpec:
        """Write the graph (without weights) and return its typed interface."""
        graph = helper.make_graph(
            self._nodes,
            self.name,
            [_value_info(spec) for spec in self._inputs],
            [_value_info(spec) for spec in self._outputs],
            list(self._initializers.values()),
        )
        imports = [helper.make_opsetid(domain, version) for domain, version in self.domains.items()]
        model = helper.make_model(
            graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="gog-edge", producer_version=__version__
        )
        path.write_bytes(model.SerializeToString(deterministic=True))
        return GraphSpec(
            path.name, tuple(self._inputs), tuple(self._outputs), tuple(sorted(self._files)), dict(self.domains)
        )

    def _fresh(self, kind: str) -> str:
        stem = "/".join([*self._scope, kind])
        self._count[stem] = self._count.get(stem, 0) + 1
        return f"{stem}_{self._count[stem]}"


def _loop_values(dtype: DType) -> tuple[tuple[str, DType], ...]:
    """What a Loop's body is given, in order."""
    return (("round", "int64"), ("going", "bool"), ("value", dtype))


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    info: onnx.ValueInfoProto = helper.make_tensor_value_info(spec.name, _ELEMENT[spec.dtype], spec.shape)
    return info
