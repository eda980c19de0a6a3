"""A dialect: how one policy is asked, acts, is answered and stops. Stateless; a session holds the state.

Who writes what (append-only, token for token): `opening()` ends with the opening of the assistant turn; the policy
writes its turn; the session keeps those tokens WITHOUT a final end-of-turn token (it is sampled, stops the turn, and
is dropped before it reaches the KV cache); `observe()` and `forced_answer()` begin with that end-of-turn token and
end with the opening of the next assistant turn. So the boundary is the same whether the policy ended its turn, a
stop string did, or the token limit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import cached_property
from typing import Any

from gog_edge.dialects.answer_stream import AnswerStream
from gog_edge.dialects.answer_text import AnswerText
from gog_edge.dialects.coordinates import CoordinateFrame
from gog_edge.dialects.grammar import answer_grammar, dialect_grammar
from gog_edge.dialects.images import reference
from gog_edge.dialects.observe import Observer
from gog_edge.dialects.spec import DialectLimits, DialectSpec
from gog_edge.dialects.syntax import CallProblem, Syntax, syntaxes_of
from gog_edge.dialects.templates import ChatTemplate, Message, join_segments
from gog_edge.dialects.turns import TurnReader
from gog_edge.dialects.wording import Value
from gog_edge.errors import DialectError
from gog_edge.sampling_options import Sampling
from gog_edge.sanitize import Neutraliser
from gog_edge.types import (
    Action,
    ActionKind,
    Control,
    Exchange,
    ImagePart,
    Observation,
    Region,
    RegisteredImage,
    Segment,
    Text,
    Turn,
)


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
    def limits(self) -> DialectLimits:
        """Budgets of the loop, see `DialectLimits`."""
        return self.spec.limits

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen, as far as the dialect says; raises UsageError where that makes no sense."""
        return Sampling(**asdict(self.spec.sampling))

    @property
    def usual_question(self) -> str:
        """What to ask where the user says nothing; empty if the dialect has no such question."""
        return self.spec.prompt.usual

    @property
    def follows_up(self) -> bool:
        """Whether the policy is told what was asked and answered before."""
        return self.spec.prompt.follow_up

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a turn, besides the end-of-turn token; they stay part of the turn."""
        return self.spec.stop

    def shows_crop(self, kind: ActionKind) -> bool:
        """Whether the observation of `kind` shows the crop: register it and set `Observation.shown`."""
        body = self.spec.observe.get(kind.value)
        return body is not None and bool(body.crop)

    def shows_thumbnails(self, kind: ActionKind) -> bool:
        """Whether results of `kind` show pictures: register those that load and set `Observation.thumbnails`."""
        body = self.spec.observe.get(kind.value)
        return body is not None and body.shows_thumbnails

    # -- asking ------------------------------------------------------------------------------------------------

    def opening(
        self,
        question: str,
        image_count: int = 1,
        images: Sequence[RegisteredImage] = (),
        *,
        earlier: Sequence[Exchange] = (),
        system: str = "",
    ) -> list[Segment]:
        """The whole prompt of a new question about registry images 0 … `image_count` - 1.

        The question is `Text`, so special tokens in it are inert; so are those of `earlier` and `system`.

        Args:
            images: their geometry, for dialects that write it.
            earlier: what was asked and answered before; every turn is worded as if it were the only one, and stands
                with the images that came with it. The rest of the images come with the question.
            system: follows the dialect's own system text.

        Raises:
            DialectError: the chat template failed or dropped something.
        """
        prompt = self.spec.prompt
        values: dict[str, Value] = {
            "tools": Control(self.frame.hooks.tools_text([tool.json for tool in self.spec.tools])),
            "image_count": image_count,
            "date": date.today().isoformat(),
        }
        instructions = prompt.system.render(values)
        if image_count > 1 and prompt.several:
            instructions.append(Control(prompt.several))
        if system.strip():
            instructions += [Control("\n\n" if instructions else ""), Text(system.strip())]
        instructions = join_segments(instructions)
        messages = [Message("system", tuple(instructions))] if instructions else []
        at = 0
        for past in earlier:
            messages.append(self._asked(past.question, range(at, at + past.images), images, values))
            messages.append(Message("assistant", tuple(self._answered(past.answer))))
            at += past.images
        messages.append(self._asked(question, range(at, image_count), images, values))
        in_wording = "tools" in prompt.system.names() | prompt.user.names()
        return self.template.render(messages, () if in_wording else self.tools)

    def _asked(
        self, question: str, numbers: Iterable[int], images: Sequence[RegisteredImage], values: Mapping[str, Value]
    ) -> Message:
        """A turn of the user with the registry's images `numbers`."""
        shown: list[Segment] = []
        for index in numbers:
            geometry = images[index] if index < len(images) else None
            shown += self.spec.prompt.image.render(
                {
                    "image": ImagePart(index),
                    "n": Control(reference(self.spec.images, index)),
                    "width": geometry.width if geometry else 0,
                    "height": geometry.height if geometry else 0,
                }
            )
        user = self.spec.prompt.user.render({**values, "question": Text(question.strip()), "images": shown})
        return Message("user", tuple(user))

    def _answered(self, answer: str) -> list[Segment]:
        """A turn of the policy that answers: the dialect's markup with the answer, which is outside text, in it."""
        place = "@answer@"
        before, _, after = self.write(Action(ActionKind.ANSWER, place), ()).partition(place)
        written = self.write(Action(ActionKind.ANSWER, answer.strip()), ())  # it may be escaped there
        return join_segments([Control(before), Text(written[len(before) : len(written) - len(after)]), Control(after)])

    @cached_property
    def tools(self) -> list[dict[str, Any]]:
        """The tools block's entries."""
        return [json.loads(tool.json) for tool in self.spec.tools]

    @cached_property
    def syntaxes(self) -> tuple[Syntax, ...]:
        """How the actions are written."""
        return syntaxes_of(self.spec, self.frame)

    @cached_property
    def answers(self) -> AnswerText:
        """What of a text is an answer."""
        return AnswerText(self.spec, self.syntaxes)

    def answer_stream(self, forced: bool, constrained: bool, as_json: bool = False) -> AnswerStream:
        """What of an answer is sure while its turn is being written. `forced`: the turn answers `forced_answer()`;
        `constrained`: `grammar()` holds for it; `as_json`: the answer is a JSON object."""
        begun = self.spec.forced.prefill if forced else ""
        begun = begun or self.frame.hooks.next_prefill(self.template.frame.prefill)
        return AnswerStream(
            self.spec,
            self.syntaxes,
            self.answers,
            begun=begun,
            forced=forced,
            constrained=constrained and not self.spec.grammar.lark,
            as_json=as_json,
        )

    def _reader(self, images: Sequence[RegisteredImage], user_images: int | None = None) -> TurnReader:
        return TurnReader(self.spec, self.frame, self.syntaxes, images, self.answers, user_images)

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
        reader = self._reader(images, user_images)
        return reader.read_forced(text) if forced else reader.read(text)

    def invalid(self, reply: str, error: str = "", *, tool: str = "", call: str = "") -> Action:
        """The INVALID action whose text is the dialect's reply `reply` (a key of [replies], such as "limit")."""
        return self._reader(()).invalid(CallProblem(reply, error, tool, call))

    def partial(self, text: str, images: Sequence[RegisteredImage]) -> tuple[Region, int] | None:
        """A box that is already closed in an unfinished call at the end of `text`, with its target image.

        For starting crop encoding and search early; the finished call decides. None while there is no such box.
        """
        return self._reader(images).partial(text)

    def write(self, action: Action, images: Sequence[RegisteredImage]) -> str:
        """The action as this policy writes it, in the first form listed for its kind: the inverse of `parse`.

        Raises:
            DialectError: the dialect has no such action.
            RegionError: the region lies outside of the target image.
        """
        for form in self.spec.actions:
            if form.kind == action.kind.value:
                return next(s for s in self.syntaxes if form in s.actions).format(form, action, images)
        if action.kind is ActionKind.ANSWER and self.spec.parse.otherwise == "answer":
            return action.text
        raise DialectError(f"dialect {self.name!r} can't write the action {action.kind.value!r}")

    # -- answering ---------------------------------------------------------------------------------------------

    def observe(
        self,
        turn: Turn,
        observations: Sequence[Observation],
        *,
        question: str = "",
        step: int = 1,
        images: Sequence[RegisteredImage] = (),
        last: bool = False,
    ) -> list[Segment]:
        """What is appended after the policy's own tokens: one observation for each action of `turn`, in order.

        Args:
            question: the user's question, for dialects that repeat it.
            step: number of the turn, from 1.
            images: the registry, crops included, for dialects that write sizes, boxes or names.
            last: the next turn is the last one: dialects with `forced.append` ask for the answer here.

        Raises:
            DialectError: the number of observations is not the number of actions.
        """
        if len(observations) != len(turn.actions):
            raise DialectError(f"{len(turn.actions)} actions were given {len(observations)} observations")
        body = self._observer.write(observations, question=question, step=step, images=images)
        if last:
            body = [*body, *self.spec.forced.append.render({"question": Text(question.strip())})]
        return self._next_turn(body, "")

    def forced_answer(self, question: str = "") -> list[Segment]:
        """The turn that asks for an answer now; appended like an observation. Parse the reply with `forced=True`."""
        return self._next_turn(
            self.spec.forced.user.render({"question": Text(question.strip())}), self.spec.forced.prefill
        )

    def format_box(self, region: Region, image: RegisteredImage) -> str:
        """The region as the policy writes it, in the frame of `image`."""
        return self.frame.format_box(region, image)

    def grammar(self, schema: Mapping[str, Any] | None = None) -> str | None:
        """A lark grammar for llguidance that admits exactly the turns this dialect can read; None if it offers none.

        Args:
            schema: JSON schema of an object, which an answer has to be.

        Raises:
            DialectError: answers are written in a way that can't hold an object.
        """
        if schema is not None:
            return answer_grammar(self.spec, self.frame, self.syntaxes, schema)
        return dialect_grammar(self.spec, self.frame, self.syntaxes)

    def forced_grammar(self, schema: Mapping[str, Any]) -> str:
        """`grammar` of the turn that `forced_answer` begins: an answer and nothing else; raises as `grammar` does."""
        return answer_grammar(self.spec, self.frame, self.syntaxes, schema, forced=True)

    @cached_property
    def _observer(self) -> Observer:
        wordings = [syntax.opening + syntax.closing for syntax in self.syntaxes]
        wordings.append(self.spec.parse.think_open)
        for body in self.spec.observe.values():
            wordings += [body.each.source, body.body.source]
        return Observer(self.spec, self.frame, Neutraliser(wordings))

    def _next_turn(self, body: Sequence[Segment], prefill: str) -> list[Segment]:
        """The user's turn with `body`, and the beginning of the policy's: a forced answer is begun for it, without
        reasoning before."""
        hooks, frame = self.frame.hooks, self.template.frame
        to_assistant = frame.to_assistant.removesuffix(frame.prefill)
        to_assistant += prefill or hooks.next_prefill(frame.prefill)
        return join_segments([Control(hooks.to_user(frame.to_user)), *body, Control(to_assistant)])
