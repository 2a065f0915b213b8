"""``halfulp convert``: convert a saved optimizer to another format or library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="A torch file with an optimizer's state_dict, safetensors, an HF Trainer checkpoint folder, or a "
            "folder of torch.distributed.checkpoint.",
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="A .safetensors file, a .pt, .pth or .bin file, or a folder (DCP)."),
    ],
    state: Annotated[
        str, typer.Option(help="Format of the states, as of state=; or torch, for torch.optim's own.")
    ] = "8bit",
    optimizer: Annotated[
        str | None, typer.Option(help="AdamW, Lion, SGD ...; default: what the states are those of.")
    ] = None,
    rounding: Annotated[str, typer.Option(help="Of later steps: stochastic or nearest.")] = "stochastic",
    at: Annotated[str | None, typer.Option(help="Place of the optimizer in IN, where it holds several.")] = None,
) -> None:
    """Convert a saved optimizer to another format, or between libraries.

    States are rounded to nearest once. OUT loads with load_state_dict into the optimizer that it names, built with the
    same groups and formats. Nothing in IN is executed.
    """
    from halfulp.checkpoint.read import read_saved
    from halfulp.checkpoint.rebuild import choose, rebuilt, write_saved
    from halfulp.lab.tables import output

    place, saved = choose(read_saved(source), at)
    made, name = rebuilt(saved, state, optimizer, rounding)
    write_saved(made, target)
    count = len(made["state"])
    where = f" ({place})" if place else ""
    output().print(
        f"{source}{where}: states of {count} parameters as {name}, {state}: {target}", highlight=False, markup=False,
        soft_wrap=True,
    )  # fmt: skip
