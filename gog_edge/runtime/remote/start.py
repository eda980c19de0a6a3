"""Which session and which writer a model has: our own, or those of a policy on a server.

What talks to servers is imported for policies on one, and not by everybody at every start.
"""

from __future__ import annotations

from typing import NoReturn

from gog_edge.bundle import Bundle
from gog_edge.engines.base import Engine, FixedContext, WritesTurns
from gog_edge.errors import EngineError
from gog_edge.runtime.decoder import Decoder
from gog_edge.runtime.feature_cache import FeatureCache
from gog_edge.runtime.generate import TurnWriter
from gog_edge.runtime.model import Model, ModelOptions
from gog_edge.runtime.sampling import Sampler
from gog_edge.runtime.session import Session
from gog_edge.runtime.speculation import Speculation
from gog_edge.runtime.tokenizer import Tokenizer
from gog_edge.runtime.vision import VisionEncoder
from gog_edge.sampling_options import Sampling


def new_session(model: Model) -> Session:
    """An empty conversation with this model."""
    engine = model.engine
    if not isinstance(engine, WritesTurns):
        return Session(model)
    from gog_edge.runtime.remote.session import RemoteSession

    return RemoteSession(model, engine.server)


def new_writer(session: Session, sampling: Sampling, speculation: Speculation | None = None) -> TurnWriter:
    """What writes the turns of this session."""
    if isinstance(session.model.engine, WritesTurns):
        from gog_edge.runtime.remote.session import RemoteSession
        from gog_edge.runtime.remote.writer import RemoteWriter

        if isinstance(session, RemoteSession):
            return RemoteWriter(session, sampling)
    return TurnWriter(session, Sampler(sampling), speculation)


def remote_model(bundle: Bundle, engine: Engine, options: ModelOptions) -> Model:
    """A model of which only the picture sizes are known here."""
    context = options.max_context or bundle.manifest.decoder.max_context
    if isinstance(engine.decoder, FixedContext):
        context = min(context or engine.decoder.max_tokens, engine.decoder.max_tokens)
    return Model(
        bundle=bundle,
        engine=engine,
        tokenizer=_NoTokenizer(),
        decoder=_NoDecoder(),
        vision=VisionEncoder(bundle, engine.vision, FeatureCache(options.feature_cache_bytes)),
        prefixes=None,
        max_context=context,
        chunk=options.prefill_chunk,
    )


class _NoTokenizer(Tokenizer):
    """The tokens are the server's."""

    def __init__(self) -> None:
        pass

    def __getattr__(self, name: str) -> NoReturn:
        raise EngineError("the policy runs on a server: its tokens are not known here")


class _NoDecoder(Decoder):
    """The decoder is the server's."""

    def __init__(self) -> None:
        self.state_arrays = 0
        self.most_together = 1  # what questions share is the server's matter
