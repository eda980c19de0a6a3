"""What the TensorRT engine asks of a GPU and of TensorRT: every leaf call, so that only these differ on hardware.

Two implementations: `trt_cuda.CudaGpu` (cuda-core, cuda-bindings, tensorrt or tensorrt_rtx) and `trt_host.HostGpu`
(host memory and ONNX Runtime on the same portable graphs). Addresses are plain integers. Work on one stream runs in
the order of the calls, work on two streams in any order unless an event says otherwise; nothing that was put on a
stream can be relied upon before `synchronize` returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from gog_edge.crop.gpu import GpuDriver, GpuMemory
from gog_edge.manifest import GraphSpec

Shape = tuple[int, ...]


@dataclass(frozen=True)
class PlanRequest:
    """A serialized engine to be loaded.

    file: the plan. onnx: the graph it was built from (weights of stripped plans come from it). spec: the graph's
    interface. report: what the build wrote down (`capacity`, `chunk`, `verify`, `image_patches`, `weights`).
    kept: where kernels compiled for this device may be kept between runs, or None.
    """

    file: Path
    onnx: Path
    spec: GraphSpec
    report: Mapping[str, Any] = field(default_factory=dict)
    kept: Path | None = None

    @property
    def stripped(self) -> bool:
        """The plan holds no weights."""
        return self.report.get("weights") == "stripped"


@dataclass(frozen=True)
class PlanTensor:
    """An input or output of a plan. shape: -1 where the size is chosen at run time. host: its value is read on the host
    (it decides shapes). alias: the input whose memory this output must share, or None."""

    name: str
    dtype: str
    shape: Shape
    is_input: bool
    host: bool = False
    alias: str | None = None


class PinnedMemory(Protocol):
    """Page-locked host memory: copies to and from it run beside the host's own work."""

    @property
    def array(self) -> NDArray[Any]:
        """uint8 [nbytes]."""
        ...

    @property
    def address(self) -> int: ...

    def close(self) -> None: ...


class Context(Protocol):
    """One execution context: shapes and addresses of one optimisation profile. Not thread-safe."""

    def shape(self, name: str, shape: Shape) -> None:
        """The size of an input.

        Raises:
            EngineError: outside of the profile's range.
        """
        ...

    def bind(self, name: str, address: int) -> None:
        """Where an input or output lies."""
        ...

    def enqueue(self, stream: Any) -> None:
        """Put one run on the stream.

        Raises:
            EngineError: an input lacks its shape or address, or the run was refused.
        """
        ...

    def capturable(self, stream: Any) -> bool:
        """Whether a run may be captured into a CUDA graph now."""
        ...

    def close(self) -> None: ...


class Plan(Protocol):
    """A loaded engine."""

    @property
    def tensors(self) -> Mapping[str, PlanTensor]: ...

    @property
    def profiles(self) -> int: ...

    def limits(self, name: str, profile: int) -> tuple[Shape, Shape]:
        """Smallest and largest shape of an input under a profile."""
        ...

    def scratch(self, profile: int) -> int:
        """Bytes of working memory that a context of this profile needs."""
        ...

    def context(self, profile: int, stream: Any, scratch: int, nbytes: int, *, few_shapes: bool) -> Context:
        """A context that works in `nbytes` of device memory at `scratch`; contexts that never run at the same time may
        share it.

        few_shapes: the same few shapes come again and again: kernels may be made for each of them at once.
        """
        ...

    def close(self) -> None:
        """Let go of it, after all its contexts. Keeps compiled kernels where `PlanRequest.kept` says."""
        ...


class Gpu(Protocol):
    """One device. Every call raises EngineError when the driver or TensorRT reports a failure."""

    @property
    def name(self) -> str:
        """Of the device, for people."""
        ...

    @property
    def capability(self) -> str:
        """Compute capability without a point, such as 87."""
        ...

    @property
    def library(self) -> str:
        """Name and version of the TensorRT in use."""
        ...

    def allocate(self, nbytes: int, stream: Any = None) -> GpuMemory:
        """Device memory, 256-byte aligned. With a stream: from its pool, valid for later work on that stream (and on
        streams that wait for it), and `close` frees it in the order of the stream."""
        ...

    def pin(self, nbytes: int) -> PinnedMemory: ...

    def stream(self) -> Any:
        """A new stream."""
        ...

    def upload(self, target: int, array: NDArray[Any], stream: Any) -> None:
        """Copy a C-contiguous array to the device; it must not change before the copy is done."""
        ...

    def download(self, array: NDArray[Any], source: int, stream: Any) -> None:
        """Fill a C-contiguous array; its content is there once the stream is synchronized."""
        ...

    def copy(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        """Within the device."""
        ...

    def clear(self, address: int, nbytes: int, stream: Any) -> None:
        """Zero bytes."""
        ...

    def event(self, stream: Any) -> Any:
        """A mark behind everything that is on the stream now."""
        ...

    def wait(self, event: Any, stream: Any) -> None:
        """Later work on `stream` begins after the mark is reached; the host does not wait."""
        ...

    def synchronize(self, stream: Any) -> None:
        """The host waits for everything on the stream."""
        ...

    def begin_capture(self, stream: Any) -> None:
        """From here on work for the stream is recorded, not run."""
        ...

    def end_capture(self, stream: Any) -> Any:
        """The recorded work as a graph: the same copies and runs, with the same shapes and addresses."""
        ...

    def launch(self, graph: Any, stream: Any) -> None:
        """Put a whole graph on the stream."""
        ...

    def destroy(self, graph: Any) -> None: ...

    def crop_driver(self) -> tuple[GpuDriver, Any] | None:
        """For the crop kernel: a driver on this device and the stream that it works on; None: there is none."""
        ...

    def load(self, request: PlanRequest) -> Plan:
        """Deserialize a plan; a stripped one gets its weights from the ONNX file.

        Raises:
            EngineError: built by another version or for another device, or its weights can't be set.
        """
        ...
