"""`gog-edge`: the command group. Each command lives in its own file and is imported only when it is called."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import click

from gog_edge._version import __version__
from gog_edge.errors import CancelledError, GogEdgeError
from gog_edge.sanitize import printable

COMMANDS = {
    "ask": ("gog_edge.cli.ask", "Ask a question about an image."),
    "watch": ("gog_edge.cli.watch", "Ask about a camera's newest frame, again and again."),
    "export": ("gog_edge.cli.export", "Turn a checkpoint into a bundle."),
    "list": ("gog_edge.cli.list", "List the bundles of your library."),
    "remove": ("gog_edge.cli.remove", "Delete bundles of your library."),
    "calibrate": ("gog_edge.cli.calibrate", "Collect what a better int4 export needs."),
    "inspect": ("gog_edge.cli.inspect", "Show what a bundle holds, and check its files."),
    "index": ("gog_edge.cli.index", "Build, extend and search a local index."),
    "eval": ("gog_edge.cli.eval", "Measure a policy's accuracy on a data set."),
    "bench": ("gog_edge.cli.bench.command", "Measure where the time, memory and energy go."),
    "serve": ("gog_edge.cli.serve", "Answer questions over HTTP."),
    "mcp": ("gog_edge.cli.mcp", "Give the policy and its index to agents as MCP tools."),
    "demo": ("gog_edge.cli.demo", "Ask gog-nano, the project's own small policy, a question."),
    "doctor": ("gog_edge.cli.doctor", "Say what this machine can run, and why not."),
}
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class LazyGroup(click.Group):
    """Looks commands up in `COMMANDS`; `gog-edge --help` imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as e:
            close = difflib.get_close_matches(args[0], COMMANDS, n=1) if args else []
            if not close:
                raise
            raise click.UsageError(f"{e.format_message().rstrip('.')}; did you mean {close[0]!r}?", ctx) from e


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="gog-edge")
def cli() -> None:
    """Glance-or-Gaze policies on the device: export, ask, search, measure."""


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Errors made by input are one line on stderr and code 2."""
    _prepare_streams()
    try:
        return _run(args)
    except BrokenPipeError:  # the reader of stdout or stderr went away (| head): not an error of ours
        return 0
    except SystemExit as e:  # what older releases of click make of it
        if isinstance(e.__context__, BrokenPipeError):
            return 0
        raise
    finally:
        _drop_output()


def _run(args: Sequence[str] | None) -> int:
    try:
        code = cli.main(args=list(args) if args is not None else None, prog_name="gog-edge", standalone_mode=False)
        sys.stdout.flush()  # a full disk is found here, not by the interpreter when nobody can report it any more
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.UsageError as e:
        return _report_usage(e)
    except click.ClickException as e:
        _say(e.format_message())
        return e.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("gog-edge: interrupted", err=True)
        return EXIT_INTERRUPTED
    except CancelledError as e:
        _say(str(e))
        return EXIT_INTERRUPTED
    except GogEdgeError as e:
        return _report(e)
    except BrokenPipeError:
        raise
    except OSError as e:
        if e.filename is None and e.errno is None:
            raise
        name = f"{e.filename}: " if e.filename else ""
        return _report(GogEdgeError(f"{name}{e.strerror or e}"))
    # without stand-alone mode click returns the code of an Exit instead of raising it
    return code if isinstance(code, int) else 0


def _drop_output() -> None:
    """What still waits to be written and can't be is dropped: the interpreter must not try again at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _prepare_streams() -> None:
    """Warnings of the runtime as lines of ours; and streams that were closed (`>&-`) swallow what is written."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - as long as the process lives
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name in argv need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # Pillow's; our own limit refuses it in a line
    logger = logging.getLogger("gog_edge")
    if not logger.handlers:
        logger.addHandler(_Lines())
        logging.getLogger("gog_edge.native").setLevel(logging.INFO)  # a compiler that runs for seconds is reported


class _Lines(logging.Handler):
    """Log records as single lines on stderr; what they were caused by only with GOG_EDGE_DEBUG."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # stderr on a full disk, or closed: no reason to end a question
            _say(record.getMessage())
            if record.exc_info and os.environ.get("GOG_EDGE_DEBUG"):
                click.echo(logging.Formatter().formatException(record.exc_info), err=True)


def _report_usage(error: click.UsageError) -> int:
    """What click says in four lines, in one."""
    if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 and later
        error.show()
        return error.exit_code
    command = error.ctx.command_path if error.ctx is not None else "gog-edge"
    variable = getattr(getattr(error, "param", None), "envvar", None)
    other = f" or set {variable}" if isinstance(error, click.MissingParameter) and variable else ""
    message = printable(" ".join(error.format_message().rstrip(".").split()))
    click.echo(f"{command}: {message}{other}; see {command} --help", err=True)
    return error.exit_code


def _report(error: GogEdgeError) -> int:
    if os.environ.get("GOG_EDGE_DEBUG"):
        raise error
    _say(str(error))
    return EXIT_BAD_INPUT


def _say(message: str) -> None:
    """One line on stderr. It may quote a server, a file or a file's name, so nothing in it steers the terminal."""
    click.echo(f"gog-edge: {printable(' '.join(message.split()))}", err=True)


def main() -> None:
    """Entry point of the `gog-edge` script."""
    sys.exit(run())
