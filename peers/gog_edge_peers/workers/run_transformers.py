"""transformers: the checkpoint as it is, token ids in, `past_key_values` kept from turn to turn.

Its best mode for this: images of earlier turns are not encoded again, because only the new rows are run. Work is the
same as ours to the token: ids of the image between vision_start and vision_end, then ids of words, no template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .wire import Image, Part, TurnTimes, WorkerError, clock, folder, serve, token_ids


class Transformers:
    """One checkpoint of the Qwen-VL families."""

    def __init__(self) -> None:
        self.model: Any = None
        self.processor: Any = None
        self.past: Any = None
        self.length = 0  # rows in the cache
        self.pending: list[int] = []  # the newest token was written, not run
        self.rope = 0  # next position of the language model is length + rope
        self.encoding = 0.0

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        path = folder(model, "config.json")
        import torch
        import transformers

        if options.get("threads"):
            torch.set_num_threads(options["threads"])
        auto = transformers.AutoModelForImageTextToText  # the lazy import is not loading
        start = clock()
        self.model = auto.from_pretrained(path, dtype="auto").eval()
        self.processor = transformers.AutoImageProcessor.from_pretrained(path, use_fast=True)
        config = self.model.config
        self.ids = (config.vision_start_token_id, config.image_token_id, config.vision_end_token_id)
        # bos, eos and the vision tokens come after all ordinary ones
        special = [t for t in (config.text_config.bos_token_id, *self.ids) if t]
        self.high = min(special)
        self._time_vision()
        self._run([1], None, 1)
        self.reset()
        return {
            "seconds": clock() - start,
            "about": f"transformers {transformers.__version__}, torch {torch.__version__}, {self.model.dtype}",
        }

    def turn(self, parts: Sequence[Part], tokens: int) -> TurnTimes:
        import numpy as np
        import torch

        # made before the clock starts: [3, h, w] pixels, or ids
        given: list[Any] = []
        for part in parts:
            if isinstance(part, Image):
                array = np.frombuffer(part.data, np.uint8).reshape(part.height, part.width, 3)
                given.append(torch.from_numpy(array.copy()).permute(2, 0, 1))
            else:
                given.append(token_ids(part.count, part.seed, self.high))
        self.encoding = 0.0
        start = clock()
        ids, grids, pixels = list(self.pending), [], []
        for item in given:
            if isinstance(item, list):
                ids += item
                continue
            seen = self.processor(images=[item], return_tensors="pt")
            pixels.append(seen["pixel_values"])
            grids.append(seen["image_grid_thw"])
            rows = int(seen["image_grid_thw"].prod()) // self.processor.merge_size**2
            ids += [self.ids[0], *[self.ids[1]] * rows, self.ids[2]]
        images = (torch.cat(pixels).to(self.model.dtype), torch.cat(grids)) if pixels else None
        ready = clock()
        new = len(ids) - len(self.pending)
        token = self._run(ids, images, 1)
        first = clock()
        for _ in range(tokens - 1):
            token = self._run([token], None, 1)
        end = clock()
        self.pending = [token]
        stages = {"prefill": first - ready - self.encoding, "decode": end - first}
        if images is not None:
            stages |= {"crop": ready - start, "encode": self.encoding}
        if tokens == 1:
            del stages["decode"]
        return TurnTimes(end - start, stages, new, tokens, len(ids))

    def reset(self) -> None:
        self.past, self.length, self.pending, self.rope = None, 0, [], 0

    def close(self) -> None:
        self.reset()
        self.model = None

    def _run(self, ids: list[int], images: Any, last: int) -> int:
        """Run `ids` after what is cached; the likeliest next token."""
        import torch

        tokens = torch.tensor([ids])
        positions = self._positions(tokens, images)
        given: dict[str, Any] = {}
        if images is not None:
            given = {"pixel_values": images[0], "image_grid_thw": images[1]}
            given["mm_token_type_ids"] = (tokens == self.ids[1]).int()
        with torch.inference_mode():  # here, not for the whole process: whoever loads this module may train
            out = self.model(
                input_ids=tokens,
                position_ids=positions,
                past_key_values=self.past,
                use_cache=True,
                logits_to_keep=last,
                **given,
            )
        self.past = out.past_key_values
        self.length += len(ids)
        return int(out.logits[0, -1].argmax())

    def _positions(self, tokens: Any, images: Any) -> Any:
        """[3, 1, s] positions after the cache: the model's own rule for the new rows, moved up."""
        import torch

        begin = self.length + self.rope
        if images is None:
            return torch.arange(begin, begin + tokens.shape[1]).expand(3, 1, -1)
        positions, _ = self.model.model.get_rope_index(
            tokens, image_grid_thw=images[1], mm_token_type_ids=(tokens == self.ids[1]).int()
        )
        positions = positions[-3:] + begin
        self.rope = int(positions.max()) + 1 - (self.length + tokens.shape[1])
        return positions

    def _time_vision(self) -> None:
        """Clock the vision tower from outside."""
        tower = getattr(self.model.model, "visual", None)
        if tower is None:
            raise WorkerError("unsupported", f"{type(self.model).__name__} has no vision tower where one is looked for")
        began: list[float] = []

        def before(module: Any, inputs: Any) -> None:
            began.append(clock())

        def after(module: Any, inputs: Any, output: Any) -> None:
            self.encoding += clock() - began.pop()

        tower.register_forward_pre_hook(before)
        tower.register_forward_hook(after)


def main() -> None:
    """Serve."""
    serve(Transformers())
