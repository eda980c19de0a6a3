"""One run of the decoder over a piece of a conversation: embeddings, image features, rotary angles, logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge import families
from gog_edge.bundle import Bundle
from gog_edge.deadline import SYSTEM, UNLIMITED, Budget
from gog_edge.engines.base import F32, DecoderInputs, DecoderRunner, KvCache, RunsTogether, TakesFeatures
from gog_edge.engines.base import PlacedImage as PlacedImage
from gog_edge.errors import BundleError
from gog_edge.families.target import RecurrentCache
from gog_edge.manifest import Manifest
from gog_edge.runtime.together import RunQueue

I32 = NDArray[np.int32]

_DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "int8": np.int8}
_PLACES = 256  # whose angles are made together; a run of written text is far shorter
_FEW = 32


class TokenEmbedding:
    """[rows, columns] table of the bundle: float32, float16, or int8 with one float32 scale per row, memory-mapped, so
    that only used rows are ever read. Thread-safe."""

    def __init__(self, bundle: Bundle) -> None:
        """Map the file.

        Raises:
            BundleError: its size is not what the manifest says.
        """
        spec = bundle.manifest.embedding
        path = bundle.path(spec.file)
        dtype = np.dtype(_DTYPES[spec.dtype])
        table = spec.rows * spec.columns * dtype.itemsize
        scales = spec.rows * 4 if spec.dtype == "int8" else 0
        size = path.stat().st_size
        if size != table + scales:
            raise BundleError(
                f"{path} has {size} bytes, a {spec.rows}x{spec.columns} {spec.dtype} embedding has {table + scales}; "
                "export the checkpoint again"
            )
        self.rows, self.columns = spec.rows, spec.columns
        # as a plain array: a memmap goes through Python whenever it is indexed
        self._table: NDArray[Any] = np.memmap(path, dtype, "r", 0, (spec.rows, spec.columns)).view(np.ndarray)
        self._scales: NDArray[np.float32] | None = None
        if scales:
            self._scales = np.array(np.memmap(path, np.float32, "r", table, (spec.rows,)))

    def gather(self, ids: I32) -> F32:
        """[s] ids -> [s, columns] float32.

        Raises:
            BundleError: an id has no row (the tokenizer does not belong to this table).
        """
        places = np.asarray(ids, np.int32).view(np.uint32)  # so that an id below 0 is far out of range
        try:
            rows = self._table[places].astype(np.float32)
        except IndexError:
            odd = int(ids[places >= self.rows][0])
            raise BundleError(
                f"token {odd} has no row in the embedding of {self.rows}: the tokenizer does not fit"
            ) from None
        if self._scales is not None:
            rows *= self._scales[places][:, None]
        return rows


def check_rotary(manifest: Manifest) -> None:
    """Compare the numbers that angles are made of with the graph that takes them.

    Raises:
        BundleError: they do not fit: angles of another width, or more of them than memory holds.
    """
    spec = manifest.decoder
    pairs = spec.head_dim // 2
    sizes = {t.name: t.shape[-1] for t in manifest.graphs["decoder"].inputs if t.shape}
    if pairs != sizes.get("rope_cos") or not all(0 <= n <= pairs for n in (*spec.mrope_section, spec.rotary // 2)):
        raise BundleError("the manifest's rotary angles do not fit its graphs; export the checkpoint again")


class Rotary:
    """The decoder's rotary angles, as its family turns them. Thread-safe."""

    def __init__(self, manifest: Manifest) -> None:
        """Raises BundleError where the bundle's family is not known here."""
        self._frequencies, self._axes = families.named(manifest.family).rotary(manifest.decoder)
        self._text: tuple[int, F32, F32] = (0, *self._rotate(np.zeros((3, 0), np.int64)))

    def __call__(self, positions: NDArray[np.integer[Any]]) -> tuple[F32, F32]:
        """cos and sin [s, rotary pairs] of M-RoPE `positions` [3, s].

        Those of written text, which counts on by one on all axes, are made ahead of time.
        """
        count = positions.shape[1]
        first = int(positions[0, 0])
        if count > _FEW or not (positions == np.arange(first, first + count)).all():
            return self._rotate(positions)
        start, cos, sin = self._text
        at = first - start
        if not 0 <= at <= len(cos) - count:
            cos, sin = self._rotate(np.arange(first, first + _PLACES) + np.zeros((3, 1), np.int64))
            self._text, at = (first, cos, sin), 0
        return cos[at : at + count], sin[at : at + count]

    def _rotate(self, positions: NDArray[np.integer[Any]]) -> tuple[F32, F32]:
        angles = positions[self._axes].T.astype(np.float32) * self._frequencies
        return np.cos(angles), np.sin(angles)


