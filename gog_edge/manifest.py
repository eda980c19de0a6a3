"""What a bundle says about itself: the schema of manifest.json, shared by the exporter and the runtime.

Bump `FORMAT_VERSION` whenever a reader of the old version would misunderstand the new one. Format 3 has native weights
that are stored turned (`gog_edge.native.rotation`), which a reader of format 2 would take for plain ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

FORMAT = "gog-edge-bundle"
FORMAT_VERSION = 3

# Of the weight file beside a graph that stays memory-mapped: a run reads a few of its bytes.
EXPERTS_SUFFIX = ".experts.data"

Dim = int | str
DType = Literal["float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"]
# What a bundle's graphs are made of, and so what runs them:
#   native          CPUs: our own operators, compiled where the bundle runs
#   ort             CPUs: ONNX Runtime's operators
#   cuda            NVIDIA GPUs: ONNX Runtime's operators, in float16
#   tensorrt(-rtx)  NVIDIA GPUs: ONNX's own operators in float16, of which engines are built
#   openvino        Intel CPUs, GPUs and NPUs: ONNX's operators up to opset 21, attention written out
#   portable        ONNX's own operators in float32, for any runtime that knows opset 24
Backend = Literal["native", "ort", "cuda", "tensorrt", "tensorrt-rtx", "openvino", "portable"]
PrecisionName = Literal["fp32", "fp16", "int8", "int5", "int4"]


@dataclass(frozen=True)
class TensorSpec:
    """A graph input or output; a dimension is a size or the name of a symbolic size."""

    name: str
    dtype: DType
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX graph: its file (weights beside it as external data) and its typed interface."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    data: tuple[str, ...] = ()  # external weight files
    domains: dict[str, int] = field(default_factory=dict)  # operator domains and versions it needs
    weights: int = 0  # values of all matrices: twice as many operations a row


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes patches. `factor` = patch_size * merge_size; pixel limits count resized pixels."""

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    rescale_factor: float = 1 / 255

    @property
    def factor(self) -> int:
        """Side in pixels of the square that becomes one image token."""
        return self.patch_size * self.merge_size

    @property
    def patch_values(self) -> int:
        """Columns of `patches`: 3 * p * p (the temporal axis is folded into the weights)."""
        return 3 * self.patch_size**2


@dataclass(frozen=True)
class VisionSpec:
    """The vision tower. `window` is in merged tokens a side (0: no windows); `full_layers` attend globally."""

    depth: int
    hidden: int
    heads: int
    head_dim: int
    out_hidden: int
    rope_theta: float = 10000.0
    position_side: int = 0  # side of the learned position table, 0: none
    window: int = 0
    full_layers: tuple[int, ...] = ()
    deepstack: int = 0  # number of DeepStack outputs


@dataclass(frozen=True)
class LinearSpec:
    """Layers of linear attention (Gated DeltaNet): all of a decoder's but `full_layers`. `kernel`: tokens that the
    convolution sees."""

    full_layers: tuple[int, ...]
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int


@dataclass(frozen=True)
class DecoderSpec:
    """The language decoder; `mrope_section` counts rotary frequencies for (time, height, width). `rotary`: dimensions
    of a head that turn with the position, 0: all. `linear`: None where every layer attends. Of its `experts` (0: none),
    a token uses `experts_used`."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    rope_theta: float
    mrope_section: tuple[int, int, int]
    mrope_interleaved: bool
    max_context: int
    kv_dtype: Literal["float32", "float16", "int8"] = "float32"
    deepstack: int = 0
    rotary: int = 0
    linear: LinearSpec | None = None
    experts: int = 0
    experts_used: int = 0


@dataclass(frozen=True)
class EmbeddingSpec:
    """The token embedding, gathered on the host.

    The file holds `vocab` rows of `hidden` values of `dtype`; for int8 a float32 scale per row follows all
    rows (value = int8 * scale).
    """

    file: str
    dtype: Literal["float32", "float16", "int8"]
    rows: int
    columns: int


@dataclass(frozen=True)
class SpecialTokens:
    """Ids the session needs. `eos`: any of them ends a turn."""

    image_pad: int
    vision_start: int
    vision_end: int
    eos: tuple[int, ...]
    pad: int | None = None


@dataclass(frozen=True)
class EngineSpec:
    """One serialized TensorRT engine of one graph, for one device family."""

    graph: Literal["vision", "decoder"]
    file: str
    runtime: Literal["tensorrt-rtx", "tensorrt"]
    version: str
    compute_capability: str
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FileDigest:
    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """manifest.json."""

    format: Literal["gog-edge-bundle"]
    format_version: int
    name: str
    family: str  # of gog_edge.families
    backend: Backend
    precision: PrecisionName
    preprocessing: Preprocessing
    vision: VisionSpec
    decoder: DecoderSpec
    embedding: EmbeddingSpec
    tokens: SpecialTokens
    graphs: dict[str, GraphSpec]  # "vision", "decoder"
    quantization: dict[str, Any] = field(default_factory=dict)  # recipe: method, block, per tensor class
    engines: tuple[EngineSpec, ...] = ()
    dialect: str = "gog"  # name of a shipped dialect, or dialect.toml in the bundle
    generation: dict[str, Any] = field(default_factory=dict)  # how tokens are chosen: keys of generation_config.json
    named_tokens: dict[str, str] = field(default_factory=dict)  # "eos_token" …: what chat templates may write by name
    provenance: dict[str, Any] = field(default_factory=dict)  # checkpoint, versions, time, LoRA …
    files: dict[str, FileDigest] = field(default_factory=dict)

    @property
    def portable(self) -> bool:
        """Whether the graphs are those of opset 24 that TensorRT builds: attention and cache updates are operators."""
        return self.backend in ("portable", "tensorrt", "tensorrt-rtx")

    @property
    def opset_only(self) -> bool:
        """Whether the graphs hold ONNX's own operators only."""
        return self.portable or self.backend == "openvino"
