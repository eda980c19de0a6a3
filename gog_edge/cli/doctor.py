"""`gog-edge doctor`: what this machine can run, and for what it can't, why, and what to install."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import platform
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from gog_edge import library
from gog_edge._version import __version__
from gog_edge.allowance import Cpus, available_memory, cpus, total_memory, usable_threads
from gog_edge.bundle import Bundle
from gog_edge.cli.common.console import human_bytes, print_json, stdout, styled
from gog_edge.cli.common.options import parse_size
from gog_edge.disk.paths import cache_directory
from gog_edge.errors import BundleError, UsageError
from gog_edge.runtime import memory_plan as memory
from gog_edge.shapes import SHAPES

CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "bf16")
EXTRAS = {
    "export": ("onnx", "huggingface_hub"),
    "parity": ("torch", "transformers"),
    "grammar": ("llguidance",),
    "tensorrt-rtx": ("tensorrt_rtx",),
    "tensorrt": ("tensorrt",),
    "gpu": ("cuda.core",),
    "openvino": ("openvino",),
    "serve": ("starlette", "uvicorn"),
    "mcp": ("mcp",),
    "camera": ("cv2",),
    "dora": ("dora",),
    "rerun": ("rerun",),
    "foxglove": ("foxglove",),
    "bench": ("matplotlib", "pynvml"),
    "eval": ("pyarrow",),
    "heif": ("pillow_heif",),
}

_NODES = "{} NUMA nodes: numactl -N 0 -m 0 keeps a policy and its memory on one"


@dataclass(frozen=True)
class Check:
    """One line of the report. `ok` None: neither good nor bad, only a fact."""

    name: str
    ok: bool | None
    detail: str
    mend: str = ""


@click.command("doctor")
@click.option("--plan", "plan_memory", is_flag=True, help="Which policy, precision and context fit the memory.")
@click.option("--memory", "memory_text", metavar="SIZE", help="Plan for this much free memory (8GiB) instead of ours.")
@click.option("--device", type=click.Choice(list(memory.DEVICES)), help="Plan for this board instead of this machine.")
@click.option("--policy", type=click.Choice(list(SHAPES)), help="Plan for one policy shape only.")
@click.option(
    "--context", type=click.IntRange(min=1), default=4096, show_default=True, help="Plan for this many tokens."
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(
    plan_memory: bool, memory_text: str | None, device: str | None, policy: str | None, context: int, as_json: bool
) -> None:
    """Say what this machine can run, and why not; and whether the bundles of the library are whole."""
    if memory_text and device:
        raise UsageError("--memory and --device both say how much memory there is: give one of them")
    if plan_memory or memory_text or policy or device:
        _plan(memory_text, device, [policy] if policy else list(SHAPES), context, as_json)
        return
    checks = run_checks()
    if as_json:
        print_json({"version": __version__, "checks": [asdict(c) for c in checks]})
        return
    table = Table(box=None, show_header=False, title=f"gog-edge {__version__}", title_justify="left")
    marks: dict[bool | None, Text | str] = {True: styled("[green]yes[/]"), False: styled("[yellow]no[/]"), None: "   "}
    for check in checks:
        table.add_row(
            marks[check.ok],
            check.name,
            styled("{}  [dim]-> {}[/]", check.detail, check.mend) if check.mend else check.detail,
        )
    stdout().print(table)


def run_checks() -> list[Check]:
    """Every check, cheapest first. Nothing is downloaded; the native kernels are compiled if they are not yet, and the
    bundles of the library are read to the last byte.
    """
    return [*_machine(), *_onnxruntime(), *_native(), *_gpu(), *_extras(), *_bundles()]


def _machine() -> list[Check]:
    flags = _cpu_flags()
    found = [f for f in CPU_FEATURES if f in flags]
    may = cpus()
    return [
        Check("python", None, f"{platform.python_version()} on {platform.machine()} {platform.system()}"),
        Check("cpu", None, f"{os.cpu_count()} cores; {', '.join(found) or 'no vector extension known to us'}"),
        Check("threads", None, _threads(may), _NODES.format(may.nodes) if may.nodes > 1 else ""),
        Check("memory", None, f"{human_bytes(available_memory())} free of {human_bytes(total_memory())}"),
        Check("disk", None, f"{human_bytes(_free(cache_directory()))} free for caches"),
    ]


def _threads(may: Cpus) -> str:
    """How many a computation gets, and what keeps it from more."""
    quota = "" if math.isinf(may.quota) else f", {may.quota:g} CPUs' time by a control group"
    slow = f", {may.allowed - may.fast} of them slower" if may.fast < may.allowed else ""
    return f"{usable_threads()} of a computation: {may.allowed} CPUs allowed{slow}{quota}"


def _free(folder: Path) -> int:
    """Bytes free where `folder` is or will be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        return set()
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return set(match.group(1).split()) if match else set()


def _onnxruntime() -> list[Check]:
    """What is in the folder onnxruntime/, and whether its CUDA provider would start."""
    import onnxruntime

    from gog_edge.engines.ort import gpu

    provider = "CUDAExecutionProvider"
    have, found = onnxruntime.get_available_providers(), gpu.installed()
    providers = [p.removesuffix("ExecutionProvider") for p in have]
    checks = [Check("onnxruntime", True, f"{onnxruntime.__version__}: {', '.join(providers)}")]
    if provider in have:
        faults = gpu.faults(provider)
        checks += [Check("onnxruntime cuda", False, fault.what, fault.mend) for fault in faults]
        if not faults:
            built = (
                f"built for CUDA {onnxruntime.cuda_version}" if onnxruntime.cuda_version else "its CUDA is not stated"
            )
            checks.append(Check("onnxruntime cuda", True, f"{built}; driver and libraries are there"))
    elif "onnxruntime-gpu" in found:
        fault = gpu.absent(provider)
        checks.append(Check("onnxruntime cuda", False, fault.what, fault.mend))
    return checks


