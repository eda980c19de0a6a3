"""Reading a turn: its calls -> this runtime's actions, by the rules of [parse]; problems -> the dialect's replies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from gog_edge.dialects.answer_text import AnswerText
from gog_edge.dialects.coordinates import CoordinateFrame, boxes_of, read_box
from gog_edge.dialects.images import ImageReferenceError, allowed_images, resolve_image
from gog_edge.dialects.spec import ActionSpec, DialectSpec, ParseSpec
from gog_edge.dialects.syntax import Call, CallProblem, Syntax
from gog_edge.dialects.wording import Wording
from gog_edge.errors import DialectError, RegionError
from gog_edge.sanitize import cut
from gog_edge.types import Action, ActionKind, Region, RegisteredImage, Turn

MAX_ACTIONS = 16
_NO_ANSWER = CallProblem("nothing", "there is neither an answer nor a call that can be read")
_IMAGE_KINDS = (ActionKind.GLANCE, ActionKind.GAZE, ActionKind.ZOOM)


@dataclass(frozen=True)
class TurnReader:
    """Reads the turns of one conversation with the images `images` (the first `user_images` are the user's)."""

    spec: DialectSpec
    frame: CoordinateFrame
    syntaxes: Sequence[Syntax]
    images: Sequence[RegisteredImage]
    answers: AnswerText
    user_images: int | None = None

    def read_forced(self, text: str) -> Turn:
        """The reply to a forced answer: an answer whatever the text is; empty when it holds nothing but a call."""
        answering = [s for s in self.syntaxes if s.first.kind == "answer"]
        again = any(s.opening in text for s in answering)  # the policy began the answer once more
        raw = text if again else self.spec.forced.prefill + text
        thought, begin = split_thought(raw, self.spec.parse)
        body = raw[begin:]
        answers = [call for call in self._calls(body) if _answers(call)]
        said = str(answers[-1].values.get("text", "")) if answers else body
        return Turn(thought, (Action(ActionKind.ANSWER, self.answers.read(said)),), raw)

    def read(self, raw: str) -> Turn:
        """One turn; never raises."""
        spec = self.spec.parse
        seen = self.frame.hooks.seen(raw)
        thought, begin = split_thought(seen, spec)
        offset = begin if spec.scope == "after_think" else 0
        body = seen[offset:]
        found = self._calls(body)
        chosen = self._choose(found, [call for call in found if _answers(call)], body)
        if not chosen:
            said = self.answers.read(seen[begin:]) if spec.otherwise == "answer" and not self._unfinished(seen) else ""
            if said or (spec.otherwise == "answer" and not seen[begin:].strip()):
                return Turn(thought, (Action(ActionKind.ANSWER, said),), raw)
            return Turn(thought or seen.strip(), (self.invalid(_NO_ANSWER),), raw)
        actions = [action for f in chosen for action in self._actions(f)]
        return Turn(thought or self._before(seen, begin, offset, chosen[0]), tuple(actions[:MAX_ACTIONS]), raw)

    def partial(self, text: str) -> tuple[Region, int] | None:
        """The box that is closed in the unfinished call at the end of `text`, and its target image."""
        for syntax in self.syntaxes:
            call = syntax.partial(text, self._size_of)
            if call is None or call.action is None or "box" not in call.values:
                continue
            try:
                action = self._understood(call.action, _split(call.action, call.values)[0])
            except (RegionError, DialectError):
                return None
            return (action.region, action.image) if action.region is not None else None
        return None

    def invalid(self, problem: CallProblem) -> Action:
        """The INVALID action with the dialect's reply to `problem`."""
        replies = self.spec.replies
        wording: Wording = getattr(replies, problem.reply) or replies.malformed
        values: dict[str, str | int | float] = {
            "error": cut(problem.error, 400),
            "tool": problem.tool,
            "call": cut(problem.call, 400),
            "missing": problem.missing,
            "image": cut(problem.image, 60),
            "count": len(allowed_images(self.spec.images, self.images, self.user_images)) if self.images else 0,
        }
        return Action(ActionKind.INVALID, wording.plain(values), label=problem.reply)

    def _unfinished(self, text: str) -> bool:
        """Reasoning that was opened and not closed is not an answer."""
        spec = self.spec.parse
        return bool(spec.think_open) and spec.think_open in text and spec.think_close not in text

    def _before(self, seen: str, begin: int, offset: int, first: Call) -> str:
        """The reasoning of a policy that writes it without tags: what comes before its first call."""
        return "" if begin else seen[: offset + first.start].replace(self.spec.parse.think_open or "\0", "").strip()

    def _choose(self, found: list[Call], answers: list[Call], body: str) -> list[Call]:
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

    def _calls(self, text: str) -> list[Call]:
        """Everything callable in `text`, in order, without overlaps: the syntax listed first wins at one place. The
        calls of one block share its place."""
        found = [(c.start, n, c) for n, s in enumerate(self.syntaxes) for c in s.find(text, self._size_of)]
        out: list[tuple[int, Call]] = []
        for start, number, call in sorted(found, key=lambda entry: entry[:2]):
            last = out[-1] if out else None
            if last is None or start >= last[1].end or (number, start) == (last[0], last[1].start):
                out.append((number, call))
        return [call for _, call in out]

    def _size_of(self, name: str) -> tuple[float, float] | None:
        try:
            index = resolve_image(self.spec.images, name, self.images, self.user_images)
        except ImageReferenceError:
            return None
        view = self.images[index].view
        return view.width, view.height

    def _actions(self, found: Call) -> list[Action]:
        """The actions of one call: several where a list argument means several."""
        spec = found.action
        if found.problem is not None or spec is None:
            return [self.invalid(found.problem or CallProblem("malformed", call=found.text))]
        if spec.kind == "refuse":
            return [self.invalid(CallProblem("refused", "", spec.name, found.text))]
        count = len(allowed_images(self.spec.images, self.images, self.user_images))
        if refused := self.frame.hooks.refuses(spec.kind, found.values, count):
            return [self.invalid(CallProblem("box", refused, spec.name, found.text))]
        return [self._one(spec, values, found.text) for values in _split(spec, found.values)]

    def _one(self, spec: ActionSpec, values: Mapping[str, Any], call: str) -> Action:
        try:
            return self._understood(spec, values)
        except ImageReferenceError as error:
            return self.invalid(CallProblem("image", str(error), spec.name, call, image=_string(values, "image")))
        except RegionError as error:
            return self.invalid(CallProblem("box", str(error), spec.name, call))
        except DialectError as error:
            return self.invalid(CallProblem("argument", str(error), spec.name, call, _key(spec, "query", "url")))

    def _understood(self, spec: ActionSpec, values: Mapping[str, Any]) -> Action:
        kind = ActionKind(spec.kind)
        text = _string(values, "text") or _string(values, "query") or _string(values, "url")
        label = _string(values, "label")
        if kind is ActionKind.ANSWER:
            said = self.answers.read(text)
            return Action(kind, said, label=label) if said or not text else self.invalid(_NO_ANSWER)
        if kind in (ActionKind.TEXT_SEARCH, ActionKind.VISIT) and not text:
            raise DialectError("the call has no text")
        if kind not in _IMAGE_KINDS:
            return Action(kind, text, label=label, limit=_limit(values.get("limit")))
        other = partial(self.frame.hooks.other_image, spec.kind)
        image = resolve_image(self.spec.images, values.get("image"), self.images, self.user_images, other)
        if kind is ActionKind.GLANCE:
            return Action(kind, text, None, image, label, _limit(values.get("limit")))
        if values.get("box") is None:
            raise RegionError("the call has no box")
        region = self.frame.to_region(read_box(values["box"]), self.images[image])
        return Action(kind, text, region, image, label, _limit(values.get("limit")))


def split_thought(text: str, spec: ParseSpec) -> tuple[str, int]:
    """(the reasoning without its tags, where the rest begins). Works with and without the opening tag (prefill).

    A thinking checkpoint closes what its chat template has opened by </think>, whatever tags the dialect has.
    """
    if not spec.think_close:
        return "", 0
    for opening, closing in ((spec.think_open, spec.think_close), ("<think>", "</think>")):
        close = text.find(closing)
        if close >= 0:
            head = text[:close]
            opened = head.find(opening) if opening else -1
            thought = head[opened + len(opening) :] if opened >= 0 else head
            return thought.strip(), close + len(closing)
    return "", 0


def _answers(call: Call) -> bool:
    return call.action is not None and call.action.kind == "answer" and call.problem is None


def _split(spec: ActionSpec, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Values of a call, one dict for every item of a list argument where each one counts."""
    out = [dict(values)]
    for role in ("query", "url"):
        items = values.get(role)
        if isinstance(items, (list, tuple)):
            kept = list(items) if spec.lists == "each" else list(items[:1])
            out = [{**one, role: item} for one in out for item in kept or [""]]
    if spec.lists == "each" and "box" in values:
        boxes, images = boxes_of(values["box"]), values.get("image")
        paired = zip(boxes, images) if isinstance(images, (list, tuple)) else ((box, images) for box in boxes)
        out = [{**one, "box": box, "image": image} for one in out for box, image in paired]
    return out[:MAX_ACTIONS]


def _key(spec: ActionSpec, *roles: str) -> str:
    """The key of the first of `roles` that the call has."""
    keys = next((spec.args[role] for role in roles if role in spec.args), "")
    return keys if isinstance(keys, str) else keys[0]


def _limit(value: Any) -> int | None:
    """A number of results asked for; anything but a positive whole number is ignored."""
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
