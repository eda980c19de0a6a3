"""Turns: stop strings, end tokens, grammar and forced tokens, limits; sampling with guesses."""

from __future__ import annotations

import pytest

from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle
from gog_edge.deadline import Budget, DeadlineReached
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.engines.registry import create_engine
from gog_edge.runtime.generate import TurnEnd, TurnOptions, TurnResult, TurnWriter
from gog_edge.runtime.model import Model
from gog_edge.runtime.sampling import Sampler
from gog_edge.runtime.session import Session
from gog_edge.runtime.speculation import Speculation
from gog_edge.runtime.telemetry import TokenRecord
from gog_edge.sampling_options import Sampling
from gog_edge.types import Control
from tests.agent.virtual_clock import VirtualClock
from tests.runtime.fakes import ScriptedEngine

HEAD = "<|im_start|>user\nthe words: alpha beta gamma delta<|im_end|>\n<|im_start|>assistant\n"


def play(
    bundle: Bundle, text: str, *, guesses: int = 0, constraint: object = None, **limits: object
) -> tuple[TurnResult, list[TokenRecord], Session]:
    engine = ScriptedEngine(bundle, [text])
    session = Session(Model.assemble(bundle, engine, RunOptions(prefix_cache=False)))
    session.append([Control(HEAD)])
    writer = TurnWriter(session, Sampler(Sampling()), Speculation(max_draft=guesses, adaptive=False))
    result = TurnResult()
    options = TurnOptions(**{"max_tokens": 500, "eos": bundle.manifest.tokens.eos, **limits})  # type: ignore[arg-type]
    pieces = list(writer.turn(options, constraint, result))  # type: ignore[arg-type]
    assert "".join(p.text for p in pieces) == result.text
    assert [i for p in pieces for i in p.ids] == result.ids
    assert session.tokens.tolist()[-len(result.ids) :] == result.ids or not result.ids
    return result, pieces, session


@pytest.mark.parametrize("guesses", [0, 8])
@pytest.mark.parametrize("text", ["alpha beta gamma delta", "the words: alpha", "<answer>日本語 é</answer>", ""])
def test_the_end_token_ends_a_turn_and_is_dropped(bundle: Bundle, text: str, guesses: int) -> None:
    result, _, session = play(bundle, text, guesses=guesses)
    assert (result.text, result.end) == (text, TurnEnd.EOS)
    assert session.model.tokenizer.special["<|im_end|>"] not in result.ids


@pytest.mark.parametrize("guesses", [0, 8])
@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        ("go on</answer> and more", ("</answer>",), "go on</answer>"),
        ("alpha beta gamma delta", ("ta gam",), "alpha beta gam"),
        ("a stop b", ("stop b", "stop"), "a stop"),
        ("nothing here", ("</answer>",), "nothing here"),
        ("xx", ("x",), "x"),
    ],
)
def test_stop_strings_across_tokens(bundle: Bundle, text: str, stop: tuple[str, ...], kept: str, guesses: int) -> None:
    result, _, _ = play(bundle, text, guesses=guesses, stop=stop)
    assert result.text == kept
    assert result.end is (TurnEnd.STOP if kept != text else TurnEnd.EOS)


def test_the_token_limit_is_exact_with_guesses(bundle: Bundle) -> None:
    for limit in (1, 2, 7, 12):
        for guesses in (0, 8):
            result, _, _ = play(bundle, "alpha beta gamma delta", guesses=guesses, max_tokens=limit)
            assert len(result.ids) == limit
            assert result.end is TurnEnd.TOKENS


def test_the_stop_string_ends_the_session_at_the_same_token_with_guesses(bundle: Bundle) -> None:
    text, stop = "the words: alpha beta gamma delta", ("beta",)
    plain = play(bundle, text, stop=stop)[2]
    fast = play(bundle, text, stop=stop, guesses=8)[2]
    assert plain.tokens.tolist() == fast.tokens.tolist()
    assert fast.computed <= len(fast)


def test_an_interrupted_turn_goes_on(bundle: Bundle) -> None:
    text = "alpha beta gamma delta and so on"
    engine = ScriptedEngine(bundle, [text], step_s=0.01)
    session = Session(Model.assemble(bundle, engine, RunOptions(prefix_cache=False)))
    session.append([Control(HEAD)])
    writer = TurnWriter(session, Sampler(Sampling()), Speculation(max_draft=0))
    result = TurnResult()
    with pytest.raises(DeadlineReached), Budget(0.1, clock=VirtualClock()) as short:
        list(writer.turn(TurnOptions(99, bundle.manifest.tokens.eos, budget=short), None, result))
    assert 0 < len(result.text) < len(text) and text.startswith(result.text)
    list(writer.turn(TurnOptions(99, bundle.manifest.tokens.eos), None, result))
    assert (result.text, result.end) == (text, TurnEnd.EOS)


LARK = 'start: "<answer>" /[a-z ]{1,40}/ "</answer>"'  # for real llguidance constraints on the scripted policy


@pytest.fixture(scope="module")
def grammar(bundle: Bundle) -> object:
    pytest.importorskip("llguidance")
    from gog_edge.runtime.constraint import TokenGrammar
    from gog_edge.runtime.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(bundle.path("tokenizer.json"))
    return TokenGrammar(tokenizer.backend, bundle.manifest.tokens.eos, bundle.manifest.decoder.vocab)


@pytest.mark.parametrize("guesses", [0, 8])
def test_forced_tokens_cost_no_step_each(bundle: Bundle, grammar: object, guesses: int) -> None:
    constraint = grammar.constraint(LARK)  # type: ignore[attr-defined]
    result, pieces, session = play(bundle, "<answer>alpha beta</answer>", constraint=constraint, guesses=guesses)
    assert result.text == "<answer>alpha beta</answer>"
    assert result.end in (TurnEnd.GRAMMAR, TurnEnd.EOS)
    assert pieces[0].forced and pieces[0].text.startswith("<answer")
    assert session.usage.forced_tokens > 0
    runs = session.model.engine.decoder.runs  # type: ignore[attr-defined]
    assert len(runs) < len(result.ids)


def test_a_policy_that_leaves_the_grammar_is_kept_in_it(bundle: Bundle, grammar: object) -> None:
    constraint = grammar.constraint(LARK)  # type: ignore[attr-defined]
    result, _, _ = play(bundle, "NO 123 <tool_call>", constraint=constraint, max_tokens=60)
    assert result.text.startswith("<answer>")
    assert "1" not in result.text and "<tool_call>" not in result.text


@pytest.mark.parametrize("guesses", [0, 4])
def test_sampling_is_reproducible_and_not_changed_by_guesses(bundle: Bundle, guesses: int) -> None:
    engine = create_engine("cpu", bundle, OrtOptions(threads=1, spin=False))
    texts = []
    for draft in (0, guesses):
        session = Session(Model.assemble(bundle, engine, RunOptions(prefix_cache=False)))
        session.append([Control(HEAD)])
        writer = TurnWriter(
            session,
            Sampler(Sampling(temperature=0.8, top_p=0.9, seed=3, repetition_penalty=1.1)),
            Speculation(max_draft=draft, adaptive=False, ngram_min=1),
        )
        result = TurnResult()
        list(writer.turn(TurnOptions(40, ()), None, result))
        texts.append(result.ids)
    assert texts[0] == texts[1]
