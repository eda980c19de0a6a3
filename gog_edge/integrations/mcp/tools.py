"""The tools of the MCP server, without its SDK: what they take, what they do, what comes back."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gog_edge.agent.dispatch import Outcome, SearchDispatcher, run_in_thread
from gog_edge.deadline import Budget, seconds_of
from gog_edge.errors import ImageError, SearchError, UsageError
from gog_edge.image.frame import Frame
from gog_edge.integrations.mcp.pictures import PictureRules, open_picture
from gog_edge.integrations.plain import crop_of, looked_at, plain_answer, plain_hit
from gog_edge.runtime.telemetry import Trace
from gog_edge.search.base import IMAGE, TEXT, ImageQuery
from gog_edge.serve.wire import LONGEST_DEADLINE, count, duration, public, unicode_text
from gog_edge.types import Answer, Region

if TYPE_CHECKING:
    from gog_edge.agent.agent import Agent

RESULTS, MOST_RESULTS = 5, 100
CROP_SIDE = 768

_IMAGE = {"type": "string", "description": "A picture: http(s) address, base64 or data URL of the file, or its path."}
_QUESTION = {"type": "string", "description": "What to find out about the picture."}
_DEADLINE = {"type": ["string", "number"], "description": "Time limit, like 2s; then the best answer so far."}
_RESULTS = {"type": "integer", "minimum": 1, "maximum": MOST_RESULTS, "default": RESULTS, "description": "At most."}
_BOX = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
_REGION = {**_BOX, "description": "Search with this part only: x0, y0, x1, y1 in pixels of the upright picture."}
_TEXTS = {"type": "string"}
_HIT = {"title": _TEXTS, "text": _TEXTS, "source": _TEXTS, "score": {"type": ["number", "null"]}}
_LOOKED = {"step": {"type": "integer"}, "kind": _TEXTS, "box": _BOX, "label": _TEXTS, "found": _TEXTS}


def _object(properties: dict[str, Any], *required: str, closed: bool = True) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required or properties),
        **({"additionalProperties": False} if closed else {}),
    }


_BOXES = {"type": "array", "items": _object(_LOOKED), "description": "In pixels of the upright picture."}
_FOUND = {"type": "array", "items": _object(_HIT)}
_SIZE = {"type": "integer", "description": "Of the picture, in pixels."}
_STOP = {"type": "string", "description": "answered, forced, deadline, cancelled or exhausted."}


@dataclass(frozen=True)
class Result:
    """What a tool gives back: a text for the model, plain data for programs, JPEG pictures."""

    text: str
    data: dict[str, Any]
    pictures: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Tool:
    """One tool. `takes`, `gives`: JSON schemas of the arguments and of `Result.data`."""

    name: str
    title: str
    description: str
    takes: dict[str, Any]
    gives: dict[str, Any]
    run: Callable[[Mapping[str, Any]], Awaitable[Result]]


class Toolbox:
    """The tools around one agent. Questions run one at a time; a deadline counts while one waits for its turn."""

    def __init__(self, agent: Agent, rules: PictureRules) -> None:
        self.agent, self.rules = agent, rules
        self._turn = asyncio.Lock()

    def tools(self) -> list[Tool]:
        """All of them, in the order in which clients show them."""
        asked = {"image": _IMAGE, "question": _QUESTION, "deadline": _DEADLINE}
        facts = {"stop": _STOP, "seconds": {"type": "number"}, "boxes": _BOXES}
        return [
            Tool(
                "ask",
                "Ask about a picture",
                "Answer a question about a picture: the policy looks at regions of it, searches, and says what it "
                "found, with evidence and the boxes that it looked at.",
                _object(asked, "image", "question"),
                _object({"answer": _TEXTS, **facts, "evidence": _FOUND}),
                self._ask,
            ),
            Tool(
                "look",
                "Where to look",
                "The regions of a picture that matter for a question, as boxes and as cropped pictures, without the "
                "answer.",
                _object(asked, "image", "question"),
                _object({**facts, "width": _SIZE, "height": _SIZE}),
                self._look,
            ),
            Tool(
                "search_text",
                "Search by text",
                "Search the index, or the search provider that is set up, with words.",
                _object({"query": {"type": "string"}, "results": _RESULTS}, "query"),
                _object({"results": _FOUND}),
                self._search_text,
            ),
            Tool(
                "search_image",
                "Search by picture",
                "Search with a picture, or with a region of it, for what it shows.",
                _object({"image": _IMAGE, "region": _REGION, "label": _TEXTS, "results": _RESULTS}, "image"),
                _object({"results": _FOUND}),
                self._search_image,
            ),
        ]

    async def _ask(self, given: Mapping[str, Any]) -> Result:
        _, answer = await self._answered(given)
        text = answer.text or f"no answer ({answer.stop.value})"
        return Result(text, public(plain_answer(answer)))

    async def _look(self, given: Mapping[str, Any]) -> Result:
        frame, answer = await self._answered(given)
        looked = list(looked_at(answer))
        plain = plain_answer(answer)
        data = {key: plain[key] for key in ("stop", "seconds", "boxes")}
        lines = [f"{n}. {box_words(one.box)} {one.label}".rstrip() for n, one in enumerate(looked, 1)]
        return Result(
            "\n".join(lines) or "the policy looked at the whole picture only",
            {**data, "width": frame.width, "height": frame.height},
            tuple(_jpeg(crop_of(frame, one.box, CROP_SIDE)) for one in looked),
        )

    async def _search_text(self, given: Mapping[str, Any]) -> Result:
        query, wanted = _text(given, "query"), count(given, "results", MOST_RESULTS) or RESULTS
        return await self._search(TEXT, lambda find: find.text(query, wanted), wanted)

    async def _search_image(self, given: Mapping[str, Any]) -> Result:
        wanted = count(given, "results", MOST_RESULTS) or RESULTS
        label = _text(given, "label") if given.get("label") else ""
        frame = await self._opened(given)
        query = ImageQuery(frame, _region(given, frame), label)
        return await self._search(IMAGE, lambda find: find.image(query, wanted), wanted)

    async def _answered(self, given: Mapping[str, Any]) -> tuple[Frame, Answer]:
        question = _text(given, "question")
        deadline = duration(given, "deadline", LONGEST_DEADLINE)
        with Budget(deadline) as budget:
            try:
                frame = await asyncio.wait_for(self._opened(given), _left(budget))
            except asyncio.TimeoutError as e:
                raise ImageError(f"the picture was not there within the deadline of {deadline:g} s") from e
            async with self._turn:
                answer = await self.agent.aask(frame, question, budget=budget, deadline=_left(budget))
        return frame, answer

    async def _opened(self, given: Mapping[str, Any]) -> Frame:
        opening = run_in_thread(lambda: open_picture(given.get("image"), self.rules), "picture")
        frame: Frame = await asyncio.wrap_future(opening)
        return frame

    async def _search(self, kind: str, start: Callable[[SearchDispatcher], Future[Outcome]], wanted: int) -> Result:
        options = self.agent.options
        seconds = seconds_of(options.search_timeout)
        with Budget(seconds) as budget:
            find = SearchDispatcher(self.agent.providers, seconds, budget, Trace(), options.pictures)
            if not find.can(kind):
                raise UsageError(f"no {kind} search is set up: start the server with --index or --search")
            try:
                outcome = await asyncio.wait_for(asyncio.wrap_future(start(find)), seconds)
            except asyncio.TimeoutError as e:
                raise SearchError(f"the search took longer than {seconds:g} s") from e
            finally:
                budget.cancel()
        if outcome.error:
            raise SearchError(outcome.error)
        hits = [plain_hit(hit) for hit in outcome.hits[:wanted]]
        lines = [f"{n}. {hit['title']}: {hit['text']}" for n, hit in enumerate(hits, 1)]
        return Result("\n".join(lines) or "nothing was found", public({"results": hits}))


def check(tool: Tool, given: Mapping[str, Any]) -> None:
    """Whether the arguments are those of the tool; their values are looked at where they are used.

    Raises:
        UsageError: one is unknown or missing.
    """
    known = tool.takes["properties"]
    for name in given:
        if name not in known:
            raise UsageError(f"{tool.name} has no argument {name!r}: it takes {', '.join(known)}")
    for name in tool.takes["required"]:
        if given.get(name) in (None, ""):
            raise UsageError(f"{tool.name}: {name} is missing")


def box_words(box: Region) -> str:
    """'[120, 40, 310, 200]', in whole pixels."""
    return f"[{', '.join(str(round(v)) for v in box.as_tuple())}]"


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{name} is missing, or no text")
    return unicode_text(value, name)


def _region(given: Mapping[str, Any], frame: Frame) -> Region | None:
    box = given.get("region")
    if box is None:
        return None
    if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
        raise UsageError("region must be four numbers: x0, y0, x1, y1 in pixels")
    return Region(*map(float, box)).clamp(frame.width, frame.height)


def _left(budget: Budget) -> float | None:
    """The rest of the budget as a deadline, so that time for an answer is kept; None if it has no end."""
    left = budget.remaining()
    return None if left == float("inf") else max(left, 1e-3)


def _jpeg(picture: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=90)
    return out.getvalue()
