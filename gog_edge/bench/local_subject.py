"""gog-edge as a subject: a bundle, its session and its turn writer, without dialect and search."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gog_edge.agent.options import RunOptions
from gog_edge.bench.machine.probes import forget_peak, own_bytes, peak_bytes
from gog_edge.bench.subject import Part, Picture, TurnTimes
from gog_edge.bundle import Bundle
from gog_edge.engines.registry import create_engine
from gog_edge.errors import BenchError
from gog_edge.image.frame import Frame
from gog_edge.runtime.generate import TurnOptions, TurnWriter
from gog_edge.runtime.model import Model
from gog_edge.runtime.sampling import Sampler
from gog_edge.runtime.session import Session
from gog_edge.runtime.speculation import Speculation
from gog_edge.runtime.telemetry import Trace
from gog_edge.types import ImagePart

STAGES = ("crop", "encode", "prefill", "decode")
PLAIN_DECODING = Speculation(max_draft=0)


class LocalSubject:
    """Runs turns in this process. Speculation is off by default: meaningless text has nothing to look up."""

    def __init__(
        self,
        bundle: Path,
        *,
        engine: str | None = None,
        options: RunOptions | None = None,
        speculation: Speculation = PLAIN_DECODING,
        name: str = "gog-edge",
    ) -> None:
        self.name = name
        self.path, self.engine, self.speculation = bundle, engine, speculation
        self.options = options or RunOptions(prefix_cache=False)
        self._model: Model | None = None
        self._session: Session | None = None
        self._knows_peak = False

    @property
    def bundle(self) -> Bundle:
        return self.model.bundle

    @property
    def model(self) -> Model:
        if self._model is None:
            raise BenchError(f"{self.name} was not loaded")
        return self._model

    @property
    def session(self) -> Session:
        if self._session is None:
            self._session = Session(self.model, trace=Trace())
        return self._session

    def load(self) -> float:
        self._knows_peak = forget_peak()
        start = time.perf_counter()
        bundle = Bundle.open(self.path)
        self._model = Model.assemble(bundle, create_engine(self.engine, bundle), self.options)
        self.session.extend([1], given=True)
        self.session.run()
        seconds = time.perf_counter() - start
        self.reset()
        return seconds

    def turn(self, parts: Sequence[Part], tokens: int) -> TurnTimes:
        session = self.session
        session.trace = trace = Trace()
        start = time.perf_counter()
        before = len(session)
        for part in parts:
            if isinstance(part, Picture):
                image = session.add_image(Frame.open(part.pixels))
                session.append([ImagePart(image.index)])
            else:
                session.extend(self.words(part.count, part.seed), given=True)
        new = len(session) - before
        writer = TurnWriter(session, Sampler(self.options.sampling), self.speculation)
        ids = [i for piece in writer.turn(TurnOptions(tokens, eos=())) for i in piece.ids]
        total = time.perf_counter() - start
        if len(ids) != tokens:
            raise BenchError(f"{self.name} wrote {len(ids)} tokens instead of {tokens}")
        spent = trace.seconds_by_stage()
        stages = {stage: spent[stage] for stage in STAGES if stage in spent}
        peak = peak_bytes() if self._knows_peak else 0
        # one more than the new ones after an earlier turn, whose last token was written and not yet run
        computed = sum(int(span.fields["tokens"]) for span in trace.spans if span.stage == "prefill")
        return TurnTimes(total, stages, new, len(ids), own_bytes(), computed, peak)

    def reset(self) -> None:
        self._session = None
        if self._model is not None:
            self._model.vision.cache.clear()

    def close(self) -> None:
        self._session = None
        if self._model is not None:
            self._model.engine.close()
            self._model = None

    def words(self, count: int, seed: int) -> list[int]:
        """Ordinary tokens: below every special one, whose ids are at the end of the vocabulary."""
        tokens = self.model.manifest.tokens
        high = min(
            tokens.image_pad, tokens.vision_start, tokens.vision_end, *tokens.eos, self.model.manifest.decoder.vocab
        )
        low = 1 if high > 1 else self.model.manifest.decoder.vocab // 2
        top = high if high > 64 else self.model.manifest.decoder.vocab
        return [int(i) for i in np.random.default_rng(seed).integers(low, top, count)]
