"""The live view of a running question: one line per event, on stderr."""

from __future__ import annotations

from rich.console import Console

from gog_edge.cli.common.console import one_line, styled
from gog_edge.runtime.telemetry import counted
from gog_edge.types import (
    Action,
    ActionEvent,
    ActionKind,
    Answer,
    AnswerEvent,
    BoxEvent,
    Event,
    Observation,
    ObservationEvent,
    Region,
    StopReason,
    TokenEvent,
)

_STYLES = {
    ActionKind.GLANCE: ("glance", "cyan"),
    ActionKind.GAZE: ("gaze", "magenta"),
    ActionKind.ZOOM: ("zoom", "magenta"),
    ActionKind.TEXT_SEARCH: ("search", "blue"),
    ActionKind.VISIT: ("visit", "blue"),
    ActionKind.ANSWER: ("answer", "green"),
    ActionKind.INVALID: ("invalid", "red"),
}
_STOPS = {
    StopReason.FORCED: "a limit was reached; the policy was made to answer",
    StopReason.DEADLINE: "the deadline passed; this is the best answer so far",
    StopReason.CANCELLED: "cancelled",
    StopReason.EXHAUSTED: "the limits were reached without an answer",
}
_NO_ANSWERS = {
    StopReason.FORCED: "no answer: a limit was reached",
    StopReason.DEADLINE: "no answer: the deadline passed",
    StopReason.CANCELLED: "cancelled",
    StopReason.EXHAUSTED: "no answer within the limits",
}


class LiveView:
    """Prints events as they come. `tokens`: also print what the policy writes, as it writes it."""

    def __init__(self, console: Console, *, tokens: bool) -> None:
        self.console, self.tokens = console, tokens
        self._open_line = False

    def show(self, event: Event) -> None:
        """One event."""
        if isinstance(event, TokenEvent):
            if self.tokens:
                self.console.print(styled("[dim]{}[/]", event.text), end="", soft_wrap=True)
                self._open_line = True
            return
        if self._open_line:
            self.console.print()
            self._open_line = False
        if isinstance(event, ActionEvent):
            self._action(event.step, event.action)
        elif isinstance(event, ObservationEvent):
            self._observation(event.observation)
        elif isinstance(event, BoxEvent) and self.tokens:
            self.console.print(styled("  [dim]box closed: {}; crop and search start now[/]", box_text(event.region)))
        elif isinstance(event, AnswerEvent):
            self._end(event.answer)

    def _action(self, step: int, action: Action) -> None:
        name, colour = _STYLES[action.kind]
        detail = one_line(action.text or action.label)
        if action.region is not None:
            detail = f"{detail} {box_text(action.region)}".strip()
        if action.kind is not ActionKind.ANSWER:
            self.console.print(styled(f"[bold]{{}}[/] [{colour}]{{}}[/] {{}}", step + 1, name, detail))

    def _observation(self, observation: Observation) -> None:
        if observation.action.kind is ActionKind.INVALID:
            if observation.action.label == "limit":  # the call was shown as it was written; this is what came back
                self.console.print(styled("  [yellow]{}[/]", observation.action.text))
            return
        if observation.error:
            self.console.print(styled("  [red]{}[/]", one_line(observation.error)))
            return
        if not observation.hits and not observation.text:
            self.console.print(styled("  [dim]no results[/]"))
        for rank, hit in enumerate(observation.hits, 1):
            score = "" if hit.score is None else f" {hit.score:.2f}"
            line = styled("  {}. {}[dim]{}  {}[/]", rank, one_line(hit.title), score, _cut(hit.text))
            self.console.print(line)

    def _end(self, answer: Answer) -> None:
        usage = answer.usage
        self.console.print(
            f"{answer.seconds:.2f} s, {counted(len(answer.steps), 'step')}, "
            f"{counted(usage.generated_tokens, 'token')}, {counted(usage.searches, 'search', 'searches')}, "
            f"{counted(usage.encoded_images, 'image')} encoded ({usage.cached_images} from cache)",
            style="dim",
        )
        if answer.stop in _STOPS:
            self.console.print((_STOPS if answer.text else _NO_ANSWERS)[answer.stop], style="yellow")


def box_text(region: Region) -> str:
    """'[120,40 - 310,200] px' of the original image."""
    x0, y0, x1, y1 = (round(v) for v in region.as_tuple())
    return f"[{x0},{y0} - {x1},{y1}] px"


def _cut(text: str, limit: int = 90) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
