"""What a dialect file can say: one frozen dataclass per table, documented key by key (see docs/dialects.md)."""

# ruff: noqa: RUF009 - wording() makes dataclass fields

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gog_edge.dialects.reader import wording
from gog_edge.dialects.wording import Wording
from gog_edge.types import PixelLimits

SCHEMA = 1

KindName = Literal["answer", "text_search", "glance", "gaze", "zoom", "visit", "refuse"]
OBSERVED = ("glance", "gaze", "zoom", "text_search", "visit", "invalid")
FrameName = Literal["family", "unit", "thousand", "shown", "original"]

RESULT_NAMES = ("n", "title", "text", "source", "score", "detail", "thumbnail", "entity", "picture")
REPLY_NAMES = ("error", "tool", "call", "missing", "image", "count")
SYSTEM_NAMES = ("tools", "image_count", "date")
USER_NAMES = ("question", "images", *SYSTEM_NAMES)


@dataclass(frozen=True)
class ChatSpec:
    """[chat] `template`: "checkpoint" (the bundle's, else the package's ChatML) or a file beside the dialect.
    `variables`: values handed to the template."""

    template: str = "checkpoint"
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptSpec:
    """[prompt] the first turn. `system_file`/`user_file` (beside the dialect) replace `system`/`user`. `tools` in a
    wording are the `json` of [[tools]] as written, one a line; else they go through the chat template.
    `image` is written for every user image; `several` is added to the system text when there are two or more.
    `usual` is what to ask where nobody said: a question that suits any picture of the policy's world.
    `follow_up` false: earlier questions of a conversation are kept from the policy, which was trained on one alone."""

    system: Wording = wording(*SYSTEM_NAMES)
    user: Wording = wording(*USER_NAMES)
    image: Wording = wording("image", "n", "width", "height")
    several: str = ""
    usual: str = ""
    follow_up: bool = True
    system_file: str = ""
    user_file: str = ""


@dataclass(frozen=True)
class ToolSpec:
    """[[tools]] `json`: the entry of the tools block as the policy was trained on it, with its key order."""

    json: str


@dataclass(frozen=True)
class ActionSpec:
    """[[actions]] one thing that the policy can write, and what it means.

    `via`: tool_call (JSON with `name`), function_xml (Qwen3.5's calls), json (a bare object between tags), tag (text
    between tags), literal (exactly this text), code (a call of `name` in a code block), boxed (`\\boxed{…}`).
    `args`: role -> key of the JSON object, or several keys: alternatives, for a box four of them are its numbers.
    Roles: box, label, query, image, limit, url. For a tag: `content` says which role the text between the tags has;
    box_or_label is a box with words around it, or words alone (answered with `replies.ground`).
    `unused` is a role for keys that the policy writes and nobody reads.
    `required`: roles that must be present; `always`: roles that are written always, though a call is read without
    them. `lists`: queries, addresses and images are written as lists, of which the `first` item counts or `each` is
    an action of its own (a list of images goes with a list of boxes, pair by pair).
    `kind` refuse: known, answered with `replies.refused`.
    """

    kind: KindName
    via: str
    name: str = ""
    open: str = ""
    close: str = ""
    literal: str = ""
    content: Literal["text", "query", "box", "label", "url", "box_or_label", "none"] = "text"
    args: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    always: tuple[str, ...] = ()
    lists: Literal["", "first", "each"] = ""


@dataclass(frozen=True)
class ParseSpec:
    """[parse] how a turn is read.

    `think_open`, `think_close`: tags of the reasoning. `scope`: where actions are looked for; after_think falls back
    to the whole turn when the reasoning is not closed. `pick`: which calls of a turn count. `answer`: first (a call
    before the answer cancels it), wins (an answer anywhere ends the question), last (only if nothing follows it) or
    alone (only in a turn without a call).
    `at_end`: a call counts only as the last thing of the turn.
    `otherwise`: what a turn without any action is: an error, or the answer itself.
    """

    think_open: str = "<think>"
    think_close: str = "</think>"
    scope: Literal["after_think", "all"] = "after_think"
    pick: Literal["all", "first", "last"] = "all"
    answer: Literal["first", "wins", "last", "alone"] = "first"
    at_end: bool = False
    otherwise: Literal["error", "answer"] = "error"


