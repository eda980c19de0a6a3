"""What the service offers, as an OpenAPI 3.1 description, and that as a page without a script."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

from gog_edge._version import __version__
from gog_edge.serve.fields import ASK, CHAT, RESPONSES, Field
from gog_edge.serve.formats import LARGEST_SEED, MOST_TOKENS
from gog_edge.serve.limits import ServeLimits
from gog_edge.serve.wire import LONGEST_DEADLINE, MOST_TURNS

_TEXT = {"type": "string"}
_FLAG = {"type": ["boolean", "null"]}
_REF = "#/components/schemas/"


def openapi_json(limits: ServeLimits) -> dict[str, Any]:
    """The description of a server with these limits."""
    asked = {
        "type": "object",
        "properties": _described(ASK, _ASK),
        "required": ["image", "question"],
        "additionalProperties": False,
    }
    chat = {
        "type": "object",
        "properties": _described(CHAT, _CHAT),
        "required": ["messages"],
        "additionalProperties": False,
    }
    responses = {
        "type": "object",
        "properties": _described(RESPONSES, _RESPONSES),
        "required": ["input"],
        "additionalProperties": False,
    }
    error = {"type": "object", "properties": {"error": {"type": ["string", "object"]}}, "required": ["error"]}
    event = {"type": "object", "properties": {"type": {"enum": list(_EVENTS)}}, "required": ["type"]}
    completion = {"type": "object", "properties": _COMPLETION, "required": list(_COMPLETION)}
    response = {"type": "object", "properties": {"type": _TEXT, "object": {"const": "response"}}}
    schemas = {"Ask": asked, "Chat": chat, "Event": event, "Completion": completion, "Error": error}
    schemas |= {"Responses": responses, "Response": response}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gog-edge",
            "version": __version__,
            "description": f"Questions about pictures. Bodies of up to {limits.body >> 20} MiB.",
        },
        "paths": {
            "/v1/ask": _post("Ask", "Event", "Ask one question; with stream each event is sent as it happens."),
            "/v1/chat/completions": _post("Chat", "Completion", "OpenAI's chat completions, with a picture."),
            "/v1/responses": _post("Responses", "Response", "OpenAI's responses, with a picture; nothing is stored."),
            "/v1/models": _get("The bundle that answers.", "application/json"),
            "/v1/models/{name}": {"parameters": [_NAME], **_get("The bundle by its name.", "application/json")},
            "/healthz": _get("Whether the server is up; needs no key.", "application/json"),
            "/metrics": _get("Counters for Prometheus.", "text/plain"),
            "/openapi.json": _get("This description; needs no key.", "application/json"),
            "/docs": _get("This description as a page; needs no key.", "text/html"),
            "/": _get("A page to ask from; needs no key itself.", "text/html"),
        },
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }


def openapi_page(description: Mapping[str, Any]) -> str:
    """The description for people."""
    parts = [_HEAD, f"<h1>{_html(description['info']['title'])} {_html(description['info']['version'])}</h1>"]
    parts.append(f"<p>{_html(description['info']['description'])} <a href='/openapi.json'>openapi.json</a></p>")
    for path, item in description["paths"].items():
        for method in item.keys() & {"get", "post"}:
            operation = item[method]
            replies = ", ".join(f"{code} {reply['description']}" for code, reply in operation["responses"].items())
            parts.append(f"<h2>{method.upper()} {_html(path)}</h2><p>{_html(operation['summary'])}</p>")
            parts.append(f"<p class='soft'>{_html(replies)}</p>")
    for name, schema in description["components"]["schemas"].items():
        text = json.dumps(schema, indent=2, ensure_ascii=False)
        parts.append(f"<h2 id='{name}'>{name}</h2><pre tabindex='0'>{_html(text)}</pre>")
    return "\n".join([*parts, "</main></body></html>"])


def _described(fields: Mapping[str, Field], types: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The properties of a body: what they may be, and what is done with them."""
    return {
        name: {**_values(field, types.get(name, {})), "description": _said(field)} for name, field in fields.items()
    }


