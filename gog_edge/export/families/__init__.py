"""Model families: config.json -> dimensions -> graphs. `find` picks one by `model_type`."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from gog_edge.errors import CheckpointError
from gog_edge.export.families.base import FamilyDefinition

# model_type -> module; a module is imported when a checkpoint asks for it.
_MODULES = {"qwen2_5_vl": "qwen2_5_vl", "qwen3_vl": "qwen3_vl"}


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
        near = difflib.get_close_matches(model_type, _MODULES, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise CheckpointError(
            f"config.json: model_type is {model_type!r}{hint}; gog-edge exports {' and '.join(_MODULES)}"
        )
    family: FamilyDefinition = importlib.import_module(f"{__name__}.{_MODULES[model_type]}").FAMILY
    return family
