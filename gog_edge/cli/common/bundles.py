"""`--bundle NAME`, as every command takes it: a name of the library, or a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from gog_edge import library
from gog_edge.cli.common.console import stderr, styled
from gog_edge.errors import UsageError

_Command = TypeVar("_Command", bound=Callable[..., Any])


def bundle_option(text: str, *, asks: bool = True) -> Callable[[_Command], _Command]:
    """`--bundle`, a name of the library or a folder. `asks`: the command asks the policy, so the bundle is remembered
    and `GOG_EDGE_BUNDLE` counts."""
    return click.option(
        "--bundle",
        metavar="NAME",
        envvar="GOG_EDGE_BUNDLE" if asks else None,
        callback=_named_and_remembered if asks else named,
        help=f"{text} A name of the library (gog-edge list) or a folder."
        + (" Default: the one last exported or named." if asks else ""),
    )


def named(context: click.Context, parameter: click.Parameter, value: str | None) -> Path | None:
    """The folder behind the value of an option or argument."""
    return None if value is None else library.find(value)


def _named_and_remembered(context: click.Context, parameter: click.Parameter, value: str | None) -> Path | None:
    path = named(context, parameter, value)
    typed = context.get_parameter_source(str(parameter.name)) is click.core.ParameterSource.COMMANDLINE
    if path is not None and typed:
        library.remember(path)
    return path


def chosen(bundle: Path | None, *, say: bool = True) -> Path:
    """The bundle that was named, else the default, which is then said on stderr.

    Raises:
        UsageError: there is none.
    """
    if bundle is not None:
        return bundle
    found = default(say=say)
    if found is None:
        raise UsageError(
            "there is no bundle yet: gog-edge export CHECKPOINT makes one (or give --bundle, or set GOG_EDGE_BUNDLE)"
        )
    return found


def index_options(command: _Command) -> _Command:
    """`--index` and `--no-index`, for commands that ask the policy; see `chosen_index`."""
    command = click.option("--no-index", is_flag=True, help="Search no remembered index.")(command)
    return click.option(
        "--index",
        envvar="GOG_EDGE_INDEX",
        type=click.Path(path_type=Path),
        help="A local index to search. Default: the one last named with this bundle.",
    )(command)


def chosen_index(bundle: Path, index: Path | None, no_index: bool, *, say: bool = True) -> Path | None:
    """The index that was named, which is remembered with the bundle; else the remembered one, then said on stderr.

    Raises:
        UsageError: an index is named and forbidden.
    """
    typed = click.get_current_context().get_parameter_source("index") is click.core.ParameterSource.COMMANDLINE
    if no_index:
        if index is not None and typed:
            raise UsageError("--index and --no-index exclude each other")
        return None
    if index is not None:
        if typed:
            library.remember_index(bundle, index)
        return index
    found = library.index_of(bundle)
    if found is not None and say:
        stderr().print(styled("[dim]index: {}[/]", found), soft_wrap=True)
    return found


def default(*, say: bool = True) -> Path | None:
    """The bundle that is taken where none was named, if there is one; `say`: on stderr."""
    found = library.default()
    if found is not None and say:
        stderr().print(styled("[dim]bundle: {}[/]", _shown(found)), soft_wrap=True)
    return found


def _shown(bundle: Path) -> str:
    """The name of a bundle of the library, the path of any other."""
    return bundle.name if bundle.parent == library.directory() else str(bundle)
