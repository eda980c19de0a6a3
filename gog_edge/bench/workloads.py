"""Conversations as data: what every subject, ours or a peer, is asked to do, turn by turn."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gog_edge.bench.subject import Part, Words, picture


@dataclass(frozen=True)
class TurnSpec:
    """One turn: images (width, height) appended first, then `words` tokens of text; `tokens` are written.

    `x`: the turn's place on a growth curve, for a conversation that is one.
    """

    images: tuple[tuple[int, int], ...] = ()
    words: int = 0
    tokens: int = 1
    x: float | None = None

    def parts(self, seed: int) -> list[Part]:
        """The turn with pixels and words that no earlier repeat had."""
        pictures: list[Part] = [picture(w, h, seed * 97 + i) for i, (w, h) in enumerate(self.images)]
        return [*pictures, Words(self.words, seed)] if self.words else pictures


@dataclass(frozen=True)
class Workload:
    """A named conversation. `x`: its place on a growth curve.

    `warmup`: runs that are not counted. `repeats`: counted runs.
    """

    name: str
    about: str
    turns: tuple[TurnSpec, ...]
    x: float | None = None
    repeats: int = 5
    warmup: int = 1

    def until(self, most: float | None) -> Workload | None:
        """Without the places on a growth curve beyond `most`; None where nothing is left."""
        if most is None:
            return self
        turns = tuple(t for t in self.turns if t.x is None or t.x <= most)
        return replace(self, turns=turns) if turns and (self.x is None or self.x <= most) else None


# The two-turn job: a frame and a question, a call; a crop and its results, an answer.
AGENT = (
    TurnSpec(images=((1024, 768),), words=60, tokens=40),
    TurnSpec(images=((448, 336),), words=250, tokens=60),
)
# The same length without pictures (768 + 2 and 140 + 2 tokens): for peers that run a decoder only.
AGENT_TEXT = (TurnSpec(words=830, tokens=40), TurnSpec(words=392, tokens=60))

# One picture of a growing size: what an encoder's attention costs beside its products.
SIZES = ((512, 384), (1024, 768), (1448, 1086))

DECODED = 8  # tokens that every turn of the growing conversation writes
LENGTHS = (1024, 2048, 4096, 8192, 16384)


def _growing() -> tuple[TurnSpec, ...]:
    """Turns that bring one conversation to each of `LENGTHS` before they write."""
    before = (0, *(n + DECODED for n in LENGTHS[:-1]))
    return tuple(TurnSpec(words=n - b, tokens=DECODED, x=n) for n, b in zip(LENGTHS, before))


WORKLOADS: dict[str, tuple[Workload, ...]] = {
    "encode": (Workload("encode", "one 1024x768 image", (TurnSpec(images=((1024, 768),)),)),),
    "prefill": (Workload("prefill", "1,024 tokens of text", (TurnSpec(words=1024),)),),
    "decode": (Workload("decode", "64 tokens behind 1,024", (TurnSpec(words=1024, tokens=64),), repeats=3),),
    "agent": (Workload("agent", "frame, question, call; crop, results, answer", AGENT, repeats=3),),
    "agent-text": (Workload("agent-text", "its language part: words instead of pictures", AGENT_TEXT, repeats=3),),
    "agent-five": (Workload("agent-five", "the same with four crops", (AGENT[0], *(AGENT[1],) * 4), repeats=2),),
    "growth-context": (
        Workload(
            "growth-context", "one conversation that grows: decoding behind n tokens", _growing(), repeats=1, warmup=0
        ),
    ),
    "growth-pixels": tuple(
        Workload(
            "growth-pixels",
            "one picture of n megapixels",
            (TurnSpec(images=(size,), words=16),),
            x=round(size[0] * size[1] / 1e6, 2),
            repeats=2,
            warmup=0,
        )
        for size in SIZES
    ),
    "growth-images": tuple(
        Workload(
            "growth-images",
            "n images of 448x336",
            (TurnSpec(images=((448, 336),) * n, words=16),),
            x=n,
            repeats=2,
            warmup=0,
        )
        for n in (1, 2, 4, 8)
    ),
}
