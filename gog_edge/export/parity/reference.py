"""The HF model as the reference, in float32, on machines smaller than the model.

If its weights fit into memory they are loaded; otherwise every module gets its weights just before it runs and loses
them afterwards (one pass over the checkpoint a forward). One forward over a whole conversation is enough: the logits at
each place are what greedy decoding there would have seen.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
import transformers
from numpy.typing import NDArray

from gog_edge.errors import ParityError
from gog_edge.export.checkpoint.lora import EMBEDDING, HEAD
from gog_edge.export.checkpoint.reader import Checkpoint

F32 = NDArray[np.float32]
Transform = Callable[[str, F32], F32]


@dataclass(frozen=True)
class ReferenceImage:
    """One image as the bundle saw it: `patches` [n, 3*p*p] and its grid (rows, columns) of patches."""

    patches: F32
    rows: int
    columns: int


@dataclass(frozen=True)
class Reading:
    """What the HF model makes of a conversation.

    `logits` [s, V] at every place; `features`: per image, merged [m, H] and DeepStack [D, m, H] or None.
    """

    logits: F32
    features: list[tuple[F32, F32 | None]]


class Reference:
    """The HF model of a checkpoint. `transform` may change every weight that is read (fake quantisation)."""

    def __init__(self, checkpoint: Checkpoint, transform: Transform | None = None, memory: int | None = None) -> None:
        """Build the model.

        Args:
            memory: bytes that resident weights may take; default: 60 % of what is free now.

        Raises:
            ParityError: transformers is too old for this family, or weights do not fit its model.
        """
        self._checkpoint = checkpoint
        self._transform = transform
        self.model = _empty_model(checkpoint)
        values = sum(math.prod(checkpoint.shape(n)) for n in checkpoint.names())
        budget = memory if memory is not None else int(0.6 * psutil.virtual_memory().available)
        self.streamed = 4 * values > budget
        for prefix, module in self.model.named_modules():
            own = [n for n, p in module.named_parameters(recurse=False) if p is not None]
            if not own:
                continue
            if self.streamed:
                self._stream(module, prefix, own)
            else:
                self._load(module, prefix, own)
        self._check_complete()

    def describe(self) -> str:
        """For the report."""
        how = "weights streamed" if self.streamed else "weights resident"
        return f"transformers {transformers.__version__}, torch {torch.__version__}, float32, {how}"

    def read(self, ids: NDArray[np.integer[Any]], images: Sequence[ReferenceImage], image_token: int) -> Reading:
        """One forward over a whole conversation; `images` in the order in which their tokens appear."""
        tokens = torch.from_numpy(np.asarray(ids, np.int64))[None]
        inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if images:
            inputs |= {
                "pixel_values": self._pixels(images),
                "image_grid_thw": self._grids(images),
                "mm_token_type_ids": (tokens == image_token).int(),
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
            with torch.inference_mode():
                logits: F32 = self.model(**inputs, use_cache=False).logits[0].float().numpy()
        finally:
            handle.remove()
        merge = self.model.config.vision_config.spatial_merge_size**2
        features: list[tuple[F32, F32 | None]] = []
        at = 0
        for image in images:
            part = slice(at, at + image.rows * image.columns // merge)
            main, stack = seen[0]
            features.append((main[part], None if stack is None else stack[:, part]))
            at = part.stop
        return Reading(logits, features)

    def logits(self, ids: NDArray[np.integer[Any]], images: Sequence[ReferenceImage], image_token: int) -> F32:
        """`read` for who wants the logits [s, V] only."""
        return self.read(ids, images, image_token).logits

    def _pixels(self, images: Sequence[ReferenceImage]) -> torch.Tensor:
        """Both temporal slices of a still image are equal: columns (channel, t, py, px)."""
        temporal = self.model.config.vision_config.temporal_patch_size
        parts = []
        for image in images:
            n, columns = image.patches.shape
            one = image.patches.reshape(n, 3, 1, columns // 3)
            parts.append(np.broadcast_to(one, (n, 3, temporal, columns // 3)).reshape(n, -1))
        return torch.from_numpy(np.ascontiguousarray(np.concatenate(parts), np.float32))

    def _grids(self, images: Sequence[ReferenceImage]) -> torch.Tensor:
        return torch.tensor([[1, i.rows, i.columns] for i in images], dtype=torch.long)

    def _read(self, name: str, shape: tuple[int, ...]) -> torch.nn.Parameter:
        stored = EMBEDDING if name == HEAD and HEAD not in self._checkpoint else name
        values: F32 = self._checkpoint.read(stored)
        if values.shape != shape:
            raise ParityError(f"{name} is {list(values.shape)} in the checkpoint, {list(shape)} in the HF model")
        if self._transform is not None:
            values = self._transform(name, values)
        return torch.nn.Parameter(torch.from_numpy(np.ascontiguousarray(values, np.float32)), requires_grad=False)

    def _load(self, module: torch.nn.Module, prefix: str, own: list[str]) -> None:
        for key in own:
            shape = tuple(module._parameters[key].shape)
            module._parameters[key] = self._read(f"{prefix}.{key}", shape)

    def _stream(self, module: torch.nn.Module, prefix: str, own: list[str]) -> None:
        empty = {key: module._parameters[key] for key in own}

        def before(_module: Any, _inputs: Any) -> None:
            self._load(module, prefix, own)

        def after(_module: Any, _inputs: Any, _output: Any) -> None:
            module._parameters.update(empty)

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    def _check_complete(self) -> None:
        expected = {n for n, _ in self.model.named_parameters(remove_duplicate=False)}
        expected = {EMBEDDING if n == HEAD and HEAD not in self._checkpoint else n for n in expected}
        missing = expected - self._checkpoint.names()
        if missing:
            raise ParityError(f"the checkpoint lacks {len(missing)} weights of the HF model, such as {min(missing)}")


def _empty_model(checkpoint: Checkpoint) -> Any:
    """The model with parameters without storage and real buffers."""
    config = transformers.AutoConfig.from_pretrained(checkpoint.root)
    tied = bool(checkpoint.config.get("tie_word_embeddings", config.tie_word_embeddings)) and HEAD not in checkpoint
    config.tie_word_embeddings = tied
    config.get_text_config().tie_word_embeddings = tied
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    try:
        with _without_storage():
            model = transformers.AutoModelForImageTextToText.from_config(
                config, attn_implementation="sdpa", dtype=torch.float32
            )
    except (ValueError, AttributeError) as e:
        raise ParityError(f"transformers {transformers.__version__} can't build {checkpoint.origin}: {e}") from e
    model.eval()
    return model


@contextlib.contextmanager
def _without_storage() -> Iterator[None]:
    """Parameters made inside live on the meta device; buffers (rotary frequencies) are real."""
    register = torch.nn.Module.register_parameter

    def on_meta(self: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
        if param is not None:
            param = torch.nn.Parameter(param.detach().to("meta"), requires_grad=False)
        register(self, name, param)

    torch.nn.Module.register_parameter = on_meta
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register
        torch.set_default_dtype(default)


class PatchMaker:
    """The checkpoint's own image processor, at grids that are decided elsewhere."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Raises ParityError if the checkpoint has no processor."""
        if checkpoint.file("preprocessor_config.json") is None:
            raise ParityError(f"{checkpoint.origin} has no preprocessor_config.json, so no image processor")
        self.processor = transformers.AutoImageProcessor.from_pretrained(checkpoint.root, backend="pil")

    def at_grid(self, pixels: NDArray[np.uint8], rows: int, columns: int) -> F32:
        """RGB pixels [h, w, 3] -> patches [n, 3*t*p*p] of a grid of rows x columns patches.

        Pillow 12.3 and later may resize vertically first; policies were trained on horizontal passes first (older
        Pillow, torchvision), which is what the crop kernel does. So the passes are asked for one by one.
        """
        from PIL import Image

        picture = Image.fromarray(pixels)
        height, width = rows * self.processor.patch_size, columns * self.processor.patch_size
        bicubic = Image.Resampling.BICUBIC
        resized = picture.resize((width, picture.height), bicubic).resize((width, height), bicubic)
        output = self.processor(images=[resized], return_tensors="np", do_resize=False)
        return np.asarray(output["pixel_values"], np.float32)


def processor_patches(
    checkpoint: Checkpoint, pixels: NDArray[np.uint8], min_pixels: int, max_pixels: int
) -> tuple[F32, tuple[int, int], F32] | None:
    """What the HF image processor makes of an upright RGB image [h, w, 3].

    Returns ([n, 3*t*p*p] patches, (rows, columns), image_std [3]), or None when the checkpoint has no processor.
    """
    if checkpoint.file("preprocessor_config.json") is None:
        return None
    from PIL import Image

    maker = PatchMaker(checkpoint)
    size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    output = maker.processor(images=[Image.fromarray(pixels)], return_tensors="np", size=size)
    _, rows, columns = (int(v) for v in np.asarray(output["image_grid_thw"])[0])
    std = np.asarray(maker.processor.image_std, np.float32)
    return maker.at_grid(pixels, rows, columns), (rows, columns), std
