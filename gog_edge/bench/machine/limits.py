"""The least time that a stage can take on this machine: its work compared with the measured roofline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gog_edge.bench.machine.roofline import Roofline, decoder_attention_flops, kv_bytes_read, vision_attention_flops
from gog_edge.bench.workloads import TurnSpec, Workload
from gog_edge.bundle import Bundle
from gog_edge.crop import Grid
from gog_edge.manifest import EXPERTS_SUFFIX, Manifest, VisionSpec


@dataclass(frozen=True)
class StageLimits:
    """Seconds at the roofline. Arithmetic counts at the fastest GEMM that was measured, whatever precision it has.

    `decode_bytes`: what all decoding steps together read.
    """

    encode: float
    prefill: float
    decode: float
    decode_bytes: float = 0.0

    def of(self, stage: str) -> float | None:
        """The limit of a stage; None for stages without one (crop is bound by neither)."""
        if stage == "total":
            return self.encode + self.prefill + self.decode
        return {"encode": self.encode, "prefill": self.prefill, "decode": self.decode}.get(stage) or None


def stage_limits(bundle: Bundle, roofline: Roofline, turn: TurnSpec, before: int) -> tuple[StageLimits, int]:
    """(limits of one turn, tokens in the conversation after it); `before`: tokens in it already."""
    m = bundle.manifest
    fastest = _fastest(roofline)
    patches = [_patches(m, width, height) for width, height in turn.images]
    image_tokens = sum(n // m.preprocessing.merge_size**2 + 2 for n in patches)
    encode = _encode(m, m.vision, roofline, patches)
    new = turn.words + image_tokens
    total = before + new
    # the head runs on the last row only
    per_token = m.graphs["decoder"].weights - m.decoder.vocab * m.decoder.hidden
    flops = 2.0 * per_token * new + decoder_attention_flops(m.decoder, new, total)
    weights = weight_bytes(bundle, "decoder", new)
    prefill = roofline.seconds(flops=flops, read_bytes=weights, precision=fastest) if new else 0.0
    steps = turn.tokens - 1
    read = steps * (weight_bytes(bundle, "decoder", 1) + kv_bytes_read(m, total + steps // 2))
    return StageLimits(encode, prefill, roofline.seconds(read_bytes=read), read), total + turn.tokens


def encode_without_windows(bundle: Bundle, roofline: Roofline, turn: TurnSpec) -> float | None:
    """Seconds at the roofline if every layer saw the whole image; None for a tower that has no windows."""
    m = bundle.manifest
    if not m.vision.window or not turn.images:
        return None
    patches = [_patches(m, width, height) for width, height in turn.images]
    return _encode(m, replace(m.vision, window=0), roofline, patches)


def _encode(m: Manifest, vision: VisionSpec, roofline: Roofline, patches: Sequence[int]) -> float:
    weights = m.graphs["vision"].weights
    flops = sum(2.0 * weights * n + vision_attention_flops(vision, n) for n in patches)
    return roofline.seconds(flops=flops, precision=_fastest(roofline))


def _fastest(roofline: Roofline) -> str:
    return max(roofline.gemm, key=lambda name: roofline.gemm[name])


def memory_needed(bundle: Bundle, conversation: Workload) -> float:
    """Bytes that an ideal runtime holds: all weights, the KV of the whole conversation, one image's activations.

    Activations of an image are those of one encoder layer in float32, a row a patch: pixels, input and residual, q, k
    and v, and an MLP four times as wide as the tower. The embedding table is mapped and counts whole.
    """
    m = bundle.manifest
    tokens, patches = 0, 0
    for turn in conversation.turns:
        sizes = [_patches(m, width, height) for width, height in turn.images]
        tokens += turn.words + turn.tokens + sum(n // m.preprocessing.merge_size**2 + 2 for n in sizes)
        patches = max([patches, *sizes])
    rows = 3 * m.preprocessing.patch_size**2 + 9 * m.vision.hidden
    weights = sum(file.size for name, file in m.files.items() if name.endswith((".data", ".bin")))
    return weights + kv_bytes_read(m, tokens) + 4.0 * patches * rows


def _patches(m: Manifest, width: int, height: int) -> int:
    pre = m.preprocessing
    grid = Grid.fit(width, height, pre, min_pixels=pre.min_pixels, max_pixels=pre.max_pixels)
    return grid.rows * grid.columns


def weight_bytes(bundle: Bundle, graph: str, tokens: int) -> float:
    """Bytes of the weights that a run of `tokens` reads: of the experts, those that tokens are expected to meet which
    choose evenly and each on its own."""
    m = bundle.manifest
    spared = 1 - m.decoder.experts_used / max(m.decoder.experts, 1)
    sizes = {name: m.files[name].size for name in m.graphs[graph].data}
    return sum(size * (1 - spared**tokens if name.endswith(EXPERTS_SUFFIX) else 1) for name, size in sizes.items())
