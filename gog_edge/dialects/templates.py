"""Chat-template rendering: the checkpoint's own jinja2 template, sandboxed, into segments.

User text never goes through the template. Messages hold sentinels, the rendered prompt is cut at them, and the
pieces between are `Control`: so a template can place text and images, but text can not become part of the template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import Any, NoReturn

from gog_edge.errors import DialectError
from gog_edge.types import Control, ImagePart, Segment, Text

IMAGE_MARKUP = "<|vision_start|><|image_pad|><|vision_end|>"
MAX_TEMPLATE_CHARS = 200_000
MAX_PROMPT_CHARS = 2_000_000

_SENTINEL = re.compile("\U000f60e0([TI])([0-9]+)\U000f60e1")
_TOOLS_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


@dataclass(frozen=True)
class Message:
    """One message; `content` mixes wording, outside text and images. `role`: system, user or assistant."""

    role: str
    content: tuple[Segment, ...]


@dataclass(frozen=True)
class TurnFrame:
    """What a template writes between the policy's own tokens and the next turn.

    `to_user`: closes the assistant turn and opens a user turn. `to_assistant`: closes the user turn and opens an
    assistant turn, with the think prefill of thinking checkpoints. `prefill`: the part of `to_assistant` that is the
    beginning of the policy's own text (empty or `<think>\\n`).
    """

    to_user: str
    to_assistant: str
    prefill: str


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the jinja2 text, as in `chat_template.jinja`.
        variables: extra values for the template, such as `enable_thinking` or `eos_token`.

    Raises:
        DialectError: the template has a syntax error or is too large.
    """

    def __init__(self, source: str, variables: Mapping[str, Any] | None = None) -> None:
        import jinja2
        from jinja2 import meta

        if len(source) > MAX_TEMPLATE_CHARS:
            raise DialectError(f"chat template has {len(source)} characters, more than {MAX_TEMPLATE_CHARS}")
        self._variables = dict(variables or {})
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            names = meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise DialectError(f"chat template, line {error.lineno}: {error.message}") from error
        self.takes_tools = "tools" in names
        self.takes_images = "image" in source and ("<|image_pad|>" in source or "image_token" in names)

    @classmethod
    def default(cls, variables: Mapping[str, Any] | None = None) -> ChatTemplate:
        """The Qwen-style ChatML template of this package, for tokenizers that ship none."""
        source = files("gog_edge.dialects").joinpath("chatml.jinja").read_text(encoding="utf-8")
        return cls(source, variables)

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, generate: bool = True
    ) -> list[Segment]:
        """The conversation as segments; `generate` adds the opening of the assistant turn.

        A template without a `tools` variable gets Qwen's tools block in the system message instead.

        Raises:
            DialectError: the template raised, dropped a piece of the conversation or changed the number of images.
        """
        if tools and not self.takes_tools:
            messages, tools = _with_tools_block(messages, tools), ()
        texts: list[Text] = []
        images: list[ImagePart] = []
        values = [{"role": message.role, "content": self._content(message, texts, images)} for message in messages]
        rendered = self._run(values, [dict(tool) for tool in tools], generate)
        return _cut(rendered, texts, images)

    @cached_property
    def frame(self) -> TurnFrame:
        """The turn markers, read off a rendered probe conversation.

        Raises:
            DialectError: the template drops messages, so that nothing can be appended after its own prompt.
        """
        probe = [
            Message("user", (Text("U"),)),
            Message("assistant", (Text("A"),)),
            Message("user", (Text("V"),)),
        ]
        parts = self.render(probe)
        found = [i for i, part in enumerate(parts) if isinstance(part, Text) and part.text in ("A", "V")]
        if len(found) != 2 or found[1] != found[0] + 2 or found[1] + 2 != len(parts):
            raise DialectError("chat template: an assistant turn between two user turns is not rendered in order")
        to_user, to_assistant = parts[found[0] + 1], parts[found[1] + 1]
        assert isinstance(to_user, Control) and isinstance(to_assistant, Control)
        bare = self.render(probe[2:], generate=False)[-1]
        assert isinstance(bare, Control)
        opening = to_assistant.text[len(bare.text) :] if to_assistant.text.startswith(bare.text) else ""
        think = opening.find("<think>")
        prefill = opening[think:] if think >= 0 else ""
        return TurnFrame(to_user.text, to_assistant.text, prefill)

    def _content(self, message: Message, texts: list[Text], images: list[ImagePart]) -> Any:
        """Content for jinja2: a string, or a list of parts where the template places images itself."""
        parts: list[dict[str, str]] = []
        for segment in message.content:
            if isinstance(segment, ImagePart):
                images.append(segment)
                sentinel = _text(f"\U000f60e0I{len(images) - 1}\U000f60e1")
                parts.append({"type": "image"} if self.takes_images else sentinel)
            elif isinstance(segment, Text):
                texts.append(segment)
                parts.append(_text(f"\U000f60e0T{len(texts) - 1}\U000f60e1"))
            else:
                if "\U000f60e0" in segment.text or "\U000f60e1" in segment.text:
                    raise DialectError("prompt wording holds a reserved private-use character (U+F60E0, U+F60E1)")
                parts.append(_text(segment.text))
        if all(part["type"] == "text" for part in parts):
            return "".join(part["text"] for part in parts)
        merged: list[dict[str, str]] = []
        for part in parts:
            if merged and part["type"] == "text" and merged[-1]["type"] == "text":
                merged[-1] = _text(merged[-1]["text"] + part["text"])
            else:
                merged.append(part)
        return merged

    def _run(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], generate: bool) -> str:
        import jinja2

        # transformers always passes tools and documents: a template may ask whether they are defined, or none
        given = {"tools": tools or None, "documents": None, "add_generation_prompt": generate}
        context = {"messages": messages, **given, **self._variables}
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(**context):
                size += len(piece)
                if size > MAX_PROMPT_CHARS:
                    raise DialectError(f"chat template wrote more than {MAX_PROMPT_CHARS} characters")
                pieces.append(piece)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            if isinstance(error, DialectError):
                raise
            raise DialectError(f"chat template failed: {error}") from error
        return "".join(pieces)


