"""The fast image processor of transformers on its own: a box of a frame to patches, no model.

`options`: "box" (x0, y0, x1, y1 in pixels), "pixels" (the most that the crop may have), "patch" and "threads".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .wire import Image, Part, TurnTimes, WorkerError, clock, serve


class HfCrop:
    """One processor; a turn is one crop."""

    def __init__(self) -> None:
        self.processor: Any = None

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        import torch
        import transformers

        if options.get("threads"):
            torch.set_num_threads(options["threads"])
        start = clock()
        kind = _processor(transformers)
        half = [0.5, 0.5, 0.5]
        self.box = options["box"]
        self.pixels = options["pixels"]
        self.processor = kind(patch_size=options["patch"], merge_size=2, image_mean=half, image_std=half)
        return {"seconds": clock() - start, "about": f"transformers {transformers.__version__}, {kind.__name__}"}

    def turn(self, parts: Sequence[Part], tokens: int) -> TurnTimes:
        import numpy as np
        import torch

        image = parts[0]
        if not isinstance(image, Image):
            raise WorkerError("unsupported", "it crops pictures only")
        array = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
        frame = torch.from_numpy(array.copy()).permute(2, 0, 1)
        x0, y0, x1, y1 = self.box
        size = {"shortest_edge": 4096, "longest_edge": self.pixels}
        start = clock()
        found = self.processor(images=[frame[:, y0:y1, x0:x1]], size=size, return_tensors="pt")
        seconds = clock() - start
        return TurnTimes(seconds, {"crop": seconds}, int(found["pixel_values"].shape[0]), tokens)

    def reset(self) -> None:
        return

    def close(self) -> None:
        self.processor = None


def _processor(transformers: Any) -> Any:
    """The class by its name of transformers 5, or of 4."""
    for name in ("Qwen2VLImageProcessorFast", "Qwen2VLImageProcessor"):
        if hasattr(transformers, name):
            return getattr(transformers, name)
    raise WorkerError("package", f"transformers {transformers.__version__} has no processor of the Qwen-VL families")


def main() -> None:
    """Serve."""
    serve(HfCrop())
