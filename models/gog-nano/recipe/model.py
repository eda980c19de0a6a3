"""gog-nano as a dense-batch torch module: the Qwen3-VL architecture with parameter names of the Hugging Face layout.

Why not the transformers modelling code: it runs attention image by image and a Conv3d patch embedding, which costs a
factor of three on a CPU. Here a batch has images of one size, the patch embedding is one MatMul and attention is
SDPA. Saved weights (``weights.py``) load into ``Qwen3VLForConditionalGeneration``; tests/nano compares the two.

Shapes: B batch, n patches of an image in merge-block order, t = n / 4 merged tokens, H decoder width, s sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH, MERGE = 16, 2


@dataclass(frozen=True)
class Dims:
    """All sizes. Multiples of 32 so that every matrix can be quantised in blocks."""

    vocab: int = 3072
    hidden: int = 192
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    mlp: int = 512
    mrope: tuple[int, int, int] = (12, 10, 10)
    theta: float = 5_000_000.0
    v_hidden: int = 160
    v_depth: int = 5
    v_heads: int = 5
    v_mlp: int = 448
    v_side: int = 16
    v_deepstack: tuple[int, ...] = (1, 3)


@cache
def block_order(gh: int, gw: int) -> tuple[Tensor, Tensor]:
    """Row and column of every patch of a grid, in merge-block order."""
    rows = torch.arange(gh).view(gh // MERGE, 1, MERGE, 1).expand(-1, gw // MERGE, -1, MERGE).reshape(-1)
    cols = torch.arange(gw).view(1, gw // MERGE, 1, MERGE).expand(gh // MERGE, -1, MERGE, -1).reshape(-1)
    return rows, cols


def patchify(images: Tensor) -> Tensor:
    """uint8 [B, h, w, 3] to float [B, n, 3 * 16 * 16] in [-1, 1], (channel, y, x) within a patch."""
    b, h, w, _ = images.shape
    x = images.view(b, h // 32, MERGE, PATCH, w // 32, MERGE, PATCH, 3)
    x = x.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(b, -1, 3 * PATCH * PATCH)
    return x.float() * (2 / 255) - 1


@cache
def _grid_corners(gh: int, gw: int, side: int) -> tuple[Tensor, Tensor]:
    """Indices [4, n] and weights [4, n] of the bilinear resampling of the position table (corners aligned)."""
    rows, cols = block_order(gh, gw)
    y = torch.linspace(0, side - 1, gh)[rows]
    x = torch.linspace(0, side - 1, gw)[cols]
    y0, x0 = y.int(), x.int()
    y1, x1 = (y0 + 1).clamp(max=side - 1), (x0 + 1).clamp(max=side - 1)
    dy, dx = y - y0, x - x0
    index = torch.stack([y0 * side + x0, y0 * side + x1, y1 * side + x0, y1 * side + x1]).long()
    return index, torch.stack([(1 - dy) * (1 - dx), (1 - dy) * dx, dy * (1 - dx), dy * dx])


@cache
def _vision_rope(gh: int, gw: int, head_dim: int) -> tuple[Tensor, Tensor]:
    half = head_dim // 2
    inverse = 1.0 / (10000.0 ** (torch.arange(0, half, 2).float() / half))
    rows, cols = block_order(gh, gw)
    angle = torch.cat([rows[:, None] * inverse, cols[:, None] * inverse], -1)
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention [B, heads, n, d]; ``mask`` is additive. Written out because, in bfloat16 on a CPU, the fused kernel's
    backward pass is two (432 patches) to six times (48 patches) as slow as these three products."""
    scores = q @ (k * k.shape[-1] ** -0.5).transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, -1) @ v


