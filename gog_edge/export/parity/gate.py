"""The gate: an exported bundle against the HF model it came from, stage by stage.

One conversation of three turns is held with the bundle through the real session (images of odd sizes, a crop, images
appended between turns, prefill in small chunks so that images cross their borders, greedy decoding). The HF model then
reads the whole conversation in one float32 forward. Compared are:

  pixels    the crop kernel's patches with those of the HF image processor, in 8-bit steps of the resized image
  vision    merged features on the same patches; deepstack: the same for DeepStack features
  prefill   logits at every place of the conversation, computed in chunks
  decode    logits of the decoding steps, one token at a time on the session's cache
  greedy    the decoded tokens themselves
  graph     quantised bundles: prefill logits against the HF model with the same quantised weights, which tells an
            error of the graph from the loss of quantisation
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle
from gog_edge.crop import pixel_box
from gog_edge.engines.registry import create_engine
from gog_edge.errors import ParityError, UsageError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.options import QUANTISED
from gog_edge.export.parity.cause import Evidence, explain
from gog_edge.export.parity.conversation import (
    CHUNK,
    IMAGE_TOKENS,
    QUESTIONS,
    BundleTalk,
    converse,
    generated_frames,
    masked_tokens,
)
from gog_edge.export.parity.metrics import (
    Stage,
    Tolerances,
    Verdict,
    combine,
    compare_features,
    compare_greedy,
    compare_logits,
    worst,
)
from gog_edge.export.parity.stored import StoredWeights
from gog_edge.export.progress import Progress, Silent
from gog_edge.export.quantize.recipe import Recipe
from gog_edge.export.quantize.scheme import CALIBRATED, dequantize
from gog_edge.export.quantize.weights import quantize
from gog_edge.families.weights import decoder_matrices, tensor_classes
from gog_edge.image.frame import Frame, ImageSource
from gog_edge.runtime.model import Model
from gog_edge.runtime.vision import VisionPlan
from gog_edge.serde import SerdeError, decode

if TYPE_CHECKING:
    from gog_edge.engines.base import Features
    from gog_edge.export.parity.load import Transform
    from gog_edge.export.parity.reference import Reference, ReferenceImage

F32 = NDArray[np.float32]
FORMAT = "gog-edge-parity-1"


@dataclass(frozen=True)
class ParityReport:
    """What verify.json holds."""

    verdict: Verdict
    stages: tuple[Stage, ...]
    precision: str
    backend: str
    engine: str
    reference: str
    checkpoint: str
    adapters: tuple[str, ...]
    images: tuple[dict[str, Any], ...]
    turns: int
    prompt_tokens: int
    decoded_tokens: int
    seed: int
    seconds: dict[str, float] = field(default_factory=dict)
    format: str = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        data: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return data

    def lines(self) -> list[str]:
        """For people, one line per stage."""
        rows = []
        for stage in self.stages:
            shown = {k: v for k, v in stage.metrics.items() if k in {*stage.at_least, *stage.at_most}}
            parts = [", ".join(f"{k} {v:.4g}" for k, v in shown.items()), f"({stage.note})" if stage.note else ""]
            cause = f"; likely cause: {stage.cause}" if stage.cause else ""
            rows.append(f"{stage.verdict.value:9} {stage.name:9} {' '.join(p for p in parts if p)}{cause}")
        return rows

    def require(self) -> ParityReport:
        """Returns itself, unless the gate failed.

        Raises:
            ParityError: a stage is beyond its tolerance.
        """
        failed = [s for s in self.stages if s.verdict is Verdict.FAIL]
        if failed:
            what = "; ".join(f"{s.name}: {s.complaint()} (likely cause: {s.cause})" for s in failed)
            raise ParityError(f"the {self.precision} bundle differs from {self.checkpoint} in transformers: {what}")
        return self


def verify(
    bundle: Bundle | str | Path,
    checkpoint: Checkpoint | str | Path,
    images: Sequence[ImageSource] = (),
    seed: int = 0,
    progress: Progress | None = None,
    *,
    tokens: int = 24,
    engine: str | None = None,
    tolerances: Tolerances | None = None,
    memory: int | None = None,
) -> ParityReport:
    """Hold one conversation with the bundle and with the HF model, and compare.

    Args:
        images: shown besides the two generated ones of odd size.
        seed: of the generated images.
        tokens: decoded greedily in each of the three turns.
        engine: name of the engine to run the bundle with; default: "cpu".
        tolerances: default: those of the bundle's precision in tolerances.toml.
        memory: bytes that the HF model's weights may take before they are streamed.

    Returns:
        The report; `report.require()` raises if the gate failed.

    Raises:
        UsageError: torch or transformers is missing, or `tokens` makes no sense.
        ParityError: shapes differ or values are not finite, so that nothing can be compared.
    """
    if tokens < 1:
        raise UsageError(f"--verify needs at least 1 token a turn, not {tokens}")
    make_reference, shown_images = _torch_side()
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(checkpoint)
    progress = progress or Silent()
    limits = tolerances or Tolerances.load(_limits_name(bundle))
    masked = masked_tokens(bundle.manifest, checkpoint.config.get("video_token_id"))
    frames = [*generated_frames(seed), *(Frame.open(source) for source in images)]
    progress.stage("verify: bundle", 0)
    started = time.monotonic()
    runner = create_engine(engine or "cpu", bundle)
    try:
        talk = converse(Model.assemble(bundle, runner, _options()), frames, tokens, masked)
        described = runner.describe()
    finally:
        runner.close()
    bundle_seconds = time.monotonic() - started
    progress.stage("verify: reference", 0)
    started = time.monotonic()
    reference = make_reference(checkpoint, None, memory)
    about = reference.describe()
    shown = shown_images(talk)
    expected = reference.read(talk.tokens, shown)
    del reference
    stages = [
        *_pixels(bundle, checkpoint, talk, limits),
        *_vision_stages(expected.features, talk.features, limits),
        *_decoder_stages(expected.logits, talk, limits, masked),
    ]
    transform = fake_quantisation(bundle, checkpoint.config)
    if transform is not None:
        progress.stage("verify: quantised reference", 0)
        table = "routed_graph" if bundle.manifest.decoder.experts else "graph"
        stages.append(_graph_stage(lambda: make_reference(checkpoint, transform, memory), talk, shown, limits, table))
    evidence = Evidence(
        reference=expected.logits,
        bundle=talk.prefill,
        first_image=talk.starts[0],
        precision=bundle.manifest.precision,
        adapters=bool(checkpoint.adapters),
    )
    return ParityReport(
        verdict=combine(stages),
        stages=explain(stages, evidence),
        precision=bundle.manifest.precision,
        backend=bundle.manifest.backend,
        engine=f"{described.name} {described.version}",
        reference=about,
        checkpoint=Path(checkpoint.origin).name if Path(checkpoint.origin).exists() else checkpoint.origin,
        adapters=tuple(Path(a).name for a in checkpoint.adapters),
        images=tuple(_describe(plan) for plan in talk.plans),
        turns=len(QUESTIONS),
        prompt_tokens=len(talk.tokens) - len(talk.places),
        decoded_tokens=len(talk.places),
        seed=seed,
        seconds={"bundle": round(bundle_seconds, 2), "reference": round(time.monotonic() - started, 2)},
    )


def gate(
    checkpoint: Checkpoint,
    images: Sequence[ImageSource] = (),
    seed: int = 0,
    progress: Progress | None = None,
    show: Callable[[ParityReport], None] | None = None,
) -> Callable[[Bundle], dict[str, Any]]:
    """The gate that `pipeline.export_bundle` takes: verifies the finished bundle, returns what verify.json holds.

    Args:
        show: called with the report, whether it passed or failed.

    Raises (at once):
        UsageError: torch or transformers is missing.
    Raises (the gate):
        ParityError: the bundle is beyond a tolerance.
    """
    _torch_side()

    def run(bundle: Bundle) -> dict[str, Any]:
        report = verify(bundle, checkpoint, images, seed, progress)
        if show is not None:
            show(report)
        return report.require().to_dict()

    return run


def fake_quantisation(bundle: Bundle, config: Mapping[str, Any]) -> Transform | None:
    """The bundle's quantisation as a change of float weights; None if nothing is quantised or it can't be repeated.

    What weights alone decided is computed again by the recipe; where calibration decided, the integers are read back
    from the decoder's graph. Portable graphs fit schemes to their operators: theirs can't be told.
    """
    manifest = bundle.manifest
    if manifest.precision not in QUANTISED or manifest.opset_only:
        return None
    try:
        recipe = decode(Recipe, manifest.quantization, "quantization")
    except SerdeError as e:
        raise ParityError(f"{bundle.root}: the manifest's quantisation recipe can't be read ({e})") from e
    classes = tensor_classes(dict(config))
    stored = None if recipe.repeatable else StoredWeights(bundle, decoder_matrices(dict(config)))

    def transform(name: str, weight: F32) -> F32:
        kind = classes.get(name)
        scheme = recipe.scheme(kind, name) if kind else None
        if scheme is None:
            return weight
        if scheme.method in CALIBRATED:
            if stored is not None and (rows := stored(name)) is not None:
                return rows
            scheme = dataclasses.replace(scheme, method="mse")  # experts are not calibrated
        rows = weight.reshape(-1, weight.shape[-1])  # experts are stacked
        return dequantize(quantize(rows, scheme)).reshape(weight.shape)

    return transform


def _torch_side() -> tuple[type[Reference], Callable[[BundleTalk], tuple[ReferenceImage, ...]]]:
    try:
        from gog_edge.export.parity.reference import Reference
        from gog_edge.export.parity.rollouts import shown_images
    except ImportError as e:
        raise UsageError(f"--verify needs torch and transformers ({e}): pip install 'gog-edge[parity]'") from e
    return Reference, shown_images


def _limits_name(bundle: Bundle) -> str:
    """An fp32 bundle with a narrower KV cache can't be exact: the limits of fp16 are for it."""
    precision = bundle.manifest.precision
    return "fp16" if precision == "fp32" and bundle.manifest.decoder.kv_dtype != "float32" else precision


