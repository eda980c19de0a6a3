"""Which tensor class of a recipe a weight belongs to, by its canonical name."""

from __future__ import annotations

from gog_edge.export.quantize.recipe import TensorClass

_LANGUAGE = {
    "q_proj": "attention",
    "k_proj": "attention",
    "v_proj": "attention",
    "o_proj": "attention",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "down_proj",
}
_VISION = ("qkv", "proj", "linear_fc1", "linear_fc2", "gate_proj", "up_proj", "down_proj")


def tensor_class(name: str) -> TensorClass | None:
    """The class, or None for what stays float: norms, biases, the patch embedding, the position table."""
    parts = name.split(".")
    if parts[-1] != "weight":
        return None
    if name == "lm_head.weight":
        return "head"
    if name == "model.language_model.embed_tokens.weight":
        return "embedding"
    module = parts[-2]
    if name.startswith("model.language_model.layers."):
        return _LANGUAGE.get(module)  # type: ignore[return-value]
    if name.startswith("model.visual.blocks.") and module in _VISION:
        return "vision"
    if name.startswith(("model.visual.merger.", "model.visual.deepstack_merger_list.")):
        is_norm = module in ("norm", "ln_q")
        return None if is_norm else "merger"
    return None
