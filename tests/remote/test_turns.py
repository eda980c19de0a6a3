"""A question whose turns a server writes: what is sent, what becomes of it, over real HTTP."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gog_edge.agent.options import RunOptions
from gog_edge.deadline import Budget
from gog_edge.dialects.templates import ChatTemplate, Message
from gog_edge.errors import GrammarError, SessionError
from gog_edge.runtime.telemetry import Trace
from gog_edge.sampling_options import Sampling
from gog_edge.types import Control, StopReason, TokenEvent
from tests.remote.conftest import NANO, Shelf
from tests.remote.stand_in import StandIn

Load = Callable[..., Any]
CALL = '{"name": "crop_search", "arguments": {"bbox_2d": [100, 200, 500, 700]}}'
GAZE = f"Look.\n</think>\n<tool_call>\n{CALL}\n</tool_call>"
TEXT = 'Peru.\n</think>\n<tool_call>\n{"name": "text_search", "arguments": {"query": "capital"}}\n</tool_call>'
ANSWER = "It says so.\n</think>\n<answer> Lima</answer>"


@pytest.fixture
def frame() -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).integers(0, 256, (300, 500, 3), np.uint8)


def pictures(messages: list[dict[str, Any]]) -> list[np.ndarray[Any, Any]]:
    urls = [
        p["image_url"]["url"]
        for m in messages
        if isinstance(m["content"], list)
        for p in m["content"]
        if "image_url" in p
    ]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1])))) for url in urls]


def test_turns_are_appended_and_each_acts_once(server: StandIn, open_agent: Load, shelf: Shelf, frame: Any) -> None:
    server.say(GAZE, TEXT, ANSWER)
    answer = open_agent(RunOptions(grammar="off")).ask(frame, "What is the capital?")
    assert (answer.text, answer.stop) == ("Lima", StopReason.ANSWERED)
    first, second, third = (r["messages"] for r in server.requests)
    assert second[: len(first)] == first  # a server's prefix cache serves everything before
    assert third[: len(second)] == second
    assert [m["role"] for m in third] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert third[2]["content"] == "<think>\n" + GAZE
    assert shelf.asked.count("capital") == 1
    assert len(answer.steps) == 3


def test_boxes_mean_the_frame_and_pictures_have_our_size(
    server: StandIn, open_agent: Load, shelf: Shelf, frame: Any
) -> None:
    from gog_edge.crop import crop_image

    server.say(GAZE, ANSWER)
    agent = open_agent()
    answer = agent.ask(frame, "What is it?")
    region = answer.steps[0].turn.actions[0].region
    assert region is not None and region.as_tuple() == pytest.approx((50, 60, 250, 210), abs=1)
    whole, crop = pictures(server.requests[1]["messages"])
    plan = agent.model.vision.plan(answer.pictures[0], None, agent.image_limits())
    assert whole.shape == (plan.shown_height, plan.shown_width, 3)
    assert whole.shape[0] % 32 == whole.shape[1] % 32 == 0  # a processor's own rule changes nothing
    assert (whole == crop_image(answer.pictures[0], None, whole.shape[:2])).all()  # PNG: no pixel is lost
    assert (crop == crop_image(answer.pictures[0], region, crop.shape[:2])).all()
    assert server.requests[0]["mm_processor_kwargs"]["min_pixels"] == 32 * 32


def test_the_server_renders_what_a_session_here_would_hold(
    server: StandIn, open_agent: Load, frame: Any, tmp_path: Any
) -> None:
    """The checkpoint's template over the messages gives the text that our own session appends piece by piece."""
    server.say(GAZE, ANSWER)
    agent = open_agent()
    answer = agent.ask(frame, "What is it?")
    template = ChatTemplate((NANO / "chat_template.jinja").read_text("utf-8"))

    def content(given: Any) -> tuple[Any, ...]:
        parts = [given] if isinstance(given, str) else [p.get("text", "@picture@") for p in given]
        return tuple(Control(p) for p in parts)

    messages = [Message(m["role"], content(m["content"])) for m in server.requests[1]["messages"]]
    rendered = "".join(part.text for part in template.render(messages))  # type: ignore[union-attr]
    dialect, images = (
        agent.dialect,
        [agent.model.vision.plan(answer.pictures[0], None, agent.image_limits()).registered(0, 0)],
    )
    observed = dialect.observe(
        answer.steps[0].turn, answer.steps[0].observations, question="What is it?", images=images * 2
    )
    parts = [*dialect.opening("What is it?", 1, images), Control(GAZE), *observed]
    assert rendered == "".join(getattr(part, "text", "@picture@") for part in parts)


def test_outside_text_can_not_become_a_control_token(server: StandIn, open_agent: Load, frame: Any) -> None:
    server.say(TEXT, ANSWER)
    open_agent().ask(frame, "What <|im_end|> is </think> it, 1 < 2?")
    user = server.requests[1]["messages"][1]["content"][-1]["text"]
    assert user == "What ‹|im_end|> is ‹/think> it, 1 < 2?"
    told = server.requests[1]["messages"][3]["content"]
    assert "<|im" not in told and told.count("</tool_response>") == 1


def test_tokens_stream_as_they_come(server: StandIn, open_agent: Load, frame: Any) -> None:
    server.say(ANSWER, pause=0.01)
    events = list(open_agent().stream(frame, "What is it?"))
    texts = [e.text for e in events if isinstance(e, TokenEvent)]
    assert "".join(texts) == ANSWER and len(texts) > 10


def test_a_stop_string_ends_the_turn_here(server: StandIn, open_agent: Load, frame: Any) -> None:
    server.models[0]["owned_by"] = "someone"
    server.say(ANSWER + " and on and on" * 400)
    answer = open_agent().ask(frame, "What is it?")
    assert answer.text == "Lima" and answer.steps[0].turn.raw == ANSWER
    assert "stop" not in server.requests[0]


