"""``halfulp check``: which states of a saved optimizer can still move."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from halfulp.lab.tables import output, print_table

__all__ = ["command"]

DROP = ("tensors", "zero", "rounding", "elements", "gap", "decay", "can fall")
"""Columns that a narrow terminal omits, in this order. State, format and verdict always remain."""
SMALL = 0.01
"""Largest share of elements up to which stuck states are named without advice."""
VERDICT = 17
"""Smallest width at which a verdict wraps."""


def command(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A torch file with an optimizer's state_dict, safetensors, an HF Trainer checkpoint folder, or a "
            "folder of torch.distributed.checkpoint."
        ),
    ],
    live: Annotated[
        Path | None,
        typer.Option(help="The live model, if CHECKPOINT is an average of its weights."),
    ] = None,
    decay: Annotated[
        float | None, typer.Option(help="Decay of the weight average, with --live.", show_default="0.9999")
    ] = None,
) -> None:
    """Say which states of a saved optimizer can still move, or (--live) whether a saved weight average can.

    Nothing in the file is executed: torch files are loaded with weights_only.
    """
    from halfulp.checkpoint.movable import left_out, movable
    from halfulp.checkpoint.read import find_optimizers, read_saved

    console = output()
    if live is not None:
        _check_average(console, checkpoint, live, 0.9999 if decay is None else decay)
        return
    if decay is not None:
        raise ValueError(
            f"--decay {decay:g} is the decay of a weight average and needs --live with the averaged model; the "
            "decays of an optimizer are in its file"
        )
    optimizers = find_optimizers(read_saved(checkpoint))
    for place, state_dict in optimizers:
        try:
            rows = movable(state_dict)
        except ValueError as error:
            if len(optimizers) == 1:
                raise
            console.print(f"{checkpoint.name}: {place} is not judged: {error}", markup=False, soft_wrap=True)
            continue
        title = f"{checkpoint.name}{': ' + place if place else ''}"
        print_table(console, _table(title, rows), drop=DROP)
        if any(r.assumed for r in rows):
            console.print("* decay not in the file; the usual one is assumed")
        for line in _verdicts(rows):
            console.print(line, markup=False, soft_wrap=True)
        for slot, why in left_out(state_dict).items():
            console.print(f"not judged: {slot} ({why})", markup=False, soft_wrap=True)


def _verdicts(rows: list[Any]) -> list[str]:
    """Return what to say about stuck states, with their share of the slot, and what can be done."""
    stuck, invalid = [r for r in rows if r.verdict.startswith("stuck")], [r for r in rows if not r.valid]
    lines = [
        f"{r.slot} has values that are not finite, or negative second moments: the file is damaged, or the run had "
        "diverged"
        for r in invalid
    ]
    if not stuck:
        return lines or ["every state can still move"]
    for r in stuck:
        total = sum(other.elements for other in rows if other.slot == r.slot)
        what = r.slot if r.elements == total else f"{r.elements:,} of {total:,} elements of {r.slot}"
        verb = "is" if r.elements == total else "are"
        lines.append(f"{what} {verb} {r.format}, {r.rounding}: {1 - r.gets_through:.0%} of updates stall from here on")
    worst = sum(r.elements for r in stuck) / sum(r.elements for r in rows)
    if worst < SMALL:
        return [*lines, f"all other states, {1 - worst:.1%} of the elements, can still move"]
    cure = (
        "keep them in fp32, or round stochastically: optimizer = halfulp.AdamW(model.parameters()); "
        "optimizer.load_state_dict(halfulp.convert_state_dict(saved, to=optimizer))"
    )
    return [*lines, cure]


def _check_average(console: Any, average: Path, live: Path, decay: float) -> None:
    from rich.table import Table
    from rich.text import Text

    from halfulp.averaging.pair import check_pair
    from halfulp.checkpoint.read import read_saved

    saved = read_saved(average)
    rows = check_pair(saved, saved if live == average else read_saved(live), decay)
    table = Table(title=f"{average.name}, average of {live.name}, decay {decay:g}", title_justify="left")
    name = max(len(r.name) for r in rows)
    table.add_column("tensor", overflow="fold", min_width=min(name, 16))
    for heading in ("format", "rounding", "elements", "gap", "gets through"):
        table.add_column(heading, justify="left" if heading in ("format", "rounding") else "right", no_wrap=True)
    table.add_column("verdict", min_width=min(VERDICT, max(len(r.verdict) for r in rows)))
    for r in rows:
        rounding, through = r.rounding or "not said", f"{r.movable:.2%}"
        table.add_row(Text(r.name), r.dtype, rounding, f"{r.elements:,}", f"{r.gap:.1%}", through, r.verdict)
    print_table(console, table, drop=DROP)
    stuck = [r for r in rows if "frozen" in r.verdict]
    if stuck:
        console.print(
            f"{len(stuck)} of {len(rows)} tensors are frozen under nearest rounding; average in fp32, or "
            "stochastically: halfulp.averaging.EMA(model, state='8bit')",
            markup=False,
        )
    invalid = [r.name for r in rows if r.invalid]
    if invalid:
        console.print(
            f"{invalid[0]}{f' and {len(invalid) - 1} others' if len(invalid) > 1 else ''}: not finite in one of the "
            "files, which is damaged, or of a run that had diverged",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    elif not stuck:
        console.print("the average can still move")


def _table(title: str, rows: list[Any]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, heading in enumerate(
        ("slot", "format", "rounding", "decay", "tensors", "elements", "zero", "can fall", "gets through")
    ):
        table.add_column(heading, justify="right" if i >= 3 else "left", no_wrap=True)
    table.add_column("verdict", min_width=min(VERDICT, max((len(r.verdict) for r in rows), default=0)))
    for r in rows:
        table.add_row(
            r.slot, r.format, r.rounding, f"{r.beta:g}{'*' if r.assumed else ''}", str(r.tensors), f"{r.elements:,}",
            f"{r.zero:.1%}", f"{r.can_fall:.1%}", f"{r.gets_through:.1%}", r.verdict,
        )  # fmt: skip
    return table
