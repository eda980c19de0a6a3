"""Option values that several commands share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gog_edge.allowance import THREADS
from gog_edge.errors import UsageError

if TYPE_CHECKING:
    from gog_edge.image.frame import ImageLimits
    from gog_edge.sampling_options import Sampling

    _FloatParam = click.ParamType[float]
    _IntParam = click.ParamType[int]
else:
    _FloatParam = _IntParam = click.ParamType  # generic since click 8.3 only

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Seconds(_FloatParam):
    """A duration: '2s', '500ms', '1.5m' or a bare number of seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from gog_edge.deadline import seconds_of

        if isinstance(value, (int, float)):
            return float(value)
        try:
            return seconds_of(str(value))
        except UsageError:
            self.fail(f"{value!r} is not a duration: write 2s or 500ms", param, ctx)


SECONDS = Seconds()


def threads_option(command: _Command) -> _Command:
    """`--threads N`: of every computation of this process and of those that it starts."""
    text = "Threads of a computation; default, and 0: by the CPUs and the CPU time that it may use."
    kind = click.IntRange(0, 4096)
    return click.option("--threads", type=kind, expose_value=False, callback=_set_threads, help=text)(command)


def _set_threads(ctx: click.Context, param: click.Parameter, value: int | None) -> None:
    """BLAS reads its variables when numpy is imported, which is later. Afterwards they are as they were."""
    for name in (THREADS, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS") if value else ():
        before = os.environ.get(name)
        os.environ[name] = str(value)
        ctx.call_on_close(partial(_restore, name, before))


def _restore(name: str, before: str | None) -> None:
    if before is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = before


def parse_size(text: str) -> int:
    """'8GiB', '7.5 GB', '512M' -> bytes.

    Raises:
        UsageError: not a size.
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if match is None or match.group(1).count(".") > 1 or match.group(1) == ".":
        raise UsageError(f"{text!r} is not a size: write 8GiB or 7.5GB")
    base = 1000 if match.group(2) and not match.group(3) and text.strip().upper().endswith("B") else 1024
    return int(float(match.group(1)) * base ** " KMGT".index(match.group(2).upper() or " "))


class Size(_IntParam):
    """An amount of memory: '512MiB', '1.5GB' or a bare number of bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            size = value if isinstance(value, int) else parse_size(str(value))
        except UsageError as e:
            self.fail(str(e), param, ctx)
        if size < 1:
            self.fail(f"{value!r} is nothing: write 512MiB", param, ctx)
        return size


_PICTURES = (
    ("image-bytes", Size(), "Largest image file."),
    ("image-pixels", click.IntRange(min=1), "Most pixels that an image may have as it is stored."),
    ("image-memory", Size(), "Memory that decoding images may take."),
)


def image_options(command: _Command) -> _Command:
    """`--image-bytes`, `--image-pixels`, `--image-memory`: what images may take before they are refused."""
    for name, kind, text in reversed(_PICTURES):
        command = click.option(f"--{name}", type=kind, help=f"{text} Default: docs/limits.md.")(command)
    return command


def take_image_limits(given: dict[str, Any]) -> ImageLimits:
    """The options of `image_options`, taken out of a command's keyword arguments."""
    from gog_edge.image.frame import ImageLimits

    names = {"image_bytes": "max_bytes", "image_pixels": "max_pixels", "image_memory": "memory"}
    said = {field: given.pop(option) for option, field in names.items()}
    return ImageLimits(**{field: value for field, value in said.items() if value is not None})


cut_option: Callable[[_Command], _Command] = click.option(
    "--cut",
    type=click.Choice(["gap", "mixture", "none"]),
    default="gap",
    show_default=True,
    help="How many results a local index gives: up to where their scores fall off, those that belong together by a "
    "mixture of two Gaussians (5 to 10), or as many as were asked for.",
)


def results_options(command: _Command) -> _Command:
    """`--results` and `--cut`: how many results a search gives."""
    results = click.option(
        "--results", type=click.IntRange(0, 100), default=0, help="Results asked for, where the policy does not say."
    )
    return results(cut_option(command))


_SAMPLING = (
    ("temperature", click.FloatRange(min=0), "0 is greedy."),
    ("top-k", click.IntRange(min=0), "Draw from the K most likely tokens; 0: from all."),
    ("top-p", click.FloatRange(0, 1, min_open=True), "Draw from the fewest tokens that have this probability; 1: all."),
    ("min-p", click.FloatRange(0, 1, max_open=True), "Drop tokens less likely than this share of the likeliest."),
    ("repetition-penalty", click.FloatRange(0, min_open=True), "Of tokens that occurred before; 1 is off."),
)


def sampling_options(command: _Command) -> _Command:
    """`--temperature` and the like, `--seed`; what is not given is the dialect's or the checkpoint's."""
    command = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed.")(
        command
    )
    for name, kind, text in reversed(_SAMPLING):
        command = click.option(f"--{name}", type=kind, help=f"{text} Default: what the policy was published with.")(
            command
        )
    return command


def take_sampling(given: dict[str, Any]) -> Sampling:
    """The options of `sampling_options`, taken out of a command's keyword arguments."""
    from gog_edge.sampling_options import Sampling

    names = [*(name.replace("-", "_") for name, _, _ in _SAMPLING), "seed"]
    return Sampling(**{name: given.pop(name) for name in names})
