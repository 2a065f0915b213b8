"""What happens to ``v`` in bf16 when the gradient's scale changes, seen by the monitor.

torch AdamW with bf16 parameters takes gradients N(0, scale**2) of scale 1, then 0.1, then 3, with `steps` steps each.
Under nearest rounding a bf16 second moment at beta2 = 0.999 can rise but not fall. The script prints the stored v over
its reference at the end of each part.

    python benchmarks/monitor_bf16.py [--steps 3000] [--elements 16384]
"""

from __future__ import annotations

import argparse

import torch

import halfulp


def run(steps: int, elements: int) -> list[halfulp.monitor.Measure]:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(elements // 64, 64, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([weight], lr=1e-3)
    found = []
    with halfulp.StallMonitor(optimizer, every=10) as watch:
        for scale in (1.0, 0.1, 3.0):
            for _ in range(steps):
                weight.grad = (torch.randn(weight.shape) * scale).bfloat16()
                optimizer.step()
            found.append(next(m for m in watch.measure() if m.slot == "exp_avg_sq"))
        print(watch.table())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--elements", type=int, default=16384)
    args = parser.parse_args()
    for scale, m in zip((1.0, 0.1, 3.0), run(args.steps, args.elements), strict=True):
        print(
            f"gradient scale {scale:<4}: stored v / reference {m.ratio:6.2f}, lag {m.lag:+.2f}, stalled {m.stalled:.3f}"
        )


if __name__ == "__main__":
    main()
