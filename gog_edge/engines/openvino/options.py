"""Settings of the OpenVINO engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gog_edge.errors import UsageError

Precision = Literal["auto", "f32", "f16", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("auto", "f32", "f16", "bf16")


@dataclass(frozen=True)
class OpenVinoOptions:
    """How OpenVINO runs the graphs.

    Args:
        threads: of its CPU plugin; 0 means as many as this process may use (`gog_edge.allowance`).
        precision: what it computes in. auto: f32 for a bundle in fp32, else the device's own choice.
        static: compile for fixed numbers of tokens and rows of cache, and pad up to them; None: on an NPU only, which
            knows nothing else.
        initial_context: tokens that a new KV cache has room for; it doubles when it is full, so that a short
            conversation does not attend over more.
        chunk: tokens of a run where `static`; longer ones are cut.
        keep_compiled: keep what was compiled for a GPU or NPU in the user's cache directory.
        properties: further properties of OpenVINO, as it spells them.
    """

    threads: int = 0
    precision: Precision = "auto"
    static: bool | None = None
    initial_context: int = 512
    chunk: int = 128
    keep_compiled: bool = True
    properties: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise UsageError(f"threads is {self.threads}: 0 (all that it may use) or a positive number is needed")
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision is {self.precision!r}: one of {', '.join(PRECISIONS)} is needed")
        if self.initial_context < 1 or self.chunk < 1:
            raise UsageError(f"initial_context {self.initial_context} and chunk {self.chunk}: both must be at least 1")
