"""Small parts: evidence, options, pace, public API, loading."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import gog_edge
from gog_edge.agent.evidence import normalise, supporting
from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle
from gog_edge.deadline import Pace
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.errors import DialectError, GrammarError, SearchError, SearchIndexError, UsageError
from gog_edge.image.frame import Frame
from gog_edge.runtime.telemetry import Trace
from gog_edge.types import Action, ActionKind, Hit, Observation, Step, StopReason, Turn
from tests.agent.test_loop import ANSWER, GAZE, GLANCE, HERON, TEXT
from tests.runtime.conftest import MakeAgent, picture
from tests.runtime.fakes import FakeProvider

ONE_THREAD = OrtOptions(threads=1, spin=False)


def step(*hits: Hit) -> Step:
    action = Action(ActionKind.TEXT_SEARCH, "q")
    return Step(0, Turn("", (action,), ""), (Observation(action, hits),))


def test_evidence_rule() -> None:
    eiffel = Hit("The Eiffel Tower", "It stands in Paris; built in 1889.", "a")
    other = Hit("Parisian food", "Bread.", "b")
    steps = [step(eiffel, other), step(eiffel)]
    assert supporting("Paris", steps) == (eiffel,)  # whole words, each hit once
    assert supporting("the EIFFEL tower!", steps) == (eiffel,)
    assert supporting("1889", steps) == (eiffel,)
    assert supporting("London", steps) == ()
    assert supporting("", steps) == supporting("yes", steps) == supporting("a", steps) == ()
    sentence = "The Eiffel Tower was built in the city of Paris in 1889"
    assert supporting(sentence, steps) == (eiffel,)
    assert supporting("It is a very old bridge over the river Thames in London", steps) == ()
    assert normalise("  The  Cat's, hat—") == "cat s hat"


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import sys; import gog_edge; print(sorted(m for m in sys.modules if m.startswith('gog_edge')));"
        "gog_edge.Region;"
        "print([m for m in ('numpy', 'onnxruntime', 'tokenizers', 'PIL', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['gog_edge', 'gog_edge._version']", "[]"]


def test_public_names_exist() -> None:
    for name in gog_edge.__all__:
        assert getattr(gog_edge, name) is not None
    assert set(gog_edge.__all__) <= set(dir(gog_edge))
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = gog_edge.lode


@pytest.mark.parametrize(
    "bad", [{"prefill_chunk": 0}, {"search_timeout": 0}, {"grammar": "maybe"}, {"max_turns": -1}, {"results": -2}]
)
def test_options_are_checked(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        RunOptions(**bad)  # type: ignore[arg-type]


def test_pace_keeps_time_for_an_answer() -> None:
    pace = Pace()
    assert pace.reserve(40, float("inf")) == 0
    assert pace.reserve(40, 8.0) == 2.0  # nothing measured yet: a quarter
    pace.prefilled(100, 1.0)
    pace.prefilled(2, 1.0)  # too short to say anything
    pace.wrote(None)
    pace.wrote(0.05)
    assert pace.reading(50) == pytest.approx(0.5)
    assert pace.reserve(40, 60.0) == pytest.approx(0.4 + 32 * 0.05 + 0.05)
    assert pace.reserve(40, 2.0) == 1.0  # never more than half


def test_load_runs_a_real_bundle(bundle: Bundle, frame: Frame, tmp_path: Path) -> None:
    options = RunOptions(cache_dir=tmp_path, turn_tokens=12, max_turns=2, grammar="off")
    with gog_edge.load(bundle.root, engine="cpu", options=options, engine_options=ONE_THREAD) as agent:
        answer = agent.ask(frame, "What is it?")
        again = agent.ask(frame, "What is it?")
    assert answer.stop in (StopReason.ANSWERED, StopReason.FORCED, StopReason.EXHAUSTED)
    assert [s.turn.raw for s in answer.steps] == [s.turn.raw for s in again.steps]
    assert again.usage.encoded_images == 0


def test_load_with_an_index_searches_it_with_the_policys_tower(bundle: Bundle, tmp_path: Path) -> None:
    from gog_edge.agent.embedder import open_embedder
    from gog_edge.search.base import Deadline, ImageQuery
    from gog_edge.search.local.index import LocalIndex
    from gog_edge.search.local.ingest import add_records
    from gog_edge.search.local.record import Record

    files = []
    for i in range(3):
        files.append(tmp_path / f"{i}.png")
        picture(i).image().save(files[-1])
    with LocalIndex(tmp_path / "index", create=True) as index:
        embedder = open_embedder(bundle=bundle.root, max_pixels=60_000)
        records = [Record(f"e{i}", f"thing {i}", images=(str(f),)) for i, f in enumerate(files)]
        add_records(index, records, embedder=embedder)
    options = RunOptions(cache_dir=tmp_path, grammar="off", expand=2)
    with gog_edge.load(bundle, index=tmp_path / "index", options=options, engine_options=ONE_THREAD) as agent:
        (provider,) = agent.providers
        hits = provider.search_image(ImageQuery(picture(1)), k=1, deadline=Deadline.never())
        assert provider.expand == 2
    assert hits[0].title == "thing 1"


def test_pictures_of_results_are_shown_where_the_dialect_does(
    make_agent: MakeAgent, frame: Frame, tmp_path: Path
) -> None:
    class Pictures(FakeProvider):
        def read_image(self, url: str, *, deadline: object) -> Frame:
            if "broken" in url:
                raise SearchError(f"no picture at {url}")
            return picture(3, 60, 60)

    local = tmp_path / "private.png"
    picture(4, 60, 60).image().save(local)
    hits = [
        Hit("one", "", "s", 1.0, "e", "https://x.org/1.jpg"),
        Hit("two", "", "s", 1.0, "e", "https://x.org/broken.jpg"),
        Hit("three", "", "s", 1.0, "e", str(local)),  # a picture, but the web must not choose files of this machine
        Hit("four", "", "s", 1.0, "e", ""),
    ]
    script = ["<reason>r</reason>\n<search><img></search>", "<reason>r</reason>\n<answer>one</answer>"]
    trace = Trace()
    agent = make_agent(script, [Pictures(hits, kinds=["image", "picture"])], dialect="mmsearch-r1")
    answer = agent.ask(frame, "q", trace=trace)
    assert answer.text == "one"
    assert answer.steps[0].observations[0].thumbnails == (1, None, None, None)
    assert len(trace.images) == 2
    assert any("broken" in text for _, text in trace.notes)


def test_load_closes_what_it_opened_when_it_fails(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(SearchIndexError):
        gog_edge.load(bundle, index=tmp_path / "none", engine_options=ONE_THREAD)
    with pytest.raises(DialectError, match="did you mean 'gog'"):
        gog_edge.load(bundle, dialect="gogg")


def test_owned_providers_are_closed_and_others_are_not(make_agent: MakeAgent) -> None:
    from gog_edge.agent.agent import Agent

    made = make_agent([ANSWER])
    own, theirs = FakeProvider(name="own"), FakeProvider(name="theirs")
    with Agent(made.model, made.dialect, [own, theirs], made.options, owned=[own]) as agent:
        agent.close()
    assert (own.closed, theirs.closed) == (1, 0)


def test_grammar_on_keeps_the_transcript_and_saves_steps(make_agent: MakeAgent, frame: Frame) -> None:
    pytest.importorskip("llguidance")
    script = [GLANCE, GAZE, TEXT, ANSWER]
    free = make_agent(script, [FakeProvider([HERON])], grammar="off")
    held = make_agent(script, [FakeProvider([HERON])], grammar="on")
    a, b = free.ask(frame, "q"), held.ask(frame, "q")
    assert [s.turn.actions for s in a.steps] == [s.turn.actions for s in b.steps]
    assert a.text == b.text == "fish"
    assert b.usage.forced_tokens > 0


def test_a_grammar_that_can_not_be_had_is_refused_when_insisted_on(make_agent: MakeAgent) -> None:
    with pytest.raises(GrammarError, match="offers no grammar"):
        make_agent([ANSWER], dialect="direct", grammar="on")


def test_a_grammar_that_breaks_is_left_unless_it_is_insisted_on(
    make_agent: MakeAgent, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llguidance")
    from gog_edge.runtime import constraint

    def broken(self: object, logits: object) -> None:
        raise GrammarError("too complex")

    monkeypatch.setattr(constraint.TokenConstraint, "apply", broken)
    trace = Trace()
    assert make_agent([ANSWER], grammar="auto").ask(frame, "q", trace=trace).text == "fish"
    assert any("the grammar is left" in text for _, text in trace.notes)
    with pytest.raises(GrammarError, match="too complex"):
        make_agent([ANSWER], grammar="on").ask(frame, "q")

    def never(self: object, *args: object) -> None:
        raise GrammarError("no such tokenizer")

    monkeypatch.setattr(constraint.TokenGrammar, "__init__", never)
    assert make_agent([ANSWER], grammar="auto").ask(frame, "q").text == "fish"
    with pytest.raises(GrammarError, match="no such tokenizer"):
        make_agent([ANSWER], grammar="on").ask(frame, "q")
