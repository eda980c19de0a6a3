"""`gog-edge inspect DIR`: a bundle in readable form."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from gog_edge.bundle import MANIFEST, VERIFY_FILE, Bundle
from gog_edge.cli.common.bundles import chosen, named
from gog_edge.cli.common.console import human_bytes, print_json, progress_bar, stdout
from gog_edge.errors import DialectError
from gog_edge.manifest import EngineSpec, GraphSpec, Manifest
from gog_edge.serde import encode


@click.command("inspect")
@click.argument("bundle", required=False, metavar="[BUNDLE]", callback=named)
@click.option("--hashes/--no-hashes", default=False, help="Read every file and compare its sha256.")
@click.option("--graphs", is_flag=True, help="List the inputs and outputs of the graphs.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def command(bundle: Path | None, hashes: bool, graphs: bool, as_json: bool) -> None:
    """Show what BUNDLE holds: family, sizes, precision, files; and what of it was checked.

    BUNDLE is a folder or a name of the library; default: the bundle that was last exported or named. Names and sizes of
    all files are always compared with the manifest, their content only with --hashes. The comparison with transformers
    is the one that was made at export (--verify); it is shown, not repeated.
    """
    bundle = chosen(bundle, say=False)
    opened = Bundle.open(bundle)
    if hashes:
        _check_hashes(opened)
    if as_json:
        about: dict[str, Any] = {"path": str(bundle), "fingerprint": opened.fingerprint, "sampling": _sampling(opened)}
        about |= {"checked": "sha256" if hashes else "sizes", "verified": _verdict(opened)}
        print_json({**about, **encode(opened.manifest)})
        return
    out = stdout()
    out.print(_summary(opened, hashes))
    out.print(_files(opened))
    if graphs:
        for name, spec in opened.manifest.graphs.items():
            out.print(_interface(name, spec))


def _check_hashes(bundle: Bundle) -> None:
    total = sum(d.size for d in bundle.manifest.files.values())
    with progress_bar() as bar:
        task = bar.add_task("checking hashes", total=total)
        for _, size in bundle.verify():
            bar.advance(task, size)


def _summary(bundle: Bundle, hashes: bool) -> Table:
    m: Manifest = bundle.manifest
    v, d = m.vision, m.decoder
    table = Table(title=f"{m.name}  ({bundle.root})", show_header=False, title_justify="left", box=None)
    table.add_column(style="bold")
    table.add_column()
    rows = {
        "family": f"{m.family}, {m.precision}, backend {m.backend}",
        "decoder": f"{d.layers} layers x {d.hidden}, {d.heads} heads / {d.kv_heads} KV heads of {d.head_dim}, "
        f"vocabulary {d.vocab:,}, context {d.max_context:,}, KV {d.kv_dtype}",
        "vision": f"{v.depth} layers x {v.hidden}, patches of {m.preprocessing.patch_size} px, "
        f"one token per {m.preprocessing.factor}x{m.preprocessing.factor} px"
        + (f", windows of {v.window} tokens, full attention in layers {list(v.full_layers)}" if v.window else "")
        + (f", {v.deepstack} DeepStack levels" if v.deepstack else ""),
        "image budget": f"{m.preprocessing.min_pixels:,} to {m.preprocessing.max_pixels:,} px",
        "dialect": m.dialect,
        "sampling": _sampling(bundle),
        "quantization": _quantization(m.quantization),
        "engines": "\n".join(f"{e.graph}, {_engine(e)}" for e in m.engines) or "none",
        "fingerprint": bundle.fingerprint,
        "files checked": "names, sizes and sha256 of all" if hashes else "names and sizes; --hashes reads them all",
        "compared": _verdict(bundle) or "never with transformers (export --verify does it)",
    }
    rows.update(_provenance(m.provenance))
    for key, value in rows.items():
        table.add_row(key, value)
    return table


def _sampling(bundle: Bundle) -> str:
    """How tokens are chosen if the user says nothing, and which layer says so."""
    from gog_edge.agent.loader import bundle_dialect
    from gog_edge.sampling_options import Sampling

    try:
        own = bundle_dialect(bundle).sampling
    except DialectError as e:
        return f"not known: {e}"
    checkpoint = Sampling.of_checkpoint(bundle.manifest.generation)
    said = [f.name for f in fields(own) if f.name != "seed" and getattr(own, f.name) is not None]
    where = f"; by the dialect: {', '.join(said)}" if said else ""
    return f"{own.over(checkpoint).describe()}{where}; options such as --temperature stand above"


def _verdict(bundle: Bundle) -> str | None:
    """How the comparison at export ended; None if there was none."""
    if not bundle.has(VERIFY_FILE):
        return None
    report = json.loads(bundle.read_text(VERIFY_FILE))
    return f"{report['verdict']} at export, with {report['reference']}"


def _engine(engine: EngineSpec) -> str:
    devices = ", ".join(engine.compute_capability.split("+"))
    return "\n  ".join([f"{engine.runtime} {engine.version} for sm {devices}", *findings(engine)])


def findings(engine: EngineSpec) -> list[str]:
    """What the build made of the graph, one line each; what a user might not have wanted comes with its reason."""
    facts = engine.report
    if "attention" not in facts:
        return []
    source = "the finished engine" if facts.get("seen") == "engine" else "the parsed graph"
    lines = [f"attention {facts['attention']}, seen in {source}"]
    if "kv_in_place" in facts:
        copies = f", {human_bytes(facts['cache_copies'])} of it copied a run" if facts.get("cache_copies") else ""
        lines.append(f"KV cache of {facts['capacity']} tokens written in place: {facts['kv_in_place']}{copies}")
    else:
        low, _, high = facts["image_patches"]
        lines.append(f"images of {low} to {high} patches")
    if facts.get("scratch_bytes"):
        names = ("reading", "writing") if "kv_in_place" in facts else ("the largest image",)
        sizes = [f"{human_bytes(n)} for {name}" for n, name in zip(facts["scratch_bytes"], names)]
        lines.append(f"working memory: {', '.join(sizes)}")
    types = sorted({kind for kind in facts.get("matrices", {}).values() if kind != "of another layer"})
    if types:
        lines.append(f"weights of matrix products: {', '.join(types)}")
    lines += [f"widened in memory on every run: {weights}" for weights in facts.get("unpacked_weights", [])]
    return lines


def _provenance(facts: dict[str, Any]) -> dict[str, str]:
    """What is known of the bundle's making: `peak_rss_bytes: 92487680` as 'peak rss: 88.2 MiB'."""
    rows = {}
    for key, value in facts.items():
        if value is None or isinstance(value, (dict, list)):
            continue
        size = key.endswith("_bytes")
        rows[key.removesuffix("_bytes").replace("_", " ")] = human_bytes(float(value)) if size else str(value)
    return rows


