"""transformers as an engine: the HF model behind the runtime's own session and agent loop.

`--engine transformers:CHECKPOINT` answers questions with it, so that a bundle's accuracy can be compared with that of
the checkpoint it came from. transformers does the image processing, the tower, the embeddings, the rotary angles, the
layers and the cache, in float32; the runtime decides what is said, cut, searched and token positions. It is slow
and meant for comparison only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from gog_edge.bundle import Bundle
from gog_edge.crop import Grid, pixel_box
from gog_edge.deadline import UNLIMITED, Budget
from gog_edge.engines.base import F32, DecoderInputs, EngineInfo, Features, KvCache
from gog_edge.errors import EngineError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.parity.reference import PatchMaker, Reference
from gog_edge.families import find
from gog_edge.image.frame import Frame
from gog_edge.manifest import Manifest, Preprocessing
from gog_edge.types import Region

_ROWS = -2  # the axis of tokens in a cache layer: [1, kv_heads, tokens, head_dim]


def create(bundle: Bundle, options: Any = None, *, checkpoint: str) -> HfEngine:
    """The engine of `checkpoint` for a bundle that was exported from it.

    Args:
        options: `OrtOptions`; only `threads` is used.

    Raises:
        CheckpointError: not a checkpoint. EngineError: not this bundle's. ParityError: transformers can't build it.
    """
    threads = getattr(options, "threads", 0)
    if threads:
        torch.set_num_threads(threads)
    return HfEngine(bundle, Checkpoint.open(checkpoint))


class HfEngine:
    """Tower and decoder of one HF model."""

    def __init__(self, bundle: Bundle, checkpoint: Checkpoint) -> None:
        _check_belongs(bundle.manifest, checkpoint)
        self._reference = Reference(checkpoint)
        self.vision = HfVision(self._reference.model, checkpoint)
        self.decoder = HfDecoder(self._reference.model, bundle.manifest)

    def describe(self) -> EngineInfo:
        """transformers and torch, and how the weights are held."""
        return EngineInfo("transformers", transformers.__version__, ("torch",), {"about": self._reference.describe()})

    def close(self) -> None:
        """Nothing is held outside Python's memory."""


@dataclass(frozen=True)
class ShownImage:
    """What the HF image processor computed from a crop: `pixel_values` [n, 3*t*p*p], and its grid of patches."""

    pixel_values: F32
    grid: Grid


class HfVision:
    """`VisionRunner` that cuts its own crops (`CutsCrops`) with the checkpoint's image processor."""

    def __init__(self, model: Any, checkpoint: Checkpoint) -> None:
        self._model = model
        self._make = PatchMaker(checkpoint)

    def crop_patches(self, frame: Frame, region: Region | None, grid: Grid, preprocessing: Preprocessing) -> ShownImage:
        """`region` of the frame as the HF processor shows it at this grid."""
        box = pixel_box(region, frame.width, frame.height)
        pixels = np.ascontiguousarray(frame.pixels[box.y0 : box.y1, box.x0 : box.x1])
        return ShownImage(self._make.at_grid(pixels, grid.rows, grid.columns), grid)

    def run(self, inputs: Mapping[str, Any], budget: Budget = UNLIMITED) -> Features:
        """See `VisionRunner.run`; of `inputs` only `patches` (a `ShownImage`) is used."""
        budget.check()
        shown: ShownImage = inputs["patches"]
        grid = torch.tensor([[1, shown.grid.rows, shown.grid.columns]])
        with torch.inference_mode():
            output = self._model.model.visual(torch.from_numpy(shown.pixel_values), grid_thw=grid)
        deepstack = getattr(output, "deepstack_features", None)
        stack = torch.stack(list(deepstack)).float().numpy() if deepstack is not None and len(deepstack) else None
        return Features(output.pooler_output.float().numpy(), stack)


