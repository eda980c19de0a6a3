"""An MCP server that lies, for the area `mcp`. The query of each call is the seed of the lie."""

from __future__ import annotations

import json
import sys
from random import Random
from typing import Any

from tests.faults.harness.mutate import damaged, mutated
from tests.search.mcp_server import answer


def say(line: bytes) -> None:
    """One message."""
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def lie(reply: dict[str, Any], rng: Random) -> None:
    """The reply with values changed, or as damaged bytes; sometimes with something in front of it."""
    for _ in range(rng.choice((0, 0, 1, 3))):
        say(json.dumps(mutated(reply, rng)[1]).encode("utf-8", "surrogatepass"))
    if rng.random() < 0.7:
        bad = json.dumps(mutated(reply, rng)[1]).encode("utf-8", "surrogatepass")
    else:
        bad = damaged(json.dumps(reply).encode(), rng)[1].replace(b"\n", b" ")
    say(bad)


def main() -> None:
    """Answer until the input ends; `honest` in a query is answered as it should be."""
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message or "method" not in message:
            continue
        reply = {"jsonrpc": "2.0", "id": message["id"], **answer(message)}
        query = str(message.get("params", {}).get("arguments", {}).get("q", ""))
        if not query or query == "honest":
            say(json.dumps(reply).encode())
        elif Random(query).random() < 0.02:
            sys.exit(1)
        else:
            lie(reply, Random(query))


if __name__ == "__main__":
    main()