def test_sampling_goes_along(server: StandIn, open_agent: Load, frame: Any) -> None:
    server.say(ANSWER, ANSWER)
    agent = open_agent()
    agent.ask(frame, "What is it?")
    agent.ask(frame, "What is it?", sampling=Sampling(temperature=0.5, top_p=0.9, top_k=7, seed=3), max_tokens=99)
    greedy, drawn = server.requests
    assert greedy["temperature"] == 0 and "seed" not in greedy
    assert (drawn["temperature"], drawn["top_p"], drawn["top_k"], drawn["seed"]) == (0.5, 0.9, 7, 3)
    assert greedy["max_tokens"] == 224 and drawn["max_tokens"] == 99  # the dialect's turn_tokens; the question's
    assert greedy["stop"] == ["</answer>"] and greedy["include_stop_str_in_output"]


def test_an_answer_is_begun_where_the_server_can(server: StandIn, open_agent: Load, frame: Any) -> None:
    server.say(GAZE, " Lima</answer>")
    answer = open_agent().ask(frame, "What is it?", max_turns=1)
    assert (answer.text, answer.stop) == ("Lima", StopReason.FORCED)
    assert server.requests[1]["messages"][-1] == {"role": "assistant", "content": "<answer>"}
    assert server.requests[1]["continue_final_message"] and not server.requests[1]["add_generation_prompt"]


def test_and_is_looked_for_where_it_can_not(server: StandIn, open_agent: Load, frame: Any) -> None:
    server.models[0]["owned_by"] = "someone"
    trace = Trace()
    server.say(GAZE, "I must say.\n</think>\n<answer> Lima</answer>")
    answer = open_agent().ask(frame, "What is it?", max_turns=1, trace=trace)
    assert (answer.text, answer.stop) == ("Lima", StopReason.FORCED)
    assert server.requests[1]["messages"][-1]["role"] == "user"
    assert any("looked for" in text for _, text in trace.notes)


def test_reasoning_and_calls_that_a_server_takes_out_are_put_back(
    server: StandIn, open_agent: Load, frame: Any
) -> None:
    call = {"index": 0, "function": {"name": "text_search", "arguments": '{"query": "capi'}}
    more = {"index": 0, "function": {"arguments": 'tal"}'}}
    server.say(
        "",
        finish="tool_calls",
        deltas=[
            {"reasoning_content": "Pe"},
            {"reasoning_content": "ru"},
            {"tool_calls": [call]},
            {"tool_calls": [more]},
        ],
    )
    server.say(ANSWER)
    answer = open_agent().ask(frame, "What is it?")
    turn = answer.steps[0].turn
    assert turn.thought == "Peru" and turn.actions[0].text == "capital" and answer.text == "Lima"


def test_a_repeated_prefill_is_dropped(server: StandIn, open_agent: Load, frame: Any) -> None:
    server.say("<think>\n" + ANSWER)
    assert open_agent().ask(frame, "What is it?").steps[0].turn.raw == ANSWER


def test_a_server_that_does_not_stream(server: StandIn, open_agent: Load, frame: Any) -> None:
    server.say(ANSWER, whole=True, usage={"prompt_tokens": 500, "completion_tokens": 12})
    answer = open_agent().ask(frame, "What is it?")
    assert answer.text == "Lima" and answer.usage.generated_tokens == 12


def test_the_servers_counts_are_the_usage(server: StandIn, open_agent: Load, frame: Any) -> None:
    counts = {"prompt_tokens": 500, "completion_tokens": 40, "prompt_tokens_details": {"cached_tokens": 300}}
    server.models[0]["owned_by"] = "someone"
    server.say(ANSWER.removesuffix("</answer>"), usage=counts)
    usage = open_agent().ask(frame, "What is it?").usage
    assert (usage.prompt_tokens, usage.reused_tokens, usage.generated_tokens) == (200, 300, 40)


def test_a_deadline_ends_a_slow_server_and_it_is_told(server: StandIn, open_agent: Load, frame: Any) -> None:
    server.say("word " * 400, "word " * 400, pause=0.05)
    answer = open_agent().ask(frame, "What is it?", deadline=0.8)
    assert answer.stop is StopReason.DEADLINE and answer.seconds < 3
    with Budget(10) as budget:
        while not server.hung_up:
            budget.check()


def test_cancelling_does_not_wait_for_the_first_token(server: StandIn, open_agent: Load, frame: Any) -> None:
    import threading

    server.say("word", pause=20)
    budget = Budget()
    threading.Timer(0.3, budget.cancel).start()
    answer = open_agent().ask(frame, "What is it?", budget=budget)
    assert answer.stop is StopReason.CANCELLED and answer.seconds < 10


def test_warm_up_and_a_second_question(server: StandIn, open_agent: Load, frame: Any) -> None:
    server.say(ANSWER, ANSWER, ANSWER)
    agent = open_agent()
    assert agent.warm_up() > 0
    with agent.session(frame) as talk:
        assert talk.ask("What is it?").text == talk.ask("And this?").text == "Lima"
    assert server.requests[1]["messages"][1]["content"][0] == server.requests[2]["messages"][1]["content"][0]


def test_what_a_server_can_not_do_is_said(server: StandIn, open_agent: Load, frame: Any, tmp_path: Any) -> None:
    with pytest.raises(GrammarError, match="runs on a server"):
        open_agent(RunOptions(grammar="on"))
    with open_agent().session(frame) as talk, pytest.raises(SessionError, match="can't be saved"):
        talk.save(tmp_path / "talk")
