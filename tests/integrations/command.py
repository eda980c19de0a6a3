"""`python -m tests.integrations.command ARGS…`: gog-edge in a process of its own, with a policy that plays the script
in $SCRIPT (JSON, a list of turns; none: the bundle's own), and with libraries that print to stdout while they work."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from gog_edge.agent import loader
from gog_edge.cli.main import run
from tests.runtime.fakes import ScriptedEngine


def main() -> int:
    created = loader.create_engine
    script = json.loads(os.environ.get("SCRIPT", "null"))

    def create(name: Any, bundle: Any, options: Any) -> Any:
        print("printed by Python")
        os.write(1, b"printed by native code\n")
        return created(name, bundle, options) if script is None else _Talking(bundle, script, _seconds())

    loader.create_engine = create
    return run(sys.argv[1:])


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
