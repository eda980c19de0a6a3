"""Do two bundles hold the same bytes? For changes of the exporter that must not change what it writes.

    python -m tests.tools.compare_bundles OLD NEW [--expect KEY ...]

Files are compared by hash, the manifests key by key. Prints a line for every difference; exits 1 unless all of them are
in keys that were expected to differ (a key covers those below it). What names the moment of an export (times, memory,
versions) is left out, and so is verify.json, which holds times.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
LEFT_OUT = {MANIFEST, "verify.json"}
MOMENT = (
    "provenance.created",
    "provenance.seconds",
    "provenance.peak_rss_bytes",
    "provenance.versions",
    "files.verify.json",
)


def digests(bundle: Path) -> dict[str, str]:
    """sha256 of every file, by its name in the bundle."""
    files = (p for p in sorted(bundle.rglob("*")) if p.is_file())
    found = {}
    for file in files:
        with file.open("rb") as f:
            found[file.relative_to(bundle).as_posix()] = hashlib.sha256(f.read()).hexdigest()
    return {name: digest for name, digest in found.items() if name not in LEFT_OUT}


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, plain value) of everything in a JSON document."""
    if isinstance(value, (dict, list)) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def differences(old: Path, new: Path) -> Iterator[tuple[str, str]]:
    """(file or key, what differs)."""
    yield from _compared(digests(old), digests(new))
    manifests = (dict(flat(json.loads((b / MANIFEST).read_text("utf-8")))) for b in (old, new))
    yield from ((key, what) for key, what in _compared(*manifests) if not key.startswith(MOMENT))


def _compared(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key in sorted({*old, *new}):
        if key not in new:
            yield key, f"gone (was {old[key]!r})"
        elif key not in old:
            yield key, f"new: {new[key]!r}"
        elif old[key] != new[key]:
            yield key, f"{old[key]!r} -> {new[key]!r}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.compare_bundles", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--expect", nargs="*", default=[], metavar="KEY", help="files or keys that may differ")
    given = parser.parse_args(arguments)
    unexpected = 0
    for key, what in differences(given.old, given.new):
        expected = any(key == k or key.startswith(f"{k}.") for k in given.expect)
        unexpected += not expected
        print(f"{'expected ' if expected else 'DIFFERENT'} {key}: {what}")
    files = len(digests(given.new))
    print(f"{files} files, {unexpected} unexpected differences")
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main())
