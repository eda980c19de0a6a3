"""What the runtime asks of an inference engine: two graphs and a KV cache, nothing else.

An engine turns a bundle's files into a `VisionRunner` and a `DecoderRunner`. Host arrays go in and come out; how they
travel (I/O binding, device buffers, pinned memory) is up to the engine. The KV cache is made by the engine,
lives where its kernels want it, and is owned by the session: a step appends in place, nothing is copied per step, and
forgetting the newest tokens costs nothing (rows at or beyond `past` are dead).

Arrays: H hidden size, V vocabulary, D DeepStack layers, s tokens of this run, m image tokens, hd head dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gog_edge.deadline import UNLIMITED, Budget

if TYPE_CHECKING:
    from gog_edge.crop import Grid
    from gog_edge.engines.remote.server import Server
    from gog_edge.image.frame import Frame
    from gog_edge.manifest import Preprocessing
    from gog_edge.types import Region

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Features:
    """Output of the vision tower for one image. main [m, H] float32; deepstack [D, m, H] float32 or None."""

    main: F32
    deepstack: F32 | None = None

    @property
    def nbytes(self) -> int:
        return int(self.main.nbytes) + (int(self.deepstack.nbytes) if self.deepstack is not None else 0)


@dataclass(frozen=True)
class PlacedImage:
    """Rows [first, first + count) of `features` belong at tokens [at, at + count) of the run."""

    at: int
    first: int
    count: int
    features: Features


@dataclass(frozen=True)
class DecoderInputs:
    """One run of the decoder over s new tokens.

    embeds [s, H] float32 (image features already in place); rope_cos, rope_sin [s, hd/2] float32;
    deepstack [D, s, H] float32, zero at text, or None where the run holds no image (or the family none);
    last_k: how many of the last rows get logits (0: none are computed if the engine can skip the head);
    placed: images whose rows the engine itself puts in place (`TakesFeatures`).
    ids [s] and positions [3, s]: the tokens and their M-RoPE places, for engines that embed and rotate by themselves.
    read: tokens [begin, end) of the run were given to the policy, the others it wrote: an engine with one arithmetic
    for many tokens and another for few takes them by this, never by their number (`RowsIndependent`).
    """

    embeds: F32
    rope_cos: F32
    rope_sin: F32
    deepstack: F32 | None
    last_k: int
    placed: tuple[PlacedImage, ...] = ()
    ids: NDArray[np.int32] | None = None
    positions: NDArray[np.int32] | None = None
    read: tuple[int, int] = (0, 0)


@runtime_checkable
class KvCache(Protocol):
    """Keys and values of one session. Not thread-safe: its session's lock covers it."""

    @property
    def capacity(self) -> int:
        """Tokens that fit before it must grow."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        ...

    def reserve(self, tokens: int, keep: int) -> None:
        """Make room for `tokens` in all, keeping the first `keep` rows.

        Raises:
            EngineError: there is no memory for it.
        """
        ...

    def read(self, start: int, stop: int) -> list[NDArray[Any]]:
        """Host arrays of rows [start, stop): keys and values (and their scales, where the cache is int8), layer by
        layer in the engine's own order, each [kv_heads, rows, …], copied or viewed; valid until the next run."""
        ...

    def write(self, start: int, arrays: Sequence[NDArray[Any]]) -> None:
        """The inverse of `read`, from row `start` on. The caller has reserved room."""
        ...


@runtime_checkable
class ForgetsRows(Protocol):
    """A `KvCache` that can give memory back without being made anew."""

    def forget(self, keep: int) -> None:
        """Rows from `keep` on are dead: the memory under them goes back to the system, their place stays."""
        ...


@runtime_checkable
class RecurrentState(Protocol):
    """A `KvCache` that also keeps the state of layers of linear attention, which can't be cut as rows can. A run must
    go on after `floor` to `seen` tokens, or begin at token 0."""

    @property
    def seen(self) -> int:
        """After how many tokens the state is."""
        ...

    @property
    def floor(self) -> int:
        """To how few tokens it can be taken back; more than `seen` where a run was interrupted: to none."""
        ...

    def state(self) -> list[NDArray[Any]]:
        """Copies of its arrays on the host, in the engine's own order."""
        ...

    def set_state(self, seen: int, arrays: Sequence[NDArray[Any]]) -> None:
        """The inverse of `state`, after `seen` tokens, whose rows are there.

        Raises:
            EngineError: the arrays are those of another policy.
        """
        ...


@runtime_checkable
class VisionRunner(Protocol):
    """The vision tower. Thread-safe."""

    def run(self, inputs: Mapping[str, NDArray[Any]], budget: Budget = UNLIMITED) -> Features:
        """One image. `inputs`: `patches` and what `layout.vision_inputs` gives.

        Raises:
            EngineError: the engine failed.
            CancelledError, DeadlineReached: the budget ended while the graph ran.
        """
        ...


