"""An engine without graphs: whole turns are written by a server (`WritesTurns`).

What a bundle's own vision tower is needed for besides (an index that was built with it) runs here, loaded when first
asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from gog_edge.bundle import Bundle
from gog_edge.deadline import UNLIMITED, Budget
from gog_edge.engines.base import F32, DecoderInputs, DecoderRunner, EngineInfo, Features, KvCache, VisionRunner
from gog_edge.engines.registry import EngineEntry
from gog_edge.engines.remote.options import RemoteOptions
from gog_edge.engines.remote.server import Server
from gog_edge.engines.tower import vision_alone
from gog_edge.errors import EngineError, UsageError

_CONTEXT = 32768  # tokens, where neither server nor bundle says


class RemoteEngine:
    """See `Engine`; `server` writes the turns."""

    def __init__(self, bundle: Bundle, options: RemoteOptions, url: str) -> None:
        import httpx

        self.server = Server(url, options)
        self._version = httpx.__version__
        self._decoder = _NoDecoder(self.server.context or bundle.manifest.decoder.max_context or _CONTEXT)
        self._vision = _OwnTower(bundle)

    @property
    def vision(self) -> VisionRunner:
        return self._vision

    @property
    def decoder(self) -> DecoderRunner:
        return self._decoder

    def describe(self) -> EngineInfo:
        server = self.server
        return EngineInfo(
            "openai", self._version, (server.base,), {"model": server.model, "kind": server.kind, "client": "httpx"}
        )

    def close(self) -> None:
        self.server.close()


class _NoDecoder:
    """The decoder is elsewhere; `max_tokens`: of its context."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens

    def new_cache(self, tokens: int) -> KvCache:
        raise EngineError("the policy runs on a server: its cache is there")

    def run(self, inputs: DecoderInputs, cache: KvCache, past: int, budget: Budget = UNLIMITED) -> F32:
        raise EngineError("the policy runs on a server: it gives text, no logits")


class _OwnTower:
    """The vision tower of the bundle, for search alone."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._runner: VisionRunner | None = None
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, NDArray[Any]], budget: Budget = UNLIMITED) -> Features:
        with self._lock:
            if self._runner is None:
                if not self._bundle.manifest.embedding.rows:
                    raise EngineError("the policy runs on a server and no bundle is here: it can't encode for an index")
                self._bundle.check(self._bundle.manifest.files.keys())
                self._runner = vision_alone(self._bundle)
        return self._runner.run(inputs, budget)


def _create(bundle: Bundle, options: Any = None, *, url: str) -> RemoteEngine:
    if options is not None and not isinstance(options, RemoteOptions):
        raise UsageError(f"engine openai takes RemoteOptions, not {type(options).__name__}")
    return RemoteEngine(bundle, options or RemoteOptions(), url)


OPENAI = EngineEntry(_create, extra="remote", given="url", remote=True)
