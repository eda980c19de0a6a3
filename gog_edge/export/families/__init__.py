"""Model families: config.json -> dimensions -> graphs. `find` picks one by `model_type`."""

from __future__ import annotations

import difflib
import importlib
import re
from typing import Any

from gog_edge.errors import CheckpointError
from gog_edge.export.families.base import FamilyDefinition

# model_type -> module; a module is imported when a checkpoint asks for it.
_MODULES = {"qwen2_5_vl": "qwen2_5_vl", "qwen3_vl": "qwen3_vl"}
# What others are, in words: the first pattern that matches from the start decides.
_OTHERS = (
    (r"\w+_moe(?:_|$)|mixtral|deepseek|kimi|glm4v_moe|ernie4_5_vl|llama4", "a mixture of experts"),
    (r"qwen4_exp", "hyper-connections and an n-gram table"),
    (r"qwen3_5|qwen3_6|qwen3_next", "linear attention layers"),
    (r"qwen2_vl", "the Qwen2-VL architecture"),
    (r"qwen\d?(?:_\d)?_omni", "an audio and speech model"),
    (
        r"qwen\d?(?:_\d)?(?:_text)?$|qwen\d(?:_\d)?_vl_text|llama$|mistral$|phi\d?$|gemma2?$|gemma\d?_text$",
        "a language model",
    ),
    (r"paligemma|gemma\w+", "a Gemma model"),
    (r"intern\w+", "an InternVL model"),
    (r"\w*llava\w*", "a LLaVA model"),
    (
        r"minicpm\w*|idefics\w*|smolvlm|mllama|molmo\w*|glm\w*v\w*|ovis\w*|phi\w*_v\w*|pixtral|mistral3",
        "another family",
    ),
)


def known() -> tuple[str, ...]:
    """Model types that can be exported."""
    return tuple(_MODULES)


def find(config: dict[str, Any]) -> FamilyDefinition:
    """The family of a config.json.

    Raises:
        CheckpointError: `model_type` is missing or not one that can be exported.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError("config.json: model_type is missing; is this an HF checkpoint of a Qwen-VL model?")
    if model_type not in _MODULES:
        *most, last = _MODULES
        exported = f"gog-edge exports {', '.join(most)} and {last}"
        raise CheckpointError(f"config.json: model_type is {model_type!r}{_about(model_type)}; {exported}")
    family: FamilyDefinition = importlib.import_module(f"{__name__}.{_MODULES[model_type]}").FAMILY
    return family


def _about(model_type: str) -> str:
    """Why it is not exported; a name that looks mistyped gets a hint instead."""
    for pattern, what in _OTHERS:
        if re.match(pattern, model_type):
            return f" ({what}), which is not supported yet"
    near = difflib.get_close_matches(model_type, _MODULES, 1, 0.85)
    return f" (did you mean {near[0]}?)" if near else ", which is not supported"
