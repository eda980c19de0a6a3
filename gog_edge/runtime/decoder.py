"""One run of the decoder over a piece of a conversation: embeddings, image features, rotary angles, logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gog_edge.deadline import UNLIMITED, Budget
from gog_edge.engines.base import F32, DecoderInputs, DecoderRunner, KvCache, TakesFeatures
from gog_edge.engines.base import PlacedImage as PlacedImage
from gog_edge.manifest import DecoderSpec
from gog_edge.runtime.embedding import TokenEmbedding
from gog_edge.runtime.rope import decoder_rope


class Decoder:
    """The policy's language model over an engine's runner. Stateless and thread-safe for distinct caches."""

    def __init__(self, runner: DecoderRunner, embedding: TokenEmbedding, spec: DecoderSpec) -> None:
        self._runner = runner
        self._takes = runner.takes if isinstance(runner, TakesFeatures) else None
        self._embedding = embedding
        self._spec = spec

    @property
    def vocab(self) -> int:
        return self._spec.vocab

    @property
    def max_context(self) -> int:
        return self._spec.max_context

    def new_cache(self, tokens: int) -> KvCache:
        """An empty cache with room for `tokens`."""
        return self._runner.new_cache(tokens)

    def forward(
        self,
        cache: KvCache,
        past: int,
        ids: NDArray[np.int32],
        positions: NDArray[np.int32],
        images: Sequence[PlacedImage] = (),
        *,
        last_k: int = 1,
        read: tuple[int, int] = (0, 0),
        budget: Budget = UNLIMITED,
    ) -> F32:
        """Append `ids` [s] at M-RoPE `positions` [3, s] after `past` rows; logits [last_k, V].

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
        cos, sin = decoder_rope(self._spec, positions.astype(np.int64))
        inputs = DecoderInputs(embeds, cos, sin, deepstack, last_k, tuple(placed), ids, positions, read)
        return self._runner.run(inputs, cache, past, budget)
