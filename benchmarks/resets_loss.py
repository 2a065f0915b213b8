"""Loss with real fp4 states under nearest rounding, with and without resets, each at its own best rate.

    python benchmarks/resets_loss.py --out runs/resets-loss --csv docs/results/resets_loss.csv

Scale models leave out what belongs to real formats: block scales, underflow, the largest number. Here AdamW stores its
states as it does in use (see ``paired.py``; the model has one layer), with betas of 0.9 and 0.999, for 3000 steps.
Resets are those of ``plan_reset(..., criterion="total")``. Plans by ``"residual"`` are longer than the run. An
interrupted run resumes from its results.
"""

from __future__ import annotations

import torch
from paired import DECAY, Arm, Setting, command, ours

import halfulp


def arms() -> dict[str, Arm]:
    period = halfulp.plan_reset("fp4", beta=0.999, rounding="nearest", criterion="total").period
    return {
        "fp32": Arm(lambda params, lr, seed: torch.optim.AdamW(params, lr=lr, weight_decay=DECAY)),
        "nearest": ours(state="fp4", rounding="nearest"),
        f"nearest + reset ({period})": ours(state="fp4", rounding="nearest", reset=period),
        "stochastic": ours(state="fp4"),
    }


if __name__ == "__main__":
    command(arms(), Setting(3000, (5e-4, 1e-3, 2e-3, 4e-3), seeds=8, layers=1, context=32), __doc__)
