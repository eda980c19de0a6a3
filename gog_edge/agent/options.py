"""Everything a user can choose about running a policy, as one frozen object."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gog_edge.deadline import Duration, seconds_of
from gog_edge.errors import UsageError
from gog_edge.image.frame import DEFAULT_LIMITS, ImageLimits
from gog_edge.runtime.model import ModelOptions
from gog_edge.runtime.speculation import Speculation
from gog_edge.sampling_options import Sampling
from gog_edge.search.base import Cut, checked_cut


@dataclass(frozen=True)
class Prefetch:
    """Work that is started before it is asked for; it is used only if it is asked for, so answers do not change
    (`observation`: where `RunOptions.exact` holds).

    Args:
        glance: search with the whole image as soon as the image is known.
        crop: encode a crop as soon as its box is closed.
        crop_search: search with it, too.
        observation: read what of an observation is known (its crop, its wording) while its searches run.
    """

    glance: bool = True
    crop: bool = True
    crop_search: bool = True
    observation: bool = True


NO_PREFETCH = Prefetch(False, False, False, False)


@dataclass(frozen=True)
class RunOptions(ModelOptions):
    """How questions are run, besides what `ModelOptions` say. Zero and None mean: what the dialect or the checkpoint
    says.

    Args:
        sampling: how tokens are chosen; what it leaves out is the dialect's, then that of the checkpoint's
            generation_config.json, then greedy.
        speculation: guesses from what was said before.
        prefetch: early search, encoding and reading.
        exact: guess tokens and read ahead only where that can't change a bit of what is computed
            (`Model.rows_independent`: native operators). False: with every engine; where two tokens are almost equally
            likely the answer may then depend on guesses and on how long searches took.
        grammar: "auto" constrains turns to the dialect's grammar where it has one and llguidance is installed;
            "on" requires it, "off" never does.
        max_turns: rounds before the forced answer.
        turn_tokens, total_tokens: generated in one turn, in one question.
        answer_reserve: tokens of the context that observations must leave free for the answer.
        image_min_pixels, image_max_pixels, crop_min_pixels, crop_max_pixels: of resized images and crops.
        pictures: which image files and stored sizes are refused, and the memory that decoding them may take.
        search_timeout: seconds (or a text like "2s") that one search may take.
        results: hits asked for, where the policy does not say.
        early_knowledge: search text with the question before the first step and append what was found.
        cut: how many of the hits a local index gives: up to where their scores fall off ("gap"), those that belong
            together by a mixture of two Gaussians (ViDoRAG's "mixture": 5 to 10, so ask for 10 `results`), or "none".
        expand: entries related to the results (over the index's own relations) that a local index appends.
        confidence: put the log-probabilities of the last turn's tokens into the trace (`meta["confidence"]`: their
            mean and the least one); not for a policy on a server.
        keep_sessions: idle sessions whose KV cache is kept for the next question (its image may be the same); of
            more, the one that waits longest goes.
    """

    sampling: Sampling = field(default_factory=Sampling)
    speculation: Speculation = field(default_factory=Speculation)
    prefetch: Prefetch = field(default_factory=Prefetch)
    exact: bool = True
    grammar: Literal["auto", "on", "off"] = "auto"
    max_turns: int = 0
    turn_tokens: int = 0
    total_tokens: int = 0
    answer_reserve: int = 64
    image_min_pixels: int = 0
    image_max_pixels: int = 0
    crop_min_pixels: int = 0
    crop_max_pixels: int = 0
    pictures: ImageLimits = DEFAULT_LIMITS
    search_timeout: Duration = 20.0
    results: int = 0
    early_knowledge: bool = False
    cut: Cut = "gap"
    expand: int = 0
    confidence: bool = False
    keep_sessions: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grammar not in ("auto", "on", "off"):
            raise UsageError(f"grammar is {self.grammar!r}: auto, on or off is needed")
        checked_cut(self.cut)
        object.__setattr__(self, "search_timeout", seconds_of(self.search_timeout, "a search_timeout"))

    def may_guess(self, rows_independent: bool) -> bool:
        """Whether tokens may be guessed and read ahead with a model whose rows are, or are not, independent."""
        return rows_independent or not self.exact
