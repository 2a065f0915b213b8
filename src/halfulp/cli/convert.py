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
        typer.Argument(
            metavar="OUT",
            help="A .safetensors file, a .pt, .pth or .bin file, or a folder for torch.distributed.checkpoint.",
        ),
    ],
    state: Annotated[str, typer.Option(help="Format of the states, as for state=; torch for torch.optim.")] = "8bit",
    optimizer: Annotated[
        str | None,
        typer.Option(help="Class of the optimizer, such as AdamW, Lion or SGD. Default: recognized from the states."),
    ] = None,
    rounding: Annotated[str, typer.Option(help="Rounding of later steps: stochastic or nearest.")] = "stochastic",
    at: Annotated[str | None, typer.Option(help="Which optimizer in IN to convert, if it holds several.")] = None,
) -> None:
    """Convert a saved optimizer to another format, or between libraries.

    States are rounded once, by nearest rounding. Load OUT with load_state_dict into an optimizer of the class, groups
    and formats that it names. Nothing in IN is executed.
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