def _quantization(recipe: dict[str, Any]) -> str:
    """'attention, mlp: 4 bits in blocks of 32 (rtn); head: …': tensor classes with the same scheme are grouped."""
    groups: dict[str, list[str]] = {}
    for role, scheme in recipe.items():
        if isinstance(scheme, dict) and "bits" in scheme:
            block = f" in blocks of {scheme['block']}" if scheme.get("block") else " per row"
            turned = f", turned in blocks of {scheme['rotation']}" if scheme.get("rotation") else ""
            text = f"{scheme['bits']} bits{block + turned if scheme['bits'] < 16 else ''} ({scheme.get('method')})"
            groups.setdefault(text, []).append(role)
    return "; ".join(f"{', '.join(roles)}: {text}" for text, roles in groups.items()) or "none"


def _files(bundle: Bundle) -> Table:
    table = Table(box=None)
    table.add_column("file")
    table.add_column("size", justify="right")
    table.add_column("sha256")
    for name, digest in bundle.manifest.files.items():
        table.add_row(name, human_bytes(digest.size), digest.sha256[:16])
    total = sum(d.size for d in bundle.manifest.files.values())
    table.add_row(f"{len(bundle.manifest.files)} files + {MANIFEST}", human_bytes(total), "", style="bold")
    return table


def _interface(name: str, spec: GraphSpec) -> Table:
    table = Table(title=f"{name}: {spec.file}", title_justify="left", box=None)
    for column in ("", "tensor", "type", "shape"):
        table.add_column(column)
    for direction, tensors in (("in", spec.inputs), ("out", spec.outputs)):
        for t in tensors:
            table.add_row(direction, t.name, t.dtype, " x ".join(map(str, t.shape)))
    return table
