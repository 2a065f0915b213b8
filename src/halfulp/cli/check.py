"""``halfulp check``: which states of a saved optimizer can still move."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["command"]


def command(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A torch file with an optimizer's state_dict, safetensors, an HF Trainer checkpoint folder, or a "
            "folder of torch.distributed.checkpoint."
        ),
    ],
) -> None:
    """Judge which states of a saved optimizer can still move.

    Nothing in the file is executed: torch files are loaded with weights_only.
    """
    from rich.console import Console

    from halfulp.checkpoint.movable import movable
    from halfulp.checkpoint.read import find_optimizers, read_saved

    console = Console(highlight=False)
    optimizers = find_optimizers(read_saved(checkpoint))
    for place, state_dict in optimizers:
        rows = movable(state_dict)
        title = f"{checkpoint.name}{': ' + place if place else ''}"
        console.print(_table(title, rows))
        if any(r.assumed for r in rows):
            console.print("* decay not in the file; the usual one is assumed")
        stuck = [r for r in rows if r.verdict.startswith("stuck")]
        for r in stuck:
            console.print(
                f"{r.slot} is {r.format}, {r.rounding}: {1 - r.gets_through:.0%} of updates lost from here on; keep it "
                "in fp32, or round stochastically: "
                "halfulp.AdamW(state='8bit').load_state_dict(halfulp.convert_state_dict(...))",
                markup=False,
                soft_wrap=True,
            )
        if not stuck:
            console.print("every state can still move")


def _table(title: str, rows: list[Any]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, heading in enumerate(
        ("slot", "format", "rounding", "decay", "tensors", "elements", "zero", "can fall", "gets through", "verdict")
    ):
        table.add_column(heading, justify="right" if 3 <= i <= 8 else "left", no_wrap=i < 9)
    for r in rows:
        table.add_row(
            r.slot, r.format, r.rounding, f"{r.beta:g}{'*' if r.assumed else ''}", str(r.tensors), f"{r.elements:,}",
            f"{r.zero:.1%}", f"{r.can_fall:.1%}", f"{r.gets_through:.1%}", r.verdict,
        )  # fmt: skip
    return table
