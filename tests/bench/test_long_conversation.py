"""The long conversation: every turn's cells, what it proves, and memory that comes back."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from gog_edge.agent.options import RunOptions
from gog_edge.bench.local_subject import LocalSubject
from gog_edge.bench.machine.probes import own_bytes
from gog_edge.bench.scenarios.conversation import Plan, conversation_cells
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.errors import BenchError
from gog_edge.runtime.session import Session
from gog_edge.types import Control
from tests.native.graphs import needs_ops

pytestmark = needs_ops

NANO = Path(__file__).parents[2] / "models" / "gog-nano"
SHORT = Plan(turns=5, first=200, last=1400, written=3)


@pytest.fixture(scope="module", params=["gog-nano", "tiny-qwen3.5"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSubject]:
    from gog_edge.export.options import ExportOptions
    from gog_edge.export.pipeline import export_bundle
    from gog_edge.export.synthetic.checkpoint import make_checkpoint

    folder = tmp_path_factory.mktemp("conversation")
    checkpoint = NANO if request.param == "gog-nano" else make_checkpoint(request.param, folder / "checkpoint")
    bundle = export_bundle(checkpoint, folder / "bundle", ExportOptions(backend="native", precision="int8"))
    options = RunOptions(prefix_cache=False, max_context=40_000 if request.param == "gog-nano" else 0)
    subject = LocalSubject(bundle.root, options=options, engine_options=OrtOptions(threads=1, spin=False))
    subject.load()
    yield subject
    subject.close()


def test_a_turn_computes_what_is_new_and_nothing_else(subject: LocalSubject) -> None:
    cells = {(c.stage, c.x): c for c in conversation_cells(subject, 2, SHORT)}
    assert [cells["first token", n].note for n in (1, 2, 5)] == [
        "200 new tokens behind 0",
        "297 new tokens behind 203",
        "297 new tokens behind 1103",
    ]
    assert cells["tokens said before that came from the cache", None].samples == (100.0,)
    assert all(len(cells["first token", n].samples) == 2 for n in range(1, 6))
    assert cells["rows of the KV cache at the end", None].samples[0] > 0


def test_what_is_computed_again_is_counted(subject: LocalSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Session.run

    def forgetful(self: Session, *given: object) -> object:
        if len(self) > 250:
            self._computed = 0
            self._snapshots._kept.clear()
        return run(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "run", forgetful)
    cells = {(c.stage, c.x): c for c in conversation_cells(subject, 1, SHORT)}
    assert cells["tokens said before that came from the cache", None].samples[0] < 50


def test_a_context_that_is_too_short_is_refused(subject: LocalSubject) -> None:
    with pytest.raises(BenchError, match="context"):
        next(conversation_cells(subject, 1, Plan(last=10_000_000)))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_long_conversation_gives_its_memory_back(subject: LocalSubject) -> None:
    """When it is cut, as the next question does with a session that is kept, and when it ends."""
    model = subject.model
    session = Session(model)
    session.append([Control("<|im_start|>user\n")])
    session.run()
    gc.collect()
    before = own_bytes()
    session.extend([7] * min(6_000, model.max_context - 100), given=True)
    session.run()
    cache = session._cache
    assert cache is not None
    rows = sum(array.nbytes for array in cache.read(0, len(session)))
    grown = own_bytes() - before
    assert grown > 0.9 * rows
    session.cut(2)
    assert own_bytes() - before < grown - 0.8 * rows
    session.append([Control("again<|im_end|>")])
    session.run()
    alive = weakref.ref(cache)
    del session, cache
    gc.collect()
    assert alive() is None