@runtime_checkable
class DecoderRunner(Protocol):
    """The language decoder. Thread-safe for distinct caches."""

    def new_cache(self, tokens: int) -> KvCache:
        """An empty cache with room for at least `tokens`.

        Raises:
            EngineError: there is no memory for it.
        """
        ...

    def run(self, inputs: DecoderInputs, cache: KvCache, past: int, budget: Budget = UNLIMITED) -> F32:
        """Append s tokens after the first `past` rows of `cache`; returns logits [last_k, V] float32.

        The array may be reused by the next run with this cache. If the run is interrupted the first `past` rows are
        as they were.

        Raises:
            EngineError: the engine failed.
            CancelledError, DeadlineReached: the budget ended while the graph ran.
        """
        ...


@runtime_checkable
class TakesFeatures(Protocol):
    """A `DecoderRunner` that reads its own engine's features where they lie, without a way through the host."""

    def takes(self, features: Features) -> bool:
        """Whether these may be handed over in `DecoderInputs.placed`."""
        ...


@runtime_checkable
class RowsIndependent(Protocol):
    """A `DecoderRunner` that can give a token the same bits whatever runs beside it."""

    @property
    def rows_independent(self) -> bool:
        """Whether the KV rows and logits of a token depend, to the last bit, on nothing but the tokens up to it and
        which of them were `DecoderInputs.read`: not on how they were cut into runs, nor on what was tried behind."""
        ...


@dataclass(frozen=True)
class DecoderRun:
    """What one conversation wants of a run: `inputs` after the first `past` rows of `cache`. `last_k` may be 0."""

    inputs: DecoderInputs
    cache: KvCache
    past: int


@runtime_checkable
class RunsTogether(DecoderRunner, Protocol):
    """A `DecoderRunner` that computes several conversations in one run, which reads the weights once, and gives each
    the bits that it would get alone."""

    @property
    def most_together(self) -> int:
        """How many conversations a run may hold; 1 where rows are not independent."""
        ...

    def run_together(self, runs: Sequence[DecoderRun]) -> list[F32 | None]:
        """Run them, each with a cache of its own; logits [last_k, V] of each as `run` returns them, None for last_k 0.
        One of them at most may have `read` rows.

        Raises:
            EngineError: the engine failed; the first `past` rows of every cache are as they were.
        """
        ...


@runtime_checkable
class FixedContext(Protocol):
    """A `DecoderRunner` whose caches can't grow beyond what was decided when it was built."""

    @property
    def max_tokens(self) -> int: ...


@runtime_checkable
class FixedImages(Protocol):
    """A `VisionRunner` that takes no larger images than was decided when it was built."""

    @property
    def max_patches(self) -> int: ...


@runtime_checkable
class CutsCrops(Protocol):
    """A `VisionRunner` that cuts crops where it runs."""

    def crop_patches(self, frame: Frame, region: Region | None, grid: Grid, preprocessing: Preprocessing) -> Any:
        """As `gog_edge.crop.crop_patches`; the result is `patches` for the next `run`, host array or not."""
        ...


@runtime_checkable
class WritesTurns(Protocol):
    """An `Engine` without graphs: a server writes the policy's turns, from text and pictures."""

    @property
    def server(self) -> Server: ...


@runtime_checkable
class Engine(Protocol):
    """The two graphs of one bundle, loaded."""

    @property
    def vision(self) -> VisionRunner: ...

    @property
    def decoder(self) -> DecoderRunner: ...

    def describe(self) -> EngineInfo: ...

    def close(self) -> None:
        """Release graphs and memory. Idempotent."""
        ...


@dataclass(frozen=True)
class EngineInfo:
    """What runs where, for `doctor`, traces and benchmarks."""

    name: str
    version: str
    providers: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)


def causal_bias(past: int, count: int, capacity: int) -> F32:
    """attention_bias [1, 1, count, capacity] of the decoder of portable graphs: 0 where a token may look, else -inf.

    Token i of the run may look at cache slots 0 .. past + i. The lowest finite float32 stands for -inf, so that
    no row of a softmax can become NaN.
    """
    allowed = np.arange(capacity) <= (past + np.arange(count))[:, None]
    bias: F32 = np.where(allowed, np.float32(0), np.finfo(np.float32).min)
    return bias[None, None]


def cached_bias(past: int, count: int, capacity: int) -> F32:
    """attention_bias [1, 1, count, capacity] of graphs that read the cache only: 0 for the first `past` slots."""
    row = np.where(np.arange(capacity) < past, np.float32(0), np.finfo(np.float32).min)
    bias: F32 = np.tile(row, (1, 1, count, 1))  # bindings read it as it lies: no view
    return bias


def new_bias(count: int, padding: int = 0) -> F32:
    """new_bias [1, 1, count, count] of graphs that read the cache only: 0 where one of a run's rows may see another.

    The first `padding` rows stand for nothing: they see themselves alone and no other row sees them.
    """
    rows = np.arange(count)
    allowed = (rows <= rows[:, None]) & ((rows >= padding) | (rows == rows[:, None]))
    bias: F32 = np.where(allowed, np.float32(0), np.finfo(np.float32).min)
    return bias[None, None]
