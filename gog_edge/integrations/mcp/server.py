"""The MCP server on the official SDK: over stdin and stdout, or as an HTTP application."""

from __future__ import annotations

import base64
import logging
import os
import signal
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings

from gog_edge._version import __version__
from gog_edge.errors import GogEdgeError, UsageError
from gog_edge.integrations.mcp.tools import Result, Tool, Toolbox, check
from gog_edge.sanitize import printable
from gog_edge.serve.access import AccessMiddleware
from gog_edge.serve.limits import ServeLimits

PATH = "/mcp"
log = logging.getLogger("gog_edge.mcp")


def make_server(toolbox: Toolbox, name: str) -> Any:
    """The protocol's server with the tools of `toolbox`. A call that fails is a result with `is_error` and one line."""
    tools = {tool.name: tool for tool in toolbox.tools()}

    async def listed(context: Any, params: Any) -> Any:
        return types.ListToolsResult(tools=[_described(tool) for tool in tools.values()])

    async def called(context: Any, params: Any) -> Any:
        try:
            if params.name not in tools:
                raise UsageError(f"there is no tool {params.name[:100]!r}: there are {', '.join(tools)}")
            tool, given = tools[params.name], params.arguments or {}
            check(tool, given)
            return _reply(await tool.run(given))
        except GogEdgeError as e:
            return _failed(str(e))
        except Exception as e:
            log.exception("a tool failed unexpectedly")
            return _failed(f"the tool failed ({type(e).__name__}): its server's log says more")

    return Server(
        "gog-edge",
        version=__version__,
        title=f"gog-edge ({name})",
        instructions="Questions about pictures, answered on this machine by looking closer and searching.",
        on_list_tools=listed,
        on_call_tool=called,
    )


def run_stdio(server: Any) -> None:
    """Serve one client on stdin and stdout until it closes stdin. Ctrl-C ends the process at once: the thread that
    reads stdin can't be interrupted, and everything on disk is whole at any time."""

    async def serve() -> None:
        async with stdio_server() as (coming, going):
            await server.run(coming, going, server.create_initialization_options())

    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        anyio.run(serve)
    finally:
        signal.signal(signal.SIGINT, before)


def http_app(
    server: Any, limits: ServeLimits, *, hosts: Collection[str], origins: Collection[str], key: str | None
) -> Any:
    """The ASGI application: streamable HTTP at /mcp. Names, origins and the key are checked as by `gog-edge serve`."""
    unchecked = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    app = server.streamable_http_app(
        streamable_http_path=PATH, max_request_body_size=limits.body, transport_security=unchecked
    )
    return AccessMiddleware(app, hosts=hosts, origins=origins, key=key)


@contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """What anybody prints meanwhile, native code too, goes to stderr: stdout is the protocol's."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _described(tool: Tool) -> Any:
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.takes,
        output_schema=tool.gives,
        annotations=types.ToolAnnotations(read_only_hint=True),
    )


def _reply(result: Result) -> Any:
    pictures = (base64.b64encode(data).decode() for data in result.pictures)
    images = [types.ImageContent(type="image", data=data, mime_type="image/jpeg") for data in pictures]
    content = [types.TextContent(type="text", text=result.text), *images]
    return types.CallToolResult(content=content, structured_content=result.data)


def _failed(message: str) -> Any:
    line = printable(" ".join(message.split()))
    return types.CallToolResult(content=[types.TextContent(type="text", text=line)], is_error=True)
