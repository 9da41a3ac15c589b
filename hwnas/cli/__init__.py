"""The command line. A command is one file that parses, calls one library function and prints.

Nothing heavy is imported until a command runs: ``hwnas --help`` reads the menu below and no more.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from hwnas import __version__
from hwnas.errors import HwnasError, UsageError, unknown_name

COMMANDS = {
    "demo": "The whole way on the embedded default: train, profile, search, export.",
    "devices": "Known devices, which are attached now, and why the others are not.",
    "spaces": "The search spaces: their size and their range of parameters.",
    "sample": "Architectures of a space, one JSON line each.",
    "train": "Train the supernet of a space.",
    "profile": "Measure the latency table of a device.",
    "search": "Find the most accurate network within a latency and a parameter budget.",
    "export": "Write a network for ONNX Runtime, Core ML or PyTorch.",
    "lut": "Show, check and compare latency tables, and predict with them.",
}
"""The menu. ``hwnas NAME`` runs ``command`` of the module ``hwnas.cli.NAME``."""

_INTERRUPTED = 130  # what a shell reports for a process ended by Ctrl-C


class _Menu(click.Group):
    """Loads a command when it is called for, and turns every error into one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            command: click.Command = import_module(f"{__name__}.{cmd_name}").command
            return command
        if not ctx.resilient_parsing:  # a shell that completes a word takes no for an answer
            ctx.fail(unknown_name("command", cmd_name, COMMANDS))
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        with _one_sentence():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> None:
        with _one_sentence():
            super().invoke(ctx)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turn what goes wrong into ``Error: …`` on stderr and an exit status."""
    try:
        yield
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    except HwnasError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo("Interrupted. What was written is kept; the same command goes on.", err=True)
        raise click.exceptions.Exit(_INTERRUPTED) from None
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader of a pipe has left: click ends quietly
            raise
        where = f" {error.filename}" if error.filename else ""
        reason = error.strerror or error
        raise click.ClickException(f"cannot read or write{where}: {reason}") from error


@click.group(
    cls=_Menu, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(__version__, prog_name="hwnas", message="%(prog)s %(version)s")
def main() -> None:
    """Find the most accurate vision network that fits a latency and a parameter budget.

    Start with `hwnas demo`. Data go to stdout, progress to stderr. Exit status: 0 done, 1 could
    not be done, 2 wrong usage.
    """
