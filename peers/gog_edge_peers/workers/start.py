"""Entry point of a worker process: `python start.py run_transformers`.

This folder is taken off the search path, so that nothing in it can hide one of the peer's modules; the workers are
imported as a package of a name that no distribution has.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

PACKAGE = "gog_edge_peer"


def main(name: str) -> None:
    """Run the worker `name` until its input ends."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != here]
    spec = importlib.util.spec_from_file_location(PACKAGE, here / "__init__.py", submodule_search_locations=[str(here)])
    if spec is None or spec.loader is None:
        raise SystemExit(f"{here} holds no workers")
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = package
    spec.loader.exec_module(package)
    importlib.import_module(f"{PACKAGE}.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1])
