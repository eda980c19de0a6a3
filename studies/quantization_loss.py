"""Measure what quantisation costs: recipes and methods against the float model, on a policy's own conversations.

    python -m studies.quantization_loss CHECKPOINT --questions q.jsonl --index DIR -o study.json

The policy answers the questions once with an fp32 bundle; half of the conversations calibrate, the other half measure.
Every variant is the HF model in float32 with weights that were quantised and dequantised, so what is measured is the
loss of the weights alone. Figures are taken where the policy wrote: KL(float || quantised) in nats, and how often the
greedy token is the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.disk.files import write_text
from gog_edge.errors import GogEdgeError, UsageError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.parity.calibrate import calibrate
from gog_edge.export.parity.metrics import compare_logits
from gog_edge.export.parity.reference import Reference
from gog_edge.export.parity.rollouts import Source, Talk, sample
from gog_edge.export.quantize.calibration import Calibration
from gog_edge.export.quantize.fit import fit, for_native
from gog_edge.export.quantize.recipe import Recipe
from gog_edge.export.quantize.scheme import Method, Scheme, dequantize
from gog_edge.export.quantize.weights import quantize
from gog_edge.families import find
from gog_edge.families.weights import tensor_classes
from studies.awq import Scaling, find_scaling

F32 = NDArray[np.float32]
_F32 = Scheme(32)
_FLOAT = Recipe("float", _F32, _F32, _F32, _F32, _F32, _F32, _F32)


@dataclass(frozen=True)
class Variant:
    """One thing to measure. `scaled`: with activation-aware scaling before it."""

    name: str
    recipe: Recipe
    scaled: bool = False


@dataclass(frozen=True)
class Row:
    """What came out. `bits`: per weight of the linear layers and the embedding, scales included."""

    name: str
    kl_mean: float
    kl_p99: float
    top1_agreement: float
    bits: float
    seconds: float


def decoder_variants(blocks: Sequence[int] = (32, 128)) -> list[Variant]:
    """int4 decoder layers, everything else float: methods, block sizes, symmetry, scaling."""
    found = []
    for block in blocks:
        for symmetric in (True, False):
            kind = f"b{block} {'sym' if symmetric else 'asym'}"
            for method in ("rtn", "hqq", "mse", "gptq"):
                scheme = Scheme(4, block, symmetric, method)
                recipe = replace(_FLOAT, attention=scheme, mlp=scheme, down_proj=scheme)
                found.append(Variant(f"int4 {kind} {method}", recipe))
                if method in ("rtn", "gptq"):
                    found.append(Variant(f"int4 {kind} awq+{method}", recipe, True))
    return found


def sensitivity_variants() -> list[Variant]:
    """One tensor class quantised at a time, to find the ones that need more bits."""
    found = []
    for kind in ("attention", "mlp", "down_proj", "head", "vision", "merger"):
        for label, scheme in (
            ("int4 b32 sym", Scheme(4, 32)),
            ("int4 b32 asym", Scheme(4, 32, False)),
            ("int8", Scheme(8)),
        ):
            changed: dict[str, Any] = {kind: scheme}
            found.append(Variant(f"{kind} {label}", replace(_FLOAT, **changed)))
    found.append(Variant("embedding int8", replace(_FLOAT, embedding=Scheme(8))))
    return found


def recipe_variants() -> list[Variant]:
    """Whole recipes: the defaults as native operators store them, and what moving one class would change."""
    eight = fit(Recipe.for_precision("int8", "mse"), for_native)
    found = [Variant("int8", eight), Variant("int4", fit(Recipe.for_precision("int4", "mse"), for_native))]
    methods: tuple[Method, ...] = ("rtn", "mse", "gptq")
    for symmetric in (True, False):
        for attention in (4, 8):
            for method in methods:
                four = Scheme(4, 32, symmetric, method, "float16")
                mixed = replace(eight, mlp=four, down_proj=four, attention=four if attention == 4 else eight.attention)
                kind = f"{'sym' if symmetric else 'asym'} {method}"
                found.append(Variant(f"int4 {kind}, attention int{attention}", mixed))
    base = fit(Recipe.for_precision("int4", "mse"), for_native)
    found.append(Variant("int4, down_proj int8", replace(base, down_proj=eight.down_proj)))
    found.append(Variant("int4, head int4", replace(base, head=base.mlp)))
    found.append(Variant("int4, vision int4", replace(base, vision=base.mlp)))
    return found


SETS: dict[str, Callable[[], list[Variant]]] = {
    "decoder": decoder_variants,
    "sensitivity": sensitivity_variants,
    "recipes": recipe_variants,
}


class Study:
    """Reference logits of the measured conversations, and what variants make of them."""

    def __init__(self, checkpoint: Checkpoint, calibration: Calibration, measured: Sequence[Talk]) -> None:
        self.checkpoint, self.calibration, self.measured = checkpoint, calibration, measured
        self._scalings: dict[Any, Scaling] = {}
        self._classes = tensor_classes(checkpoint.config)
        self._expected = self._logits(None)

    def run(self, variant: Variant) -> Row:
        """Quantise, read the conversations, compare."""
        started = time.monotonic()
        scaling = self._scaling(variant.recipe) if variant.scaled else None
        stored: dict[str, tuple[int, int]] = {}

        def transform(name: str, weight: F32) -> F32:
            known = self.calibration(name)
            if scaling is not None:
                weight, known = scaling.apply(name, weight), scaling.stats(name, known)
            kind = self._classes.get(name)
            if kind is None:
                return weight
            scheme = variant.recipe.scheme(kind, name)
            if known is None and scheme.method == "gptq":
                scheme = replace(scheme, method="mse")
            quantised = quantize(weight, scheme, known)
            stored[name] = (weight.size, quantised.nbytes)
            return dequantize(quantised)

        got = self._logits(transform)
        metrics = compare_logits(self._expected, got)
        values, nbytes = (sum(v[i] for v in stored.values()) for i in (0, 1))
        return Row(
            variant.name,
            metrics["kl_mean"],
            metrics["kl_p99"],
            metrics["top1_agreement"],
            8 * nbytes / values,
            round(time.monotonic() - started, 1),
        )

    def _logits(self, transform: Callable[[str, F32], F32] | None) -> F32:
        """Logits of every row that predicts a token the policy wrote."""
        reference = Reference(self.checkpoint, transform)
        rows = []
        for talk in self.measured:
            logits = reference.logits(talk.tokens, talk.images)
            rows.append(logits[np.flatnonzero(talk.written) - 1])
        return np.concatenate(rows)

    def _scaling(self, recipe: Recipe) -> Scaling:
        plain = recipe.with_method("rtn")  # the search tries many exponents; the method then works on what it found
        key = (plain.attention, plain.mlp, plain.down_proj)
        if key not in self._scalings:
            spec = find(self.checkpoint.config).parse(self.checkpoint.config).decoder.spec
            group = spec.heads // spec.kv_heads
            self._scalings[key] = find_scaling(
                self.checkpoint, self.calibration, plain, spec.layers, group, spec.head_dim
            )
        return self._scalings[key]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of the study."""
    parser = argparse.ArgumentParser(prog="python -m studies.quantization_loss", description=__doc__)
    parser.add_argument("checkpoint")
    Source.add_arguments(parser)
    parser.add_argument("--count", type=int, default=32, help="conversations: half calibrate, half measure")
    parser.add_argument("--set", action="append", choices=sorted(SETS), help="what to measure (default: everything)")
    parser.add_argument("-o", "--out", type=Path, help="JSON file for the figures")
    given = parser.parse_args(arguments)
    try:
        rows = _study(given)
    except GogEdgeError as e:
        print(e, file=sys.stderr)
        return 2
    if given.out:
        write_text(given.out, json.dumps(rows, indent=1) + "\n")
    return 0


