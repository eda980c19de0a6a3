"""`gog-edge export CHECKPOINT`: a checkpoint becomes a bundle, in the library or in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from rich.progress import Progress as Bar
from rich.progress import TaskID

from gog_edge.bundle import MANIFEST
from gog_edge.cli.common.console import human_bytes, progress_bar, stderr, styled
from gog_edge.cli.common.options import threads_option
from gog_edge.errors import UsageError
from gog_edge.library import directory, names, place, remember
from gog_edge.manifest import Backend

if TYPE_CHECKING:
    from gog_edge.bundle import Bundle
    from gog_edge.export.checkpoint.reader import Checkpoint
    from gog_edge.export.options import ExportOptions
    from gog_edge.export.parity.gate import ParityReport
    from gog_edge.export.quantize.recipe import Recipe


TENSORRT = ("tensorrt", "tensorrt-rtx")
# Spellings that were options of their own before, and what to write now.
_BEFORE = {"cpu": "native or ort", "standard": "portable", "stock": "ort"}


def _gone(context: click.Context, option: click.Parameter, value: str | None) -> None:
    """Refuse an old option with the new one."""
    if value is not None:
        new = _BEFORE.get(value, value if value in get_args(Backend) else "auto")
        raise UsageError(f"{option.opts[0]} {value} is now --backend {new} (see gog-edge export --help)")


@click.command("export")
@click.argument("checkpoint")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The bundle's folder; default: one in the library, named after the checkpoint (gog-edge list).",
)
@click.option(
    "--precision", type=click.Choice(["int4", "int5", "int8", "fp16", "fp32"]), default="int4", show_default=True
)
@click.option(
    "--backend",
    type=click.Choice(["auto", *get_args(Backend)]),
    default="auto",
    show_default=True,
    help="What will run the bundle. native: a CPU, with our own operators: the fastest there; compiled where it runs. "
    "ort: any CPU, with ONNX Runtime's operators. cuda: an NVIDIA GPU, with ONNX Runtime. tensorrt: a Jetson or a "
    "server's GPU. tensorrt-rtx: GeForce and RTX GPUs; built on any machine. openvino: Intel's "
    "CPUs, GPUs and NPUs. portable: ONNX's own operators alone, for "
    "other runtimes. auto: native if it can be compiled here and has integer weights, else ort.",
)
@click.option("--target", hidden=True, expose_value=False, callback=_gone)
@click.option("--flavour", hidden=True, expose_value=False, callback=_gone)
@click.option("--ops", hidden=True, expose_value=False, callback=_gone)
@click.option(
    "--kv", type=click.Choice(["float32", "float16", "int8"]), help="Type of the KV cache; default: by backend."
)
@click.option(
    "--vision-attention",
    type=click.Choice(["bfloat16", "int8", "float32"]),
    help="Arithmetic of the vision tower's attention, with backend native only; default: int8 for int4 and int8.",
)
@click.option(
    "--exact-int4",
    is_flag=True,
    help="Backend native, int4 and int5: no widening to int8 groups in prefill; slower, see docs/graphs.md.",
)
@click.option(
    "--method",
    type=click.Choice(["rtn", "mse", "hqq", "gptq"]),
    help="How integers are chosen: nearest (rtn), least squared error (mse), half-quadratic (hqq), error compensation "
    "on the inputs that the decoder sees, of a built-in text or of --calibration (gptq). Default: gptq; the others are "
    "faster and lose more.",
)
@click.option(
    "--int8",
    multiple=True,
    type=click.Choice(["attention", "mlp", "down_proj"]),
    help="Keep these layers of an int4 export at 8 bits; may be repeated. Costs and gains: docs/quantization.md.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Folder written by gog-edge calibrate, in the place of the built-in text.",
)
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--lora", metavar="ADAPTER", help="A PEFT adapter to merge: a folder, or a hub id like owner/name.")
@click.option("--dialect", help="A shipped dialect's name or a TOML file; default: the checkpoint's own, else gog.")
@click.option("--name", help="Name of the bundle, in the library too; default: the checkpoint's.")
@click.option("--max-context", type=click.IntRange(min=1), help="Context limit in tokens, below the checkpoint's.")
@click.option("--min-pixels", type=click.IntRange(min=1), help="Least area of a resized image.")
@click.option("--max-pixels", type=click.IntRange(min=1), help="Largest area of a resized image.")
@threads_option
@click.option("--verify", is_flag=True, help="Compare with transformers; a difference fails the export.")
@click.option("--verify-image", multiple=True, type=click.Path(path_type=Path), help="Also compare on this image.")
@click.option("--sm", help="TensorRT-RTX: compute capabilities (89,120); default: all that it offers, in one plan.")
@click.option(
    "--capacity", type=click.IntRange(min=1), default=4096, show_default=True, help="TensorRT: KV cache size in tokens."
)
@click.option(
    "--image-patches",
    type=click.IntRange(min=1),
    help="TensorRT: the largest image in patches; default: the policy's own limit, at most 16384.",
)
@click.option("--workspace-mb", type=click.IntRange(min=1), help="TensorRT: limit of scratch memory.")
@click.option("--no-engines", is_flag=True, help="TensorRT: graphs only; engines are built later, on the device.")
@click.option("--strip-weights", is_flag=True, help="TensorRT: plans without weights, refitted at load; needs a GPU.")
def command(checkpoint: str, output: Path | None, lora: str | None, revision: str | None, **rest: Any) -> None:
    """Turn CHECKPOINT into a bundle: graphs, weights, tokenizer, dialect, manifest.

    CHECKPOINT is a folder with an HF checkpoint, a hub id, or (with a TensorRT backend) a bundle that already has
    portable graphs (its folder or its name): then only engines are built, for the device of this machine.
    """
    try:
        from gog_edge.bundle import Bundle
        from gog_edge.export.checkpoint.reader import Checkpoint
        from gog_edge.export.pipeline import default_name, export_bundle
    except ImportError as e:
        raise UsageError(f"export needs {e.name}: pip install 'gog-edge[export]'") from e
    if rest["verify_image"] and not rest["verify"]:
        raise UsageError("--verify-image needs --verify")
    _check_extras(rest)
    if output is None and rest["name"]:
        output = place(rest["name"])
    if (found := _bundle_already(checkpoint)) is not None:
        given = Bundle.open(found)
        _engines(given, output or place(given.manifest.name), rest)
        return
    opened = Checkpoint.open(checkpoint, revision=revision)
    if lora is not None:
        opened = opened.with_lora(lora)
    output = output or place(default_name(opened))
    with progress_bar() as bar:
        bundle = export_bundle(
            opened,
            output,
            _options(rest),
            progress=_Drawn(bar),
            gate=_gate(opened, rest["verify_image"], bar) if rest["verify"] else None,
            stats=_stats(opened, rest),
        )
    _say(bundle)
    if rest["backend"] in TENSORRT and not rest["no_engines"]:
        _engines(bundle, output, rest)
    if output.parent == directory():
        remember(output)


def _bundle_already(checkpoint: str) -> Path | None:
    """The bundle that CHECKPOINT is: a folder, or a name of the library that is no folder here."""
    here = Path(checkpoint)
    if not here.exists() and checkpoint in names():
        return place(checkpoint)
    return here if (here / MANIFEST).is_file() else None


def _check_extras(rest: dict[str, Any]) -> None:
    """Nothing is fetched or computed for an export that would end because a package is missing."""
    if rest["backend"] in TENSORRT and not rest["no_engines"]:
        from gog_edge.engines.tensorrt.plan import import_library

        import_library(rest["backend"])
    if rest["verify"]:
        try:
            import gog_edge.export.parity.reference  # noqa: F401 - torch and transformers
        except ImportError as e:
            raise UsageError(f"--verify needs {e.name}: pip install 'gog-edge[export,parity]'") from e


def _options(rest: dict[str, Any]) -> ExportOptions:
    from gog_edge.export.options import ExportOptions

    names = ("precision", "dialect", "name", "max_context", "min_pixels", "max_pixels")
    backend: Any = rest["backend"] if rest["backend"] != "auto" else _best_backend(rest["precision"])
    return ExportOptions(
        **{name: rest[name] for name in names},
        recipe=_recipe(rest),
        int8=rest["int8"],
        backend=backend,
        kv_dtype=rest["kv"],
        vision_attention=rest["vision_attention"],
        exact_int4=rest["exact_int4"],
    )


def _recipe(rest: dict[str, Any]) -> Recipe | None:
    from gog_edge.export.options import QUANTISED
    from gog_edge.export.quantize.recipe import DEFAULT_METHOD, Recipe
    from gog_edge.export.quantize.scheme import CALIBRATED

    if rest["method"] is None and rest["calibration"] is None:
        return None
    method: Any = rest["method"] or DEFAULT_METHOD
    if rest["precision"] not in QUANTISED:
        raise UsageError(f"--method and --calibration are for int4, int5 and int8, not {rest['precision']}")
    if rest["calibration"] is not None and method not in CALIBRATED:
        raise UsageError(f"--method {method} uses no --calibration: leave one of them out")
    return Recipe.for_precision(rest["precision"], method)


def _stats(checkpoint: Checkpoint, rest: dict[str, Any]) -> Any:
    if rest["calibration"] is None:
        return None
    from gog_edge.export.quantize.calibration import Calibration
    from gog_edge.families.weights import decoder_inputs

    decoder = {name for names in decoder_inputs(checkpoint.config) for name in names}
    return Calibration.open(rest["calibration"]).check(checkpoint.shape, decoder)


def _best_backend(precision: str) -> Backend:
    """native where it can be compiled and means something (integer weights), else ort."""
    from gog_edge.export.options import QUANTISED

    if precision not in QUANTISED:
        return "ort"
    from gog_edge.native.dispatch import FALLBACK, available

    reason = available()
    if reason is None:
        return "native"
    why = reason.replace(f": {FALLBACK}", "")
    stderr().print(styled("[dim]backend ort is used, native would be faster: {}[/]", why))
    return "ort"


class _Drawn:
    """The export's stages as bars."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.task: TaskID | None = None

    def stage(self, name: str, total: int) -> None:
        self._finish()
        self.task = self.bar.add_task(name, total=total or None)

    def advance(self, amount: int) -> None:
        if self.task is not None:
            self.bar.advance(self.task, amount)

    def _finish(self) -> None:
        if self.task is not None:
            self.bar.update(self.task, total=1, completed=1)


