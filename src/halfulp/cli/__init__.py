"""The ``halfulp`` command line. One module per command; heavy imports happen inside the command that needs them."""

from __future__ import annotations

import importlib
import sys

import typer

__all__ = ["app", "main"]

COMMANDS: tuple[str, ...] = ("predict", "plan", "simulate", "compare", "check", "report")
"""Every command; ``halfulp.cli.<name>`` defines it as a function ``command`` whose docstring is its help."""

app = typer.Typer(
    name="halfulp",
    help="Low-precision optimizer states: predict, measure and recover the updates that rounding loses.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


for _name in COMMANDS:
    app.command(_name)(importlib.import_module(f"halfulp.cli.{_name}").command)


def main() -> None:
    """Run the command line; bad input ends with the message alone and exit code 2."""
    try:
        app()
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        typer.secho(f"halfulp: {error}", fg="red", err=True)
        sys.exit(2)
