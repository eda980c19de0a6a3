"""The published sizes of all families: the one table that plans, budgets, benchmarks and synthetic checkpoints read.

Source: config.json of Qwen/Qwen2.5-VL-{3B,7B,32B}-Instruct, Qwen/Qwen3-VL-{2B,4B,8B,32B,30B-A3B,235B-A22B}-Instruct and
Qwen/Qwen3.5-{0.8B,2B,4B,9B,27B,35B-A3B} on the Hugging Face hub (27B is also a size of Qwen3.6 and Qwen3.8, 35B-A3B one
of Qwen3.6). Only what differs between checkpoints stands here; what a whole family shares is in `families` and in
`export/synthetic`. Two columns are easily taken for constants: the towers of Qwen2.5-VL-3B and 7B have an MLP of 3420,
that of 32B one of 3456; and contexts are 128,000 tokens in Qwen2.5-VL, 262,144 in the others. The sums of all tensors
agree with the sizes of the published weight files (`tests/export/test_synthetic.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

HEAD_DIM = 128  # of the decoder's heads, where a row does not say otherwise
VISION_HEADS = 16  # as above
LINEAR_DIM = 128  # of keys and values of linear attention, in every checkpoint of the table
MERGE = 2  # patches on each side of one image token


@dataclass(frozen=True)
class PolicyShape:
    """Sizes of one published checkpoint. `gated_vision`: the tower's MLP has a gate beside its way up.
    `taps`: blocks of the tower whose output goes to a DeepStack merger. `linear`: key and value heads of the layers of
    linear attention, which all are but every `interval`-th; None: all attend. With `experts`, every layer has that
    many, a token uses `top` of them and a `shared` one, and `intermediate` is of one."""

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
    head_dim: int = HEAD_DIM
    vision_heads: int = VISION_HEADS
    linear: tuple[int, int] | None = None
    interval: int = 1
    experts: int = 0
    top: int = 0
    shared: int = 0

    @property
    def attention_layers(self) -> int:
        """Layers that keep a row for every token."""
        return self.layers // self.interval

    @property
    def decoder_parameters(self) -> int:
        """Linear weights of all decoder layers."""
        return self._mixers + self.layers * max(self.experts + self.shared, 1) * 3 * self.hidden * self.intermediate

    @property
    def active_parameters(self) -> int:
        """Those of the decoder layers that one token is multiplied with: of the experts, the ones it uses."""
        return self._mixers + self.layers * max(self.top + self.shared, 1) * 3 * self.hidden * self.intermediate

    @property
    def _mixers(self) -> int:
        """Of attention and routers. With linear attention the queries of the other layers have a gate each."""
        queries = self.heads * (2 if self.linear is None else 3)
        attention = self.attention_layers * self.hidden * self.head_dim * (queries + 2 * self.kv_heads)
        keys, values = (LINEAR_DIM * count for count in self.linear or (0, 0))
        gates = 2 * values // LINEAR_DIM
        linear = (self.layers - self.attention_layers) * self.hidden * (2 * keys + 3 * values + gates)
        return attention + linear + self.layers * self.hidden * (self.experts + self.shared)

    @property
    def state_bytes(self) -> int:
        """Of the recurrent states of a conversation, float32: of the delta rule, and of a convolution of 4 tokens."""
        keys, values = (LINEAR_DIM * count for count in self.linear or (0, 0))
        return 4 * (self.layers - self.attention_layers) * (values * LINEAR_DIM + 3 * (2 * keys + values))

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


def _qwen3_5(
    name: str, layers: int, hidden: int, heads: int, kv_heads: int, mlp: int, tied: bool, linear: int, tower: str
) -> PolicyShape:
    """`linear`: value heads of linear attention; there are 16 key heads in all sizes."""
    depth, width, inner, vision_heads = _TOWERS[tower]
    return PolicyShape(
        name,
        "qwen3_5",
        layers,
        hidden,
        heads,
        kv_heads,
        mlp,
        248_320,
        tied,
        262_144,
        depth,
        width,
        inner,
        16,
        False,
        head_dim=256,
        vision_heads=vision_heads,
        linear=(16, linear),
        interval=4,
    )


def _qwen3_5_moe(name: str, layers: int, hidden: int, heads: int, mlp: int) -> PolicyShape:
    dense = _qwen3_5(name, layers, hidden, heads, 2, mlp, False, 32, "large")
    return replace(dense, family="qwen3_5_moe", experts=256, top=8, shared=1)


_TOWERS = {"small": (12, 768, 3072, 12), "middle": (24, 1024, 4096, 16), "large": (27, 1152, 4304, 16)}

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
        _qwen3_5("qwen3.5-0.8b", 24, 1024, 8, 2, 3584, True, 16, "small"),
        _qwen3_5("qwen3.5-2b", 24, 2048, 8, 2, 6144, True, 16, "middle"),
        _qwen3_5("qwen3.5-4b", 32, 2560, 16, 4, 9216, True, 32, "middle"),
        _qwen3_5("qwen3.5-9b", 32, 4096, 16, 4, 12288, False, 32, "large"),
        _qwen3_5("qwen3.5-27b", 64, 5120, 24, 4, 17408, False, 48, "large"),
        _qwen3_5_moe("qwen3.5-35b-a3b", 40, 2048, 16, 512),
        _qwen2_5("qwen2.5-vl-3b", 36, 2048, 16, 2, 11008, 151_936, True, 3420),
        _qwen2_5("qwen2.5-vl-7b", 28, 3584, 28, 4, 18944, 152_064, False, 3420),
        _qwen2_5("qwen2.5-vl-32b", 64, 5120, 40, 8, 27648, 152_064, False, 3456),
    )
}