def _values(field: Field, stated: dict[str, Any]) -> dict[str, Any]:
    return {"enum": [None, *field.harmless]} if field.how == "refused" else stated


def _said(field: Field) -> str:
    return field.why if field.how == "honoured" else f"{field.how}: {field.why}"


def _html(text: str) -> str:
    return html.escape(text)


def _post(body: str, reply: str, summary: str) -> dict[str, Any]:
    content = {kind: {"schema": {"$ref": _REF + reply}} for kind in ("application/json", "text/event-stream")}
    replies = {"200": {"description": "the answer, or events that end with [DONE]", "content": content}}
    replies |= {code: _refused(text) for code, text in _REFUSALS.items()}
    sent = {"required": True, "content": {"application/json": {"schema": {"$ref": _REF + body}}}}
    return {"post": {"summary": summary, "requestBody": sent, "responses": replies}}


def _get(summary: str, kind: str) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": {"200": {"description": "found", "content": {kind: {}}}}}}


def _refused(text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": {"$ref": _REF + "Error"}}}}


def _number(most: float, kind: str = "number", *, zero: bool = False) -> dict[str, Any]:
    least = {"minimum": 0} if zero else {"exclusiveMinimum": 0}
    return {"type": [kind, "null"], "maximum": most, **least}


_HEAD = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>gog-edge: addresses</title>'
    '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
    '<link rel="stylesheet" href="/page.css"></head>'
    '<body><main class="manual">'
)
_NAME = {"name": "name", "in": "path", "required": True, "schema": _TEXT}
_EVENTS = ("notice", "token", "text", "action", "box", "observation", "answer", "error")
_REFUSALS = {
    "400": "something is wrong with the body",
    "401": "the key is missing or wrong",
    "403": "this host name or origin is not allowed",
    "413": "the body is too large",
    "429": "too many questions are waiting",
    "500": "the question failed",
    "503": "the server is full or stopping",
}
_OURS = {
    "deadline": {"type": ["number", "string", "null"], "maximum": LONGEST_DEADLINE},
    "max_turns": _number(MOST_TURNS, "integer"),
}
_ASK: dict[str, dict[str, Any]] = {
    "image": {"type": "string", "minLength": 1},
    "question": {"type": "string", "minLength": 1},
    **_OURS,
    "stream": _FLAG,
}
_FORMAT = {"type": ["object", "null"], "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}}}
_COMMON = {
    **_OURS,
    "stream": _FLAG,
    "temperature": _number(2, zero=True),
    "top_p": _number(1),
    "top_k": _number(1 << 30, "integer", zero=True),
    "min_p": {"type": ["number", "null"], "minimum": 0, "exclusiveMaximum": 1},
    "repetition_penalty": {"type": ["number", "null"], "exclusiveMinimum": 0, "exclusiveMaximum": 100},
}
_MESSAGE = {
    "type": "object",
    "properties": {"role": {"enum": ["system", "developer", "user", "assistant"]}},
    "required": ["role"],
}
_CHAT: dict[str, dict[str, Any]] = {
    "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
    "stream_options": {"type": ["object", "null"], "properties": {"include_usage": _FLAG}},
    "seed": _number(LARGEST_SEED, "integer", zero=True),
    "max_tokens": _number(MOST_TOKENS, "integer"),
    "max_completion_tokens": _number(MOST_TOKENS, "integer"),
    "stop": {"type": ["string", "array", "null"], "items": _TEXT, "maxItems": 16},
    "response_format": _FORMAT,
    **_COMMON,
}
_RESPONSES: dict[str, dict[str, Any]] = {
    "input": {"type": ["string", "array"], "minItems": 1, "items": _MESSAGE},
    "instructions": {"type": ["string", "null"]},
    "max_output_tokens": _number(MOST_TOKENS, "integer"),
    "text": {"type": ["object", "null"], "properties": {"format": _FORMAT}},
    **_COMMON,
}
_COMPLETION: dict[str, Any] = {
    "id": _TEXT,
    "object": {"enum": ["chat.completion", "chat.completion.chunk"]},
    "created": {"type": "integer"},
    "model": _TEXT,
    "choices": {"type": "array"},
}
