"""Loss with the optimizers of several libraries, each at its own best learning rate.

    python benchmarks/peers_loss.py --out runs/peers-loss --csv docs/results/peers_loss.csv

AdamW of each library trains the same model (see ``paired.py``) with one layer for 3000 steps, three windows of the
second moment. The first arms have fp32 weights. The arms whose name ends in "bf16 weights" have weights and gradients
in bf16. Libraries that are not installed are left out. An interrupted run resumes from its results.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # the arithmetic is the same uncompiled, and the compiler is slow

import torch
from paired import DECAY, Arm, Setting, command, ours

BF16 = torch.bfloat16


def peer(module: str, of: Callable[[Any], Any], dtype: torch.dtype = torch.float32, **options: Any) -> Arm:
    """Return an arm with an optimizer of a module, which is imported when the arm runs."""

    def make(params: list[torch.nn.Parameter], lr: float, seed: int) -> torch.optim.Optimizer:
        torch.manual_seed(seed)  # for torchao's stochastic rounding of weights
        made: torch.optim.Optimizer = of(importlib.import_module(module))(
            params, lr=lr, betas=(0.9, 0.999), weight_decay=DECAY, **options
        )
        return made

    return Arm(make, dtype, module.partition(".")[0])


ARMS = {
    "torch fp32": peer("torch.optim", lambda m: m.AdamW),
    "halfulp bf16": ours(state="bf16"),
    "halfulp 8bit": ours(),
    "halfulp 4bit": ours(state="4bit"),
    "bitsandbytes 8 bits": peer("bitsandbytes", lambda m: m.optim.AdamW8bit),
    "torchao 8 bits": peer("torchao.optim", lambda m: m.AdamW8bit),
    "torchao fp8": peer("torchao.optim", lambda m: m.AdamWFp8),
    "torchao 4 bits": peer("torchao.optim", lambda m: m.AdamW4bit),
    "torch, bf16 weights": peer("torch.optim", lambda m: m.AdamW, BF16),
    "halfulp 8bit, bf16 weights": ours(BF16),
    "halfulp 8bit remainder16, bf16 weights": ours(BF16, master_weights="remainder16"),
    "bitsandbytes 8 bits, bf16 weights": peer("bitsandbytes", lambda m: m.optim.AdamW8bit, BF16),
    "torchao 8 bits, bf16 weights": peer("torchao.optim", lambda m: m.AdamW8bit, BF16, bf16_stochastic_round=True),
}

if __name__ == "__main__":
    command(ARMS, Setting(3000, (5e-4, 1e-3, 2e-3, 4e-3), seeds=8, layers=1, context=32), __doc__)
