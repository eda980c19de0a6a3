"""Qwen3-VL with a mixture of experts (30B-A3B, 235B-A22B): the tower and the attention of Qwen3-VL.

The router's weights are normalised over the experts it picks, whatever `norm_topk_prob` says: transformers 5 (and 4.57)
know no other way, and published files say true.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gog_edge.families import qwen3_vl
from gog_edge.families.base import DecoderDims, ExpertDims, ModelConfig
from gog_edge.serde import Section


def parse(config: dict[str, Any]) -> ModelConfig:
    """config.json of any Qwen3-VL-MoE size, old or new spelling.

    Raises:
        CheckpointError: names the key that is missing, wrong, or can't be exported right.
    """
    text = Section(config).section("text_config")
    given = dict(text.data)
    if given:  # transformers' defaults, which differ from Qwen3-VL's
        given["num_key_value_heads"] = text.integer("num_key_value_heads", 16)
        given["head_dim"] = text.integer("head_dim", text.integer("hidden_size") // text.integer("num_attention_heads"))
    model = qwen3_vl.parse({**config, "text_config": given})
    return replace(model, decoder=with_experts(model.decoder, text))


def with_experts(decoder: DecoderDims, text: Section) -> DecoderDims:
    """The decoder, with experts where the configuration puts any.

    Raises:
        CheckpointError: more experts a token than there are, or two numbers of experts.
    """
    spellings = [key for key in ("num_experts", "num_local_experts") if text.has(key)] or ["num_experts"]
    counts = [text.integer(key, minimum=0) for key in spellings]
    if counts[0] != counts[-1]:
        raise text.fail("num_local_experts", f"= {counts[1]} differs from num_experts = {counts[0]}")
    top, step = text.integer("num_experts_per_tok"), text.integer("decoder_sparse_step", 1)
    dense = text.integers("mlp_only_layers", ())
    layers = [i for i in range(text.integer("num_hidden_layers")) if i not in dense and (i + 1) % step == 0]
    if not counts[0] or not layers:
        return decoder
    if top > counts[0]:
        raise text.fail("num_experts_per_tok", f"= {top} is more than the {counts[0]} experts")
    spec = replace(decoder.spec, experts=counts[0], experts_used=top)
    return replace(decoder, spec=spec, experts=ExpertDims(text.integer("moe_intermediate_size"), tuple(layers)))


FAMILY = replace(qwen3_vl.FAMILY, name="qwen3_vl_moe", parse=parse, other_experts="turned")
