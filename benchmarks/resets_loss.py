"""Loss with real fp4 states under nearest rounding, with and without resets, each at its own best rate.

    python benchmarks/resets_loss.py --out runs/resets-loss --csv docs/results/resets_loss.csv

Scale models leave out what belongs to real formats: block scales, underflow, the largest number. Here AdamW stores its
states as it does in use (see ``paired.py``; the model has one layer), with betas of 0.9 and 0.999, for 3000 steps.
Resets are those of ``plan_reset(..., criterion="total")``. Plans by ``"residual"`` are longer than the run. An
interrupted run resumes from its results.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from paired import Arm, Setting, study

import halfulp


def arm(**options: Any) -> Arm:
    def make(params: list[torch.nn.Parameter], lr: float, seed: int) -> torch.optim.Optimizer:
        return halfulp.AdamW(params, lr=lr, weight_decay=0.1, seed=seed, **options)

    return Arm(make)


def arms() -> dict[str, Arm]:
    period = halfulp.plan_reset("fp4", beta=0.999, rounding="nearest", criterion="total").period
    return {
        "fp32": Arm(lambda params, lr, seed: torch.optim.AdamW(params, lr=lr, weight_decay=0.1)),
        "nearest": arm(state="fp4", rounding="nearest"),
        f"nearest + reset ({period})": arm(state="fp4", rounding="nearest", reset=period),
        "stochastic": arm(state="fp4"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--csv", type=Path, help="table to write")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3, 4e-3])
    args = parser.parse_args()
    study(arms(), Setting(args.steps, args.rates, args.seeds, layers=1, context=32), args.out, args.csv)


if __name__ == "__main__":
    main()
