"""Where to look when a stage of the gate fails: which stages agree, and from which place on the logits differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gog_edge.export.options import QUANTISED
from gog_edge.export.parity.metrics import F32, Stage, Verdict, divergence
from gog_edge.manifest import PrecisionName

_LOSE_LESS = {  # what export takes with each
    "int4": "--precision int8, --int8 attention or --calibration",
    "int5": "--precision int8 or --calibration",
    "int8": "--calibration",
}
_CLEAR = 1e-3  # nats at one place that rounding of float32 and float16 does not make


@dataclass(frozen=True)
class Evidence:
    """What was compared: logits [s, V] of both sides, the place of the first image's first token, the bundle's kind."""

    reference: F32
    bundle: F32
    first_image: int
    precision: PrecisionName
    adapters: bool


def explain(stages: Sequence[Stage], evidence: Evidence) -> tuple[Stage, ...]:
    """The stages, with a likely cause in every one that failed."""
    verdicts = {stage.name: stage.verdict for stage in stages}
    return tuple(
        replace(stage, cause=_cause(stage.name, verdicts, evidence)) if stage.verdict is Verdict.FAIL else stage
        for stage in stages
    )


def _cause(name: str, verdicts: dict[str, Verdict], evidence: Evidence) -> str:
    quantised = evidence.precision in QUANTISED
    failed = {stage for stage, verdict in verdicts.items() if verdict is Verdict.FAIL}
    if name == "pixels":
        return "the image processor's settings: sizes, resampling, rescaling, mean or std"
    if name == "vision":
        return "the tower: its weights, vision_config, or the precision of its layers"
    if name == "deepstack":
        return "as vision" if "vision" in failed else "the DeepStack mergers or deepstack_visual_indexes"
    if name == "graph":
        return "the exported graphs, which do not compute what the quantised weights say"
    if "vision" in failed:
        return "as vision: the decoder reads other image features"
    if quantised and verdicts.get("graph") in (Verdict.PASS, Verdict.AMBIGUOUS):
        return f"the loss of quantisation, as the graphs are right: {_LOSE_LESS[evidence.precision]} may lose less"
    if name != "prefill" and "prefill" in failed:
        return "as prefill"
    if name == "decode":
        return "the KV cache or the positions while decoding, as prefill agrees"
    if name == "greedy":
        return "single close decisions, as the logits agree"
    return _place(evidence) + (", or the loss of quantisation" if quantised else "")


def _place(evidence: Evidence) -> str:
    until = max(evidence.first_image, 2)
    text = divergence(evidence.reference[:until], evidence.bundle[:until])
    adapter = ", an adapter" if evidence.adapters else ""
    if text[0] > _CLEAR:
        return f"head, embedding, norms or MLPs{adapter}: the first token differs already"
    if np.any(text > _CLEAR):
        return f"attention{adapter}, rope_theta or rope_scaling: text differs from the second token on"
    return "mrope_section or where images stand, as the text before the first image agrees"
