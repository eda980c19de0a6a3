"""Where the server is, and how long it is waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from gog_edge.deadline import Duration, seconds_of
from gog_edge.errors import UsageError

# Programs whose extensions of the protocol are known; "openai" is the protocol alone.
ServerKind = Literal["auto", "vllm", "sglang", "llama.cpp", "transformers", "openai"]
KINDS = ("auto", "vllm", "sglang", "llama.cpp", "transformers", "openai")


@dataclass(frozen=True)
class RemoteOptions:
    """How a server is talked to.

    Args:
        model: the name under which it serves the policy; empty: the only one that it lists.
        kind: which program it is; "auto" asks it.
        key_env: environment variable with its API key; one that is not set sends none.
        connect_timeout: seconds (or a text like "2s") for a connection.
        read_timeout: for the first token and between two of them; a question's deadline holds as well.
        retries: how often a turn of which no token has arrived is asked for again: no connection, HTTP 408, 429,
            502 to 504.
        jpeg: quality of the pictures that are sent, 1 to 95; 0 sends PNG, which changes no pixel.

    Raises:
        UsageError: a value that makes no sense.
    """

    model: str = ""
    kind: ServerKind = "auto"
    key_env: str = "GOG_EDGE_API_KEY"
    connect_timeout: Duration = 5.0
    read_timeout: Duration = 120.0
    retries: int = 2
    jpeg: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"a server of kind {self.kind!r} is not known: {', '.join(KINDS)}")
        if self.retries < 0:
            raise UsageError(f"retries is {self.retries}: it can't be negative")
        if not 0 <= self.jpeg <= 95:
            raise UsageError(f"jpeg is {self.jpeg}: 1 to 95, or 0 for PNG")
        for name in ("connect_timeout", "read_timeout"):
            object.__setattr__(self, name, seconds_of(getattr(self, name), f"a {name}"))


def parse_address(given: str) -> tuple[str, str]:
    """(base address up to the version, model) of what stands after `openai:`; the model may follow a `#`.

    An address without a path gets /v1, where all these servers have the protocol.

    Raises:
        UsageError: not an http(s) address, or one with a name and password in it.
    """
    parts = urlsplit(given.strip())
    try:
        host = parts.hostname
        _ = parts.port
    except ValueError as e:
        raise UsageError(f"engine openai: the address can't be read ({e})") from e
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError("engine openai: an address is needed, such as openai:http://127.0.0.1:8000/v1")
    if parts.username is not None or parts.password is not None:
        raise UsageError("engine openai: no name and password in the address; the key belongs into GOG_EDGE_API_KEY")
    if parts.query:
        raise UsageError("engine openai: the address must not have a query (?…)")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return urlunsplit((parts.scheme, parts.netloc, path, "", "")), parts.fragment
