"""Observations in the dialect's wording: results, crops, empty results and failures as segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from gog_edge.dialects.coordinates import CoordinateFrame
from gog_edge.dialects.images import reference
from gog_edge.dialects.spec import BodySpec, DialectSpec
from gog_edge.dialects.templates import join_segments
from gog_edge.dialects.wording import Value
from gog_edge.sanitize import Neutraliser
from gog_edge.types import Action, ActionKind, Control, Hit, ImagePart, Observation, RegisteredImage, Segment, Text


@dataclass(frozen=True)
class Observer:
    """Writes observations for one dialect; all outside text goes through the neutraliser and becomes `Text`."""

    spec: DialectSpec
    frame: CoordinateFrame
    clean: Neutraliser

    def write(
        self, observations: Sequence[Observation], *, question: str, step: int, images: Sequence[RegisteredImage]
    ) -> list[Segment]:
        """The content of the result turn."""
        replies = {o.action.label if o.action.kind is ActionKind.INVALID else "" for o in observations}
        out: list[Segment] = []
        for number, observation in enumerate(observations):
            spec = self._body_spec(observation)
            out.append(Control(spec.between if number else spec.begin))
            out += self._one(observation, number, question, step, images)
        return join_segments(self.frame.hooks.result_turn(out, replies))

    def _one(
        self, observation: Observation, place: int, question: str, step: int, images: Sequence[RegisteredImage]
    ) -> list[Segment]:
        spec = self._body_spec(observation)
        values = {**self._values(observation, spec, question, step, images), "place": place}
        body: list[Segment]
        if observation.action.kind is ActionKind.INVALID:
            body = self._reply(observation.action)
        elif observation.error:
            body = spec.failed.render(values)
        elif self._only_looks(observation) and spec.crop and observation.shown is None:
            body = spec.failed.render({**values, "error": "the region could not be shown"})
        elif not observation.hits and not observation.text and not self._only_looks(observation):
            body = spec.empty.render(values)
        else:
            body = spec.body.render(values)
        return spec.each.render({**values, "body": body})

    def _only_looks(self, observation: Observation) -> bool:
        """A zoom has no results: its crop is the result."""
        return observation.action.kind is ActionKind.ZOOM

    def _body_spec(self, observation: Observation) -> BodySpec:
        return self.spec.observe.get(observation.action.kind.value, self.spec.observe["invalid"])

    def _reply(self, action: Action) -> list[Segment]:
        """A reply's wording is the dialect's (`Control`); what it quotes of the policy's text is not. Its own reply
        (the action's label) comes before others that would fit as well."""
        text = action.text
        for name in sorted((reply.name for reply in fields(self.spec.replies)), key=lambda name: name != action.label):
            matched = getattr(self.spec.replies, name).match(text)
            if matched is not None:
                return [Text(self.clean.text(s.text, 400)) if isinstance(s, Text) else s for s in matched]
        return [Text(self.clean.text(text, 400))]

    def _box(self, action: Action, images: Sequence[RegisteredImage]) -> str:
        """The action's box in the policy's numbers, as far as the geometry is known."""
        if action.region is None:
            return "[]"
        return self.frame.format_box(action.region, images[action.image] if action.image < len(images) else None)

    def _values(
        self,
        observation: Observation,
        spec: BodySpec,
        question: str,
        step: int,
        images: Sequence[RegisteredImage],
    ) -> dict[str, Value]:
        action, limits = observation.action, self.spec.limits
        shown = observation.shown
        geometry = images[shown] if shown is not None and shown < len(images) else None
        values: dict[str, Value] = {
            "label": self.clean.line(action.label, limits.title_chars),
            "query": self.clean.line(action.text, limits.title_chars),
            "url": self.clean.line(action.text, limits.title_chars),
            "question": Text(question.strip()),
            "image": Control(reference(self.spec.images, action.image)),
            "step": step,
            "step_before": step - 1,
            "shown": Control(reference(self.spec.images, shown)) if shown is not None else "",
            "width": geometry.shown_width if geometry else 0,
            "height": geometry.shown_height if geometry else 0,
            "box": self._box(action, images),
            "page": self.clean.text(observation.text, limits.page_chars),
            "count": len(self._kept(observation)),
            "after": spec.after.render({"question": Text(question.strip())}),
            "error": self.clean.line(observation.error, limits.title_chars),
        }
        crop: list[Segment] = []
        if shown is not None:
            crop = spec.crop.render({**values, "image": ImagePart(shown)})
        values["crop"] = crop
        values["results"], values["thumbnails"] = self._results(observation, spec)
        return values

    def _kept(self, observation: Observation) -> Sequence[Hit]:
        wanted = observation.action.limit or self.spec.limits.results
        return observation.hits[:wanted] if wanted else observation.hits

    def _results(self, observation: Observation, spec: BodySpec) -> tuple[list[Segment], list[Segment]]:
        """(the results, all their pictures)."""
        out: list[Segment] = []
        pictures: list[Segment] = []
        for index, hit in enumerate(self._kept(observation)):
            if index:
                out.append(Control(spec.result_between))
            picture = observation.thumbnails[index] if index < len(observation.thumbnails) else None
            values = self._hit(hit, index + 1, spec)
            values["thumbnail"] = []
            if spec.shows_thumbnails and picture is not None:
                values["thumbnail"] = spec.thumbnail.render({"image": ImagePart(picture), "n": index + 1})
                pictures.append(ImagePart(picture))
            bare = spec.shows_thumbnails and picture is None and bool(spec.bare)
            out += (spec.bare if bare else spec.result).render(values)
        return join_segments(out), pictures

    def _hit(self, hit: Hit, number: int, spec: BodySpec) -> dict[str, Value]:
        limits = self.spec.limits
        text = self.clean.text(hit.text, limits.result_chars)
        return {
            "n": number,
            "title": self.clean.line(hit.title, limits.title_chars),
            "text": text,
            "detail": spec.detail.render({"text": Text(text)}) if text else [],
            "source": self.clean.line(hit.source, limits.title_chars),
            "picture": self.clean.line(hit.image, limits.title_chars),
            "entity": self.clean.line(hit.entity, limits.title_chars),
            "score": spec.score.render({"score": hit.score}) if hit.score is not None else [],
        }
