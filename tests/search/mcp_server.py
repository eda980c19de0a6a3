"""A tiny MCP server over stdio, run as a child process by tests: `python mcp_server.py [die-after-N]`."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

TOOLS = [{"name": "search", "description": "s", "inputSchema": {"type": "object"}}]


def answer(message: dict[str, Any]) -> dict[str, Any]:
    """The result or error of one request; shared with the HTTP variant in the tests."""
    method, params = message["method"], message.get("params", {})
    if method == "initialize":
        if params["protocolVersion"] != "2025-06-18":
            return {"error": {"code": -32602, "message": "Unsupported protocol version"}}
        info = {"name": "test", "version": "1"}
        return {"result": {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info}}
    if method == "tools/list":
        return {"result": {"tools": TOOLS}}
    if method == "tools/call":
        return call(params["name"], params["arguments"])
    return {"error": {"code": -32601, "message": f"Method not found: {method}"}}


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    def text(value: str, **more: Any) -> dict[str, Any]:
        return {"result": {"content": [{"type": "text", "text": value}], **more}}

    if name == "search":
        rows = [{"t": f"about {arguments['q']}", "u": "https://m.example", "n": arguments["n"]}]
        return text(json.dumps({"rows": rows}), structuredContent={"rows": rows})
    if name == "plain":
        texts = [{"type": "text", "text": "first\nline"}, {"type": "image", "data": "", "mimeType": "image/png"}]
        return {"result": {"content": [*texts, {"type": "text", "text": "second"}], "isError": False}}
    if name == "picture":
        return text(f"{len(arguments['image'])} bytes")
    if name == "page":
        return text(f"text of {arguments['url']}")
    if name == "fails":
        return text("quota exceeded", isError=True)
    if name == "env":
        return text(",".join(sorted(os.environ)) + " " + os.environ.get("TOKEN", ""))
    if name == "echo":
        token = os.environ.get("TOKEN", "")
        rows = [{"t": f"title {token}", "u": f"https://m.example/{token}", "n": 1, token: token}]
        return text(json.dumps({"rows": rows}), structuredContent={"rows": rows, "text": token, "title": token})
    if name == "tells":
        return text(f"no such key: {os.environ.get('TOKEN', '')}", isError=True)
    if name == "refuses":
        return {"error": {"code": -32000, "message": f"bad key {os.environ.get('TOKEN', '')}"}}
    if name == "flood":
        return text("x" * (40 << 20))
    if name == "long":
        return {"result": {"content": [{"type": "text", "text": "x" * 100_000}] * 100}}
    if name == "slow":
        time.sleep(2)
        return text("late")
    return {"error": {"code": -32602, "message": f"Unknown tool: {name}"}}


def main() -> None:
    left = int(sys.argv[1]) if len(sys.argv) > 1 else 10**9
    print("this line is no JSON", flush=True)
    print("log line", file=sys.stderr, flush=True)
    ready = False
    for line in sys.stdin:
        message = json.loads(line)
        if message.get("method") == "notifications/initialized":
            ready = True
            for odd in ([1], {"a": 1}, None, True, 1.0, "1", [[]]):  # no answers to anything, whatever they look like
                print(json.dumps({"jsonrpc": "2.0", "id": odd, "result": {}}), flush=True)
                print(json.dumps({"jsonrpc": "2.0", "id": odd, "method": "ping"}), flush=True)
            print(json.dumps({"jsonrpc": "2.0", "id": "s1", "method": "ping"}), flush=True)
            continue
        if "method" not in message:
            continue
        if message["method"] == "tools/call":
            if not ready or left == 0:
                sys.exit(1)
            left -= 1
        reply = {"jsonrpc": "2.0", "id": message["id"], **answer(message)}
        print(json.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}))
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
