"""The native operators one by one, next to what the machine's cores and memory can do.

    python -m studies.kernels [--threads N] [--seconds S] [--json]

The ceiling of a row is the dot-product rate of all threads for its precision (registers only, measured in the same
run), or the read bandwidth for rows that read more than they compute. Needs the export extra (onnx).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from gog_edge.allowance import usable_threads
from gog_edge.bench.machine import roofline
from gog_edge.native import dispatch
from studies.kernel_cases import cases, measure, peaks


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the last line is JSON."""
    parser = argparse.ArgumentParser(prog="python -m studies.kernels", description=__doc__)
    parser.add_argument("--threads", type=int, default=usable_threads())
    parser.add_argument("--seconds", type=float, default=1.0, help="per case")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", action="store_true", help="no table, one line of JSON")
    options = parser.parse_args(arguments)
    ceilings = peaks(options.threads)
    read_gbs = roofline.measure(options.threads).read_gbs
    if not options.json:
        limits = ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in ceilings.items())
        print(f"{dispatch.instruction_set()}, {options.threads} threads: {limits}, read {read_gbs:.1f} GB/s")
        print(f"{'operator':36}{'median ms':>11}{'best ms':>11}{'rate':>9}{'':9}{'of peak':>9}")
    rows = []
    for case in cases():
        if options.only not in case.name:
            continue
        row = measure(case, options.threads, options.seconds, ceilings, read_gbs)
        rows.append(row)
        if not options.json:
            numbers = f"{row.median_ms:11.3f}{row.best_ms:11.3f}{row.rate:9.1f} {row.unit:8}{row.share:9.0%}"
            print(f"{row.name:36}{numbers}", flush=True)
    facts = {"isa": dispatch.instruction_set(), "threads": options.threads, "peak_gflops": ceilings}
    print(json.dumps({**facts, "read_gbs": read_gbs, "rows": [asdict(row) for row in rows]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
