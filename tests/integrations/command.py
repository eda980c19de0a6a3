"""`python -m tests.integrations.command ARGS…`: gog-edge in a process of its own, with a policy that plays the script
in $SCRIPT (JSON, a list of turns; none: the bundle's own), and with libraries that print to stdout while they work."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from gog_edge.agent import loader
from gog_edge.agent.agent import Agent
from gog_edge.cli.main import run
from tests.runtime.fakes import ScriptedDecoder, ScriptedEngine

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    play()
    return run(sys.argv[1:])


def play() -> None:
    """From now on policies of this process play the script."""
    created = loader.create_engine
    script = json.loads(os.environ.get("SCRIPT", "null"))

    def create(name: Any, bundle: Any, options: Any) -> Any:
        print("printed by Python")
        os.write(1, b"printed by native code\n")
        return created(name, bundle, options) if script is None else _Talking(bundle, script, _seconds())

    loader.create_engine = create
    Agent.warm_up = _quick(Agent.warm_up)  # type: ignore[method-assign]


def environment(script: list[str] | None, step_seconds: float = 0.0) -> dict[str, str]:
    """Of such a process: the policy's script, and the seconds that each of its tokens takes."""
    found = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    found["STEP_SECONDS"] = str(step_seconds)
    return found if script is None else {**found, "SCRIPT": json.dumps(script)}


def _quick(warm_up: Any) -> Any:
    """Warming up takes no time, however long a token of a question takes."""

    def quick(agent: Agent, *args: Any) -> float:
        decoder = getattr(agent.model.engine, "decoder", None)
        kept = getattr(decoder, "_step_s", 0.0)
        if isinstance(decoder, ScriptedDecoder):
            decoder._step_s = 0.0
        seconds: float = warm_up(agent, *args)
        if isinstance(decoder, ScriptedDecoder):
            decoder._step_s = kept
        return seconds

    return quick


def _seconds() -> float:
    return float(os.environ.get("STEP_SECONDS", "0"))


class _Talking(ScriptedEngine):
    def __init__(self, bundle: Any, script: Any, step_s: float) -> None:
        super().__init__(bundle, script, step_s=step_s)
        encode = self.vision.run

        def run(*args: Any, **kwargs: Any) -> Any:
            print("printed while a picture is encoded", flush=True)
            return encode(*args, **kwargs)

        self.vision.run = run  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
