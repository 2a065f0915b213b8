"""Loss of bf16 weights for several ways to keep the bits below bf16, each at its own best learning rate.

    python benchmarks/bf16_loss.py --out runs/bf16-loss --csv docs/results/bf16_loss.csv

Only the weights vary: fp32; bf16 rounded to nearest or stochastically; bf16 with remainders of 8 or 16 bits. Gradients
of bf16 weights are rounded to bf16, and AdamW has 8-bit states (see ``paired.py`` for the model). An interrupted run
resumes from its results.
"""

from __future__ import annotations

import functools

import torch
from paired import Setting, command, ours

arm = functools.partial(ours, torch.bfloat16, state="8bit", min_size=0)
ARMS = {
    "fp32": ours(state="8bit", min_size=0),
    "nearest": arm(param_rounding="nearest"),
    "stochastic": arm(param_rounding="stochastic"),
    "remainder8": arm(master_weights="remainder8"),
    "remainder16": arm(master_weights="remainder16"),
}

if __name__ == "__main__":
    command(ARMS, Setting(1000, (1e-3, 2e-3, 4e-3, 8e-3), seeds=16), __doc__)
