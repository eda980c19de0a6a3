"""The HF model as the reference, in float32, on machines smaller than the model.

One forward over a whole conversation is enough: the logits at each place are what greedy decoding there would have
seen. How the model is loaded: parity_load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict

from gog_edge.errors import ParityError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.parity.load import F32, Transform, load, quiet


@dataclass(frozen=True)
class ReferenceImage:
    """One image as the bundle saw it: `patches` [n, 3*p*p], its grid (rows, columns) of patches, its first token."""

    patches: F32
    rows: int
    columns: int
    start: int


@dataclass(frozen=True)
class Reading:
    """What the HF model computes for a conversation.

    `logits` [s, V] at every place; `features`: per image, merged [m, H] and DeepStack [D, m, H] or None.
    """

    logits: F32
    features: list[tuple[F32, F32 | None]]


class Reference:
    """The HF model of a checkpoint. `transform` may change every weight that is read (fake quantisation)."""

    def __init__(self, checkpoint: Checkpoint, transform: Transform | None = None, memory: int | None = None) -> None:
        """Load the model; see `parity_load.load`.

        Raises:
            ParityError: transformers or peft can't load it, or leaves out a part of it.
            UsageError: there are adapters, and peft is missing.
        """
        self._loaded = load(checkpoint, transform, memory)
        self.model = self._loaded.model
        self.streamed = self._loaded.streamed

    def describe(self) -> str:
        """For the report."""
        how = "weights streamed" if self.streamed else "weights resident"
        parts = [f"transformers {transformers.__version__}", f"torch {torch.__version__}", "float32", how]
        return ", ".join([*parts, self._loaded.note] if self._loaded.note else parts)

    def read(self, ids: NDArray[np.integer[Any]], images: Sequence[ReferenceImage] = ()) -> Reading:
        """One forward over a whole conversation; `images` in the order in which their tokens appear.

        Raises:
            ParityError: an image's tokens are not those that the HF model takes for an image.
        """
        tokens = torch.from_numpy(np.array(ids, np.int64))[None]
        shown = self._shown(tokens, images)
        inputs: dict[str, Any] = {"attention_mask": torch.ones_like(tokens)}
        if images:
            inputs |= {
                "pixel_values": self._pixels(images),
                "image_grid_thw": torch.tensor([[1, i.rows, i.columns] for i in images], dtype=torch.long),
                "mm_token_type_ids": shown.int(),
            }
        seen: list[tuple[F32, F32 | None]] = []

        def look(_module: Any, _inputs: Any, output: Any) -> None:
            main = output.pooler_output
            deep = getattr(output, "deepstack_features", None)
            stack = torch.stack(list(deep)).float().numpy() if deep is not None and len(deep) else None
            seen.append((main.float().numpy(), stack))

        handle = self.model.model.visual.register_forward_hook(look)
        self.model.model.rope_deltas = None
        try:
            with quiet(), torch.inference_mode(), self._written(tokens, shown) as plain:
                logits: F32 = self.model(input_ids=plain, **inputs, use_cache=False).logits[0].float().numpy()
        finally:
            handle.remove()
        features: list[tuple[F32, F32 | None]] = []
        at = 0
        for image in images:
            part = slice(at, at + self._tokens_of(image))
            main, stack = seen[0]
            features.append((main[part], None if stack is None else stack[:, part]))
            at = part.stop
        return Reading(logits, features)

    def logits(self, ids: NDArray[np.integer[Any]], images: Sequence[ReferenceImage] = ()) -> F32:
        """`read`, for callers that want only the logits [s, V]."""
        return self.read(ids, images).logits

    def _tokens_of(self, image: ReferenceImage) -> int:
        return int(image.rows * image.columns // self.model.config.vision_config.spatial_merge_size**2)

    def _shown(self, tokens: torch.Tensor, images: Sequence[ReferenceImage]) -> torch.Tensor:
        """Which tokens [1, s] stand for images that are shown."""
        shown = torch.zeros_like(tokens, dtype=torch.bool)
        for image in images:
            shown[0, image.start : image.start + self._tokens_of(image)] = True
        strange = sorted(set(tokens[shown].tolist()) - {self.model.config.image_token_id})
        if strange:
            raise ParityError(
                f"an image's tokens have id {strange[0]}; the HF model's image_token_id is "
                f"{self.model.config.image_token_id}"
            )
        return shown

    @contextmanager
    def _written(self, tokens: torch.Tensor, shown: torch.Tensor) -> Iterator[torch.Tensor]:
        """The tokens, with image tokens that the policy wrote itself made harmless.

        Such a token asks for no image: while it is decoded, it is a token like others. Read in one go, transformers
        would take it for the place of one. So another id stands there, and the embedding is put right.
        """
        stray = (tokens == self.model.config.image_token_id) & ~shown
        if not stray.any():
            yield tokens
            return
        embedding = self.model.get_input_embeddings()
        row = embedding(torch.tensor([self.model.config.image_token_id]))[0]

        def put_right(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return torch.where(stray[..., None], row, output)

        handle = embedding.register_forward_hook(put_right)
        try:
            yield tokens.masked_fill(stray, 0 if self.model.config.image_token_id else 1)
        finally:
            handle.remove()

    def _pixels(self, images: Sequence[ReferenceImage]) -> torch.Tensor:
        """Both temporal slices of a still image are equal: columns (channel, t, py, px)."""
        temporal = self.model.config.vision_config.temporal_patch_size
        parts = []
        for image in images:
            n, columns = image.patches.shape
            one = image.patches.reshape(n, 3, 1, columns // 3)
            parts.append(np.broadcast_to(one, (n, 3, temporal, columns // 3)).reshape(n, -1))
        return torch.from_numpy(np.ascontiguousarray(np.concatenate(parts), np.float32))


class PatchMaker:
    """The checkpoint's own image processor, loaded by transformers, at grids that are decided elsewhere."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Raises ParityError if transformers finds no image processor, or one of another kind."""
        try:
            self.processor = transformers.AutoImageProcessor.from_pretrained(checkpoint.root, backend="pil")
        except (OSError, ValueError, TypeError, KeyError) as e:
            why = str(e).splitlines()[0] if str(e) else type(e).__name__
            raise ParityError(f"transformers can't load the image processor of {checkpoint.origin}: {why}") from e
        if not isinstance(self.processor, PilBackend) or not hasattr(self.processor, "patch_size"):
            raise ParityError(f"{checkpoint.origin}: {type(self.processor).__name__} does not cut patches")

    def at_grid(self, pixels: NDArray[np.uint8], rows: int, columns: int) -> F32:
        """RGB pixels [h, w, 3] -> patches [n, 3*t*p*p] of a grid of rows x columns patches.

        Pillow 12.3 and later may resize vertically first; policies were trained on horizontal passes first (older
        Pillow, torchvision), which is what the crop kernel does. So the passes are asked for one by one.
        """
        image = np.moveaxis(pixels, -1, 0)
        width, height = columns * self.processor.patch_size, rows * self.processor.patch_size
        for size in (SizeDict(height=image.shape[1], width=width), SizeDict(height=height, width=width)):
            image = PilBackend.resize(self.processor, image, size, resample=self.processor.resample)
        output = self.processor(images=[np.moveaxis(image, 0, -1)], return_tensors="np", do_resize=False)
        return np.asarray(output["pixel_values"], np.float32)

    def grid(self, pixels: NDArray[np.uint8], low: int | None, high: int | None, most: int) -> tuple[int, int]:
        """(rows, columns) that the processor chooses; `low` and `high` replace its own areas, `most` bounds both."""
        own = self.processor.size
        high = min(high or own.longest_edge, most)
        size = {"shortest_edge": min(low or own.shortest_edge, high), "longest_edge": high}
        output = self.processor(images=[pixels], return_tensors="np", size=size)
        _, rows, columns = (int(v) for v in np.asarray(output["image_grid_thw"])[0])
        return rows, columns

    def step(self) -> F32:
        """[3]: what a difference of 1 in a channel's values is in steps of 8 bits."""
        p = self.processor
        std = np.broadcast_to(np.asarray(p.image_std if p.do_normalize else 1.0, np.float32), 3)
        return np.asarray(std / (p.rescale_factor if p.do_rescale else 1.0), np.float32)
