"""openvino-genai: a folder made by optimum-intel, in chat mode, with one attention backend or the other.

`options["backend"]`: "PA" (paged attention, its default) or "SDPA". The work is as close to ours as its interface
allows: text instead of ids, and its chat template around every turn; the resulting tokens are reported. With SDPA a
Qwen3-VL turn without a picture fails inside of version 2026.4 (a reshape of the rows that hold pictures): scenarios of
text alone stay blank there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .wire import Image, Part, TurnTimes, clock, folder, serve, text_of


class OpenVino:
    """One VLMPipeline."""

    def __init__(self) -> None:
        self.pipe: Any = None
        self.length = 0

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        path = folder(model, "openvino_language_model.xml", "openvino_tokenizer.xml")
        import openvino_genai

        properties: dict[str, Any] = {}
        if options.get("backend"):
            properties["ATTENTION_BACKEND"] = options["backend"]
        if options.get("threads"):
            properties["INFERENCE_NUM_THREADS"] = options["threads"]
        start = clock()
        self.pipe = openvino_genai.VLMPipeline(str(path), options.get("device", "CPU"), **properties)
        self.tokenizer = self.pipe.get_tokenizer()
        self.pipe.start_chat()
        self._generate("a", [_tensor(Image(64, 64, bytes(64 * 64 * 3)))], 1)
        seconds = clock() - start
        self.reset()
        backend = options.get("backend") or "its default backend"
        return {"seconds": seconds, "about": f"openvino-genai {openvino_genai.__version__}, {backend}"}

    def turn(self, parts: Sequence[Part], tokens: int) -> TurnTimes:
        images = [_tensor(p) for p in parts if isinstance(p, Image)]
        texts = [text_of(p.count, p.seed, self._count) for p in parts if not isinstance(p, Image)]
        start = clock()
        result, stamps = self._generate(" ".join(texts), images, tokens)
        end = clock()
        metrics = result.perf_metrics
        stages: dict[str, float] = {}
        encode = 0.0
        if images:
            # with Qwen3-VL the "encoding" is the patch embedding alone: the tower runs while embeddings are prepared
            encode = max(_mean(metrics, n) for n in ("get_vision_encoding_duration", "get_prepare_embeddings_duration"))
            stages["encode"] = encode
        if stamps:
            stages["prefill"] = stamps[0] - start - encode
        if tokens > 1 and len(stamps) > 1:
            stages["decode"] = stamps[-1] - stamps[0]
        # the prompt that it counts is the whole conversation in one backend, the new part in the other
        prompt = int(metrics.get_num_input_tokens())
        new = prompt - self.length if prompt > self.length else prompt
        generated = int(metrics.get_num_generated_tokens())
        self.length = self.length + new + generated
        return TurnTimes(end - start, stages, new, generated)

    def reset(self) -> None:
        self.pipe.finish_chat()
        self.pipe.start_chat()
        self.length = 0

    def close(self) -> None:
        if self.pipe is not None:
            self.pipe.finish_chat()
        self.pipe = None

    def _count(self, text: str) -> int:
        return int(self.tokenizer.encode([text], add_special_tokens=False).input_ids.shape[1])

    def _generate(self, text: str, images: list[Any], tokens: int) -> tuple[Any, list[float]]:
        """(result, when each token came)."""
        import openvino_genai

        stamps: list[float] = []

        def write(streamer: Any, token: Any) -> Any:
            # a list where several were found at once
            stamps.extend([clock()] * (len(token) if isinstance(token, (list, tuple)) else 1))
            return openvino_genai.StreamingStatus.RUNNING

        def end(streamer: Any) -> None:
            return None

        streamer = type("Stamps", (openvino_genai.StreamerBase,), {"write": write, "end": end})()

        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.min_new_tokens = tokens, tokens
        config.ignore_eos, config.do_sample = True, False
        if images:
            result = self.pipe.generate(text, images=images, generation_config=config, streamer=streamer)
        else:
            result = self.pipe.generate(text, generation_config=config, streamer=streamer)
        return result, stamps


def _tensor(image: Image) -> Any:
    """[1, h, w, 3] uint8."""
    import numpy as np
    import openvino_genai

    pixels = np.frombuffer(image.data, np.uint8).reshape(1, image.height, image.width, 3)
    return openvino_genai.openvino.Tensor(pixels.copy())


def _mean(metrics: Any, name: str) -> float:
    """Seconds of a duration (milliseconds) of the metrics; 0 where this version does not measure it."""
    return float(getattr(metrics, name)().mean) / 1e3 if hasattr(metrics, name) else 0.0


def main() -> None:
    """Serve."""
    serve(OpenVino())
