"""`gog-edge bench self-check`: does this machine's GPU compute what the CPU computes? One report to send back.

On a machine with a GPU: the crop kernel bit by bit against the CPU's, the engine against ONNX Runtime on the same
graphs, CUDA graphs against plain runs, and timings. A check that can't run says why in one line; nothing is ever
reported that was not computed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from gog_edge._version import __version__
from gog_edge.agent.options import RunOptions
from gog_edge.bench.machine import probes
from gog_edge.bench.self_check.conversation import SIZE, Talk, agrees, compare, hold, ordinary_tokens
from gog_edge.bench.statistics import Summary
from gog_edge.bench.subject import picture
from gog_edge.bundle import Bundle
from gog_edge.crop import crop_patches, region_grid
from gog_edge.engines.base import Engine
from gog_edge.engines.registry import create_engine, default_engine, find_engine
from gog_edge.errors import BenchError, EngineError, UsageError
from gog_edge.image.frame import Frame
from gog_edge.manifest import Preprocessing
from gog_edge.runtime.model import Model
from gog_edge.runtime.session import Session
from gog_edge.types import ImagePart, Region

FORMAT = "gog-edge-self-check"
ARCHITECTURES = ("sm_87", "sm_89", "sm_90", "sm_110", "sm_120")
_REPEATS = 10
# (frame width, height, region): odd sizes, borders, magnification, more source rows than shared memory holds
_CROPS: tuple[tuple[int, int, Region | None], ...] = (
    (640, 480, None),
    (203, 141, Region(3.5, 7.0, 170.0, 130.0)),
    (203, 141, Region(199.0, 137.0, 203.0, 141.0)),
    (90, 1900, None),
    (4000, 3000, Region(1200.0, 900.0, 2989.0, 2242.0)),
)
_CROP_PIXELS = 448 * 336  # of a resized crop
_QWEN3 = Preprocessing(16, 2, 2, 4096, 1 << 24, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Check:
    """One comparison. `ran`: on the GPU. `ok`: its verdict (None: nothing to judge). `why_not`: one line, when it did
    not run. `instead`: what was checked without a GPU and what came out."""

    name: str
    ran: bool
    ok: bool | None
    facts: dict[str, Any] = field(default_factory=dict)
    why_not: str = ""
    instead: str = ""


@dataclass(frozen=True)
class SelfCheck:
    """The report."""

    format: str
    version: str
    started: str
    machine: dict[str, Any]
    gpu: str
    bundle: dict[str, Any]
    engine: dict[str, Any]
    checks: tuple[Check, ...]

    @property
    def failed(self) -> bool:
        return any(check.ok is False for check in self.checks)


def self_check(
    bundle: Path | None,
    engine: str | None = None,
    *,
    reference: Path | None = None,
    tokens: int = 12,
    progress: Callable[[str], None] = lambda _: None,
) -> SelfCheck:
    """Run every check that this machine and these arguments allow.

    Args:
        bundle: what the engine checks run on; without it only the crop kernel is checked.
        engine: default: the one that the bundle was exported for.
        reference: the CPU's results: read if it is there, else computed and written.
        tokens: written a turn.

    Raises:
        UsageError: the engine runs on the CPU, or there is none of this name.
        BundleError, BenchError: the bundle or the reference is wrong.
    """
    if engine is not None and not find_engine(engine).gpu:
        raise UsageError(f"a self-check compares a GPU engine with the CPU, and {engine!r} needs none")
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    opened = Bundle.open(bundle) if bundle is not None else None
    progress("crop kernel")
    gpu, crop = check_crop(opened.manifest.preprocessing if opened is not None else _QWEN3)
    checks = [crop]
    info: dict[str, Any] = {}
    if opened is None:
        why = "no bundle was given (--bundle DIR)"
        checks += _not_run(why)
    else:
        found, info = _check_engine(opened, engine, reference, tokens, progress)
        checks += found
    return SelfCheck(
        FORMAT, __version__, started, probes.describe_machine(), gpu, _describe(opened), info, tuple(checks)
    )


def _describe(bundle: Bundle | None) -> dict[str, Any]:
    if bundle is None:
        return {}
    m = bundle.manifest
    names = ("name", "family", "backend", "precision")
    engines = {engine.file: engine.report for engine in m.engines}  # what the build produced from the graphs
    return {n: getattr(m, n) for n in names} | {"fingerprint": bundle.fingerprint, "engines": engines}


# -- the crop kernel -----------------------------------------------------------------------------------------


def check_crop(preprocessing: Preprocessing) -> tuple[str, Check]:
    """(name of the GPU or why there is none, whether its crops are those of the CPU)."""
    from gog_edge.crop.cuda import CudaCropper
    from gog_edge.crop.cuda_driver import open_driver

    name = "crop kernel"
    try:
        driver = open_driver()
        gpu = f"{driver.name} ({driver.arch})"
        cropper = CudaCropper(driver)
    except EngineError as e:
        return f"none: {e}", Check(name, False, None, why_not=str(e), instead=_crop_without_gpu())
    different, seconds = [], []
    with cropper:
        for width, height, region in _CROPS:
            frame = Frame.open(picture(width, height, seed=width).pixels)
            grid = region_grid(region, width, height, preprocessing, min_pixels=4096, max_pixels=_CROP_PIXELS)
            cropper.keep(frame)
            start = time.perf_counter()
            patches = cropper.crop_patches(frame, region, grid, preprocessing)
            driver.synchronize()
            seconds.append(time.perf_counter() - start)
            found = cropper.to_host(patches)
            patches.close()
            if found.tobytes() != crop_patches(frame, region, grid, preprocessing).tobytes():
                different.append(f"{region} of {width}x{height}")
    facts = {"crops": len(_CROPS), "different": different, "seconds": seconds}
    return gpu, Check(name, True, not different, facts)


def _crop_without_gpu() -> str:
    """NVRTC needs no GPU: at least the kernel compiles."""
    import tempfile

    from gog_edge.crop.cuda_compile import crop_cubin, nvrtc_version

    try:
        version = nvrtc_version()
        with tempfile.TemporaryDirectory() as folder:
            sizes = {arch: len(crop_cubin(arch, Path(folder))) for arch in ARCHITECTURES}
    except EngineError as e:
        return f"nothing: {e}"
    listed = ", ".join(f"{arch} ({size} bytes)" for arch, size in sizes.items())
    return f"NVRTC {version} compiles the kernel for {listed}; it was not run"


# -- the engine ----------------------------------------------------------------------------------------------


def _check_engine(
    bundle: Bundle, name: str | None, reference: Path | None, tokens: int, progress: Callable[[str], None]
) -> tuple[list[Check], dict[str, Any]]:
    name = name or _default_engine(bundle)
    if name is None:
        why = f"the bundle is for {bundle.manifest.backend} and holds no engines: name one with --engine"
        return _not_run(why), {}
    try:
        progress(f"loading {name}")
        engine = create_engine(name, bundle)
    except EngineError as e:
        return _not_run(str(e)), {"name": name, "why_not": str(e)}
    engine.close()  # one model in memory at a time: the CPU's results come first
    progress("the CPU's results")
    wanted = _reference(bundle, tokens, reference)
    progress(f"running {name}")
    engine = create_engine(name, bundle)
    try:
        model = _model(bundle, engine)
        metrics = compare(wanted, hold(model, tokens, wanted.tokens))
        parity = Check("engine parity", True, agrees(metrics, bundle.manifest.precision), metrics)
        checks = [parity, _graphs(name, model, tokens), _timing(model)]
        described = engine.describe()
        return checks, {
            "name": name,
            "library": f"{described.name} {described.version}",
            "providers": list(described.providers),
            "settings": described.settings,
        }
    finally:
        engine.close()


def _not_run(why: str) -> list[Check]:
    return [Check(name, False, None, why_not=why) for name in ("engine parity", "cuda graphs", "engine timing")]


def _default_engine(bundle: Bundle) -> str | None:
    name = default_engine(bundle.manifest)
    if find_engine(name).gpu:
        return name
    return bundle.manifest.engines[0].runtime if bundle.manifest.engines else None


def _model(bundle: Bundle, engine: Engine) -> Model:
    return Model.assemble(bundle, engine, RunOptions(prefix_cache=False))


def _identity(bundle: Bundle) -> str:
    """Of what the CPU's results depend on: graphs and embedding, not the engines that are built from them."""
    manifest = bundle.manifest
    names = [manifest.embedding.file]
    for graph in manifest.graphs.values():
        names += [graph.file, *graph.data]
    text = "".join(f"{name}:{manifest.files[name].sha256}\n" for name in sorted(names))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _reference(bundle: Bundle, tokens: int, file: Path | None) -> Talk:
    """The CPU's conversation, from the file if it is there."""
    if file is not None and file.is_file():
        talk = Talk.load(file, _identity(bundle))
        if len(talk.tokens) != 2 * tokens:
            raise BenchError(
                f"{file} holds {len(talk.tokens) // 2} tokens a turn: give --tokens {len(talk.tokens) // 2}"
            )
        return talk
    engine = create_engine("cpu", bundle)
    try:
        talk = hold(_model(bundle, engine), tokens)
    finally:
        engine.close()
    if file is not None:
        talk.save(file, _identity(bundle))
    return talk


