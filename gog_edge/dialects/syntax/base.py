"""What every syntax of actions can do: find the calls of a turn, see what is closed of one that is still being
written, write one as the policy would, and say how it is written as a part of a grammar. No text makes it raise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from gog_edge.dialects.coordinates import CoordinateFrame
from gog_edge.dialects.grammar import Rules
from gog_edge.dialects.spec import ActionSpec, DialectSpec
from gog_edge.types import Action, RegisteredImage

SizeOf = Callable[[str], "tuple[float, float] | None"]  # pixels of a named image, for code that computes boxes


@dataclass(frozen=True)
class CallProblem:
    """Why a call can't be used: `reply` is a key of [replies]; the others are values of its placeholders."""

    reply: str
    error: str = ""
    tool: str = ""
    call: str = ""
    missing: str = ""
    image: str = ""


@dataclass(frozen=True)
class Call:
    """One call at text[start:end]. `values`: role -> what was written for it; `text`: what a reply quotes of it."""

    start: int
    end: int
    action: ActionSpec | None
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: CallProblem | None = None
    text: str = ""


class Syntax(ABC):
    """One syntax with the actions of a dialect that are written between the same two marks.

    `needs`: keys of [[actions]] that such an action can't do without, unless it is refused.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, actions: Sequence[ActionSpec], spec: DialectSpec, frame: CoordinateFrame) -> None:
        self.actions, self.spec, self.frame = tuple(actions), spec, frame
        self.first = self.actions[0]
        self.opening, self.closing = self.marks(self.first)

    @classmethod
    @abstractmethod
    def marks(cls, action: ActionSpec) -> tuple[str, str]:
        """What opens a call of `action` and what closes it."""

    @abstractmethod
    def find(self, text: str, size_of: SizeOf) -> Iterator[Call]:
        """The calls in `text`, in order; one that can't be read has a `problem`."""

    def partial(self, text: str, size_of: SizeOf) -> Call | None:
        """The values that are closed already in an unfinished call at the end of `text`; None without such a call."""
        return None

    @abstractmethod
    def format(self, form: ActionSpec, action: Action, images: Sequence[RegisteredImage]) -> str:
        """The action as the policy would write it by `form`, one of `actions`.

        Raises:
            RegionError: the region lies outside of the target image.
        """

    @abstractmethod
    def grammar(self, rules: Rules) -> list[str]:
        """Add the rules of the syntax; the names of those that are a turn each."""

    def json_answer(self, rules: Rules) -> str:
        """The rules behind `opening` of an answer that is an object by the grammar's schema; "" where it can't be."""
        return ""

    def answering(self, text: str) -> tuple[str, bool] | None:
        """(What is written of the text of an answer in `text`, which begins behind `opening`; whether that is all.)
        None while it is not known where it begins, or for a syntax that tells its end only."""
        return None

    def unwrapped(self, text: str) -> str:
        """An answer without marks that were left over."""
        return text