class _Causal(torch.autograd.Function):
    """Causal attention of whole sequences in chunks of queries: no score above the diagonal's chunk is computed, heads
    that share keys are one product, and the softmax backward is two passes (the kernel's own takes 40 ns a score row
    element in bfloat16). q [B, heads, s, d]; k, v [B, kv_heads, s, d]."""

    CHUNK = 96

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, heads, s, d = q.shape
        kv = k.shape[1]
        q = (q * d**-0.5).view(b, kv, heads // kv, s, d)
        out = torch.empty_like(q)
        saved = []
        for at, end in _chunks(s):
            rows = q[:, :, :, at:end].reshape(b, kv, -1, d)
            scores = rows @ k[:, :, :end].transpose(-1, -2)
            scores.view(b, kv, -1, end - at, end)[..., at:].add_(_triangle(end - at, q.dtype))
            share = torch.softmax(scores, -1)
            out[:, :, :, at:end] = (share @ v[:, :, :end]).view(b, kv, -1, end - at, d)
            saved.append(share)
        ctx.save_for_backward(q, k, v, out, *saved)
        return out.view(b, heads, s, d)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, *saved = ctx.saved_tensors
        b, kv, group, s, d = q.shape
        grad = grad.reshape(q.shape)
        mean = (grad * out).sum(-1, keepdim=True)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (at, end), share in zip(_chunks(s), saved, strict=True):
            into = grad[:, :, :, at:end].reshape(b, kv, -1, d)
            dv[:, :, :end] += share.transpose(-1, -2) @ into
            slope = into @ v[:, :, :end].transpose(-1, -2)
            slope.sub_(mean[:, :, :, at:end].reshape(b, kv, -1, 1)).mul_(share)
            dk[:, :, :end] += slope.transpose(-1, -2) @ q[:, :, :, at:end].reshape(b, kv, -1, d)
            dq[:, :, :, at:end] = (slope @ k[:, :, :end]).view(b, kv, group, end - at, d)
        return dq.mul_(d**-0.5).view(b, kv * group, s, d), dk, dv


def _chunks(s: int) -> list[tuple[int, int]]:
    return [(at, min(s, at + _Causal.CHUNK)) for at in range(0, s, _Causal.CHUNK)]


@cache
def _triangle(size: int, dtype: torch.dtype) -> Tensor:
    return torch.full((size, size), float("-inf"), dtype=dtype).triu(1)


class VisionAttention(nn.Module):
    def __init__(self, d: Dims) -> None:
        super().__init__()
        self.heads = d.v_heads
        self.qkv = nn.Linear(d.v_hidden, 3 * d.v_hidden)
        self.proj = nn.Linear(d.v_hidden, d.v_hidden)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = attend(_rotate(q, *rope), _rotate(k, *rope), v)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class VisionMLP(nn.Module):
    def __init__(self, d: Dims) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(d.v_hidden, d.v_mlp)
        self.linear_fc2 = nn.Linear(d.v_mlp, d.v_hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_fc2(F.gelu(self.linear_fc1(x), approximate="tanh"))


class VisionBlock(nn.Module):
    def __init__(self, d: Dims) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d.v_hidden, eps=1e-6)
        self.norm2 = nn.LayerNorm(d.v_hidden, eps=1e-6)
        self.attn = VisionAttention(d)
        self.mlp = VisionMLP(d)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attn(self.norm1(x), rope)
        return x + self.mlp(self.norm2(x))


class Merger(nn.Module):
    """Four neighbouring patches to one token of the decoder's width."""

    def __init__(self, d: Dims, after_shuffle: bool) -> None:
        super().__init__()
        wide = d.v_hidden * MERGE * MERGE
        self.after_shuffle = after_shuffle
        self.norm = nn.LayerNorm(wide if after_shuffle else d.v_hidden, eps=1e-6)
        self.linear_fc1 = nn.Linear(wide, wide)
        self.linear_fc2 = nn.Linear(wide, d.hidden)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        x = self.norm(x.reshape(b, n // 4, -1)) if self.after_shuffle else self.norm(x).reshape(b, n // 4, -1)
        return self.linear_fc2(F.gelu(self.linear_fc1(x)))


class Vision(nn.Module):
    """The tower. ``forward`` gives features [B, t, H] and DeepStack features [D, B, t, H]."""

    def __init__(self, d: Dims) -> None:
        super().__init__()
        self.d = d
        self.patch_embed = nn.Linear(3 * PATCH * PATCH, d.v_hidden)
        self.pos_embed = nn.Embedding(d.v_side**2, d.v_hidden)
        self.blocks = nn.ModuleList(VisionBlock(d) for _ in range(d.v_depth))
        self.merger = Merger(d, after_shuffle=False)
        self.deepstack_merger_list = nn.ModuleList(Merger(d, after_shuffle=True) for _ in d.v_deepstack)

    def forward(self, images: Tensor, deepstack: bool = True) -> tuple[Tensor, Tensor | None]:
        gh, gw = images.shape[1] // PATCH, images.shape[2] // PATCH
        index, weight = _grid_corners(gh, gw, self.d.v_side)
        dtype = self.patch_embed.weight.dtype
        places = (self.pos_embed(index) * weight[..., None].to(dtype)).sum(0)
        x = self.patch_embed(patchify(images).to(dtype)) + places
        cos, sin = _vision_rope(gh, gw, self.d.v_hidden // self.d.v_heads)
        rope = cos.to(dtype), sin.to(dtype)
        deep = []
        for layer, block in enumerate(self.blocks):
            x = block(x, rope)
            if deepstack and layer in self.d.v_deepstack:
                deep.append(self.deepstack_merger_list[len(deep)](x))
        return self.merger(x), torch.stack(deep) if deep else None

    def embed(self, images: Tensor) -> Tensor:
        """Search vectors [B, H]: the mean merged feature, unit length."""
        return F.normalize(self(images, deepstack=False)[0].float().mean(1), dim=-1)


class RMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-6)


def _before(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What comes before attention: q [B, heads, s, d], k and v [B, kv_heads, s, d]."""
    a, d = layer.self_attn, layer.self_attn.d
    b, s, _ = x.shape
    x = layer.input_layernorm(x)
    q = a.q_norm(a.q_proj(x).view(b, s, d.heads, d.head_dim)).transpose(1, 2)
    k = a.k_norm(a.k_proj(x).view(b, s, d.kv_heads, d.head_dim)).transpose(1, 2)
    v = a.v_proj(x).view(b, s, d.kv_heads, d.head_dim).transpose(1, 2)
    return _rotate(q, cos, sin), _rotate(k, cos, sin), v.contiguous()


def _after(layer: Layer, x: Tensor, seen: Tensor) -> Tensor:
    """What comes after attention. seen [B, heads, s, d]."""
    b, _, s, _ = seen.shape
    x = x + layer.self_attn.o_proj(seen.transpose(1, 2).reshape(b, s, -1))
    return x + layer.mlp(layer.post_attention_layernorm(x))


class Attention(nn.Module):
    def __init__(self, d: Dims) -> None:
        super().__init__()
        self.d = d
        self.q_proj = nn.Linear(d.hidden, d.heads * d.head_dim, bias=False)
        self.k_proj = nn.Linear(d.hidden, d.kv_heads * d.head_dim, bias=False)
        self.v_proj = nn.Linear(d.hidden, d.kv_heads * d.head_dim, bias=False)
        self.o_proj = nn.Linear(d.heads * d.head_dim, d.hidden, bias=False)
        self.q_norm = RMSNorm(d.head_dim)
        self.k_norm = RMSNorm(d.head_dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, past: list[Tensor] | None) -> Tensor:
        if past is not None:
            if past:
                k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
            past[:] = [k, v]
        s, total = q.shape[2], k.shape[2]
        if s == total:
            return _Causal.apply(q, k, v)  # type: ignore[no-any-return,no-untyped-call]
        mask = torch.full((s, total), float("-inf"), dtype=q.dtype).triu(total - s + 1) if s > 1 else None
        k, v = (t.repeat_interleave(self.d.heads // self.d.kv_heads, 1) for t in (k, v))
        return attend(q, k, v, mask)


class MLP(nn.Module):
    def __init__(self, d: Dims) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d.hidden, d.mlp, bias=False)
        self.up_proj = nn.Linear(d.hidden, d.mlp, bias=False)
        self.down_proj = nn.Linear(d.mlp, d.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, d: Dims) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(d.hidden)
        self.post_attention_layernorm = RMSNorm(d.hidden)
        self.self_attn = Attention(d)
        self.mlp = MLP(d)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], past: list[Tensor] | None, before: Any, after: Any
    ) -> Tensor:
        return after(self, x, self.self_attn(*before(self, x, *rope), past))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """The language model; the head is tied to the embedding."""

    def __init__(self, d: Dims) -> None:
        super().__init__()
        self.d = d
        self.embed_tokens = nn.Embedding(d.vocab, d.hidden)
        self.layers = nn.ModuleList(Layer(d) for _ in range(d.layers))
        self.norm = RMSNorm(d.hidden)
        inverse = 1.0 / (d.theta ** (torch.arange(0, d.head_dim, 2).float() / d.head_dim))
        self.register_buffer("inverse", inverse, persistent=False)
        self.parts = (_before, _after)

    def fuse(self) -> None:
        """Compiles what is not attention: a fifth less time a training step, for half a minute at the start."""
        self.parts = (torch.compile(_before, dynamic=True), torch.compile(_after, dynamic=True))

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Interleaved M-RoPE. positions [3, B, s] to cos, sin [B, 1, s, head_dim]."""
        angles = positions[..., None].float() * self.inverse
        mixed = angles[0].clone()
        for axis in (1, 2):
            mixed[..., axis : 3 * self.d.mrope[axis] : 3] = angles[axis][..., axis : 3 * self.d.mrope[axis] : 3]
        mixed = torch.cat([mixed, mixed], -1)[:, None]
        return mixed.cos(), mixed.sin()

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        deep: list[tuple[Tensor, Tensor]] | None = None,
        past: list[list[Tensor]] | None = None,
    ) -> Tensor:
        """Hidden states [B, s, H] after the last norm.

        ``deep``: for each DeepStack level (flat positions [m] into B * s, features [m, H]), added after that layer.
        ``past``: one list a layer, [] or [keys, values]; extended in place.
        """
        cos, sin = self.rope(positions)
        rope = cos.to(x.dtype), sin.to(x.dtype)
        for number, layer in enumerate(self.layers):
            x = layer(x, rope, None if past is None else past[number], *self.parts)
            if deep is not None and number < len(deep):
                at, features = deep[number]
                x = x.reshape(-1, x.shape[-1]).index_add(0, at, features).view(x.shape)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embed_tokens.weight)


class Nano(nn.Module):
    def __init__(self, d: Dims) -> None:
        super().__init__()
        self.d = d
        self.visual = Vision(d)
        self.language_model = Decoder(d)
        self.apply(_init)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.6 / module.in_features**0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.04)
