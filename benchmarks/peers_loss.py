"""Loss with the optimizers of several libraries, each at its own best learning rate.

    python benchmarks/peers_loss.py --out runs/peers-loss --csv docs/results/peers_loss.csv

AdamW of each library trains the same model (see ``paired.py``) with one layer for 3000 steps, three windows of the
second moment. The first arms have fp32 weights. The arms whose name ends in "bf16 weights" have weights and gradients
in bf16. Libraries that are not installed are left out. An interrupted run resumes from its results.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # the arithmetic is the same uncompiled, and the compiler is slow

import torch
from paired import Arm, Setting, study

import halfulp

DECAY = 0.1
BF16 = torch.bfloat16


def peer(library: str, of: Callable[[Any], Any], dtype: torch.dtype = torch.float32, **options: Any) -> Arm:
    def make(params: list[torch.nn.Parameter], lr: float, seed: int) -> torch.optim.Optimizer:
        torch.manual_seed(seed)  # for torchao's stochastic rounding of weights
        made: torch.optim.Optimizer = of(importlib.import_module(library))(
            params, lr=lr, betas=(0.9, 0.999), weight_decay=DECAY, **options
        )
        return made

    return Arm(make, dtype)


def ours(dtype: torch.dtype = torch.float32, **options: Any) -> Arm:
    def make(params: list[torch.nn.Parameter], lr: float, seed: int) -> torch.optim.Optimizer:
        return halfulp.AdamW(params, lr=lr, weight_decay=DECAY, seed=seed, **options)

    return Arm(make, dtype)


ARMS = {
    "torch fp32": ("torch", peer("torch.optim", lambda m: m.AdamW)),
    "halfulp bf16": ("halfulp", ours(state="bf16")),
    "halfulp 8bit": ("halfulp", ours()),
    "halfulp 4bit": ("halfulp", ours(state="4bit")),
    "bitsandbytes 8 bits": ("bitsandbytes", peer("bitsandbytes", lambda m: m.optim.AdamW8bit)),
    "torchao 8 bits": ("torchao", peer("torchao.optim", lambda m: m.AdamW8bit)),
    "torchao fp8": ("torchao", peer("torchao.optim", lambda m: m.AdamWFp8)),
    "torchao 4 bits": ("torchao", peer("torchao.optim", lambda m: m.AdamW4bit)),
    "torch, bf16 weights": ("torch", peer("torch.optim", lambda m: m.AdamW, BF16)),
    "halfulp 8bit, bf16 weights": ("halfulp", ours(BF16)),
    "halfulp 8bit remainder16, bf16 weights": ("halfulp", ours(BF16, master_weights="remainder16")),
    "bitsandbytes 8 bits, bf16 weights": ("bitsandbytes", peer("bitsandbytes", lambda m: m.optim.AdamW8bit, BF16)),
    "torchao 8 bits, bf16 weights": (
        "torchao", peer("torchao.optim", lambda m: m.AdamW8bit, BF16, bf16_stochastic_round=True),
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--csv", type=Path, help="table to write")
    parser.add_argument("--only", help="arms whose name contains this")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3, 4e-3])
    args = parser.parse_args()
    first = next(iter(ARMS))
    wanted = {name: arm for name, arm in ARMS.items() if name == first or not args.only or args.only in name}
    there = {name: arm for name, (library, arm) in wanted.items() if find_spec(library) is not None}
    for name in wanted.keys() - there.keys():
        print(f"{name}: left out, the library is not installed")
    study(there, Setting(args.steps, args.rates, args.seeds, layers=1, context=32), args.out, args.csv)


if __name__ == "__main__":
    main()