def _native() -> list[Check]:
    from gog_edge.crop import backend
    from gog_edge.native.dispatch import available, instruction_set

    crop, reason = backend(), available()
    return [
        Check("crop kernel", crop.name == "native", crop.name, crop.reason or ""),
        Check("native operators", reason is None, instruction_set() or "stock operators are used", reason or ""),
    ]


def _bundles() -> list[Check]:
    """Whether the bundles of the library, and the one that is taken by default, are what was exported."""
    try:
        found = {library.place(name) for name in library.names()} | {library.default()}
    except UsageError:
        return []  # a user without a home has no library
    return [_bundle(path) for path in sorted(p for p in found if p is not None)]


def _bundle(path: Path) -> Check:
    try:
        sizes = [size for _, size in Bundle.open(path).verify()]
    except BundleError as e:
        return Check(f"bundle {path.name}", False, "damaged", str(e))
    return Check(f"bundle {path.name}", True, f"the sha256 of {len(sizes)} files, {human_bytes(sum(sizes))}")


def _gpu() -> list[Check]:
    if importlib.util.find_spec("pynvml") is None:
        return [Check("nvidia gpu", False, "not looked for", "pip install 'gog-edge[bench]' to ask NVML")]
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as e:
        return [Check("nvidia gpu", False, "no NVIDIA driver", str(e))]
    checks = []
    for i in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(i)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        total = human_bytes(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
        checks.append(Check(f"gpu {i}", True, f"{pynvml.nvmlDeviceGetName(handle)}, sm_{major}{minor}, {total}"))
    pynvml.nvmlShutdown()
    return checks


def _extras() -> list[Check]:
    checks = []
    for extra, modules in EXTRAS.items():
        missing = [m for m in modules if not _importable(m)]
        mend = f"pip install 'gog-edge[{extra}]'" if missing else ""
        detail = f"lacks {', '.join(missing)}" if missing else ", ".join(f"{m} {_version(m)}".strip() for m in modules)
        checks.append(Check(extra, not missing, detail, mend))
    return checks


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _version(module: str) -> str:
    names = {"pynvml": "nvidia-ml-py", "cuda.core": "cuda-core", "tensorrt_rtx": "tensorrt-rtx-cu13"}
    names |= {"cv2": "opencv-python-headless", "dora": "dora-rs", "rerun": "rerun-sdk", "foxglove": "foxglove-sdk"}
    try:
        return importlib.metadata.version(names.get(module, module))
    except importlib.metadata.PackageNotFoundError:
        return ""


def _plan(memory_text: str | None, device: str | None, names: list[str], context: int, as_json: bool) -> None:
    available, whose = _available(memory_text, device)
    if as_json:
        engines = {n: memory.board_engine(n) if device else "cpu" for n in names}
        plans = [
            (n, p, memory.plan(n, p, available, context=context, engine=engines[n]))
            for n in names
            for p in memory.precisions(engines[n])
        ]
        longest = {(n, p): memory.largest_context(n, p, available, engines[n]) for n, p, _ in plans}
        print_json(
            [{**asdict(x), "total": x.total, "fits": x.fits, "largest_context": longest[n, p]} for n, p, x in plans]
        )
        return
    out = stdout()
    out.print(f"{human_bytes(available)} {whose}. Computed from the published shapes, not measured.\n")
    rows = memory.fitting(available, context, names, board=device is not None)
    table = Table(box=None)
    for column in (
        "policy",
        "precision",
        "weights",
        "context",
        "KV cache",
        "working",
        "total",
        "longest context",
    ):
        table.add_column(column, justify="left" if column in ("policy", "precision") else "right", no_wrap=True)
    for p, most in rows:
        sizes = map(human_bytes, (p.kv_cache, p.activations, p.total))
        table.add_row(p.policy, p.precision, human_bytes(p.weights), f"{p.context:,}", *sizes, f"{most:,}")
    if rows:
        out.print(table)
        out.print(
            f"\nKV cache in 16 bits; the largest image has {memory.IMAGE_TOKENS} tokens"
            + (f", engines of TensorRT are built for {memory.ENGINE_PATCHES} patches; " if device else "; ")
            + f"{human_bytes(memory.RUNTIME)} of each total are for Python and libraries."
        )
    out.print(_verdict(rows, names, context, available))


def _available(memory_text: str | None, device: str | None) -> tuple[int, str]:
    """(bytes, what they are)."""
    if memory_text:
        return parse_size(memory_text), "for the program"
    if device:
        total, free = memory.DEVICES[device]
        return int(free * memory.GIB), f"for the program on {device} ({total} GiB, with the desktop off)"
    return available_memory(), "free on this machine now"


def _verdict(rows: list[tuple[memory.MemoryPlan, int]], names: list[str], context: int, available: int) -> str:
    """What to take, and what does not fit at all."""
    lines = []
    best = memory.suggestion(rows, context)
    if best is not None:
        room = human_bytes(available - best.total)
        lines.append(f"Largest with room for {context:,} tokens: {best.policy} at {best.precision}, {room} to spare.")
    elif rows:
        lines.append(f"Nothing has room for {context:,} tokens: take a smaller --context.")
    missing = [name for name in names if name not in {p.policy for p, _ in rows}]
    if missing:
        lines.append(f"Too large at any precision: {', '.join(missing)}.")
    return "\n".join(lines)
