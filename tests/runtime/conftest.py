"""Bundles and frames that the runtime's tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gog_edge.agent.agent import Agent
from gog_edge.agent.loader import bundle_dialect
from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle
from gog_edge.image.frame import Frame
from gog_edge.runtime.model import Model
from tests.agent.virtual_clock import VirtualClock
from tests.runtime.fakes import Script, ScriptedEngine, make_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """tiny-qwen3-vl, fp32, backend ort."""
    return make_bundle(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="session")
def bundle25(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """tiny-qwen2.5-vl, fp32, backend ort."""
    return make_bundle(tmp_path_factory.mktemp("qwen25"), "tiny-qwen2.5-vl")


@pytest.fixture(scope="session")
def frame() -> Frame:
    """A fixed random picture of odd size."""
    return picture(0)


def picture(seed: int, width: int = 203, height: int = 141) -> Frame:
    """A random picture."""
    return Frame(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8), f"picture {seed}")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    """Give it to a question as `Budget(clock=clock)`: fakes wait in virtual time, the rest takes none."""
    virtual = VirtualClock()
    for module in ("dispatch", "frames", "tools"):
        monkeypatch.setattr(f"gog_edge.agent.{module}.run_in_thread", virtual.start)
    return virtual


MakeAgent = Callable[..., Agent]


@pytest.fixture
def make_agent(bundle: Bundle, tmp_path: Path) -> MakeAgent:
    """(script, providers=(), options=RunOptions(), dialect=None, **engine timing) -> Agent on a scripted engine."""

    def make(script: Script, providers: Any = (), dialect: str | None = None, **rest: Any) -> Agent:
        timing = {k: rest.pop(k) for k in ("step_s", "row_s", "encode_s") if k in rest}
        rest.setdefault("grammar", "off")
        options = RunOptions(cache_dir=tmp_path / "cache", **rest)
        engine = ScriptedEngine(bundle, script, **timing)
        return Agent(Model.assemble(bundle, engine, options), bundle_dialect(bundle, dialect), providers, options)

    return make
