"""Qwen3.5 and 3.6 with a mixture of experts (35B-A3B): the decoder of Qwen3.5, with experts in every layer and one that
every token goes through, times the sigmoid of a gate of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gog_edge.families import qwen3_5
from gog_edge.families.base import DecoderDims, ModelConfig
from gog_edge.families.decoder import MODEL, experts, swiglu
from gog_edge.families.qwen3_vl_moe import with_experts
from gog_edge.families.target import LayerCache, Target, Value
from gog_edge.serde import Section


def parse(config: dict[str, Any]) -> ModelConfig:
    """config.json of any size, old or new spelling; `intermediate` of the decoder is that of the shared expert.

    Raises:
        CheckpointError: names the key that is missing, wrong, or can't be exported right.
    """
    text = Section(config).section("text_config")
    given = dict(text.data)
    if given:
        given["intermediate_size"] = text.integer("shared_expert_intermediate_size", 512)
    model = qwen3_5.parse({**config, "text_config": given})
    foreign = dict.fromkeys(("num_local_experts", "decoder_sparse_step", "mlp_only_layers"))  # no keys of this family
    every = Section({**text.data, **foreign}, text.path)
    decoder = with_experts(model.decoder, every)
    if decoder.experts is None:
        raise text.fail("num_experts", "must be at least 1")
    return replace(model, decoder=decoder)


def feed_forward(t: Target, dims: DecoderDims, x: Value, layer: int) -> Value:
    """The experts that the router picks, and the shared one."""
    name = f"{MODEL}.layers.{layer}.mlp"
    assert dims.experts is not None, "not a decoder of this family"
    routed = experts(t, dims, dims.experts, x, name)
    gate = t.linear(x, t.matrix((f"{name}.shared_expert_gate.weight",), (1,), dims.spec.hidden), (), role="router")
    return t.add(routed, t.sigmoid_gate(swiglu(t, dims, x, f"{name}.shared_expert"), gate))


def build_decoder(t: Target, dims: DecoderDims, caches: tuple[LayerCache, ...]) -> None:
    """Qwen3.5's, with `feed_forward`."""
    qwen3_5.build_decoder(t, dims, caches, feed_forward)


FAMILY = replace(qwen3_5.FAMILY, name="qwen3_5_moe", parse=parse, build_decoder=build_decoder, other_experts="single")
