"""What the switches of native operators cost: the same conversations through bundles that differ in one of them.

    python -m studies.native_switches CHECKPOINT --questions q.jsonl --index DIR -o switches.json

The policy answers the questions once with an fp32 bundle; every variant then reads those conversations. Features are
held against the variant `plain` of the same weights (float32 attention), logits where the policy wrote against fp32:
so a table row shows what the switch does to its own stage, and what is left of that where it matters.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle
from gog_edge.disk.files import write_text
from gog_edge.engines.base import Features
from gog_edge.engines.registry import create_engine
from gog_edge.errors import GogEdgeError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.options import ExportOptions
from gog_edge.export.parity.metrics import compare_features, compare_logits
from gog_edge.export.parity.rollouts import Source, Talk, sample
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.quantize.fit import fit, for_native
from gog_edge.export.quantize.recipe import Recipe
from gog_edge.runtime.decoder import PlacedImage
from gog_edge.runtime.model import Model
from gog_edge.runtime.sequence import TokenSequence
from gog_edge.runtime.vision import vision_inputs

F32 = NDArray[np.float32]
_CHUNK = 512


@dataclass(frozen=True)
class Row:
    """One variant: features against float32 attention, logits against the fp32 bundle."""

    name: str
    feature_error: float
    feature_cosine_min: float
    kl_mean: float
    kl_p99: float
    top1_agreement: float


def variants() -> dict[str, ExportOptions]:
    """By name; `… plain` comes first of its weights."""
    found = {}
    eight = ExportOptions(precision="int8", backend="native", vision_attention="float32")
    found["int8 plain"] = eight
    found["int8, attention bfloat16"] = replace(eight, vision_attention="bfloat16")
    found["int8, attention int8"] = replace(eight, vision_attention="int8")
    found["int8, KV int8"] = replace(eight, kv_dtype="int8")
    four = ExportOptions(precision="int4", backend="native", vision_attention="float32", exact_int4=True)
    recipe = fit(Recipe.for_precision("int4"), for_native)
    found["int4 plain"] = four
    found["int4, widened for many rows"] = replace(four, exact_int4=False)
    found["int4, KV int8"] = replace(four, kv_dtype="int8")
    found["int4, head int4"] = replace(four, recipe=replace(recipe, head=recipe.mlp))
    for block in (64, 128):
        schemes = {role: replace(getattr(recipe, role), block=block) for role in ("attention", "mlp", "down_proj")}
        found[f"int4, blocks of {block}"] = replace(four, recipe=replace(recipe, **schemes))
    return found


def read(bundle: Bundle, talks: Sequence[Talk]) -> tuple[F32, F32]:
    """Features of all images [n, H], and logits of the rows that predict what the policy wrote [m, V]."""
    engine = create_engine("onnxruntime", bundle, None)
    try:
        model = Model.assemble(bundle, engine, RunOptions(prefix_cache=False))
        features, logits = list[F32](), list[F32]()
        for talk in talks:
            seen = []
            for image in talk.images:
                inputs = {**vision_inputs(bundle.manifest, image.rows, image.columns), "patches": image.patches}
                seen.append(engine.vision.run(inputs))
            features += [f.main for f in seen]
            logits.append(_logits(model, talk, seen)[np.flatnonzero(talk.written) - 1])
        return np.concatenate(features), np.concatenate(logits)
    finally:
        engine.close()


def _logits(model: Model, talk: Talk, features: Sequence[Features]) -> F32:
    pad, merge = model.manifest.tokens.image_pad, model.manifest.preprocessing.merge_size
    sequence, shown = TokenSequence(model.manifest.tokens), 0
    while (at := sequence.length) < len(talk.tokens):
        if talk.tokens[at] == pad:
            image = talk.images[shown]
            sequence.append_image(image.rows // merge, image.columns // merge, shown)
            shown += 1
        else:
            sequence.append_ids([int(talk.tokens[at])])
    cache = model.decoder.new_cache(at)
    rows = []
    for start in range(0, at, _CHUNK):
        stop = min(start + _CHUNK, at)
        placed = []
        for span in sequence.spans_between(start, stop):
            first, last = max(span.start, start), min(span.stop, stop)
            placed.append(PlacedImage(first - start, first - span.start, last - first, features[span.image]))
        ids, where, count = talk.tokens[start:stop].astype(np.int32), sequence.positions(start, stop), stop - start
        rows.append(model.decoder.forward(cache, start, ids, where, placed, last_k=count, read=(0, count)))
    return np.concatenate(rows)


def study(checkpoint: Checkpoint, source: Source, count: int) -> list[Row]:
    """Measure every variant on `count` conversations; prints a line each.

    Raises:
        CheckpointError, DatasetError, SearchIndexError, EngineError: something can't be read or run.
    """
    print(f"{'variant':34} {'features':>9} {'cosine':>8} {'KL mean':>9} {'KL p99':>9} {'top-1':>7}")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        talks = sample(checkpoint, source, count, folder)
        _, expected = read(Bundle.open(folder / "fp32"), talks)
        plain: F32 | None = None
        for name, options in variants().items():
            bundle = export_bundle(checkpoint, folder / "variant", replace(options, dialect=source.dialect))
            features, logits = read(bundle, talks)
            plain = features if plain is None or name.endswith("plain") else plain
            close, kept = compare_features(plain, features), compare_logits(expected, logits)
            row = Row(
                name,
                close["relative_error"],
                close["cosine_min"],
                kept["kl_mean"],
                kept["kl_p99"],
                kept["top1_agreement"],
            )
            rows.append(row)
            print(
                f"{row.name:34} {row.feature_error:9.5f} {row.feature_cosine_min:8.5f} {row.kl_mean:9.5f} "
                f"{row.kl_p99:9.5f} {row.top1_agreement:7.4f}",
                flush=True,
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of the study."""
    parser = argparse.ArgumentParser(prog="python -m studies.native_switches", description=__doc__)
    parser.add_argument("checkpoint")
    Source.add_arguments(parser)
    parser.add_argument("--count", type=int, default=32, help="conversations")
    parser.add_argument("-o", "--out", type=Path, help="JSON file for the figures")
    given = parser.parse_args(arguments)
    try:
        source = Source.of(given)
        rows = study(Checkpoint.open(given.checkpoint), source, given.count)
    except GogEdgeError as e:
        print(e, file=sys.stderr)
        return 2
    if given.out:
        figures: dict[str, Any] = {"conversations": given.count, "rows": [asdict(row) for row in rows]}
        write_text(given.out, json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
