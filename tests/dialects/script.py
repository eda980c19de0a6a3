"""One scripted conversation for every dialect: what the policy writes, what comes back. Used by the golden tests.

python -m tests.dialects.script --write      (rewrites tests/golden/* after a deliberate change)
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from gog_edge import dialects
from gog_edge.dialects import Dialect
from gog_edge.runtime.tokenizer import Tokenizer
from gog_edge.types import (
    Action,
    ActionKind,
    Control,
    Hit,
    ImagePart,
    Observation,
    Region,
    RegisteredImage,
    Segment,
    Text,
    Turn,
)
from tests.dialects.helpers import CACHE
from tests.dialects.scenes import PHOTO, Part, families, faults, read, several_images, thinking

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
QUESTION = "When was the tower in this picture finished?"
ANSWER = "1889"
BOX = Region(100, 80, 500, 400)
HITS = (
    Hit(
        "Iron tower",
        "A tower of wrought iron.\nIt has three levels.",
        "https://a.example/tower",
        0.9312,
        "tower",
        "p/1.jpg",
    ),
    Hit("Other tower", "", "https://b.example/other", 0.5),
)
ACTIONS = {
    "glance": Action(ActionKind.GLANCE),
    "gaze": Action(ActionKind.GAZE, region=BOX, label="the tower"),
    "zoom": Action(ActionKind.ZOOM, region=BOX, label="the tower"),
    "text_search": Action(ActionKind.TEXT_SEARCH, "iron tower year"),
    "visit": Action(ActionKind.VISIT, "https://a.example/tower", label="the year"),
    "answer": Action(ActionKind.ANSWER, ANSWER),
}
BROKEN = '<tool_call>\n{"name": "no_such_tool", "arguments": {}}\n</tool_call>'


def write_turn(dialect: Dialect, kind: str) -> str:
    """What the policy writes for one action, with its reasoning."""
    parse = dialect.spec.parse
    thought = f"{parse.think_open}I need to look.{parse.think_close}" if parse.think_open else ""
    return f"{thought}\n{dialect.write(ACTIONS[kind], [PHOTO])}"


def kinds(dialect: Dialect) -> list[str]:
    """The kinds of action the dialect has, in a fixed order, the answer last."""
    own = {action.kind for action in dialect.spec.actions} | {"answer"}
    return [kind for kind in ACTIONS if kind in own]


def observed(dialect: Dialect, turn: Turn, registry: list[RegisteredImage]) -> list[Observation]:
    """What comes back: hits, a shown crop, thumbnails, as the dialect wants them; grows the registry."""
    out = []
    for action in turn.actions:
        shown = None
        if action.region is not None and dialect.shows_crop(action.kind):
            shown = len(registry)
            registry.append(RegisteredImage(shown, 1000, 800, 448, 352, action.region, 0))
        hits = () if action.kind in (ActionKind.ZOOM, ActionKind.VISIT, ActionKind.INVALID) else HITS
        thumbnails: tuple[int | None, ...] = ()
        if hits and dialect.shows_thumbnails(action.kind):
            thumbnails = (len(registry), None)
            registry.append(RegisteredImage(len(registry), 320, 240, 320, 256, None, len(registry)))
        page = "The tower was finished in 1889." if action.kind is ActionKind.VISIT else ""
        out.append(Observation(action, hits, text=page, shown=shown, thumbnails=thumbnails))
    return out


def transcript(name: str) -> list[Part]:
    """Everything that a golden file holds."""
    dialect = dialects.load(name)
    return [*conversation(dialect), *faults(dialect), *several_images(dialect), *families(name), *thinking(name)]


def conversation(dialect: Dialect) -> list[Part]:
    """(who wrote it, segments) of one question with every action; the policy's own turns are `Control`."""
    registry = [PHOTO]
    out: list[Part] = [("prompt", dialect.opening(QUESTION, 1, registry))]
    asked = [kind for kind in kinds(dialect) if kind != "answer"]
    for step, kind in enumerate(asked, start=1):
        text = write_turn(dialect, kind)
        turn = dialect.parse(text, registry[:1])
        out += [(f"policy: {kind}", [Control(text)]), read(turn)]
        observations = observed(dialect, turn, registry)
        segments = dialect.observe(turn, observations, question=QUESTION, step=step, images=registry)
        out.append((f"result: {kind}", segments))
    turn = dialect.parse(BROKEN, registry)
    if turn.actions[0].kind is ActionKind.INVALID:
        out.append(("policy: broken", [Control(BROKEN)]))
        out.append(("result: broken", dialect.observe(turn, observed(dialect, turn, registry), step=len(asked) + 1)))
    if asked:
        turn = dialect.parse(write_turn(dialect, asked[0]), registry[:1])
        nothing = [Observation(action) for action in turn.actions]
        out.append((f"result: {asked[0]}, nothing found", dialect.observe(turn, nothing, question=QUESTION)))
        failed = [Observation(action, error="the provider timed out") for action in turn.actions]
        last = dialect.observe(turn, failed, question=QUESTION, last=True)
        out.append((f"result: {asked[0]}, failed, last turn", last))
    out.append(("forced", dialect.forced_answer(QUESTION)))
    text = write_turn(dialect, "answer")
    return [*out, ("policy: answer", [Control(text)]), read(dialect.parse(text, registry[:1]))]


def readable(segments: list[Segment]) -> str:
    """Segments as text: outside text in ⟦…⟧, images as [image N]."""
    out = ""
    for segment in segments:
        if isinstance(segment, ImagePart):
            out += f"[image {segment.image}]"
        else:
            out += f"⟦{segment.text}⟧" if isinstance(segment, Text) else segment.text
    return out


def golden(name: str) -> str:
    """The golden text of one dialect."""
    return "".join(f"=== {who}\n{readable(segments)}\n" for who, segments in transcript(name))


def token_ids(tokenizer: Tokenizer, segments: list[Segment]) -> list[int]:
    """Ids of segments, an image as its start, one pad and its end."""
    image = [tokenizer.special[f"<|{n}|>"] for n in ("vision_start", "image_pad", "vision_end")]
    return [i for part in tokenizer.encode(segments) for i in (image if isinstance(part, ImagePart) else part)]


def token_digests(tokenizer: Tokenizer) -> dict[str, dict[str, str]]:
    """Of every dialect: SHA-256 over the ids of what is appended to the conversation, part by part."""
    out: dict[str, dict[str, str]] = {}
    for name in dialects.names():
        digests = out[name] = {}
        for who, segments in transcript(name):
            if who != "read":
                ids = json.dumps(token_ids(tokenizer, segments))
                digests[who] = hashlib.sha256(ids.encode()).hexdigest()[:16]
    return out


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.dialects.script --write")
    GOLDEN.mkdir(exist_ok=True)
    for dialect_name in dialects.names():
        (GOLDEN / f"{dialect_name}.txt").write_text(golden(dialect_name), encoding="utf-8", newline="\n")
    if not (CACHE / "tokenizer.json").is_file():
        sys.exit("token digests are not rewritten: python tests/tools/fetch_qwen3_tokenizer.py")
    written = json.dumps(token_digests(Tokenizer.load(CACHE / "tokenizer.json")), indent=1)
    (GOLDEN / "qwen3_tokens.json").write_text(written + "\n", encoding="utf-8", newline="\n")
