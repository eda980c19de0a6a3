"""Replies that say no: one line, no path of this machine, and in the shape that the client of that address reads."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from gog_edge.errors import ContextOverflowError, GogEdgeError, ImageError, RegionError, UsageError
from gog_edge.serve.fields import FieldError

ASK = "/v1/ask"
ASKERS_FAULT = (UsageError, ImageError, ContextOverflowError, RegionError)
_LONGEST = 300

log = logging.getLogger(__name__)


class Refused(GogEdgeError):
    """A request that is not answered.

    Args:
        status: of the reply.
        message: one line: what is wrong and what to do.
        headers: further headers of the reply.
        param, code: the field that is at fault, and OpenAI's word for how.
    """

    def __init__(
        self,
        status: int,
        message: str,
        headers: Mapping[str, str] | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers, self.param, self.code = status, dict(headers or {}), param, code


def explained(error: Exception) -> Refused:
    """What a client is told about an error. Faults of its request are named; those of this machine go to the log,
    because their texts name files."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, FieldError):
        return Refused(400, str(error), param=error.param, code=error.code)
    if isinstance(error, ASKERS_FAULT):
        return Refused(400, str(error))
    log.error("a question failed: %s: %s", type(error).__name__, " ".join(str(error).split()), exc_info=error)
    return Refused(500, "the question failed; the log of the server says why")


def error_json(path: str, refused: Refused) -> dict[str, Any]:
    """The body of the reply: OpenAI's error object everywhere under /v1/ but at /v1/ask, whose error is a string."""
    message = " ".join(str(refused).split())
    message = message if len(message) <= _LONGEST else message[: _LONGEST - 1] + "…"
    if not path.startswith("/v1/") or path == ASK:
        return {"error": message}
    kind = "invalid_request_error" if refused.status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": refused.param, "code": refused.code}}


def refusal(path: str, refused: Refused) -> JSONResponse:
    """The reply for a request to `path`."""
    return JSONResponse(error_json(path, refused), refused.status, refused.headers)
