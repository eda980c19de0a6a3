"""Initial weights that already copy: a previous-token layer and an induction layer, built by hand.

A search policy copies all the time (names, facts, boxes), with attention heads that small models take very long to
find: from random weights, 2,800 conversations brought no copying at all (see log/failed). So the first two layers start
as the textbook circuit (Olsson et al. 2022, "In-context learning and induction heads"), and training refines it:

* layer 0: keys are one constant vector, queries another; through the rotary angles their product peaks one token
  back (head 0 and 2; the other heads two and three tokens back). Values carry half of the token's identity each.
* layer 1: queries read the token itself, keys what layer 0 noted about the token before: a match points at the token
  that followed last time, whose identity is copied to the output.

Content is compared in slow rotary pairs only, which distance hardly turns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .model import Attention, Nano

CONSTANT = 0.3  # length of the component that all token embeddings share
SLOW = 0.004  # radians a token: pairs turning slower carry content


def _place(rows: Tensor, head: int, d: int, dims: Tensor, values: Tensor) -> None:
    rows[head * d : (head + 1) * d] = 0.0
    rows[head * d + dims] = values


@torch.no_grad()
def induction(net: Nano, seed: int = 5) -> None:
    """Changes the embedding and the attention of layers 0 and 1 in place."""
    d, model = net.d, net.language_model
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d.hidden, d.hidden, generator=g))[0].T  # orthonormal rows
    u = basis[0]
    for layer in model.layers:  # nothing else writes to the residual at first
        layer.self_attn.o_proj.weight.mul_(0.05)
        layer.mlp.down_proj.weight.mul_(0.05)
    embedding = model.embed_tokens.weight
    embedding -= (embedding @ u)[:, None] * u
    embedding += CONSTANT * u
    model.norm.weight.fill_(2.5)
    hd, half = d.head_dim, d.head_dim // 2
    theta = model.inverse
    slow = torch.nonzero(theta < SLOW).flatten()
    content = torch.cat([slow, slow + half])
    width = len(content)
    identity = [basis[1 : 1 + width], basis[1 + width : 1 + 2 * width]]
    noted = [basis[1 + 2 * width : 1 + 3 * width], basis[1 + 3 * width : 1 + 4 * width]]
    _previous(model.layers[0].self_attn, u, identity, noted, theta, content)
    match = model.layers[1].self_attn
    group = d.heads // d.kv_heads
    for kv in range(2):
        _place(match.q_proj.weight, kv * group, hd, content, identity[kv])
        _place(match.k_proj.weight, kv, hd, content, noted[kv])
        _place(match.v_proj.weight, kv, hd, content, identity[kv])
        columns = kv * group * hd + content
        match.o_proj.weight[:, kv * group * hd : (kv * group + 1) * hd] = 0.0
        match.o_proj.weight[:, columns] = 0.8 * identity[kv].T
    match.q_norm.weight.fill_(1.8)
    match.k_norm.weight.fill_(1.8)


def _previous(
    layer: Attention, u: Tensor, identity: list[Tensor], noted: list[Tensor], theta: Tensor, content: Tensor
) -> None:
    d = layer.d
    hd, half, group = d.head_dim, d.head_dim // 2, d.heads // d.kv_heads
    fast = torch.arange(10)
    amplitude = torch.tensor([3.0, 2.0, 1.5, 1.0, 1.0, 1.0, 0.7, 0.7, 0.5, 0.5]).sqrt()
    dims = torch.cat([fast, fast + half])
    zero = torch.zeros_like(amplitude)
    for kv in range(2):
        _place(layer.k_proj.weight, kv, hd, dims, torch.cat([amplitude, zero])[:, None] * u)
        _place(layer.v_proj.weight, kv, hd, content, identity[kv])
        for member in range(group):
            back = 1 if member == 0 else 2 + kv
            phase = -back * theta[fast]
            query = torch.cat([amplitude * phase.cos(), amplitude * phase.sin()])
            _place(layer.q_proj.weight, kv * group + member, hd, dims, query[:, None] * u)
        head = kv * group
        layer.o_proj.weight[:, head * hd : (head + 1) * hd] = 0.0
        layer.o_proj.weight[:, head * hd + content] = 0.12 * noted[kv].T
    for norm in (layer.q_norm, layer.k_norm):
        norm.weight.fill_(1.0)
        norm.weight[dims] = 2.2
