"""The ``halfulp`` command line, with one module per command.

Heavy imports happen inside the command that needs them.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Annotated

import typer

__all__ = ["app", "main"]

COMMANDS: tuple[str, ...] = ("predict", "plan", "simulate", "compare", "check", "convert", "report")
"""All commands. ``halfulp.cli.<name>`` defines a function ``command`` whose docstring is the help text."""

app = typer.Typer(
    name="halfulp",
    help="Low-precision optimizer states: predict, measure and prevent stalled updates.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from halfulp import __version__

        typer.echo(f"halfulp {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _help(docstring: str) -> str:
    """Return a docstring with one line per paragraph, since typer keeps line breaks from the second paragraph on."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(docstring).split("\n\n"))


for _name in COMMANDS:
    _command = importlib.import_module(f"halfulp.cli.{_name}").command
    app.command(_name, help=_help(_command.__doc__))(_command)


def main() -> None:
    """Run the command line. Bad input ends with only the message and exit code 2, an interrupt with exit code 130."""
    try:
        app()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        typer.secho(f"halfulp: {error}", fg="red", err=True)
        sys.exit(2)
    except KeyboardInterrupt:  # before typer looks for it
        sys.exit(130)