def _graphs(name: str, model: Model, tokens: int) -> Check:
    """Steps replayed as CUDA graphs against steps run one by one."""
    from gog_edge.engines.tensorrt import TrtEngine

    if not isinstance(model.engine, TrtEngine):
        return Check("cuda graphs", False, None, why_not=f"engine {name} does not use them through gog-edge")
    decoder = model.engine.decoder
    replayed = hold(model, tokens)
    facts = {"captured": decoder.captured, "replayed": decoder.replayed}
    if not decoder.replayed:
        why = "a step could not be captured" if not decoder.graphs else f"too few steps ({tokens} tokens a turn)"
        return Check("cuda graphs", False, None, facts, why_not=why)
    decoder.graphs = False  # a new session has a cache without captured steps: it runs plainly
    try:
        plain = hold(model, tokens, replayed.tokens)
    finally:
        decoder.graphs = True
    metrics = compare(plain, replayed)
    return Check("cuda graphs", True, agrees(metrics, model.manifest.precision), {**facts, **metrics})


def _timing(model: Model) -> Check:
    """Seconds of the stages: an image, a prefill, a decoding step. Measured, not judged."""
    encode: list[float] = []
    prefill: list[float] = []
    decode: list[float] = []
    for number in range(_REPEATS):
        frame = Frame.open(picture(*SIZE, seed=100 + number).pixels)
        session = Session(model)
        plan = model.vision.plan(frame)
        start = time.perf_counter()
        features = model.vision.encode(plan)[0]
        np.asarray(features.main)  # waits for the device
        encode.append(time.perf_counter() - start)
        image = session.add_image(frame)
        session.append([ImagePart(image.index)])
        session.extend(ordinary_tokens(model.manifest, 64, number), given=True)
        start = time.perf_counter()
        session.run()
        prefill.append(time.perf_counter() - start)
        for token in ordinary_tokens(model.manifest, 16, number):
            session.extend([token])
            start = time.perf_counter()
            session.run()
            decode.append(time.perf_counter() - start)
    stages = {"encode": encode[1:], "prefill": prefill[1:], "decode": decode[16:]}  # the first round warms up
    facts: dict[str, Any] = {"image_tokens": plan.tokens, "prefill_tokens": len(session) - 16}
    for stage, samples in stages.items():
        s = Summary("s", tuple(samples))
        facts[f"{stage}_s"] = {"p50": s.p50, "p95": s.p95, "n": s.n}
    return Check("engine timing", True, None, facts)


def lines(report: SelfCheck) -> list[str]:
    """The report for people, a few lines a check."""
    out = [f"gog-edge {report.version} self-check, {report.started}", f"gpu: {report.gpu}"]
    for check in report.checks:
        if check.ran:
            verdict = {True: "passed", False: "FAILED", None: "measured"}[check.ok]
        else:
            verdict = "not run"
        out.append(f"{check.name}: {verdict}" + (f" ({check.why_not})" if check.why_not else ""))
        if check.instead:
            out.append(f"  instead: {check.instead}")
        if check.ran:
            out += [f"  {key}: {value}" for key, value in check.facts.items()]
    return out
