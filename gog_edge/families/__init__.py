"""Model families: one file each. A checkpoint's `model_type` or a bundle's `family` names the one that is asked.

They are found through entry points of the group "gog_edge.families"; `register` adds one to this process.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

from gog_edge.errors import BundleError, CheckpointError
from gog_edge.families.base import Family
from gog_edge.registry import Registry

FAMILIES = Registry("gog_edge.families", Family)
# What others are, in words: the first pattern that matches from the start decides.
_OTHERS = (
    (r"qwen\d?(?:_\d)?_omni", "an audio and speech model"),
    (
        r"qwen\d?(?:_\d)?(?:_moe)?(?:_text)?$|qwen\d(?:_\d)?_vl(?:_moe)?_text|qwen3_next"
        r"|llama$|mistral$|mixtral|phi\d?$|phimoe|gemma2?$|gemma\d?_text$|deepseek(?:_v\d+)?$|glm4_moe|ernie4_5(?:_moe)?$",
        "a language model",
    ),
    (r"qwen4_exp", "hyper-connections and an n-gram table"),
    (r"qwen2_vl", "the Qwen2-VL architecture"),
    (r"deepseek\w*", "a DeepSeek model"),
    (r"\w+_moe(?:_|$)|kimi\w*|ernie4_5_vl|llama4", "a mixture of experts of another family"),
    (r"paligemma|gemma\w+", "a Gemma model"),
    (r"intern\w+", "an InternVL model"),
    (r"\w*llava\w*", "a LLaVA model"),
    (
        r"minicpm\w*|idefics\w*|smolvlm|mllama|molmo\w*|glm\w*v\w*|ovis\w*|phi\w*_v\w*|pixtral|mistral3",
        "another family",
    ),
)


def register(family: Family) -> None:
    """Make a family known in this process, by its own name.

    Raises:
        UsageError: the name is taken.
    """
    FAMILIES.add(family.name, family)


def find(config: dict[str, Any]) -> Family:
    """The family of a config.json.

    Raises:
        CheckpointError: `model_type` is missing or not one that can be exported.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError("config.json: model_type is missing; is this an HF checkpoint of a Qwen-VL model?")
    family = FAMILIES.get(model_type)
    if family is None:
        raise CheckpointError(f"config.json: model_type is {model_type!r}{_about(model_type)}; {FAMILIES.listed()}")
    return family


def named(name: str) -> Family:
    """The family that a bundle's manifest names.

    Raises:
        BundleError: it is not known here.
    """
    family = FAMILIES.get(name)
    if family is None:
        raise BundleError(f"the bundle is of the family {name!r}, which is not known here: {FAMILIES.advice(name)}")
    return family


def _about(model_type: str) -> str:
    """Why it is not exported; a name that looks mistyped gets a hint instead."""
    for pattern, what in _OTHERS:
        if re.match(pattern, model_type):
            return f" ({what}), which is not supported yet"
    near = difflib.get_close_matches(model_type, FAMILIES.names(), 1, 0.85)
    return f" (did you mean {near[0]}?)" if near else ", which is not supported"
