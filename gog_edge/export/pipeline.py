"""checkpoint -> bundle: the export in order, streamed, measured, atomic.

Cheap failures come first (configuration, tokenizer, preprocessing), then the embedding, the vision graph, the decoder
graph, the parity gate if there is one, and last the swap that makes the bundle visible.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from gog_edge._version import __version__
from gog_edge.bundle import VERIFY_FILE, Bundle, BundleWriter, hash_file
from gog_edge.errors import CheckpointError, UsageError
from gog_edge.export import assets
from gog_edge.export.calibration.builtin import BuiltIn, read_builtin
from gog_edge.export.checkpoint.generation_settings import read_generation
from gog_edge.export.checkpoint.image_settings import read_preprocessing
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.embedding import FILE as EMBEDDING_FILE
from gog_edge.export.embedding import write_embedding
from gog_edge.export.graph.builder import GraphBuilder
from gog_edge.export.graph.experts import ExpertFile
from gog_edge.export.graph.fuse import fuse
from gog_edge.export.graph.linear import LinearStore, OrtLinear, PortableLinear
from gog_edge.export.graph.matrix import TensorSource, check_shape
from gog_edge.export.graph.native import NativeTarget
from gog_edge.export.graph.native_linear import NativeLinear
from gog_edge.export.graph.ort import OrtTarget
from gog_edge.export.graph.plain import PlainTarget
from gog_edge.export.graph.portable import PortableTarget
from gog_edge.export.graph.weightfile import Blob, WeightFile
from gog_edge.export.options import BACKENDS, ExportOptions, Resolved, resolve
from gog_edge.export.progress import Progress, Silent, peak_rss
from gog_edge.export.quantize.recipe import Recipe
from gog_edge.families.base import Family, ModelConfig
from gog_edge.families.target import RecurrentCache, Target
from gog_edge.families.weights import shapes, watch
from gog_edge.manifest import FORMAT_VERSION, Backend, GraphSpec, Manifest

Stats = Callable[[str], Any]
Gate = Callable[[Bundle], dict[str, Any]]
_ORT, _PORTABLE = (OrtTarget, OrtLinear), (PortableTarget, PortableLinear)
_GRAPHS: dict[Backend, tuple[type[PortableTarget], type[LinearStore]]] = {
    "native": (NativeTarget, NativeLinear),
    "ort": _ORT,
    "cuda": _ORT,
    "tensorrt": _PORTABLE,
    "tensorrt-rtx": _PORTABLE,
    "openvino": (PlainTarget, PortableLinear),
    "portable": _PORTABLE,
}


def export_bundle(
    checkpoint: Checkpoint | str | Path,
    out: str | Path,
    options: ExportOptions | None = None,
    *,
    progress: Progress | None = None,
    gate: Gate | None = None,
    stats: Stats | None = None,
    weights: TensorSource | None = None,
) -> Bundle:
    """Export a checkpoint (opened, or a folder or hub id) into the bundle directory `out`.

    Args:
        gate: called with the finished but not yet visible bundle; returns the report for verify.json. What it raises
            (ParityError) fails the export and leaves `out` as it was.
        stats: calibration by weight name, for quantisation methods that need it; default: what the decoder sees of a
            built-in text.
        weights: where tensors are read from; default: the checkpoint (a view that scales them before quantisation,
            such as `studies.awq.ScaledCheckpoint`, goes here). Search it with `resolve(options).recipe`.

    Raises:
        CheckpointError: the checkpoint can't be exported right. UsageError: options that make no sense.
        BundleError: `out` is something else than a bundle, or the disk is full. ParityError: from the gate.
    """
    options = options or ExportOptions()
    resolved = resolve(options)
    progress = progress or Silent()
    started = time.monotonic()
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.open(checkpoint)
    if checkpoint.quantization and options.recipe is None:
        resolved = resolve(replace(options, recipe=Recipe.requantising(options.precision)))
    family = checkpoint.family
    config = _limit_context(check_checkpoint(checkpoint), options)
    _check_layers(family, config, options.backend, options.precision)
    with BundleWriter(out) as writer:
        job = _Export(checkpoint, weights or checkpoint, family, config, options, resolved, progress, stats)
        manifest = job.write(writer)
        provenance = {
            **_provenance(checkpoint, started),
            "vision_attention": resolved.vision_attention,
            "min_pixels": options.min_pixels,
            "max_pixels": options.max_pixels,
            "set_aside": set_aside(checkpoint),
        }
        manifest = replace(manifest, provenance=provenance)
        if gate is not None:
            progress.stage("verify", 0)
            report = gate(Bundle(writer.root, _with_digests(writer, manifest)))
            (writer.root / VERIFY_FILE).write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        progress.stage("commit", 0)
        manifest.provenance["seconds"] = round(time.monotonic() - started, 1)
        manifest.provenance["peak_rss_bytes"] = peak_rss()
        return writer.commit(manifest)


class _Export:
    """One export's state, so that its steps read as a list."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        weights: TensorSource,
        family: Family,
        config: ModelConfig,
        options: ExportOptions,
        resolved: Resolved,
        progress: Progress,
        stats: Stats | None,
    ) -> None:
        self.checkpoint = checkpoint
        self.weights = weights
        self.family = family
        self.config = config
        self.options = options
        self.resolved = resolved
        self.progress = progress
        self.stats = stats

    def write(self, writer: BundleWriter) -> Manifest:
        """All files but the manifest, and what the manifest will say."""
        checkpoint, family, config, options, root = self.checkpoint, self.family, self.config, self.options, writer.root
        self.progress.stage("files", 0)
        tokenizer = assets.write_tokenizer(checkpoint, root, allow_missing=options.allow_missing_tokenizer)
        self._calibrate(root)
        tokens = assets.special_tokens(checkpoint, config, tokenizer)
        preprocessing = read_preprocessing(checkpoint, family, config.vision, options)
        assets.write_template(checkpoint, root)
        dialect = options.dialect or _own_dialect(checkpoint)
        dialect = assets.write_dialect(dialect, root, family.box_frame, tokenizer.named)
        decoder = config.decoder
        self.progress.stage("embedding", decoder.spec.vocab * decoder.spec.hidden)
        scheme = self.resolved.recipe.scheme("embedding", family.embedding)
        embedding, digest, table = write_embedding(
            self.weights, family.embedding, decoder.spec.vocab, decoder.spec.hidden, scheme, root, self.progress.advance
        )
        writer.record(EMBEDDING_FILE, digest)
        shared = {family.embedding: table} if scheme.bits == 32 else {}
        caches = family.caches(decoder.spec)
        graphs = {
            "vision": self._graph(writer, "vision", {}, lambda t: family.build_vision(t, config.vision)),
            "decoder": self._graph(writer, "decoder", shared, lambda t: family.build_decoder(t, decoder, caches)),
        }
        return Manifest(
            format="gog-edge-bundle",
            format_version=FORMAT_VERSION,
            name=options.name or default_name(checkpoint),
            family=family.name,
            backend=options.backend,
            precision=options.precision,
            preprocessing=preprocessing,
            vision=config.vision.spec,
            decoder=replace(decoder.spec, kv_dtype=self.resolved.kv_dtype),
            embedding=embedding,
            tokens=tokens,
            graphs=graphs,
            quantization=self.resolved.recipe.describe(),
            dialect=dialect,
            generation=read_generation(checkpoint),
            named_tokens=tokenizer.named,
        )

    def _calibrate(self, root: Path) -> None:
        """The built-in text, where a method asks for calibration and none was given; what has none is searched."""
        recipe = self.resolved.recipe
        if recipe.repeatable:
            return
        if self.stats is None:
            self.stats = read_builtin(root / assets.TOKENIZER, self.weights, self.family, self.config)
            if self.stats is None:  # there is no tokenizer, or none that knows a word of the text
                recipe = recipe.with_method("mse")
        elif self.stats(self.family.embedding if self.config.decoder.tied else self.family.head) is None:
            recipe = replace(recipe, head=replace(recipe.head, method="mse"))  # conversations are not kept for it
        self.resolved = replace(self.resolved, recipe=recipe)

    def _graph(
        self, writer: BundleWriter, name: str, shared: dict[str, Blob], build: Callable[[Target], None]
    ) -> GraphSpec:
        self.progress.stage(name, watch(build).values)
        target_class, store_class = _GRAPHS[self.options.backend]
        with WeightFile(writer.root / f"{name}.onnx.data") as data, ExpertFile(writer.root / name) as experts:
            g = GraphBuilder(name, data, target_class.domains)
            store = store_class(g, self.weights, self.resolved.recipe, self.stats, self.progress.advance, shared)
            if isinstance(store, NativeLinear):
                store.exact = self.options.exact_int4
            target = target_class(g, self.weights, store, experts, self.resolved.compute, self.resolved.kv_dtype)
            if isinstance(target, NativeTarget):
                target.vision_precision = self.resolved.vision_attention
            (self.stats.beside(build) if isinstance(self.stats, BuiltIn) and name == "decoder" else build)(target)
        if target_class is NativeTarget:
            g.rewrite(fuse)
        for file in (data, experts.data):
            if file is not None:
                writer.record(file.path.name, file.digest)
        unit = self.config.vision.merge**2  # mergers see one row where the tower has m*m
        values = sum(n // unit if role == "merger" else n for role, n in target.matrix_values.items())
        return replace(g.save(writer.root / f"{name}.onnx"), weights=values)


def check_checkpoint(checkpoint: Checkpoint) -> ModelConfig:
    """Read the configuration and check that every tensor is there in its shape; reads no weights but a doubtful head.

    Raises:
        CheckpointError: it can't be exported.
    """
    root = checkpoint.root.resolve()
    if (root / "adapter_config.json").is_file() and root not in (path.resolve() for path in checkpoint.adapter_roots):
        raise CheckpointError(
            f"{checkpoint.origin} holds an adapter beside the weights, which transformers applies where peft is "
            f"installed: export with --lora {checkpoint.root}, or move adapter_config.json away"
        )
    family = checkpoint.family
    config = family.parse(checkpoint.config)
    config = replace(config, decoder=replace(config.decoder, tied=checkpoint.head == family.embedding))
    for name, shape in shapes(family, config).items():
        check_shape(checkpoint, name, shape)
    return config


def _check_layers(family: Family, config: ModelConfig, backend: Backend, precision: str) -> None:
    if precision == "int5" and config.decoder.spec.experts:
        raise UsageError("experts have no operators for 5 bits: use int4 or int8")
    recurrent = any(isinstance(layer, RecurrentCache) for layer in family.caches(config.decoder.spec))
    for has, what, able in (
        (recurrent, "linear attention", [name for name, rules in BACKENDS.items() if rules.recurrent]),
        (bool(config.decoder.spec.experts), "experts", [name for name, rules in BACKENDS.items() if rules.experts]),
    ):
        if has and backend not in able:
            raise UsageError(
                f"{family.name} has layers of {what}, which backend {backend} does not build: "
                f"use one of {', '.join(able)}"
            )


def set_aside(checkpoint: Checkpoint) -> str | None:
    """What of a checkpoint is known and not exported, for people; None: nothing."""
    found = []
    for part in checkpoint.family.set_aside:
        count = sum(re.match(part.pattern, name) is not None for name in checkpoint.names())
        if count:
            found.append(f"{count} tensors of {part.what}")
    return "; ".join(found) or None


def _own_dialect(checkpoint: Checkpoint) -> str:
    """The file that a checkpoint brings along, else the default dialect."""
    own = checkpoint.file(assets.DIALECT)
    return str(own) if own is not None else "gog"


def default_name(checkpoint: Checkpoint) -> str:
    """The last part of what the user named: folder or hub id."""
    return Path(checkpoint.origin).name or checkpoint.root.resolve().name


def _limit_context(config: ModelConfig, options: ExportOptions) -> ModelConfig:
    spec = config.decoder.spec
    if options.max_context is None:
        return config
    if options.max_context > spec.max_context:
        raise CheckpointError(
            f"max_context {options.max_context} is more than the checkpoint's "
            f"max_position_embeddings {spec.max_context}"
        )
    return replace(config, decoder=replace(config.decoder, spec=replace(spec, max_context=options.max_context)))


def _with_digests(writer: BundleWriter, manifest: Manifest) -> Manifest:
    """The manifest with all files named, so that the bundle can be opened before it is committed."""
    for file in sorted(p for p in writer.root.rglob("*") if p.is_file()):
        name = file.relative_to(writer.root).as_posix()
        if name not in manifest.files:
            digest = hash_file(file)
            writer.record(name, digest)
            manifest.files[name] = digest
    return manifest


def _provenance(checkpoint: Checkpoint, started: float) -> dict[str, Any]:
    versions = {"python": platform.python_version(), "gog_edge": __version__}
    for package in ("numpy", "onnx", "onnxruntime", "tokenizers"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "checkpoint": default_name(checkpoint),
        "adapters": list(checkpoint.adapters),
        "source_quantization": checkpoint.quantization,
        "transformers": checkpoint.config.get("transformers_version"),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions,
        "seconds": round(time.monotonic() - started, 1),
    }
