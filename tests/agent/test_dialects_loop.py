"""Every shipped dialect through the real loop: each of its actions written, read, carried out, answered."""

from __future__ import annotations

import pytest

from gog_edge.dialects import load, names
from gog_edge.image.frame import Frame
from gog_edge.runtime.speculation import Speculation
from gog_edge.types import Action, ActionKind, Hit, PixelLimits, Region, StopReason
from tests.runtime.conftest import MakeAgent
from tests.runtime.fakes import FakeProvider

ACTIONS = {
    "glance": Action(ActionKind.GLANCE),
    "gaze": Action(ActionKind.GAZE, "", Region(20, 20, 120, 100), 0, "a bird"),
    "zoom": Action(ActionKind.ZOOM, "", Region(20, 20, 120, 100), 0, "a bird"),
    "text_search": Action(ActionKind.TEXT_SEARCH, "heron food"),
    "visit": Action(ActionKind.VISIT, "https://x.org/heron", label="food"),
}
SMALL = {"image_min_pixels": 4096, "image_max_pixels": 8192, "crop_min_pixels": 4096, "crop_max_pixels": 8192}


@pytest.mark.parametrize("name", names())
def test_every_action_of_every_dialect(make_agent: MakeAgent, frame: Frame, name: str) -> None:
    spec = load(name).spec
    kinds = [k for k in ACTIONS if k in {a.kind for a in spec.actions}]
    provider = FakeProvider([Hit("Grey heron", "eats fish", "https://x.org", 0.8)], page="Herons eat fish.")
    probe = make_agent([""], dialect=name)
    with probe.session(frame) as conversation:
        conversation.session.add_image(frame, limits=probe.image_limits())
        images = conversation.session.images
        think = f"{spec.parse.think_open}look{spec.parse.think_close}\n" if spec.parse.think_open else ""
        head = think if not probe.dialect.template.frame.prefill else think.removeprefix(spec.parse.think_open)
        script = [head + probe.dialect.write(ACTIONS[k], images) for k in kinds]
        answer_text = probe.dialect.write(Action(ActionKind.ANSWER, "fish"), images)
    agent = make_agent([*script, head + answer_text], [provider], dialect=name)
    answer = agent.ask(frame, "What does it eat?", max_turns=len(kinds) + 1)
    assert (answer.text, answer.stop) == ("fish", StopReason.ANSWERED), [s.turn for s in answer.steps]
    assert [s.turn.actions[0].kind.value for s in answer.steps] == [*kinds, "answer"]
    for step in answer.steps[:-1]:
        assert not step.observations[0].error
        region = step.turn.actions[0].region
        if region is not None:
            box = ACTIONS["zoom"].region
            assert box is not None and region.intersection(box) > 0.9 * box.area  # some dialects pad
            assert region.width < box.width + 120 and region.height < box.height + 120
            assert (step.observations[0].shown is not None) == agent.dialect.shows_crop(step.turn.actions[0].kind)


@pytest.mark.parametrize("name", [n for n in names() if load(n).spec.parse.otherwise != "answer"])
def test_forced_answers(make_agent: MakeAgent, frame: Frame, name: str) -> None:
    probe = make_agent([""], dialect=name)
    with probe.session(frame) as conversation:
        conversation.session.add_image(frame, limits=probe.image_limits())
        tagged = probe.dialect.write(Action(ActionKind.ANSWER, "fish"), conversation.session.images)
    agent = make_agent(["nothing of use"] * 2 + [tagged], dialect=name)
    answer = agent.ask(frame, "q", max_turns=2)
    assert (answer.text, answer.stop) == ("fish", StopReason.FORCED)


@pytest.mark.parametrize("name", ["mini-o3", "qwen-agent", "vrag-rl"])
def test_calls_that_can_not_be_read_end_no_question_of_a_system_that_goes_on(
    make_agent: MakeAgent, frame: Frame, name: str
) -> None:
    bad = {"mini-o3": "<grounding>?</grounding>", "qwen-agent": "<tool_call>?</tool_call>", "vrag-rl": "Hm."}[name]
    spec = load(name).spec
    end = "<answer>fish</answer>" if any(a.kind == "answer" for a in spec.actions) else "fish"
    answer = make_agent([bad] * 4 + [end], dialect=name, **SMALL).ask(frame, "q")
    assert (answer.text, answer.stop, len(answer.steps)) == ("fish", StopReason.ANSWERED, 5)


@pytest.mark.parametrize(("name", "results"), [("vrag-rl", 10), ("webwatcher", 12)])
def test_the_last_of_all_results_asks_for_the_answer(
    make_agent: MakeAgent, frame: Frame, name: str, results: int
) -> None:
    """The systems' own count: so many results come back, and the round after the last one is the answer."""
    demand = "please answer the question now with answer in <answer> ... </answer>"
    calls = [f"<think>a</think>{load(name).write(Action(ActionKind.TEXT_SEARCH, f'q {n}'), [])}" for n in range(99)]
    prompts: list[str] = []

    def script(prompt: str) -> list[str]:
        prompts.append(prompt)
        return [*calls[:results], "<think>b</think><answer>fish</answer>"]

    answer = make_agent(script, [FakeProvider([Hit("Heron", "eats fish")])], dialect=name, **SMALL).ask(frame, "q")
    assert (answer.text, answer.stop, len(answer.steps)) == ("fish", StopReason.ANSWERED, results + 1)
    turns = prompts[-1].split("<|im_start|>user\n")[1:]  # the question, then the results
    assert [demand in turn for turn in turns] == [False] * results + [True]


@pytest.mark.parametrize("name", [n for n in names() if load(n).grammar() and load(n).spec.actions[0].kind != "answer"])
def test_the_grammar_changes_no_answer_and_saves_a_step_a_forced_token(
    make_agent: MakeAgent, frame: Frame, name: str
) -> None:
    """On or off: the same turns. On: a decoder run less for every forced token, and for an end that can only follow."""
    pytest.importorskip("llguidance")
    dialect = make_agent([""], dialect=name).dialect
    spec = dialect.spec
    first = next(a for a in ACTIONS.values() if a.kind.value in {s.kind for s in spec.actions})
    head = f"{spec.parse.think_open}look{spec.parse.think_close}\n" if spec.parse.think_open else ""
    if dialect.frame.hooks.next_prefill(dialect.template.frame.prefill):
        head = head.removeprefix(spec.parse.think_open)
    with make_agent([""], dialect=name, **SMALL).session(frame) as conversation:
        conversation.session.add_image(frame, limits=PixelLimits(4096, 8192))
        call = head + dialect.write(first, conversation.session.images)
        answer = head + dialect.write(Action(ActionKind.ANSWER, "fish"), conversation.session.images)
    found = {}
    for grammar in ("off", "on"):
        options = {"grammar": grammar, "speculation": Speculation(max_draft=0), "prefix_cache": False, **SMALL}
        provider = FakeProvider([Hit("Grey heron", "eats fish")], page="Herons eat fish.")
        agent = make_agent([call, answer], [provider], dialect=name, **options)
        found[grammar] = agent.ask(frame, "What does it eat?", max_turns=3), agent.model.engine.decoder.runs
    (plain, runs), (held, fewer) = found["off"], found["on"]
    assert [s.turn.raw for s in held.steps] == [s.turn.raw for s in plain.steps]
    forced = held.usage.forced_tokens
    assert plain.usage.forced_tokens == 0
    assert plain.usage.generated_tokens - held.usage.generated_tokens == forced
    assert forced <= len(runs) - len(fewer) <= forced + len(held.steps)
    if any(a.via == "tool_call" for a in spec.actions):
        assert forced > 8
