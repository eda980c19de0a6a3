"""The clients of OpenAI, LangChain, LiteLLM and live-vlm-webui, against a real (tiny) policy behind a socket."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

pytest.importorskip("openai")
from pydantic import BaseModel

import gog_edge
from gog_edge.agent.options import RunOptions
from tests.serve.over_http import serving

NAME, KEY = "scripted", "secret"


@pytest.fixture(scope="module")
def address(tiny_bundle: Path) -> Iterator[str]:
    options = RunOptions(turn_tokens=12, total_tokens=24, max_turns=1, grammar="off")
    with gog_edge.load(tiny_bundle, options=options) as agent, serving(agent, key=KEY) as port:  # type: ignore[arg-type]
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture(scope="module")
def picture(photo: Path) -> dict[str, Any]:
    url = "data:image/jpeg;base64," + base64.b64encode(photo.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def messages(picture: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [picture, picture, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A boat."},
        {"role": "user", "content": "Which colour?"},
    ]


# -- openai --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def openai_client(address: str) -> Iterator[Any]:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=address, api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


def test_openai_finds_the_model(openai_client: Any) -> None:
    openai = pytest.importorskip("openai")
    assert [model.id for model in openai_client.models.list()] == [NAME]
    assert openai_client.models.retrieve(NAME).owned_by == "gog-edge"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        openai_client.models.retrieve("gpt")


def test_openai_gets_an_answer(openai_client: Any, picture: dict[str, Any]) -> None:
    reply = openai_client.chat.completions.create(model=NAME, messages=messages(picture), max_tokens=9, n=1, seed=1)
    (choice,) = reply.choices
    assert choice.message.role == "assistant" and isinstance(choice.message.content, str)
    assert choice.finish_reason in ("stop", "length")
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 0
    again = openai_client.chat.completions.create(model=NAME, messages=messages(picture), max_tokens=9, seed=1)
    assert again.choices[0].message.content == choice.message.content
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_openai_reads_the_same_from_a_stream(openai_client: Any, picture: dict[str, Any]) -> None:
    asked = {"model": NAME, "messages": messages(picture), "temperature": 0}
    whole = openai_client.chat.completions.create(**asked).choices[0]
    chunks = list(openai_client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == whole.message.content
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == [whole.finish_reason]
    assert chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


def test_openai_is_told_what_is_wrong(openai_client: Any, address: str, picture: dict[str, Any]) -> None:
    openai = pytest.importorskip("openai")
    asked: dict[str, Any] = {"model": NAME, "messages": messages(picture)}
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    wrong: list[dict[str, Any]] = [
        {"tools": [tool]},
        {"n": 2},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such"}}}},
        {"extra_body": {"surprise": 1}},
        {"messages": [{"role": "user", "content": "What?"}]},
    ]
    for change in wrong:
        with pytest.raises(openai.BadRequestError) as refused:
            openai_client.chat.completions.create(**{**asked, **change})
        assert refused.value.body["type"] == "invalid_request_error"
        assert refused.value.param == {"extra_body": "surprise"}.get(field := next(iter(change)), field)
        assert refused.value.param in refused.value.body["message"]
    with (
        openai.OpenAI(base_url=address, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_openai_gets_responses(openai_client: Any, picture: dict[str, Any]) -> None:
    image = {"type": "input_image", "image_url": picture["image_url"]["url"], "detail": "auto"}
    asked: dict[str, Any] = {
        "model": NAME,
        "input": [{"role": "user", "content": [image, {"type": "input_text", "text": "What is it?"}]}],
        "temperature": 0,
    }
    whole = openai_client.responses.create(**asked)
    assert whole.model == NAME and whole.usage.output_tokens > 0
    events = list(openai_client.responses.create(**asked, stream=True))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens


@pytest.fixture(scope="module")
def roomy(tiny_bundle: Path) -> Iterator[str]:
    """With tokens enough for an object, and grammar for nothing else."""
    pytest.importorskip("llguidance")
    options = RunOptions(turn_tokens=60, total_tokens=130, max_turns=1, grammar="off")
    with gog_edge.load(tiny_bundle, options=options) as agent, serving(agent, key=KEY) as port:  # type: ignore[arg-type]
        yield f"http://127.0.0.1:{port}/v1"


class Seen(BaseModel):
    """Nothing in it can be written without end, by a policy whose weights are random."""

    kind: Literal["boat", "bird", "</answer>"]
    sure: bool
    boxes: tuple[Literal[1, 2], Literal[3, 4]]


def test_openai_gets_an_object(roomy: str, picture: dict[str, Any]) -> None:
    """Whatever a random policy would write: by a schema, with a stream, and of any form."""
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=roomy, api_key=KEY, max_retries=0, timeout=120) as client:
        asked: dict[str, Any] = {"model": NAME, "messages": messages(picture)}
        parsed = client.chat.completions.parse(**asked, response_format=Seen).choices[0]
        assert isinstance(parsed.message.parsed, Seen) and parsed.finish_reason == "stop"
        with client.chat.completions.stream(**asked, response_format=Seen) as stream:
            pieces = [event.delta for event in stream if event.type == "content.delta"]
            assert stream.get_final_completion().choices[0].message.parsed == parsed.message.parsed
        assert len(pieces) > 2
        any_object = client.chat.completions.create(**asked, response_format={"type": "json_object"}).choices[0]
        assert (any_object.message.content or "").startswith("{")
        if any_object.finish_reason == "stop":
            assert isinstance(json.loads(any_object.message.content), dict)
        part = {"type": "input_image", "image_url": picture["image_url"]["url"], "detail": "auto"}
        said: Any = [{"role": "user", "content": [part, {"type": "input_text", "text": "What is it?"}]}]
        assert isinstance(client.responses.parse(model=NAME, input=said, text_format=Seen).output_parsed, Seen)
        large = {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(1500)}}
        with pytest.raises(openai.BadRequestError, match=r"can't follow the JSON schema: .{1,250}$"):
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": large}}
            client.chat.completions.create(**asked, response_format=form)
        with pytest.raises(openai.BadRequestError, match="Unimplemented"):
            bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "not": {}}}}
            client.chat.completions.create(**asked, response_format=bad)


# -- langchain-openai ----------------------------------------------------------------------------------------


def test_langchain_asks_and_streams(address: str, picture: dict[str, Any]) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(model=NAME, base_url=address, api_key=KEY, temperature=0, max_retries=0, timeout=120)
    reply = model.invoke(messages(picture))
    assert isinstance(reply.content, str)
    assert reply.usage_metadata["total_tokens"] > 0
    assert reply.response_metadata["model_name"] == NAME
    parts = list(model.stream(messages(picture)))
    assert "".join(part.content for part in parts) == reply.content
    newer = langchain.ChatOpenAI(
        model=NAME, base_url=address, api_key=KEY, temperature=0, max_retries=0, timeout=120, use_responses_api=True
    )
    assert newer.invoke(messages(picture)).text == reply.content
    assert "".join(str(part.text) for part in newer.stream(messages(picture))) == reply.content


def test_langchain_gets_an_object(roomy: str, picture: dict[str, Any]) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(model=NAME, base_url=roomy, api_key=KEY, temperature=0, max_retries=0, timeout=120)
    assert isinstance(model.with_structured_output(Seen, method="json_schema").invoke(messages(picture)), Seen)
    with pytest.raises(Exception, match="calls tools that it was trained on"):
        model.bind_tools([Seen]).invoke(messages(picture))


# -- litellm -------------------------------------------------------------------------------------------------


def test_litellm_asks_and_streams(address: str, picture: dict[str, Any]) -> None:
    litellm = pytest.importorskip("litellm")
    asked = {"model": f"openai/{NAME}", "api_base": address, "api_key": KEY, "temperature": 0, "num_retries": 0}
    reply = litellm.completion(**asked, messages=messages(picture))
    assert reply.usage.total_tokens > 0
    chunks = list(litellm.completion(**asked, messages=messages(picture), stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == (reply.choices[0].message.content or "")
    part = {"type": "input_image", "image_url": picture["image_url"]["url"], "detail": "auto"}
    said: Any = [{"role": "user", "content": [part, {"type": "input_text", "text": "What is it?"}]}]
    response = litellm.responses(**{k: v for k, v in asked.items() if k != "num_retries"}, input=said)
    assert response.output[0].content[0].type == "output_text"


# -- live-vlm-webui: what it asks with -----------------------------------------------------------------------


def test_live_vlm_webui_gets_an_answer(address: str, openai_client: Any, photo: Path) -> None:
    """Its service alone: the rest of the package is web server and video, which its own users install."""
    package = importlib.util.find_spec("live_vlm_webui")
    if package is None or not package.submodule_search_locations:
        pytest.skip("live-vlm-webui is not installed")
    file = Path(package.submodule_search_locations[0]) / "vlm_service.py"
    spec = importlib.util.spec_from_file_location("vlm_service", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert [model.id for model in openai_client.models.list()] == [NAME]  # how it chooses the model

    async def ask() -> tuple[str, dict[str, Any]]:
        service = module.VLMService(model=NAME, api_base=address, api_key=KEY, max_tokens=9)
        with Image.open(photo) as picture:
            said = await service.analyze_image(picture, "What is it?")
        return said, service.get_last_response_payload()

    said, reply = asyncio.run(ask())
    assert not said.startswith("Error")
    assert said == reply["choices"][0]["message"]["content"].strip()
    assert reply["usage"]["completion_tokens"] > 0
