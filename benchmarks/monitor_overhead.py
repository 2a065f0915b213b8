"""Cost of watching: a step with the monitor compared with the same step without, interleaved. Checks that bits agree.

The model has many tensors (transformer shapes) and is trained by torch AdamW or one of ours. Only the optimizer's step
is timed, without forward and backward. A training step is longer, so the relative cost there is smaller.

    python benchmarks/monitor_overhead.py [--parameters 100] [--optimizer torch|ours|bf16] [--every 10] [--steps 20]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import halfulp


def make(millions: float, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Return embedding and decoder layers of width 768 with up to `millions` million parameters."""
    shapes = [(768, 768)] * 4 + [(2048, 768)] * 2 + [(768, 2048)] + [(768,)] * 2
    layer = sum(torch.Size(s).numel() for s in shapes)
    count = max(1, round((millions * 1e6 - 24e6) / layer)) if millions > 30 else 1
    every = [(32000, 768)] * (millions > 30) + shapes * count
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter((torch.randn(s, generator=generator) * 0.02).to(dtype)) for s in every]


def build(kind: str, params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if kind == "ours":
        return halfulp.AdamW(params, lr=1e-4)
    return torch.optim.AdamW(params, lr=1e-4, fused=kind == "torch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=float, default=100.0, help="millions")
    parser.add_argument("--optimizer", choices=["torch", "ours", "bf16"], default="torch")
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    dtype = torch.bfloat16 if args.optimizer == "bf16" else torch.float32
    params, twins = make(args.parameters, dtype), make(args.parameters, dtype)
    generator = torch.Generator().manual_seed(1)
    for p, q in zip(params, twins, strict=True):
        p.grad = q.grad = (torch.randn(p.shape, generator=generator) * 1e-3).to(dtype)
    watched, plain = build(args.optimizer, params), build(args.optimizer, twins)
    watch = halfulp.StallMonitor(watched, every=args.every)
    for _ in range(args.every):
        watched.step()
        plain.step()
    ratios, steps = [], []
    for _ in range(args.steps):  # whole cycles of `every` steps, so that counted steps have their share
        seconds = []
        for optimizer in (watched, plain):
            begin = time.perf_counter()
            for _ in range(args.every):
                optimizer.step()
            seconds.append((time.perf_counter() - begin) / args.every)
        ratios.append(seconds[0] / seconds[1])
        steps.append(seconds[1])
    print(
        f"{sum(p.numel() for p in params) / 1e6:.0f} M parameters in {len(params)} tensors, {args.optimizer}, "
        f"every={args.every}: step {1e3 * statistics.median(steps):.0f} ms, watched / plain "
        f"{statistics.median(ratios):.4f} (median of {len(ratios)} interleaved pairs, {watch.steps} steps watched)"
    )
    same = all(torch.equal(p, q) for p, q in zip(params, twins, strict=True))
    print("watched and plain end in", "the same bits" if same else "OTHER BITS")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
