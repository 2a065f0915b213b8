"""Step of 8-bit AdamW on bf16 weights with master weights and bf16 gradients, compared with torch's fused fp32 AdamW.

Arms take turns, so that all see the same machine. The result is the median of the ratios of adjacent steps, with
quartiles:

    python benchmarks/bf16_weights.py --elements 16777216 --rounds 15
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import halfulp

KINDS = (None, "remainder8", "remainder16", "fp32")
MOVED = {None: 4 + 2 + 4, "remainder8": 4 + 2 + 6, "remainder16": 4 + 2 + 8, "fp32": 2 + 2 + 12}
"""Bytes per parameter that a step moves, by kind of master weights: weights and gradient in bf16, two 8-bit states."""


def arm(make: Callable[[list[torch.nn.Parameter]], Any], elements: int, dtype: torch.dtype) -> Any:
    """Return an optimizer over one matrix with a gradient, after its first step."""
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter((0.02 * torch.randn(elements // 4096, 4096, generator=generator)).to(dtype))
    p.grad = (1e-3 * torch.randn(p.shape, generator=generator)).to(dtype)
    optimizer = make([p])
    optimizer.step()
    return optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--elements", type=int, default=1 << 24)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    base = arm(lambda params: torch.optim.AdamW(params, fused=True), args.elements, torch.float32)
    arms = {
        kind: arm(lambda params, kind=kind: halfulp.AdamW(params, master_weights=kind), args.elements, torch.bfloat16)
        for kind in KINDS
    }
    ratios: dict[str | None, list[float]] = {kind: [] for kind in arms}

    def seconds(optimizer: Any) -> float:
        start = time.perf_counter()
        optimizer.step()
        return time.perf_counter() - start

    for _ in range(args.rounds):
        for kind, optimizer in arms.items():
            before, own, after = seconds(base), seconds(optimizer), seconds(base)
            ratios[kind].append(2 * own / (before + after))
    print(f"{args.elements:,} elements, {args.threads} threads, {halfulp.kernels.cpu.status()}")
    print(f"{'master weights':16} {'bytes moved':>12} {'of torch fused fp32 (28 bytes)':>32}")
    for kind, found in ratios.items():
        low, middle, high = statistics.quantiles(found, n=4)
        print(f"{kind!s:16} {MOVED[kind]:>12} {middle:>20.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
