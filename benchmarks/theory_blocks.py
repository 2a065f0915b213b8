"""States in blocks: the predicted law against simulations with the library's own quantizers, and what scale to take.

The prediction (:mod:`halfulp.theory.blocks`) follows an ensemble of its own in float64; the simulation
(:mod:`halfulp.theory.simulation`) stores a tensor with the library's codes and scales; both have gradients of the same
sizes, drawn apart. Printed for some ages (averages over the last fifth of the ages up to each, since a jump of a
scale moves its whole block): predicted and simulated stalled fraction of values and of codes, lag and share of zeros;
then the worst of each. Codes under power-of-two scales are noisy: few blocks, which jump in each step or never, decide.

``--scales`` prints what a scale kind costs instead: error of Adam's update (:mod:`halfulp.theory.cost`) averaged over a
run without resets, lag at its end, and share of zeros.

Usage: python benchmarks/theory_blocks.py [--scales] [--betas 0.99 0.999]
"""

from __future__ import annotations

import argparse
import itertools
import math

import numpy as np
import torch

from halfulp import Quantizer, Scaling, get_format
from halfulp.theory.blocks import Blocks, block_law, draw_sizes, follow
from halfulp.theory.cost import cycle_cost, update_error
from halfulp.theory.drive import GRADIENT, SQUARE
from halfulp.theory.simulation import simulate

SECOND = ("float8_e4m3fn", "ufloat8_e5m3", "ufloat4_e2m2", "ufloat4_e3m1", "ufloat4_e4m0", "uint4", "udynamic8")
FIRST = ("float8_e4m3fn", "float4_e2m1fn", "int4", "dynamic8")
ROUNDINGS = ("nearest", "stochastic")
KINDS = ("pow2", "fp32")
SPREADS = (0.0, 1.0)


def compare(betas: list[float], longest: int, blocks: int) -> None:
    print(
        f"{'format':14} {'slot':10} {'scale':5} {'rounding':10} {'spread':>6} {'beta':>6} {'age':>5} "
        f"{'stalled':>13} {'codes':>13} {'lag':>15} {'zeros':>13}"
    )
    worst = [0.0] * 4
    slots = [("exp_avg_sq", n) for n in SECOND] + [("exp_avg", n) for n in FIRST]
    for beta, (slot, name), kind, how, spread in itertools.product(betas, slots, KINDS, ROUNDINGS, SPREADS):
        square, fmt = slot == "exp_avg_sq", get_format(name)
        steps = min(round(3 / (1 - beta)), longest)
        drive = SQUARE if square else GRADIENT
        sizes = draw_sizes(blocks, 128, spread)
        law = follow(Blocks(fmt, beta, how, drive, kind, zero_floor=square), sizes, np.ones(steps + 1), seed=1)
        quantizer = Quantizer(fmt, Scaling(kind), how, square)  # type: ignore[arg-type]
        run = list(simulate(quantizer, beta=beta, steps=steps + 1, slot=slot, sizes=torch.from_numpy(sizes)))
        for age in sorted({a for a in (10, 30, 100, 300, 1000) if a < steps} | {steps}):
            ages = slice(age - max(age // 5, 1) + 1, age + 1)
            after, before = run[ages], run[ages.start - 1 : age]  # a snapshot: an update and the state after it
            pairs = (
                (law.stalled[ages].mean(), np.mean([s.stalled for s in after])),
                (law.codes_stalled[ages].mean(), np.mean([s.codes_stalled for s in after])),
                (law.lag[ages].mean(), np.mean([math.log(s.ratio) for s in before])),
                (law.zeros[ages].mean(), np.mean([s.zeros for s in before])),
            )
            worst = [max(w, abs(a - b)) for w, (a, b) in zip(worst, pairs, strict=True)]
            cells = " ".join(f"{a:6.3f} {b:6.3f} " for a, b in pairs)
            print(f"{name:14} {slot:10} {kind:5} {how:10} {spread:6g} {beta:6g} {age:5d} {cells}", flush=True)
    print(
        "worst: " + ", ".join(f"{n} {w:.4f}" for n, w in zip(("stalled", "codes", "lag", "zeros"), worst, strict=True))
    )


def scales(beta: float, steps: int) -> None:
    print(f"beta2 {beta:g}, {steps} steps: mean error of Adam's update; lag at the end; zeros (smallest) at the end")
    for spread in SPREADS:
        for name in SECOND:
            for kind, how in itertools.product(KINDS, ROUNDINGS):
                law = block_law(Blocks(get_format(name), beta, how, SQUARE, kind, 128, spread), steps)
                cost = cycle_cost(update_error(law, 0.9, steps))[-1]
                print(
                    f"spread {spread:g} {name:14} {kind:5} {how:10} {cost:8.3f} {law.lag[-1]:+7.3f} "
                    f"{law.zeros[-1]:6.3f} ({law.smallest[-1]:.3f})",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", action="store_true")
    parser.add_argument("--betas", type=float, nargs="+", default=[0.9, 0.99, 0.999])
    parser.add_argument("--longest", type=int, default=1000)
    parser.add_argument("--blocks", type=int, default=256)
    args = parser.parse_args()
    if args.scales:
        scales(args.betas[-1], 3000)
    else:
        compare(args.betas, args.longest, args.blocks)


if __name__ == "__main__":
    main()
