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
    from gog_edge.agent.agent import Conversation as Conversation
    from gog_edge.agent.camera.watch import Sighting as Sighting
    from gog_edge.agent.camera.watch import Watch as Watch
    from gog_edge.agent.loader import load as load
    from gog_edge.agent.options import Prefetch as Prefetch
    from gog_edge.agent.options import RunOptions as RunOptions
    from gog_edge.agent.request import AskRequest as AskRequest
    from gog_edge.bundle import Bundle as Bundle
    from gog_edge.deadline import Budget as Budget
    from gog_edge.errors import BenchError as BenchError
    from gog_edge.errors import BundleError as BundleError
    from gog_edge.errors import CameraError as CameraError
    from gog_edge.errors import CancelledError as CancelledError
    from gog_edge.errors import CheckpointError as CheckpointError
    from gog_edge.errors import ContextOverflowError as ContextOverflowError
    from gog_edge.errors import DatasetError as DatasetError
    from gog_edge.errors import DialectError as DialectError
    from gog_edge.errors import EngineError as EngineError
    from gog_edge.errors import GogEdgeError as GogEdgeError
    from gog_edge.errors import GrammarError as GrammarError
    from gog_edge.errors import ImageError as ImageError
    from gog_edge.errors import ParityError as ParityError
    from gog_edge.errors import RegionError as RegionError
    from gog_edge.errors import SearchError as SearchError
    from gog_edge.errors import SearchIndexError as SearchIndexError
    from gog_edge.errors import SearchTimeoutError as SearchTimeoutError
    from gog_edge.errors import SessionError as SessionError
    from gog_edge.errors import UsageError as UsageError
    from gog_edge.image.frame import Frame as Frame
    from gog_edge.runtime.speculation import Speculation as Speculation
    from gog_edge.runtime.telemetry import Trace as Trace
    from gog_edge.runtime.trace.files import save_trace as save_trace
    from gog_edge.sampling_options import Sampling as Sampling
    from gog_edge.types import Action as Action
    from gog_edge.types import ActionEvent as ActionEvent
    from gog_edge.types import ActionKind as ActionKind
    from gog_edge.types import Answer as Answer
    from gog_edge.types import AnswerEvent as AnswerEvent
    from gog_edge.types import BoxEvent as BoxEvent
    from gog_edge.types import Event as Event
    from gog_edge.types import Exchange as Exchange
    from gog_edge.types import Hit as Hit
    from gog_edge.types import NoticeEvent as NoticeEvent
    from gog_edge.types import Observation as Observation
    from gog_edge.types import ObservationEvent as ObservationEvent
    from gog_edge.types import PixelLimits as PixelLimits
    from gog_edge.types import Region as Region
    from gog_edge.types import Step as Step
    from gog_edge.types import StopReason as StopReason
    from gog_edge.types import TextEvent as TextEvent
    from gog_edge.types import TokenEvent as TokenEvent
    from gog_edge.types import Turn as Turn
    from gog_edge.types import Usage as Usage

# Libraries below us report home unless they are told not to before they are imported: ONNX Runtime (1.29 and later)
# keeps a device id and an event database in the home folder and sends them. Who sets a variable keeps its value.
for _switch in ("ORT_DISABLE_TELEMETRY", "ORT_GENAI_TELEMETRY_DISABLED", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_switch, "1")

_HOMES = {
    "Action": "gog_edge.types",
    "ActionEvent": "gog_edge.types",
    "ActionKind": "gog_edge.types",
    "Agent": "gog_edge.agent.agent",
    "Answer": "gog_edge.types",
    "AnswerEvent": "gog_edge.types",
    "AskRequest": "gog_edge.agent.request",
    "BenchError": "gog_edge.errors",
    "BoxEvent": "gog_edge.types",
    "Budget": "gog_edge.deadline",
    "Bundle": "gog_edge.bundle",
    "BundleError": "gog_edge.errors",
    "CameraError": "gog_edge.errors",
    "CancelledError": "gog_edge.errors",
    "CheckpointError": "gog_edge.errors",
    "ContextOverflowError": "gog_edge.errors",
    "Conversation": "gog_edge.agent.agent",
    "DatasetError": "gog_edge.errors",
    "DialectError": "gog_edge.errors",
    "EngineError": "gog_edge.errors",
    "Event": "gog_edge.types",
    "Exchange": "gog_edge.types",
    "Frame": "gog_edge.image.frame",
    "GogEdgeError": "gog_edge.errors",
    "GrammarError": "gog_edge.errors",
    "Hit": "gog_edge.types",
    "ImageError": "gog_edge.errors",
    "NoticeEvent": "gog_edge.types",
    "Observation": "gog_edge.types",
    "ObservationEvent": "gog_edge.types",
    "ParityError": "gog_edge.errors",
    "PixelLimits": "gog_edge.types",
    "Prefetch": "gog_edge.agent.options",
    "Region": "gog_edge.types",
    "RegionError": "gog_edge.errors",
    "RunOptions": "gog_edge.agent.options",
    "Sampling": "gog_edge.sampling_options",
    "SearchError": "gog_edge.errors",
    "SearchIndexError": "gog_edge.errors",
    "SearchTimeoutError": "gog_edge.errors",
    "SessionError": "gog_edge.errors",
    "Sighting": "gog_edge.agent.camera.watch",
    "Speculation": "gog_edge.runtime.speculation",
    "Step": "gog_edge.types",
    "StopReason": "gog_edge.types",
    "TextEvent": "gog_edge.types",
    "TokenEvent": "gog_edge.types",
    "Trace": "gog_edge.runtime.telemetry",
    "Turn": "gog_edge.types",
    "Usage": "gog_edge.types",
    "UsageError": "gog_edge.errors",
    "Watch": "gog_edge.agent.camera.watch",
    "load": "gog_edge.agent.loader",
    "save_trace": "gog_edge.runtime.trace.files",
}

__all__ = ["__version__", *sorted(_HOMES)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'gog_edge' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
