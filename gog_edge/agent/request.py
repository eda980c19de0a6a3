"""What is asked: one value that travels from the command line, the server and the Python API to the loop."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from gog_edge.deadline import Budget, Duration, seconds_of
from gog_edge.errors import UsageError
from gog_edge.image.frame import ImageSource
from gog_edge.runtime.telemetry import Trace
from gog_edge.sampling_options import Sampling
from gog_edge.types import Exchange

Images = ImageSource | Sequence[ImageSource]

P = ParamSpec("P")
S = TypeVar("S")
R = TypeVar("R")


@dataclass(frozen=True)
class AskRequest:
    """One question and its limits.

    Args:
        image: whatever `Frame.open` takes, or a sequence of such; None for a conversation, which has its own.
        question: what is asked about it.
        deadline: seconds, or a text like "2s"; then the best answer so far comes back, with `stop` DEADLINE.
        max_turns: rounds before the policy is made to answer (default: the options', then the dialect's).
        budget: to cancel from another thread; its own time limit holds, too.
        trace: records what happens.
        urls: public addresses of the images, in order, for web providers that only take addresses.
        sampling: how tokens of this question are chosen; what it leaves out is as the agent was loaded with.
        max_tokens: tokens written in the whole question; a lower limit of the options or the dialect holds, too.
        bgr: whether images that are arrays are in OpenCV's order of colours (see `Frame.open`).
        key: the data set's id of the question, for providers that replay recorded searches.
        earlier: what was asked and answered before, which the policy reads first; not where its dialect says that it
            can't follow (`follow_up`): then it is asked `alone`.
        system: further instructions, after the dialect's own.
        schema: JSON schema of an object; the answer's text is such an object then. The policy is not told of it: tokens
            that the schema does not allow are never chosen.

    Raises:
        UsageError: the question is empty, or a limit makes no sense.
    """

    image: Images | None
    question: str
    _: KW_ONLY
    deadline: Duration | None = None
    max_turns: int | None = None
    budget: Budget | None = None
    trace: Trace | None = None
    urls: Sequence[str] = ()
    key: str = ""
    sampling: Sampling | None = None
    max_tokens: int | None = None
    bgr: bool | None = None
    earlier: Sequence[Exchange] = ()
    system: str = ""
    schema: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise UsageError("the question is empty")
        if self.deadline is not None:
            object.__setattr__(self, "deadline", seconds_of(self.deadline, "a deadline"))
        if self.max_turns is not None and self.max_turns < 1:
            raise UsageError(f"max_turns is {self.max_turns}: at least one turn is needed")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}: at least one token is needed")

    def alone(self) -> AskRequest:
        """The question without those before it: of their images, those that came last, if none came with itself."""
        if not self.earlier:
            return self
        images: list[Any] = list(self.image) if isinstance(self.image, (list, tuple)) else [self.image]
        first = min(sum(past.images for past in self.earlier), len(images))
        if first == len(images):
            first -= next((past.images for past in reversed(self.earlier) if past.images), 0)
        rest = self.image if self.image is None else images[max(first, 0) :]
        return replace(self, image=cast("Images | None", rest), earlier=(), urls=self.urls[max(first, 0) :])


def spelled_out(
    build: Callable[P, AskRequest],
) -> Callable[[Callable[[S, AskRequest], R]], Callable[Concatenate[S, P], R]]:
    """A method of a request as users call it: with the arguments that `build` makes the request from."""

    def decorate(method: Callable[[S, AskRequest], R]) -> Callable[Concatenate[S, P], R]:
        @functools.wraps(method)
        def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
            return method(self, build(*args, **kwargs))

        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        spelled = [own, *inspect.signature(build).parameters.values()]
        call.__signature__ = inspect.signature(method).replace(parameters=spelled)  # type: ignore[attr-defined]
        return cast("Callable[Concatenate[S, P], R]", call)

    return decorate


def without_image(build: Callable[Concatenate[Images | None, P], AskRequest]) -> Callable[P, AskRequest]:
    """A request to somebody who has the images already."""

    def follow_up(*args: P.args, **kwargs: P.kwargs) -> AskRequest:
        return build(None, *args, **kwargs)

    _, *rest = inspect.signature(build).parameters.values()
    follow_up.__signature__ = inspect.signature(build).replace(parameters=rest)  # type: ignore[attr-defined]
    return follow_up