def _options() -> RunOptions:
    return RunOptions(prefix_cache=False, prefill_chunk=CHUNK)


def _pixels(bundle: Bundle, checkpoint: Checkpoint, talk: BundleTalk, limits: Tolerances) -> tuple[Stage, ...]:
    """`_pixel_stage`; without an image processor to compare with, the stage fails and says so."""
    try:
        return _pixel_stage(bundle, checkpoint, talk, limits)
    except ParityError as e:
        return (Stage("pixels", Verdict.FAIL, {}, note=str(e)),)


def _graph_stage(
    make: Callable[[], Reference], talk: BundleTalk, shown: Sequence[ReferenceImage], limits: Tolerances, table: str
) -> Stage:
    try:
        quantised = make()
    except ParityError as e:  # the plain reference was made, so this is a lack of memory
        return Stage("graph", Verdict.SKIPPED, {}, note=str(e))
    return limits.judge("graph", compare_logits(quantised.logits(talk.tokens, shown), talk.prefill), limits_of=table)


def _pixel_stage(bundle: Bundle, checkpoint: Checkpoint, talk: BundleTalk, limits: Tolerances) -> tuple[Stage, ...]:
    from gog_edge.export.parity.reference import PatchMaker

    pre, maker = bundle.manifest.preprocessing, PatchMaker(checkpoint)
    # What the user set at export overrides the processor's own; older bundles do not say what that was.
    facts = bundle.manifest.provenance
    low, high = facts.get("min_pixels", pre.min_pixels), facts.get("max_pixels", pre.max_pixels)
    parts = []
    for plan, patches in zip(talk.plans, talk.patches):
        box = pixel_box(plan.region, plan.frame.width, plan.frame.height)
        cut = np.ascontiguousarray(plan.frame.pixels[box.y0 : box.y1, box.x0 : box.x1])
        grid = maker.grid(cut, low, high, IMAGE_TOKENS * pre.factor**2)
        if grid != (plan.grid.rows, plan.grid.columns):
            parts.append({"steps": float("inf"), "differing": 1.0})
            continue
        expected = maker.at_grid(cut, *grid)
        channels = expected.reshape(len(expected), 3, pre.temporal_patch_size, -1)
        steps = np.abs(channels - patches.reshape(len(patches), 3, 1, -1)) * maker.step()[:, None, None]
        parts.append({"steps": float(steps.max()), "differing": float((steps > 0.5).mean())})
    return (limits.judge("pixels", worst(parts), f"{len(parts)} images"),)