@lru_cache(maxsize=1)
def _environment() -> Any:
    """Jinja2 as `transformers` sets it up, immutable, with bounded repetition."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if not all(isinstance(v, (int, float)) and abs(v) < 1e6 for v in (left, right)):
                raise DialectError(f"chat template: '{operator}' is allowed for small numbers only")
            return SandboxedEnvironment.call_binop(self, context, operator, left, right)

    class Generation(Extension):
        """`{% generation %}` marks what the policy writes, for training; here its content is simply written."""

        tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            # a call block, as in transformers: what is set inside is not seen outside
            return nodes.CallBlock(self.call_method("written"), [], [], body).set_lineno(line)

        def written(self, caller: Any) -> Any:
            return caller()

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message: str) -> NoReturn:
        raise DialectError(f"chat template: {message}")

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = _now
    return environment


def join_segments(segments: Iterable[Segment]) -> list[Segment]:
    """The same conversation with empty pieces dropped and neighbours of one kind merged."""
    out: list[Segment] = []
    for segment in segments:
        last = out[-1] if out else None
        if isinstance(segment, ImagePart):
            out.append(segment)
        elif not segment.text:
            continue
        elif isinstance(segment, Control) and isinstance(last, Control):
            out[-1] = Control(last.text + segment.text)
        elif isinstance(segment, Text) and isinstance(last, Text):
            out[-1] = Text(last.text + segment.text)
        else:
            out.append(segment)
    return out


def _now(format_: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(format_)


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _cut(rendered: str, texts: Sequence[Text], images: Sequence[ImagePart]) -> list[Segment]:
    """Rendered prompt -> segments, at the sentinels and at the vision markup."""
    out: list[Segment] = []
    seen_texts: set[int] = set()
    seen_images: list[int] = []

    def literal(piece: str) -> None:
        for i, run in enumerate(piece.split(IMAGE_MARKUP)):
            if i:
                if len(seen_images) >= len(images):
                    raise DialectError(f"chat template wrote more images than the {len(images)} of the conversation")
                out.append(images[len(seen_images)])
                seen_images.append(len(seen_images))
            out.append(Control(run))

    at = 0
    for match in _SENTINEL.finditer(rendered):
        literal(rendered[at : match.start()])
        at = match.end()
        index = int(match.group(2))
        if match.group(1) == "T":
            seen_texts.add(index)
            out.append(texts[index])
        else:
            seen_images.append(index)
            out.append(images[index])
    literal(rendered[at:])
    if len(seen_texts) != len(texts):
        raise DialectError("chat template dropped a part of the conversation's text")
    if len(seen_images) != len(images):
        raise DialectError(f"chat template wrote {len(seen_images)} of the conversation's {len(images)} images")
    return join_segments(out)


def _with_tools_block(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Qwen's tools block appended to the system message, as Qwen's own templates write it."""
    block = _TOOLS_HEAD + "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools) + _TOOLS_TAIL
    head = messages[0] if messages and messages[0].role == "system" else None
    if head is None:
        return [Message("system", (Control(block),)), *messages]
    return [Message("system", (*head.content, Control("\n\n" + block))), *messages[1:]]