def _study(given: argparse.Namespace) -> dict[str, Any]:
    if given.count < 2:
        raise UsageError("--count needs at least 2 conversations: one calibrates, one measures")
    checkpoint = Checkpoint.open(given.checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = Source.of(given)
        talks = sample(checkpoint, source, given.count, folder)
        calibration = calibrate(checkpoint, talks[0::2], folder / "calibration")
        study = Study(checkpoint, calibration, talks[1::2])
        print(f"{'variant':34} {'KL mean':>9} {'KL p99':>9} {'top-1':>7} {'bits':>6} {'s':>6}")
        tables: dict[str, list[dict[str, Any]]] = {}
        for name in given.set or sorted(SETS):
            tables[name] = []
            for variant in SETS[name]():
                row = study.run(variant)
                tables[name].append(asdict(row))
                print(
                    f"{row.name:34} {row.kl_mean:9.5f} {row.kl_p99:9.5f} {row.top1_agreement:7.4f} {row.bits:6.2f}"
                    f" {row.seconds:6.1f}",
                    flush=True,
                )
    written = int(sum(t.written.sum() for t in talks[1::2]))
    meta = {"checkpoint": Path(given.checkpoint).name, "measured_tokens": written, "calibration": calibration.meta}
    return {"meta": meta, **tables}


if __name__ == "__main__":
    raise SystemExit(main())
