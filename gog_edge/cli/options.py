"""Option values that several commands share."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    _FloatParam = click.ParamType[float]
else:
    _FloatParam = click.ParamType  # generic since click 8.3 only


_UNITS = {"ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0}


class Seconds(_FloatParam):
    """A duration: '2s', '500ms', '1.5m' or a bare number of seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|)", str(value).strip())
        seconds = float(match.group(1)) * _UNITS[match.group(2)] if match else 0.0
        if seconds <= 0:
            self.fail(f"{value!r} is not a duration: write 2s or 500ms", param, ctx)
        return seconds


SECONDS = Seconds()
