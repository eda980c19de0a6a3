"""What one client may take from the service, and for how long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServeLimits:
    """Limits of the HTTP service. Seconds, bytes, counts.

    Args:
        connections: open connections; beyond it the one that has been silent longest is closed.
        header_bytes: request line and headers.
        body: bytes of one body.
        in_flight: bytes of all bodies that are being read or belong to a question that has no answer yet.
        header_seconds: from the connection, or the end of the last reply, to the end of the headers.
        body_seconds: from the end of the headers to the end of the body.
        write_seconds: for a client to read on when it has stopped reading.
        idle_seconds: between two requests on one connection.
        shutdown_seconds: for running questions and uploads after SIGTERM or Ctrl-C.
    """

    connections: int = 256
    header_bytes: int = 16 << 10
    body: int = 64 << 20
    in_flight: int = 256 << 20
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    write_seconds: float = 30.0
    idle_seconds: int = 5
    shutdown_seconds: int = 10