@dataclass(frozen=True)
class CoordinateSpec:
    """[coordinates] the policy's numbers.

    `frame`: unit (0-1), thousand (0-1000), shown (pixels of the target image as the policy saw it, after
    smart_resize or before it with `scale_first`), original (pixels of the target image at native size), family
    (thousand for Qwen3-VL, shown for Qwen2.5-VL). `inverted`: swap the corners, or refuse. A box is cut to the image.
    `whole_pixels` of the target: outward (the crop takes every pixel that the box touches), nearest (edges rounded,
    half to even), cut (edges rounded down, in the arithmetic of fractions of a side), or down (the same, the image's
    last row and column left out). `min_side`: smallest side in pixels of the target; `min_side_rule`: grow the short
    side about the centre, scale both sides, or refuse. `max_aspect`: longest side over shortest, 0 is no limit.
    `decimals`: digits that are written.
    """

    frame: FrameName = "family"
    inverted: Literal["swap", "refuse"] = "swap"
    min_side: float = 0.0
    min_side_rule: Literal["grow", "scale", "refuse"] = "grow"
    max_aspect: float = 0.0
    whole_pixels: Literal["outward", "nearest", "cut", "down"] = "outward"
    decimals: int = 0


@dataclass(frozen=True)
class ImagesSpec:
    """[images] which images a call can name, and how.

    `scope`: user (the question's images), all (crops and result pictures too). `default`: the target of a call that
    names none. `reference`: index0, index1, or a pattern with `{n}` such as `img_{n}`; `first`: the number of
    registry image 0 in it. `aliases`: words for fixed registry images. Any other name is refused.
    """

    scope: Literal["user", "all"] = "all"
    default: Literal["first", "last"] = "first"
    reference: str = "index0"
    first: int = 0
    aliases: Mapping[str, int] = field(default_factory=dict)


_BODY = (
    "results", "thumbnails", "crop", "label", "query", "question", "image", "step", "step_before", "shown", "width",
    "height", "box", "page", "count", "url", "after", "place",
)  # fmt: skip


@dataclass(frozen=True)
class BodySpec:
    """[observe.KIND] the observation of one action, of invalid for one that can't be used; keys that a kind does not
    have come from [observe.default].

    `body`: with results. `result`: one result, `result_between` between two; `score`, `detail` (when the result has a
    text) and `thumbnail` are its optional parts; `bare` replaces it when pictures are shown but this result has none.
    Pictures are shown where there is a `thumbnail` or `{thumbnails}` in the body, the crop where there is a `crop`.
    `empty`: no result. `failed`: the provider failed. `each`: the wrapper of all of these; `{place}` counts the turn's
    observations from 0. `between`: before this observation when it is not the turn's first, `begin`: when it is.
    `after`: instructions, `after_file` (beside the dialect) replaces them.
    """

    each: Wording = wording("body", *_BODY)
    body: Wording = wording(*_BODY)
    result: Wording = wording(*RESULT_NAMES)
    bare: Wording = wording(*RESULT_NAMES)
    result_between: str = "\n"
    score: Wording = wording("score")
    detail: Wording = wording("text")
    thumbnail: Wording = wording("image", "n")
    crop: Wording = wording("image", "shown", "width", "height", "box", "label", "step", "step_before")
    empty: Wording = wording(*_BODY)
    failed: Wording = wording("error", *_BODY)
    after: Wording = wording("question")
    after_file: str = ""
    between: str = ""
    begin: str = ""

    @property
    def shows_thumbnails(self) -> bool:
        """Whether the policy sees the pictures of results."""
        return bool(self.thumbnail) or "thumbnails" in self.body.names()


