"""Every optimizer in every format: bytes of state per parameter, and the loss at the end of training.

The task and the arguments of each optimizer are those of ``tests/test_matrix.py``: a byte-level model of 7328
parameters on real text, 30 steps, the mean loss of the last five. There is one run per cell, so differences of a few
hundredths mean nothing. The table shows that a cell works, not which optimizer is best.

Usage: python benchmarks/matrix_table.py [--optimizers AdamW,Muon] [--markdown docs/results/optimizer-matrix.md]
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from halfulp.lab.files import write_text
from halfulp.optim import OPTIMIZERS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from test_matrix import CELLS, STATES, STEPS, UNTRAINED, WIDENED, build, optimizer, stored_bytes, train, unigram_entropy


@dataclass(frozen=True)
class Measured:
    """One optimizer and format: bytes of state per parameter, and the loss under each rounding."""

    bytes: float
    losses: dict[str, float]


def measure(name: str, state: str) -> Measured:
    losses, size = {}, 0.0
    for of_state, rounding in CELLS:
        if of_state == state:
            model = build()
            o = optimizer(name, model, state, rounding)
            losses[rounding] = sum(train(model, o, 0, STEPS)[-5:]) / 5
            size = stored_bytes(o) / sum(p.numel() for p in model.parameters())
    return Measured(size, losses)


def cell(name: str, state: str, found: Measured) -> str:
    """Return ``loss nearest / stochastic (bytes)``, marked if a slot takes more bits than requested."""
    shown = " / ".join(f"{loss:.2f}" for loss in found.losses.values())
    wide = "*" if any(optimizer == name for optimizer, _ in WIDENED) and state == "fp4" else ""
    return f"{shown} ({found.bytes:.2f} B{wide})"


def markdown(rows: dict[str, list[str]]) -> str:
    lines = [
        "# Every optimizer in every format",
        "",
        f"Mean loss of steps {STEPS - 4} to {STEPS} on a small byte-level model (untrained: {UNTRAINED:.2f}), with",
        "states rounded to nearest / stochastically, and measured bytes of state per parameter. Vectors and small",
        "states stay in fp32. Each cell is one run, so differences of a few hundredths are noise. The table shows what",
        "works, not what is best. `tests/test_matrix.py` holds every cell to two limits: the loss of the best model",
        f"without context ({unigram_entropy():.2f}), and what a format may cost over fp32.",
        "",
        "| optimizer | " + " | ".join(STATES) + " |",
        "|---" * (len(STATES) + 1) + "|",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()),
        "",
        f"\\* Stored in 8 bits: {', '.join(f'`{slot}` of {name}' for name, slot in sorted(WIDENED))}.",
        "In these optimizers, the first moment does not bound the update, so nothing limits a step if stochastic",
        "rounding in 4 bits makes a second moment zero. If a bound is known (the Adam family, CoRe, AMAdamW), the",
        "step is clamped to it, and 4-bit states train.",
        "",
        "The table is written by `python benchmarks/matrix_table.py --markdown docs/results/optimizer-matrix.md`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizers", default=",".join(c.__name__ for c in OPTIMIZERS), help="names, by commas")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title=f"loss nearest / stochastic (bytes of state per parameter); untrained: {UNTRAINED:.2f}")
    for column in ("optimizer", *STATES):
        table.add_column(column, no_wrap=True)
    rows = {}
    for name in args.optimizers.split(","):
        rows[name] = [cell(name, state, measure(name, state)) for state in STATES]
        table.add_row(name, *(text.replace("[", "\\[") for text in rows[name]))
    console = Console(width=max(Console().width, 160))
    console.print(table)
    if args.markdown is not None:
        write_text(args.markdown, markdown(rows))


if __name__ == "__main__":
    main()
