"""Native CPU operators for ONNX Runtime, domain `ai.gog_edge` version 1.  This page is their contract.

The C++ lies in `gog_edge/native/csrc`, is compiled at first use (`gog_edge.native.build`) and is
registered with `dispatch.register(session_options)`.  `packing` (numpy only) writes the weight layouts,
`tests/native/reference.py` is the same arithmetic in numpy, which the tests hold the kernels to.  All operators run
on the session's own intra-op threads.  A transformer layer takes five of them:

    vision:  LinearW8(norm, qkv) -> VisionAttention -> LinearW8(out, + residual)
             -> LinearW8(norm, fc1, gelu) -> LinearW8(fc2, + residual)
    decoder: LinearW4(norm, qkv) -> DecoderAttention -> LinearW4(out, + residual)
             -> LinearW4(norm, gate|up, silu_mul) -> LinearW4(down, + residual)
    linear attention, in the place of DecoderAttention: CausalConv -> GatedDelta

Names in brackets are axes; M is the product of all leading axes; `?` marks an optional input (empty name in
the graph).  Np = the packed number of columns: N rounded up to 32 (see `packing.column_order`).

Rows do not depend on their neighbours.  A row of y has the same bits whichever rows are computed in the same run,
however many they are and whatever the number of threads: it is a function of the row, of what stands in the cache
before it, and of the arithmetic it is computed by.  Two operators have two arithmetics, one to read many tokens fast
(LinearW4 widens its weights, DecoderAttention works in blocks and bf16) and one to write token by token; they round
differently.  Which rows take which is never decided by their number but by an input:

    prefill_rows   i32 [2]   first and one past the last row that is read; the others are written.  Without the
                             input every row is read (the vision tower).

Several conversations may share a run.  Their rows stand one behind the other, and what is multiplied with weights need
not know; the operators that keep something (DecoderAttention, CausalConv, GatedDelta) are told by

    seqlens_k      -n        for n conversations (1 to 64).  Each cache input (key_cache, value_cache and their scales,
                             history, state) is then no cache: its first bytes are a table i64 [n, 4] of (address of
                             the conversation's own, its capacity in rows, rows of this run, total), in the order of
                             the rows.  total: as below.  `cap` may be any that makes room for the table.

LinearW8: y = act(norm(x) W^T + bias) + residual, 8-bit weights in blocks along K, or with one scale per column
    inputs   0 x              f32 [.., K]
             1 weight         u8  [Np/16, Kp/4, 16, 4]    q + 128, q in -127..127; Kp = K rounded up to the block,
                                                          or to 4
             2 scales         f32 [Np/16, Kp/block, 16]   a block is any multiple of 4, or all of Kp
             3 bias?          f32 [Np]                    in packed column order
             4 residual?      f32 [.., N]
             5 norm_weight?   f32 [K]
             6 norm_bias?     f32 [K]
    output   0 y              f32 [.., N]
    attributes  N           columns of y
                activation  0 none, 1 gelu (tanh form), 2 gelu (erf form), 3 silu, 4 silu_mul
                norm        0 none, 1 RMS (x / sqrt(mean x^2 + eps) * w), 2 layer (mean removed, * w + b)
                epsilon     of the norm, default 1e-6
                rotation    0, or a power of two from 16 to K: the (normalised) row is turned in blocks of so many
                            columns before it is quantised (`gog_edge.native.rotation`); so were the weight's rows
    With activation 4 the weight holds gate and up interleaved by panels of 16 (`packing.gate_up_order`) and
    y = silu(gate) * up, so N is half of what the weight yields.
    The row is quantised to int8 with one scale per block of K: q = round_half_even(x * (127 / max|x|)); sums of a
    block are exact int32; scale, bias, activation and residual are applied in f32.

LinearW4: the same with 4-bit weights in blocks along K (32, 64, 128 …, any multiple of 8)
    inputs   0 x              f32 [.., K]
             1 weight         u8  [Np/16, Kp/8, 16, 4]    byte j of a column: low nibble q[k+j], high q[k+4+j]
             2 scales         f16 [Np/16, Kp/block, 16]
             3 … 6            as LinearW8
             7 zero_points?   u8  [Np/16, Kp/block, 16]   in 0..15; absent: 8
             8 prefill_rows?  i32 [2]
    attributes as LinearW8, and
                exact       0: for rows that are read, weights are widened to int8 with one scale per column and up
                            to 256 of K (widen.h: the error of y grows from 9.64 to 9.88 % on random data; many rows
                            run 1.3 to 1.4 times as fast with blocks of 32);
                            1: every block keeps its own scale for every row; prefill_rows says nothing
    w = scale * (q - zero_point), q in 0..15; Kp = K rounded up to the block.  Activations are quantised to int8
    with one scale per row and block of K (or group of up to 256, when widened).

LinearW5: as LinearW4, with 5-bit weights in blocks of 32 along K and without zero points (input 7 is left out)
    inputs   1 weight         u8  [Np/16, Kp/32, 320]     four times [16, 4] bytes as LinearW4's, of q's low four bits,
                                                          then of each the fifth bits: 64 of the low nibbles, 64 of
                                                          the high ones, bit i % 8 of byte i / 8 for nibble i
    w = scale * (q - 16), q in 0..31

Route: which experts a row goes to
    inputs   0 x              f32 [.., K]
             1 router         f32 [experts, K]
    outputs  0 ids            i32 [M, top]                those with the highest router x, in rising order
             1 shares         f32 [M, top]                the softmax over their logits
    attributes  top
    Products are summed in f32; of equal logits the one with the lower id wins.

ExpertLinearW4, ExpertLinearW8, ExpertLinearF16, ExpertLinearF32: a linear layer with weights of each row's own experts
    inputs   0 x              f32 [M, K] | [M * top, K]   one row for all experts of a row, or one for each
             1 ids            i32 [M, top]
             2 shares?        f32 [M, top]
             3 weight         [experts, ..]               each as LinearW4 or LinearW8 has it, or f16 | f32 [.., N, K]
             4 scales         [experts, ..]               W4 and W8 only, as LinearW4 or LinearW8 has them
             5 zero_points?   u8 [experts, ..]            W4 only
    output   0 y              f32 [M * top, N]; with shares [M, N]: the sum of shares * what each expert gives
    attributes  N, rotation (W4 and W8, as LinearW8's), gated (1: the weight is [gate; up], woven as with
                activation 4 unless it is float, and y = silu(gate) * up)
    Rows are grouped by expert: an expert's weights are read once a run, and not at all where no row goes to it (they
    may lie in a mapped file).  Activations are quantised as in LinearW8, or as in LinearW4 with exact = 1.

VisionAttention: softmax(q k^T / sqrt(hd)) v, not causal, rotary applied here, whole sequence or windows
    inputs   0 qkv            f32 [n, 3 * heads * hd]     q of all heads, then k, then v: a fused linear's output
             1 rope_cos       f32 [n, hd/2]
             2 rope_sin       f32 [n, hd/2]
             3 gather?        i64 [windows, L]            row of each slot (the bundle's window_gather)
             4 mask?          i32 [windows, L]            1 real, 0 padding; real slots come first in a window
    output   0 y              f32 [n, heads * hd]
    attributes  heads, scale (default 1/sqrt(hd)), precision
                precision   0 bf16 products where the CPU has them, 1 f32, 2 int8 (see flash8.h: keys and values
                            centred, one scale per row of q and k, per channel of v, per 128 keys of p)
    Every row must be in exactly one window.  Rotary: rotate-half over (i, i + hd/2) pairs.

DecoderAttention: causal grouped-query attention with an in-place KV cache
    inputs   0 qkv            f32 [.., (heads + 2 * kv_heads) * hd]   leading axes multiply to s rows
             1 rope_cos       f32 [s, hd/2]               M-RoPE sections already applied
             2 rope_sin       f32 [s, hd/2]
             3 seqlens_k      i32 [1]                     total - 1, total = rows in the cache after this call
             4 key_cache      f16 | i8 [1, kv_heads, cap, hd]   written in place at total - s … total - 1
             5 value_cache    the same
             6 q_norm?        f32 [hd]                    RMS norm of every q head before rotary (Qwen3)
             7 k_norm?        f32 [hd]
             8 key_scale?     f32 [1, kv_heads, cap]      int8 caches only: row = scale * q, written in place
             9 value_scale?   f32 [1, kv_heads, cap]
            10 prefill_rows?  i32 [2]                    tokens of this run
    output   0 y              f32 [.., heads * hd]
    attributes  heads, kv_heads, scale (default 1/sqrt(hd)), epsilon (of the norms, default 1e-6)
    The cache inputs must be the graph's inputs, bound to buffers the caller owns: they are written.
    DecoderAttentionF16 and DecoderAttentionI8 are the two names, by cache type.

CausalConv: y_t = silu(bias + sum over i of weight[i] * x_{t - K + 1 + i}), each channel on its own
    inputs   0 x              f32 [.., C]                leading axes multiply to s tokens
             1 weight         f32 [K, C]                 the last row belongs to the token itself
             2 seqlens_k      i32 [1]                    total - 1, as DecoderAttention
             3 history        f32 [R, C]                 x of token t at row t % R, written in place; R >= K - 1
             4 bias?          f32 [C]
    output   0 y              f32 [.., C]
    attributes  activation  0 none, 1 silu (default)
    Tokens before the first count as zero; `history` needs no clearing.

GatedDelta: the gated delta rule of linear attention; per value head, with a state S [dk, dv],
    S <- exp(g_t) S;  d_t = beta_t (v_t - S^T k_t);  S <- S + k_t d_t^T;  o_t = S^T q_t
    inputs   0 qkv            f32 [.., 2 * key_heads * dk + value_heads * dv]   q | k | v: CausalConv's output
             1 a              f32 [.., value_heads]      g, a logarithm that is not positive
             2 b              f32 [.., value_heads]      beta
             3 seqlens_k      i32 [1]                    total - 1
             4 state          f32 [slots, words]         written in place; words = `delta_words`, slots >= 1
             5 decay_rate?    f32 [value_heads]          with these two, a and b are projections as they come:
             6 dt_bias?       f32 [value_heads]          g = decay_rate * softplus(a + dt_bias), beta = sigmoid(b);
                                                         decay_rate = -exp(A_log)
             7 gate?          f32 [.., value_heads * dv] with these two, y = o / sqrt(mean o^2 + epsilon)
             8 norm_weight?   f32 [dv]                       * norm_weight * silu(gate), head by head
    output   0 y              f32 [.., value_heads * dv]
    attributes  key_heads, value_heads (value head h takes the key head h // (value_heads / key_heads))
                key_size, value_size   dk and dv, 1 to 4096
                scale       of q, default 1/sqrt(dk)
                l2_norm     1 (default): q and k are divided by sqrt(sum x^2 + l2_epsilon) first; 0: taken as they are
                l2_epsilon  default 1e-6
                epsilon     of the gated norm, default 1e-6
    S is brought up to date at every 64th token; between, k_t, d_t and the sums of g are kept beside it, and what S
    would be follows from them (csrc/gated_delta.h).  So slot i % slots of `state` is S at token 64 i and up to 64
    tokens from there on.  It needs no clearing: at token 0 S is zero.

    One arithmetic computes these two for one token and for many; they take no prefill_rows.  A token's bits depend
    on the tokens before it alone.  Nor does going back take anything but a smaller seqlens_k: from n tokens to
    (n // 64 - slots + 1) * 64 or any number above, and for CausalConv by up to R - K + 1 tokens.
"""

from __future__ import annotations

DOMAIN = "ai.gog_edge"
VERSION = 1
"""Opset version of the domain; the library answers the same number from gog_ops_version()."""

ACTIVATIONS = {"none": 0, "gelu_tanh": 1, "gelu": 2, "silu": 3, "silu_mul": 4}
NORMS = {"none": 0, "rms": 1, "layer": 2}
VISION_PRECISIONS = {"bfloat16": 0, "float32": 1, "int8": 2}
MOST_CONVERSATIONS = 64
"""Conversations of a run that a table may have."""
DELTA_CHUNK = 64
"""Tokens between two updates of S in GatedDelta's state."""
DELTA_SLOTS, CONV_REWIND = 2, 32
"""What bundles have of both, so that the last 32 tokens can be taken back: slots, and rows of history beyond K - 1."""


def delta_words(key_heads: int, value_heads: int, dk: int, dv: int) -> int:
    """Floats in a slot of GatedDelta's state: S, d and the sums of g of every value head, k of every key head."""
    padded = -(-dv // 16) * 16
    return value_heads * ((dk + DELTA_CHUNK) * padded + 2 * DELTA_CHUNK) + key_heads * DELTA_CHUNK * dk
