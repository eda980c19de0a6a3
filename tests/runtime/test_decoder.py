"""The decoder's inputs: rows of the embedding, rotary angles that are made ahead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gog_edge.bundle import Bundle
from gog_edge.engines.base import DecoderInputs
from gog_edge.errors import BundleError
from gog_edge.families.layout import mrope
from gog_edge.runtime.decoder import Decoder, TokenEmbedding


class Recorder:
    """A runner that keeps its inputs."""

    def new_cache(self, tokens: int) -> Any:
        return None

    def run(self, inputs: DecoderInputs, *_: Any) -> Any:
        self.inputs = inputs


def test_ids_beyond_the_embedding_are_refused(bundle: Bundle) -> None:
    table = TokenEmbedding(bundle)
    assert table.gather(np.array([0, 5], np.int32)).shape == (2, table.columns)
    for odd in (table.rows, -1):
        with pytest.raises(BundleError, match=f"token {odd} has no row"):
            table.gather(np.array([1, odd], np.int32))


@pytest.mark.parametrize("interleaved", [True, False])
def test_angles_made_ahead_are_those_of_the_place_to_the_bit(bundle: Bundle, interleaved: bool) -> None:
    spec = replace(
        bundle.manifest.decoder, head_dim=128, mrope_section=(24, 20, 20), mrope_interleaved=interleaved, rope_theta=5e6
    )
    runner = Recorder()
    decoder = Decoder(runner, TokenEmbedding(bundle), replace(bundle.manifest, decoder=spec))
    frequencies, axes = mrope(spec)
    text = [
        (first, count) for first in (0, 1, 250, 255, 256, 3, 70_000, 80_001, 131_071) for count in (1, 2, 7, 32, 33)
    ]
    places = [np.arange(first, first + count) + np.zeros((3, 1), int) for first, count in text]
    places.append(np.array([[5, 5, 5, 7], [5, 5, 6, 7], [5, 6, 5, 7]]))  # an image: no text, however short
    places.append(np.array([[5, 9], [5, 9], [5, 9]]))
    for where in places:
        where = where.astype(np.int32)
        ids = np.zeros(where.shape[1], np.int32)
        decoder.forward(None, 0, ids, where)  # type: ignore[arg-type]
        angles = where[axes].T.astype(np.float32) * frequencies
        cos, sin = np.cos(angles), np.sin(angles)
        assert np.array_equal(runner.inputs.rope_cos, cos) and np.array_equal(runner.inputs.rope_sin, sin)
