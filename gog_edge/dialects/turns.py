"""Reading a turn: found calls -> actions of the house, by the rules of [parse]; problems -> the dialect's replies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gog_edge.dialects.coordinates import CoordinateFrame, boxes_of, read_box, split_box
from gog_edge.dialects.images import ImageReferenceError, resolve_image
from gog_edge.dialects.parsers import Found, Problem, find_calls, split_thought
from gog_edge.dialects.safety import cut
from gog_edge.dialects.spec import ActionSpec, DialectSpec
from gog_edge.dialects.wording import Wording
from gog_edge.errors import DialectError, RegionError
from gog_edge.types import Action, ActionKind, RegisteredImage, Turn

MAX_ACTIONS = 16
_KINDS = {
    "answer": ActionKind.ANSWER,
    "text_search": ActionKind.TEXT_SEARCH,
    "glance": ActionKind.GLANCE,
    "gaze": ActionKind.GAZE,
    "zoom": ActionKind.ZOOM,
    "visit": ActionKind.VISIT,
}
_IMAGE_KINDS = (ActionKind.GLANCE, ActionKind.GAZE, ActionKind.ZOOM)


@dataclass(frozen=True)
class TurnReader:
    """Reads the turns of one conversation with the images `images` (the first `user_images` are the user's)."""

    spec: DialectSpec
    frame: CoordinateFrame
    images: Sequence[RegisteredImage]
    user_images: int | None = None

    def read_forced(self, text: str) -> Turn:
        """The reply to a forced answer: an answer whatever the text is; empty when it holds nothing but a call."""
        tags = [a for a in self.spec.actions if a.kind == "answer" and a.via == "tag"]
        again = any(tag.open in text for tag in tags)  # the policy began the answer once more
        raw = text if again else self.spec.forced.prefill + text
        thought, begin = split_thought(raw, self.spec.parse)
        body = raw[begin:]
        found = find_calls(body, self.spec, self._size_of)
        answers = [f for f in found if f.action is not None and f.action.kind == "answer" and f.problem is None]
        said = str(answers[-1].values.get("text", "")) if answers else self._untagged(body)
        calls = [a.open or a.literal for a in self.spec.actions if a.kind != "answer" and (a.open or a.literal)]
        for opening in [self.spec.parse.call_open, *calls]:
            said = said.split(opening, 1)[0] if opening else said
        return Turn(thought, (Action(ActionKind.ANSWER, said.strip()),), raw)

    def read(self, raw: str) -> Turn:
        """One turn; never raises."""
        spec = self.spec.parse
        seen = raw.split(spec.cut, 1)[0] if spec.cut else raw
        thought, begin = split_thought(seen, spec)
        offset = begin if spec.scope == "after_think" else 0
        body = seen[offset:]
        found = find_calls(body, self.spec, self._size_of)
        answers = [f for f in found if f.action is not None and f.action.kind == "answer" and f.problem is None]
        chosen = self._choose(found, answers, body)
        if not chosen:
            if spec.otherwise == "answer" and not self._unfinished(seen):
                return Turn(thought, (Action(ActionKind.ANSWER, self._untagged(seen[begin:])),), raw)
            return Turn(thought or seen.strip(), (self.invalid(Problem("nothing")),), raw)
        actions = [action for f in chosen for action in self._actions(f)]
        return Turn(thought or self._before(seen, begin, offset, chosen[0]), tuple(actions[:MAX_ACTIONS]), raw)

    def invalid(self, problem: Problem) -> Action:
        """The INVALID action with the dialect's reply to `problem`."""
        replies = self.spec.replies
        wording: Wording = getattr(replies, problem.reply) or replies.malformed
        values: dict[str, str | int | float] = {
            "error": cut(problem.error, 400),
            "tool": problem.tool,
            "call": cut(problem.call, 400),
            "missing": problem.missing,
            "image": cut(problem.image, 60),
        }
        return Action(ActionKind.INVALID, wording.plain(values), label=problem.reply)

    def _unfinished(self, text: str) -> bool:
        """Reasoning that was opened and not closed is no answer."""
        spec = self.spec.parse
        return bool(spec.think_open) and spec.think_open in text and spec.think_close not in text

    def _before(self, seen: str, begin: int, offset: int, first: Found) -> str:
        """The reasoning of a policy that writes it without tags: what stands before its first call."""
        return "" if begin else seen[: offset + first.start].replace(self.spec.parse.think_open or "\0", "").strip()

    def _choose(self, found: list[Found], answers: list[Found], body: str) -> list[Found]:
        spec = self.spec.parse
        calls = [f for f in found if f not in answers]
        if spec.at_end:
            last = len(body.rstrip())
            calls = [f for f in calls if f.end >= last]
        if answers:
            answer = answers[0] if spec.answer == "first" else answers[-1]
            before = [f for f in calls if f.start < answer.start]
            if (
                spec.answer == "wins"
                or (spec.answer == "first" and not before)
                or (spec.answer == "last" and not any(f.start > answer.start for f in calls))
                or (spec.answer == "alone" and not calls)
            ):
                return [answer]
            calls = before if spec.answer == "first" else calls
        if spec.pick == "first":
            return calls[:1]
        return calls[-1:] if spec.pick == "last" else calls

    def _untagged(self, text: str) -> str:
        for action in self.spec.actions:
            if action.kind == "answer" and action.via == "tag":
                text = text.replace(action.open, "").replace(action.close, "")
        return text.strip()

    def _size_of(self, name: str) -> tuple[float, float] | None:
        try:
            index = resolve_image(self.spec.images, name, self.images, self.user_images)
        except ImageReferenceError:
            return None
        view = self.images[index].view
        return view.width, view.height

    def _actions(self, found: Found) -> list[Action]:
        """The actions of one call: several where a list argument means several."""
        spec = found.action
        if found.problem is not None or spec is None:
            return [self.invalid(found.problem or Problem("malformed", call=found.call))]
        if spec.kind == "refuse":
            return [self.invalid(Problem("refused", "", spec.name, found.call))]
        return [self._one(spec, values, found.call) for values in _split(spec, found.values)]

    def _one(self, spec: ActionSpec, values: Mapping[str, Any], call: str) -> Action:
        try:
            return self._understood(spec, values)
        except _NeedsBoxError as error:
            return self.invalid(Problem("ground", "", spec.name, str(error)))
        except ImageReferenceError as error:
            return self.invalid(Problem("image", str(error), spec.name, call, image=_string(values, "image")))
        except RegionError as error:
            return self.invalid(Problem("box", str(error), spec.name, call))
        except DialectError as error:
            return self.invalid(Problem("argument", str(error), spec.name, call, _key(spec, "query", "url")))

    def _understood(self, spec: ActionSpec, values: Mapping[str, Any]) -> Action:
        kind = _KINDS[spec.kind]
        text = _string(values, "text") or _string(values, "query") or _string(values, "url")
        label = _string(values, "label")
        if kind in (ActionKind.TEXT_SEARCH, ActionKind.VISIT) and not text:
            raise DialectError("the call has no text")
        if kind not in _IMAGE_KINDS:
            return Action(kind, text, label=label, limit=_limit(values.get("limit")))
        image = resolve_image(
            self.spec.images, values.get("image"), self.images, self.user_images, spec.image_out_of_range
        )
        if kind is ActionKind.GLANCE:
            return Action(kind, text, None, image, label, _limit(values.get("limit")))
        raw = values.get("box")
        if spec.content == "box_or_label":
            raw, label = split_box(str(raw or ""))
            if raw is None:
                raise _NeedsBoxError(label)
        if raw is None:
            raise RegionError("the call has no box")
        region = self.frame.to_region(read_box(raw), self.images[image])
        return Action(kind, text, region, image, label, _limit(values.get("limit")))


class _NeedsBoxError(DialectError):
    """The policy names a thing where this runtime needs a box."""


def _split(spec: ActionSpec, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Values of a call, one dict for every item of a list argument where the action says `many`."""
    out = [dict(values)]
    for role in ("query", "url"):
        items = values.get(role)
        if isinstance(items, (list, tuple)):
            kept = list(items) if spec.many else list(items[:1])
            out = [{**one, role: item} for one in out for item in kept or [""]]
    if spec.many and "box" in values:
        out = [{**one, "box": box} for one in out for box in boxes_of(values["box"])]
    return out[:MAX_ACTIONS]


def _key(spec: ActionSpec, *roles: str) -> str:
    """The key of the first of `roles` that the call has."""
    keys = next((spec.args[role] for role in roles if role in spec.args), "")
    return keys if isinstance(keys, str) else keys[0]


def _limit(value: Any) -> int | None:
    """A number of results asked for; what is no positive whole number is ignored."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return min(value, 50)
    return None


def _string(values: Mapping[str, Any], role: str) -> str:
    """The value as one bounded line of text."""
    value = values.get(role)
    if value is None:
        return ""
    text = str(value) if role == "text" else re.sub(r"\s+", " ", str(value))
    return cut(text.strip(), 4000)
