"""What a TensorRT build tells and costs: its log, the parsed network's layers and types, the memory it took."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import psutil

from gog_edge.manifest import Manifest
from gog_edge.polling import Poller


class BuildLog:
    """Every line that TensorRT logs goes to a file; the first error is kept for the exception: others follow from it.

    The logger class is made at run time, because its base lives in the library.
    """

    def __init__(self, trt: Any, path: Path) -> None:
        self.path, self.first_error = path, ""
        self._file = path.open("w", encoding="utf-8")
        self.logger = _make_logger(trt, self)

    def write(self, severity: str, message: str) -> None:
        self._file.write(f"[{severity}] {message}\n")
        if severity in ("ERROR", "INTERNAL_ERROR") and not self.first_error:
            self.first_error = " ".join(message.split())

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


def make_writer(trt: Any, file: BinaryIO) -> Any:
    """TensorRT's stream writer onto an open file; `problem` is what the file system said, if anything."""

    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.problem: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as e:  # must not travel through TensorRT
                self.problem = e
                return 0

    return Writer()


class MemoryPeak(Poller):
    """Greatest memory of this process while the context is open, sampled: `peak` resident bytes, `private` those that
    no file backs (mapped weight files count as resident, but the system can drop them)."""

    def __init__(self, interval: float = 0.05) -> None:
        super().__init__(interval)
        self.peak = self.private = 0
        self._process = psutil.Process()

    def sample(self) -> None:
        memory = self._process.memory_info()
        self.peak = max(self.peak, memory.rss)
        self.private = max(self.private, memory.rss - getattr(memory, "shared", 0))


def network_report(trt: Any, network: Any, manifest: Manifest, graph: str) -> dict[str, Any]:
    """Layer counts and findings of a parsed network; `engine_report` of the finished engine overrides them.

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
        "seen": "network",
        "layers": sum(kinds.values()),
        "attention_layers": layers,
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