def _vision_stages(
    expected: list[tuple[F32, F32 | None]], features: list[Features], limits: Tolerances
) -> tuple[Stage, ...]:
    main = [compare_features(e[0], f.main) for e, f in zip(expected, features)]
    stages = [limits.judge("vision", worst(main), f"{len(main)} images")]
    deep = []
    for (_, wanted), got in zip(expected, features):
        if (wanted is None) != (got.deepstack is None):
            raise ParityError("only one of bundle and reference model has DeepStack features")
        if wanted is not None and got.deepstack is not None:
            deep += [compare_features(a, b) for a, b in zip(wanted, got.deepstack)]
    if deep:
        stages.append(limits.judge("deepstack", worst(deep), f"{len(deep)} features"))
    return tuple(stages)


def _decoder_stages(logits: F32, talk: BundleTalk, limits: Tolerances, masked: list[int]) -> tuple[Stage, ...]:
    before = np.asarray(talk.places) - 1  # the row that predicts a place is the one before it
    tie = limits.value("greedy", "tie")
    greedy = compare_greedy(logits[before], talk.tokens[talk.places], tie, masked)
    return (
        limits.judge("prefill", compare_logits(logits, talk.prefill)),
        limits.judge("decode", compare_logits(logits[before], np.stack(talk.rows))),
        limits.judge("greedy", greedy),
    )


def _describe(plan: VisionPlan) -> dict[str, Any]:
    region = None if plan.region is None else [round(v, 1) for v in plan.region.as_tuple()]
    name = Path(plan.frame.source).name if plan.frame.source else ""
    return {
        "name": name,
        "width": plan.frame.width,
        "height": plan.frame.height,
        "region": region,
        "grid": [plan.grid.rows, plan.grid.columns],
        "tokens": plan.tokens,
    }
