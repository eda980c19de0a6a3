"""A dialect: one policy's way to be asked, to act, to be answered and to stop. Stateless; a session holds the state.

Who writes what (append-only, token for token): `opening()` ends with the opening of the assistant turn; the policy
writes its turn; the session keeps those tokens WITHOUT a final end-of-turn token (it is sampled, stops the turn, and
is dropped before it reaches the KV cache); `observe()` and `forced_answer()` begin with that end-of-turn token and
end with the opening of the next assistant turn. So the boundary is the same whether the policy ended its turn, a
stop string did, or the token limit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gog_edge.errors import DialectError, RegionError
from gog_edge.runtime.dialects.coordinates import CoordinateFrame, read_box
from gog_edge.runtime.dialects.images import ImageReferenceError, reference, resolve_image
from gog_edge.runtime.dialects.observe import Observer
from gog_edge.runtime.dialects.parsers import Found, Problem, find_calls, split_thought
from gog_edge.runtime.dialects.safety import Neutraliser, cut
from gog_edge.runtime.dialects.spec import ActionSpec, DialectSpec, Limits
from gog_edge.runtime.dialects.wording import Value, Wording
from gog_edge.runtime.templates import ChatTemplate, Message, join_segments
from gog_edge.types import (
    Action,
    ActionKind,
    Control,
    ImagePart,
    Observation,
    Region,
    RegisteredImage,
    Segment,
    Text,
    Turn,
)

_KINDS = {
    "answer": ActionKind.ANSWER,
    "text_search": ActionKind.TEXT_SEARCH,
    "glance": ActionKind.GLANCE,
    "gaze": ActionKind.GAZE,
    "zoom": ActionKind.ZOOM,
    "visit": ActionKind.VISIT,
}


@dataclass(frozen=True)
class Dialect:
    """A loaded dialect, bound to a chat template and a model family."""

    spec: DialectSpec
    template: ChatTemplate
    frame: CoordinateFrame

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def limits(self) -> Limits:
        """Budgets of the loop, see `Limits`."""
        return self.spec.limits

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a turn, besides the end-of-turn token; they stay part of the turn."""
        return self.spec.stop

    @property
    def shows_crop(self) -> bool:
        """Whether a GAZE observation shows the crop: the session then registers it and sets `Observation.shown`."""
        return self.spec.observe.gaze.show_crop

    @property
    def forced_prefix(self) -> str:
        """What `forced_answer` has already begun to write for the policy."""
        return self.spec.forced.prefill

    # -- asking ------------------------------------------------------------------------------------------------

    def opening(self, question: str, image_count: int = 1, images: Sequence[RegisteredImage] = ()) -> list[Segment]:
        """The whole prompt of a new question about registry images 0 … `image_count` - 1.

        `images`: their geometry, for dialects that write it. The question is `Text`, so special tokens in it are inert.

        Raises:
            DialectError: the chat template failed or dropped something.
        """
        prompt = self.spec.prompt
        shown: list[Segment] = []
        for index in range(image_count):
            geometry = images[index] if index < len(images) else None
            if index:
                shown.append(Control(prompt.image_between))
            shown += prompt.image.render(
                {
                    "image": ImagePart(index),
                    "n": Control(reference(self.spec.images, index)),
                    "width": geometry.width if geometry else 0,
                    "height": geometry.height if geometry else 0,
                }
            )
        tools_block = Control("\n".join(json.dumps(tool, ensure_ascii=False) for tool in self.tools))
        values: dict[str, Value] = {
            "question": Text(question.strip()),
            "images": shown,
            "tools": tools_block,
            "image_count": image_count,
        }
        user = prompt.user.render(values)
        system = prompt.system.render(values)
        if image_count > 1 and prompt.several:
            system.append(Control(prompt.several))
        system = join_segments(system)
        messages = [Message("user", tuple(user))]
        if system:
            messages.insert(0, Message("system", tuple(system)))
        in_wording = "tools" in prompt.system.names() | prompt.user.names()
        out = self.template.render(messages, () if in_wording else self.tools)
        return self._begin(out, self.spec.chat.prefill_first)

    @cached_property
    def tools(self) -> list[dict[str, Any]]:
        """The tools block's entries."""
        return [json.loads(tool.json) for tool in self.spec.tools]

    # -- reading -----------------------------------------------------------------------------------------------

    def parse(
        self,
        text: str,
        images: Sequence[RegisteredImage],
        *,
        forced: bool = False,
        user_images: int | None = None,
    ) -> Turn:
        """One turn of the policy. Never raises on any text: what can't be understood is an INVALID action.

        Args:
            text: the turn as generated, stop string included, end-of-turn token not.
            images: the session's registry.
            forced: the turn answers `forced_answer()`; its prefix is put back, and a turn without an answer tag is
                the answer itself.
            user_images: how many of the first registry images the user gave.
        """
        spec = self.spec.parse
        raw = self.spec.forced.prefill + text if forced else text
        thought, begin = split_thought(raw, spec)
        found = find_calls(raw[begin:] if spec.scope == "after_think" else raw, self.spec.actions, spec)
        answers = [f for f in found if f.action is not None and f.action.kind == "answer" and f.problem is None]
        if forced:
            said = str(answers[-1].values.get("text", "")) if answers else self._untagged(raw[begin:])
            return Turn(thought, (Action(ActionKind.ANSWER, said),), raw)
        chosen = self._choose(found, answers)
        if not chosen:
            if spec.otherwise == "answer" and not (spec.think_open and not begin and spec.think_open in raw):
                return Turn(thought, (Action(ActionKind.ANSWER, raw[begin:].strip()),), raw)
            return Turn(thought or raw.strip(), (self.invalid("malformed"),), raw)
        return Turn(thought, tuple(self._action(f, images, user_images) for f in chosen), raw)

    def invalid(self, reply: str, detail: str = "") -> Action:
        """The INVALID action whose text is the dialect's reply `reply` (a key of [replies])."""
        wording: Wording = getattr(self.spec.replies, reply) or self.spec.replies.malformed
        values: dict[str, str | int | float] = dict.fromkeys(("error", "tool"), detail)
        return Action(ActionKind.INVALID, wording.plain(values), label=reply)

    def early_box(self, text: str, images: Sequence[RegisteredImage]) -> tuple[Region, int] | None:
        """A box that is already closed in an unfinished call at the end of `text`, with its target image.

        For starting crop encoding and search early; the finished call decides. None while there is no such box.
        """
        from gog_edge.runtime.dialects.early import open_box

        return open_box(self.spec, self.frame, text, images)

    def _choose(self, found: list[Found], answers: list[Found]) -> list[Found]:
        """The calls of a turn that count, by the rules of [parse]."""
        spec = self.spec.parse
        calls = [f for f in found if f not in answers]
        if answers:
            answer = answers[-1] if spec.answer != "first" else answers[0]
            before = [f for f in calls if f.start < answer.start]
            if spec.answer == "wins" or (spec.answer == "first" and not before):
                return [answer]
            if spec.answer == "last" and not any(f.start > answer.start for f in calls):
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

    def _action(self, found: Found, images: Sequence[RegisteredImage], user_images: int | None) -> Action:
        problem, spec = found.problem, found.action
        if problem is not None or spec is None:
            problem = problem or Problem("malformed")
            return self.invalid(problem.reply, problem.detail)
        if spec.kind == "refuse":
            return self.invalid("refused", spec.name)
        try:
            return self._understood(spec, found, images, user_images)
        except ImageReferenceError as error:
            return self.invalid("image", str(error))
        except RegionError as error:
            return self.invalid("box", str(error))
        except DialectError as error:
            return self.invalid("argument", str(error))

    def _understood(
        self, spec: ActionSpec, found: Found, images: Sequence[RegisteredImage], user_images: int | None
    ) -> Action:
        values, kind = found.values, _KINDS[spec.kind]
        text = _string(values, "text") or _string(values, "query") or _string(values, "url")
        if kind in (ActionKind.TEXT_SEARCH, ActionKind.VISIT) and not text:
            raise DialectError("the call has no text")
        region, image = None, 0
        if kind in (ActionKind.GLANCE, ActionKind.GAZE, ActionKind.ZOOM):
            image = resolve_image(self.spec.images, values.get("image"), images, user_images)
            if kind is not ActionKind.GLANCE:
                if "box" not in values:
                    raise RegionError("the call has no box")
                region = self.frame.to_region(read_box(values["box"]), images[image])
        return Action(kind, text, region, image, cut(_string(values, "label"), 200), _limit(values.get("limit")))

    # -- answering ---------------------------------------------------------------------------------------------

    def observe(
        self,
        turn: Turn,
        observations: Sequence[Observation],
        *,
        question: str = "",
        step: int = 1,
        images: Sequence[RegisteredImage] = (),
    ) -> list[Segment]:
        """What is appended after the policy's own tokens: one observation for each action of `turn`, in order.

        Args:
            question: the user's question, for dialects that repeat it.
            step: number of the turn, from 1.
            images: the registry, crops included, for dialects that write sizes or names.

        Raises:
            DialectError: the number of observations is not the number of actions.
        """
        if len(observations) != len(turn.actions):
            raise DialectError(f"{len(turn.actions)} actions were given {len(observations)} observations")
        body = self._observer.write(observations, question=question, step=step, images=images)
        return self._next_turn(body, "")

    def forced_answer(self, question: str = "") -> list[Segment]:
        """The turn that asks for an answer now; appended like an observation. Parse the reply with `forced=True`."""
        return self._next_turn(
            self.spec.forced.user.render({"question": Text(question.strip())}), self.spec.forced.prefill
        )

    def format_box(self, region: Region, image: RegisteredImage) -> str:
        """The region as the policy writes it, in the frame of `image`."""
        return self.frame.format_box(region, image)

    def grammar(self) -> str | None:
        """A lark grammar for llguidance that admits exactly the turns this dialect can read; None if it offers none."""
        return self.spec.grammar.lark or None if self.spec.grammar.enabled else None

    @cached_property
    def _observer(self) -> Observer:
        wordings = [action.open + action.close + action.literal for action in self.spec.actions]
        observe, parse = self.spec.observe, self.spec.parse
        wordings += [observe.open, observe.close, parse.think_open, parse.call_open]
        for body in (observe.glance, observe.gaze, observe.text_search, observe.visit, observe.zoom):
            wordings += [body.each.source, body.body.source]
        return Observer(self.spec, Neutraliser(wordings))

    def _next_turn(self, body: Sequence[Segment], prefill: str) -> list[Segment]:
        frame = self.template.frame
        out = [Control(frame.to_user), *body, Control(frame.to_assistant)]
        if prefill:  # a forced answer is begun for the policy: no reasoning before it
            return join_segments([*self._begin(out, ""), Control(prefill)])
        return self._begin(out, self.spec.chat.prefill_next)

    def _begin(self, segments: Sequence[Segment], prefill: str) -> list[Segment]:
        """Replace the template's think prefill at the end of `segments`, unless `prefill` is "template"."""
        out = join_segments(segments)
        if prefill == "template":
            return out
        last = out[-1]
        if isinstance(last, Control) and self.template.frame.prefill:
            out[-1] = Control(last.text.removesuffix(self.template.frame.prefill))
        return join_segments([*out, Control(prefill)])


def _limit(value: Any) -> int | None:
    """A number of results asked for; what is no positive whole number is ignored."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return min(value, 50)
    return None


def _string(values: Any, role: str) -> str:
    value = values.get(role)
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):  # WebWatcher-style lists of queries
        value = "; ".join(str(item) for item in value)
    return str(value).strip()