class SharedRuns(RunQueue):
    """A `DecoderRunner` over one that `RunsTogether`: who is alone runs as if this were not here. Thread-safe for
    distinct caches."""

    def new_cache(self, tokens: int) -> KvCache:
        """See `DecoderRunner.new_cache`."""
        return self._runner.new_cache(tokens)

    def run(self, inputs: DecoderInputs, cache: KvCache, past: int, budget: Budget = UNLIMITED) -> F32:
        """See `DecoderRunner.run`. Who runs together with others is interrupted when the common run has ended."""
        key = id(cache)
        with self._lock:
            if self._ended:
                self._forget_ended()
            alone = not self._busy and (key == self._only or not self._seen)
            if alone:
                self._busy, self.sharing = True, 1
                if key != self._only:
                    self._only = key
                    self._first_seen(cache)
                last = self._seen[key]
        if not alone:
            return self._with_others(inputs, cache, past, budget)
        began = SYSTEM.now()
        try:
            return self._runner.run(inputs, cache, past, budget)
        finally:
            with self._lock:
                last.began, last.ended = began, SYSTEM.now()
                if self._queue:
                    self._hand_over()
                else:
                    self._busy = False


class Decoder:
    """The policy's language model over an engine's runner. Thread-safe for distinct caches. `state_arrays`: see
    `Model.state_arrays`. `most_together`: conversations that share a run, where they ask for one at the same time;
    `shared`, where that is more than one: who does."""

    def __init__(self, runner: DecoderRunner, embedding: TokenEmbedding, manifest: Manifest) -> None:
        self.most_together = runner.most_together if isinstance(runner, RunsTogether) else 1
        self.shared = SharedRuns(runner) if isinstance(runner, RunsTogether) and self.most_together > 1 else None
        self._runner: DecoderRunner = self.shared or runner
        self._takes = runner.takes if isinstance(runner, TakesFeatures) else None
        self._embedding = embedding
        self._spec = manifest.decoder
        self._rotary = Rotary(manifest)
        caches = families.named(manifest.family).caches(manifest.decoder)
        self.state_arrays = 2 * sum(isinstance(layer, RecurrentCache) for layer in caches)

    @property
    def vocab(self) -> int:
        return self._spec.vocab

    def new_cache(self, tokens: int) -> KvCache:
        """An empty cache with room for `tokens`."""
        return self._runner.new_cache(tokens)

    def forward(
        self,
        cache: KvCache,
        past: int,
        ids: I32,
        positions: I32,
        images: Sequence[PlacedImage] = (),
        *,
        last_k: int = 1,
        read: tuple[int, int] = (0, 0),
        budget: Budget = UNLIMITED,
    ) -> F32:
        """Append `ids` [s] at M-RoPE `positions` [3, s] after `past` rows; logits [last_k, V], which the next run with
        this cache may overwrite.

        `read`: see `DecoderInputs`.

        Raises:
            EngineError: the engine failed, or gave logits that are not numbers.
            CancelledError, DeadlineReached: the budget ended the run; the first `past` rows are as before.
        """
        embeds = self._embedding.gather(ids)
        deepstack: F32 | None = None
        placed: list[PlacedImage] = []
        for image in images:
            if self._takes is not None and self._takes(image.features):
                placed.append(image)
                continue
            rows = slice(image.at, image.at + image.count)
            source = slice(image.first, image.first + image.count)
            embeds[rows] = image.features.main[source]
            if image.features.deepstack is not None and self._spec.deepstack:
                if deepstack is None:
                    deepstack = np.zeros((self._spec.deepstack, len(ids), self._spec.hidden), np.float32)
                deepstack[:, rows] = image.features.deepstack[:, source]
        cos, sin = self._rotary(positions)
        inputs = DecoderInputs(embeds, cos, sin, deepstack, last_k, tuple(placed), ids, positions, read)
        return self._runner.run(inputs, cache, past, budget)