@dataclass(frozen=True)
class RepliesSpec:
    """[replies] what the policy is told when a call can't be used; `call` is what it wrote. Defaults: `malformed`.

    `nothing`: no call and no answer. `malformed`: an unreadable call. `unknown_tool`, `argument` (`missing`, or of the
    wrong type), `surplus` (arguments of an action that has none; with this reply such a call is written without an
    arguments key), `box`, `image` (`image`: the name that no image has, `count`: how many there are), `refused`
    (known, not run here), `limit` (used up), `ground` (words without a box).
    """

    nothing: Wording = wording("error")
    malformed: Wording = wording(*REPLY_NAMES)
    unknown_tool: Wording = wording(*REPLY_NAMES)
    argument: Wording = wording(*REPLY_NAMES)
    surplus: Wording = wording(*REPLY_NAMES)
    box: Wording = wording(*REPLY_NAMES)
    image: Wording = wording(*REPLY_NAMES)
    refused: Wording = wording(*REPLY_NAMES)
    limit: Wording = wording(*REPLY_NAMES)
    ground: Wording = wording(*REPLY_NAMES)


@dataclass(frozen=True)
class ForcedSpec:
    """[forced] the turn that asks for an answer now. `prefill`: how the policy's text is begun for it.
    `append`: written at the end of the result turn before the last one instead, for `observe(last=True)`."""

    user: Wording = wording("question")
    prefill: str = ""
    append: Wording = wording("question")


@dataclass(frozen=True)
class DialectLimits:
    """[limits] Counts are per question; 0 means none.

    `turns`: generation rounds before the forced answer; with `forced.append` the last of them is the answer that was
    asked for. `calls`: searches, crops and visits together.
    `image_searches`: glance and gaze. `text_searches`. `zooms`: crops without a search. `results`: shown of a search.
    `turn_tokens`/`total_tokens`: generated in one turn / in all. `errors_in_row`: INVALID turns in a row before the
    forced answer. `title_chars`, `result_chars`, `page_chars`: kept of a title, a result's text, a page.
    `image`, `crop`, `thumbnail`: tables of `PixelLimits`, for the user's images, crops and results' pictures.
    With `scale_first` the frame `shown` counts pixels of the scaled picture.
    """

    turns: int = 8
    calls: int = 0
    image_searches: int = 0
    text_searches: int = 0
    zooms: int = 0
    results: int = 3
    turn_tokens: int = 1024
    total_tokens: int = 8192
    errors_in_row: int = 3
    title_chars: int = 200
    result_chars: int = 600
    page_chars: int = 4000
    image: PixelLimits = field(default_factory=PixelLimits)
    crop: PixelLimits = field(default_factory=PixelLimits)
    thumbnail: PixelLimits = field(default_factory=PixelLimits)


@dataclass(frozen=True)
class SamplingSpec:
    """[sampling] how tokens are chosen, where the policy was run otherwise than its generation_config.json says.

    `temperature` (0 is greedy), `top_k`, `top_p`, `min_p`, `repetition_penalty`: a key that is left out is the
    checkpoint's; what the user asks for comes first.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True)
class GrammarSpec:
    """[grammar] `lark`: a grammar for llguidance that replaces the generated one; `enabled` false: none is offered."""

    enabled: bool = True
    lark: str = ""


@dataclass(frozen=True)
class DialectSpec:
    """The whole file. `schema`: 1. `name`. `description` and `source` are for readers. `stop`: strings that end a turn;
    they stay in it. `hooks`: what this system alone does, see `hooks.HOOKS`."""

    schema: int
    name: str
    description: str = ""
    source: str = ""
    stop: tuple[str, ...] = ()
    chat: ChatSpec = field(default_factory=ChatSpec)
    prompt: PromptSpec = field(default_factory=PromptSpec)
    tools: tuple[ToolSpec, ...] = ()
    actions: tuple[ActionSpec, ...] = ()
    parse: ParseSpec = field(default_factory=ParseSpec)
    coordinates: CoordinateSpec = field(default_factory=CoordinateSpec)
    images: ImagesSpec = field(default_factory=ImagesSpec)
    observe: Mapping[str, BodySpec] = field(default_factory=dict)
    replies: RepliesSpec = field(default_factory=RepliesSpec)
    forced: ForcedSpec = field(default_factory=ForcedSpec)
    limits: DialectLimits = field(default_factory=DialectLimits)
    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    grammar: GrammarSpec = field(default_factory=GrammarSpec)
    hooks: str = ""