def _gate(checkpoint: Checkpoint, images: tuple[Path, ...], bar: Bar) -> Any:
    """The parity gate as the pipeline wants it; it says how every stage went."""
    from gog_edge.export.parity.gate import gate

    def show(report: ParityReport) -> None:
        bar.console.print(f"verified against {report.reference}")
        for line in report.lines():
            bar.console.print(f"  {line}", soft_wrap=True)

    return gate(checkpoint, images=images, show=show)


def _engines(bundle: Bundle, output: Path, rest: dict[str, Any]) -> None:
    from gog_edge.cli.inspect import findings
    from gog_edge.export.tensorrt.add import add_engines
    from gog_edge.export.tensorrt.build import BuildOptions

    if rest["backend"] not in TENSORRT:
        raise UsageError(
            f"{bundle.root} is a bundle already: only engines can be added, with --backend tensorrt or tensorrt-rtx"
        )
    capacity = min(rest["capacity"], bundle.manifest.decoder.max_context)
    options = BuildOptions(
        compute_capabilities=tuple(s.strip() for s in rest["sm"].split(",")) if rest["sm"] else (),
        capacity=capacity,
        chunk=min(BuildOptions.chunk, capacity),
        verify=min(BuildOptions.verify, capacity),
        image_patches=rest["image_patches"],
        workspace_mb=rest["workspace_mb"],
        strip_weights=rest["strip_weights"],
    )
    console = stderr()
    bundle = add_engines(bundle, output, rest["backend"], options, console.print)
    for engine in bundle.manifest.engines:
        console.print(
            f"{engine.file}: {human_bytes(engine.report['plan_bytes'])} in {engine.report['build_seconds']} s"
        )
        for line in findings(engine):
            console.print(f"  {line}")


def _say(bundle: Bundle) -> None:
    m = bundle.manifest
    size = human_bytes(sum(d.size for d in m.files.values()))
    spent = m.provenance
    cost = f"{spent['seconds']} s, peak memory {human_bytes(spent['peak_rss_bytes'])}"
    stderr().print(
        styled("[green]exported[/] {}: {} for {}, ", m.name, m.precision, m.backend).append_text(
            styled("{} in {}  [dim]({})[/]", size, bundle.root, cost)
        )
    )
    if spent.get("set_aside"):
        stderr().print(styled("[dim]not in it: {}[/]", spent["set_aside"]))
