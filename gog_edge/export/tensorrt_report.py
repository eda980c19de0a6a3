"""What a TensorRT build really made of a graph: the log, fused or decomposed attention, KV aliasing, precisions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

from gog_edge.manifest import Manifest


class BuildLog:
    """Every line that TensorRT logs goes to a file; the last error is kept for the exception.

    The logger class is made at run time, because its base lives in the library.
    """

    def __init__(self, trt: Any, path: Path) -> None:
        self.path, self.last_error = path, ""
        self._file = path.open("w", encoding="utf-8")
        self.logger = _make_logger(trt, self)

    def write(self, severity: str, message: str) -> None:
        self._file.write(f"[{severity}] {message}\n")
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.last_error = message

    def __enter__(self) -> BuildLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _make_logger(trt: Any, log: BuildLog) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if not log._file.closed:
                log.write(str(severity).rpartition(".")[2], message)

    return Logger()


def network_report(trt: Any, network: Any, manifest: Manifest, graph: str) -> dict[str, Any]:
    """Layer counts and findings of a parsed network.

    `attention`: "fused" when every transformer layer became one attention layer of TensorRT, else "decomposed" with the
    counts; `kv_in_place`: whether every cache tensor is written by a KV update layer, which aliases input and output.
    """
    kinds: Counter[str] = Counter()
    matmul_types: Counter[str] = Counter()
    weight_bytes = 0
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        kind = str(layer.type).rpartition(".")[2]
        kinds[kind] += 1
        if kind == "MATRIX_MULTIPLY":
            matmul_types[str(layer.get_output(0).dtype).rpartition(".")[2]] += 1
        if kind == "CONSTANT":
            weight_bytes += _constant_bytes(layer)
    layers = manifest.decoder.layers if graph == "decoder" else manifest.vision.depth
    fused = max(kinds.get("ATTENTION_INPUT", 0), kinds.get("ATTENTION_OUTPUT", 0))
    report: dict[str, Any] = {
        "layers": sum(kinds.values()),
        "attention": "fused" if fused == layers else f"decomposed ({fused} of {layers} layers fused)",
        "matmul_types": dict(matmul_types),
        "weight_bytes": weight_bytes,
        "kinds": dict(sorted(kinds.items())),
    }
    if graph == "decoder":
        updates = kinds.get("KV_CACHE_UPDATE", 0)
        report["kv_in_place"] = "yes" if updates == 2 * layers else f"no ({updates} of {2 * layers} tensors)"
    return report


def _constant_bytes(layer: Any) -> int:
    output = layer.get_output(0)
    count = 1
    for dim in tuple(output.shape):
        count *= dim
    # 4-bit types report half a byte an element
    return int(count * output.dtype.itemsize)