class HfKvCache:
    """`KvCache` over transformers' DynamicCache, which grows by itself; `RecurrentState`, where `config` (of the
    language model) has layers of linear attention. `seen`: tokens whose state is there."""

    def __init__(self, config: Any) -> None:
        self._config = config
        self._start()

    def _start(self) -> None:
        self.states = transformers.DynamicCache(config=self._config)
        layers = self.states.layers
        self._linear = [layer for layer in layers if hasattr(layer, "recurrent_states")]
        self._attending = [layer for layer in layers if not hasattr(layer, "recurrent_states")]
        self.seen = 0

    @property
    def floor(self) -> int:
        """See `RecurrentState.floor`."""
        return self.seen

    @property
    def capacity(self) -> int:
        return int(self._attending[0].get_seq_length())

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in [*self.read(0, self.capacity), *self.state()])

    def reserve(self, tokens: int, keep: int) -> None:
        """Nothing to reserve; rows beyond `keep` are forgotten."""
        self.forget(keep)

    def begin(self, past: int) -> None:
        """A run after `past` tokens is about to start.

        Raises:
            EngineError: the recurrent state is that after another number of tokens.
        """
        if past == 0:
            self._start()
        if self._linear and past != self.seen:
            raise EngineError(f"the recurrent state is that after {self.seen} tokens, a run after {past} can't use it")
        self.forget(past)

    def forget(self, keep: int) -> None:
        """Keep the first `keep` rows."""
        extra = self.capacity - keep
        for layer in self._attending if extra > 0 else ():
            layer.crop(-extra)

    def read(self, start: int, stop: int) -> list[NDArray[Any]]:
        """See `KvCache.read`."""
        if not self.capacity:
            return []
        pairs = [(layer.keys, layer.values) for layer in self._attending]
        return [part[0, :, start:stop].numpy() for pair in pairs for part in pair]

    def write(self, start: int, arrays: Sequence[NDArray[Any]]) -> None:
        """See `KvCache.write`."""
        self.forget(start)
        for layer, keys, values in zip(self._attending, arrays[0::2], arrays[1::2]):
            layer.update(*(torch.from_numpy(np.array(part, np.float32))[None] for part in (keys, values)))

    def state(self) -> list[NDArray[Any]]:
        """See `RecurrentState.state`."""
        pairs = [(layer.conv_states[0], layer.recurrent_states[0]) for layer in self._linear if self.seen]
        return [np.array(part.numpy()) for pair in pairs for part in pair]

    def set_state(self, seen: int, arrays: Sequence[NDArray[Any]]) -> None:
        """See `RecurrentState.set_state`."""
        with torch.inference_mode():  # in which the tensors were made that are written over
            for layer, conv, memory in zip(self._linear, arrays[0::2], arrays[1::2]):
                inputs = torch.from_numpy(np.array(conv, np.float32))
                layer.has_previous_state[0] = False  # or what is new would be put behind what is there
                layer.update_conv_state(inputs, conv_kernel_size=inputs.shape[-1])
                layer.update_recurrent_state(torch.from_numpy(np.array(memory, np.float32)))
        self.seen = seen


class HfDecoder:
    """`DecoderRunner` over the HF language model."""

    def __init__(self, model: Any, manifest: Manifest) -> None:
        self._model = model
        self._image_token = manifest.tokens.image_pad

    def new_cache(self, tokens: int) -> HfKvCache:
        """See `DecoderRunner.new_cache`."""
        return HfKvCache(self._model.config.get_text_config())

    def run(self, inputs: DecoderInputs, cache: KvCache, past: int, budget: Budget = UNLIMITED) -> F32:
        """See `DecoderRunner.run`."""
        if not isinstance(cache, HfKvCache):
            raise EngineError(f"a {type(cache).__name__} does not belong to the transformers engine")
        if inputs.ids is None or inputs.positions is None:
            raise EngineError("the transformers engine reads token ids, and got embeddings only")
        budget.check()
        cache.begin(past)
        ids = torch.from_numpy(inputs.ids.astype(np.int64))
        shown = ids == self._image_token
        with torch.inference_mode():
            embeds = self._model.get_input_embeddings()(ids)
            embeds[shown] = torch.from_numpy(np.asarray(inputs.embeds))[shown]
            arguments: dict[str, Any] = {}
            if inputs.deepstack is not None:
                stack = torch.from_numpy(inputs.deepstack)
                arguments = {"visual_pos_masks": shown[None], "deepstack_visual_embeds": list(stack[:, shown])}
            output = self._model.model.language_model(
                inputs_embeds=embeds[None],
                position_ids=torch.from_numpy(inputs.positions.astype(np.int64))[:, None],
                past_key_values=cache.states,
                use_cache=True,
                **arguments,
            )
            cache.seen = past + len(inputs.ids)
            logits: F32 = self._model.lm_head(output.last_hidden_state[0, -inputs.last_k :]).float().numpy()
        return logits


def _check_belongs(manifest: Manifest, checkpoint: Checkpoint) -> None:
    family = find(checkpoint.config)
    config = family.parse(checkpoint.config)
    own = replace(config.decoder.spec, kv_dtype=manifest.decoder.kv_dtype, max_context=manifest.decoder.max_context)
    if family.name != manifest.family or own != manifest.decoder or config.vision.spec != manifest.vision:
        raise EngineError(f"bundle {manifest.name} was not exported from {checkpoint.origin}: their shapes differ")
