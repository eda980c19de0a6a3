"""gog-edge: run a Glance-or-Gaze policy on the device at hand.

    import gog_edge

    with gog_edge.load("bundle", index="birds.index") as agent:
        answer = agent.ask("photo.jpg", "Which bird is this, and what does it eat?", deadline=10)
        print(answer.text, answer.stop)

Importing this package loads nothing heavy: names are resolved when they are used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from gog_edge._version import __version__

if TYPE_CHECKING:
    from gog_edge.agent.agent import Agent as Agent
    from gog_edge.agent.loader import load as load
    from gog_edge.agent.options import RunOptions as RunOptions
    from gog_edge.agent.request import AskRequest as AskRequest
    from gog_edge.bundle import Bundle as Bundle
    from gog_edge.deadline import Budget as Budget
    from gog_edge.errors import GogEdgeError as GogEdgeError
    from gog_edge.image.frame import Frame as Frame
    from gog_edge.sampling_options import Sampling as Sampling
    from gog_edge.types import Action as Action
    from gog_edge.types import ActionKind as ActionKind
    from gog_edge.types import Answer as Answer
    from gog_edge.types import Event as Event
    from gog_edge.types import Hit as Hit
    from gog_edge.types import Observation as Observation
    from gog_edge.types import Region as Region
    from gog_edge.types import Step as Step
    from gog_edge.types import StopReason as StopReason
    from gog_edge.types import Usage as Usage

# Libraries below us report home unless they are told not to before they are imported: ONNX Runtime (1.29 and later)
# keeps a device id and an event database in the home folder and sends them. Who sets a variable keeps its value.
for _switch in ("ORT_DISABLE_TELEMETRY", "ORT_GENAI_TELEMETRY_DISABLED", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_switch, "1")

_HOMES = {
    "Action": "gog_edge.types",
    "ActionKind": "gog_edge.types",
    "Agent": "gog_edge.agent.agent",
    "Answer": "gog_edge.types",
    "AskRequest": "gog_edge.agent.request",
    "Budget": "gog_edge.deadline",
    "Bundle": "gog_edge.bundle",
    "Event": "gog_edge.types",
    "Frame": "gog_edge.image.frame",
    "GogEdgeError": "gog_edge.errors",
    "Hit": "gog_edge.types",
    "Observation": "gog_edge.types",
    "Region": "gog_edge.types",
    "RunOptions": "gog_edge.agent.options",
    "Sampling": "gog_edge.sampling_options",
    "Step": "gog_edge.types",
    "StopReason": "gog_edge.types",
    "Usage": "gog_edge.types",
    "load": "gog_edge.agent.loader",
}

__all__ = ["__version__", *sorted(_HOMES)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'gog_edge' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
