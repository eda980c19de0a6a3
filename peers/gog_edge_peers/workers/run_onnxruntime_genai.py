"""onnxruntime-genai: the decoder alone, from a folder made by its model builder; ids in, its KV cache kept.

It is given no pictures: the builder makes the language part of these families. Scenarios with pictures are refused, so
that their cells stay blank.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from .wire import Image, Part, TurnTimes, WorkerError, clock, folder, serve, token_ids

CONTEXT = 4096  # its KV cache is as long as the limit that it is given; grown for longer conversations only


class OrtGenai:
    """One Generator, continued from turn to turn."""

    def __init__(self) -> None:
        self.model: Any = None
        self.generator: Any = None

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        path = folder(model, "genai_config.json")
        import onnxruntime_genai

        settings = json.loads((path / "genai_config.json").read_text("utf-8"))["model"]
        # the special tokens come after all ordinary ones
        known = [settings.get(k) for k in ("bos_token_id", "pad_token_id", "eos_token_id")]
        ends = [i for k in known for i in (k if isinstance(k, list) else [k]) if i]
        self.high = min([settings["vocab_size"], *ends])
        self.limit = int(settings.get("context_length", CONTEXT))
        self.most = min(self.limit, CONTEXT)
        start = clock()
        config = onnxruntime_genai.Config(str(path))
        # without a number it ran on one core of two, at half the speed
        threads = options.get("threads") or os.cpu_count() or 1
        overlay = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
        config.overlay(json.dumps(overlay))
        self.model = onnxruntime_genai.Model(config)
        self.reset()
        self._write([1], 1)
        seconds = clock() - start
        self.reset()
        about = f"onnxruntime-genai {onnxruntime_genai.__version__}, decoder only, {threads} threads"
        return {"seconds": seconds, "about": about}

    def turn(self, parts: Sequence[Part], tokens: int) -> TurnTimes:
        ids: list[int] = []
        for part in parts:
            if isinstance(part, Image):
                raise WorkerError("unsupported", "it runs the decoder only: scenarios with pictures stay blank")
            ids += token_ids(part.count, part.seed, self.high)
        self._make_room(len(ids) + tokens)
        before = self.generator.token_count() + len(ids)
        start = clock()
        first = self._write(ids, tokens)
        end = clock()
        stages = {"prefill": first - start}
        if tokens > 1:
            stages["decode"] = end - first
        return TurnTimes(end - start, stages, len(ids), self.generator.token_count() - before, len(ids))

    def reset(self) -> None:
        import onnxruntime_genai

        params = onnxruntime_genai.GeneratorParams(self.model)
        # a minimum keeps the end-of-text token from being chosen
        params.set_search_options(max_length=self.most, min_length=self.most, do_sample=False)
        self.generator = onnxruntime_genai.Generator(self.model, params)

    def close(self) -> None:
        self.generator = self.model = None

    def _make_room(self, tokens: int) -> None:
        """A longer cache, where a new conversation needs one."""
        needed = self.generator.token_count() + tokens
        if needed <= self.most:
            return
        if needed > self.limit or needed > tokens:
            raise WorkerError("unsupported", f"{needed} tokens do not fit into its cache of {self.most}")
        self.most = min(self.limit, -(-needed // CONTEXT) * CONTEXT)
        self.reset()

    def _write(self, ids: list[int], tokens: int) -> float:
        """Append, then write; when the first token was there."""
        import numpy as np

        self.generator.append_tokens(np.array(ids, np.int32))
        first = 0.0
        for number in range(tokens):
            self.generator.generate_next_token()
            if number == 0:
                first = clock()
        return first


def main() -> None:
    """Serve."""
    serve(OrtGenai())
