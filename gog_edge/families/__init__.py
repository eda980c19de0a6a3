"""Model families: one file each. A checkpoint's `model_type` or a bundle's `family` names the one that is asked.

They are found through entry points of the group "gog_edge.families"; `register` adds one to this process.
"""

from __future__ import annotations

from typing import Any

from gog_edge.errors import BundleError, CheckpointError
from gog_edge.families.base import Family
from gog_edge.registry import Registry

FAMILIES = Registry("gog_edge.families", Family)


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
        raise CheckpointError(
            f"config.json: no family is known for model_type {model_type!r}: {FAMILIES.advice(model_type)}"
        )
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
