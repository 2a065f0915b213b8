"""Loss of bf16 weights for several ways to keep the bits below bf16, each at its own best learning rate.

    python benchmarks/bf16_loss.py --out runs/bf16-loss --csv docs/results/bf16_loss.csv

Only the weights vary: fp32; bf16 rounded to nearest or stochastically; bf16 with remainders of 8 or 16 bits. Gradients
of bf16 weights are rounded to bf16, and AdamW has 8-bit states (see ``paired.py`` for the model). An interrupted run
resumes from its results.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from paired import Arm, Setting, study

import halfulp


def arm(dtype: torch.dtype = torch.bfloat16, **options: Any) -> Arm:
    def make(params: list[torch.nn.Parameter], lr: float, seed: int) -> torch.optim.Optimizer:
        return halfulp.AdamW(params, lr=lr, weight_decay=0.1, state="8bit", min_size=0, seed=seed, **options)

    return Arm(make, dtype)


ARMS = {
    "fp32": arm(torch.float32),
    "nearest": arm(param_rounding="nearest"),
    "stochastic": arm(param_rounding="stochastic"),
    "remainder8": arm(master_weights="remainder8"),
    "remainder16": arm(master_weights="remainder16"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--csv", type=Path, help="table to write")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 8e-3])
    args = parser.parse_args()
    study(ARMS, Setting(args.steps, args.rates, args.seeds), args.out, args.csv)


if __name__ == "__main__":
    main()
