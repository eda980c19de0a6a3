"""The published sizes of all families: the one table that plans, budgets, benchmarks and synthetic checkpoints read.

Source: config.json of Qwen/Qwen2.5-VL-{3B,7B,32B}-Instruct and Qwen/Qwen3-VL-{2B,4B,8B,32B,30B-A3B,235B-A22B}-Instruct
on the Hugging Face hub. Only what differs between checkpoints stands here; what a whole family shares is in `families`
and in `export/synthetic/configs.py`. Two columns are easily taken for constants: the towers of Qwen2.5-VL-3B and 7B
have an MLP of 3420, that of 32B one of 3456; and contexts are 128,000 tokens in Qwen2.5-VL, 262,144 in Qwen3-VL. The
sums of all tensors agree with the sizes of the published weight files (`tests/export/test_synthetic.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

HEAD_DIM = 128  # of the decoder's heads, in every checkpoint of the table
VISION_HEADS = 16
MERGE = 2  # patches on each side of one image token


@dataclass(frozen=True)
class PolicyShape:
    """Sizes of one published checkpoint. `gated_vision`: the tower's MLP has a gate beside its way up.
    `taps`: blocks of the tower whose output goes to a DeepStack merger. With `experts`, every layer has that many, a
    token uses `top` of them, and `intermediate` is of one."""

    name: str
    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    tied: bool
    context: int
    vision_depth: int
    vision_hidden: int
    vision_intermediate: int
    patch: int
    gated_vision: bool
    taps: tuple[int, ...] = ()
    experts: int = 0
    top: int = 0

    @property
    def decoder_parameters(self) -> int:
        """Linear weights of all decoder layers."""
        return self.layers * (self._shared_parameters + max(self.experts, 1) * self._mlp_parameters)

    @property
    def active_parameters(self) -> int:
        """Those of the decoder layers that one token is multiplied with: of the experts, the ones it uses."""
        return self.layers * (self._shared_parameters + (self.top or 1) * self._mlp_parameters)

    @property
    def _shared_parameters(self) -> int:
        """Of a layer's attention and router."""
        return self.hidden * (HEAD_DIM * (2 * self.heads + 2 * self.kv_heads) + self.experts)

    @property
    def _mlp_parameters(self) -> int:
        return 3 * self.hidden * self.intermediate

    @property
    def vocabulary_parameters(self) -> int:
        """Rows of the embedding (and, equal in size, of an untied head)."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All of them, without norms and biases."""
        tables = 1 if self.tied else 2
        return self.decoder_parameters + tables * self.vocabulary_parameters + self.vision_parameters

    @property
    def vision_parameters(self) -> int:
        """Linear weights of the tower, its merger and the DeepStack mergers; the two frames of a patch count as one."""
        v, m = self.vision_hidden, MERGE**2 * self.vision_hidden
        block = 4 * v * v + (3 if self.gated_vision else 2) * v * self.vision_intermediate
        merger = m * m + m * self.hidden
        return self.vision_depth * block + (1 + len(self.taps)) * merger + v * 3 * self.patch**2


def _qwen2_5(
    name: str, layers: int, hidden: int, heads: int, kv_heads: int, mlp: int, vocab: int, tied: bool, vision_mlp: int
) -> PolicyShape:
    tower = (32, 1280, vision_mlp, 14, True)
    return PolicyShape(name, "qwen2_5_vl", layers, hidden, heads, kv_heads, mlp, vocab, tied, 128_000, *tower)


def _qwen3(
    name: str, layers: int, hidden: int, heads: int, kv_heads: int, mlp: int, tied: bool, *, small_tower: bool = False
) -> PolicyShape:
    tower = (24, 1024, 4096, 16, False, (5, 11, 17)) if small_tower else (27, 1152, 4304, 16, False, (8, 16, 24))
    return PolicyShape(name, "qwen3_vl", layers, hidden, heads, kv_heads, mlp, 151_936, tied, 262_144, *tower)


def _qwen3_moe(name: str, layers: int, hidden: int, heads: int, mlp: int) -> PolicyShape:
    dense = _qwen3(name, layers, hidden, heads, 4, mlp, False)
    return replace(dense, family="qwen3_vl_moe", experts=128, top=8)


# name, layers, hidden, heads, KV heads, MLP, (vocabulary,) whether the head is the embedding(, the tower's MLP)
SHAPES = {
    shape.name: shape
    for shape in (
        _qwen3("qwen3-vl-2b", 28, 2048, 16, 8, 6144, True, small_tower=True),
        _qwen3("qwen3-vl-4b", 36, 2560, 32, 8, 9728, True, small_tower=True),
        _qwen3("qwen3-vl-8b", 36, 4096, 32, 8, 12288, False),
        _qwen3("qwen3-vl-32b", 64, 5120, 64, 8, 25600, False),
        _qwen3_moe("qwen3-vl-30b-a3b", 48, 2048, 32, 768),
        _qwen3_moe("qwen3-vl-235b-a22b", 94, 4096, 64, 1536),
        _qwen2_5("qwen2.5-vl-3b", 36, 2048, 16, 2, 11008, 151_936, True, 3420),
        _qwen2_5("qwen2.5-vl-7b", 28, 3584, 28, 4, 18944, 152_064, False, 3420),
        _qwen2_5("qwen2.5-vl-32b", 64, 5120, 40, 8, 27648, 152_064, False, 3456),
    )
}
