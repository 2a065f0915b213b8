"""Mostly zero gradients in real blocks: stalls, underflow, and the effect of resets and roundings.

AdamW takes the same gradients with one moment stored (the other in fp32) and with both in fp32. Rows of 128 elements,
one block each, have independent normal gradients in a share of the steps and zeros otherwise. Whole rows are zero
together, like the embedding rows of rare words, or every element separately (``--elements``). Over the second half of
the steps the script reports, for each storage, the error of the update relative to fp32's mean square with and without
a gradient, and the lost updates. At the end it reports the lag (log of stored over exact sums; for a first moment, of
squares and halved) and the codes that are zero although the exact state is not.

Usage: python benchmarks/theory_sparse.py [--shares 1 0.1 0.01 0.001] [--elements] [--steps 6000]
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from halfulp import AdamW, Quantizer, Scaling, get_format, plan_reset

STORED = {
    "exp_avg_sq": ("bfloat16", "ufloat8_e5m3", "ufloat4_e2m2", "ufloat4_e4m0"),
    "exp_avg": ("bfloat16", "float8_e4m3fn", "float4_e2m1fn"),
}
BETAS = (0.9, 0.999)
ROWS = 64
EVERY = 20
"""Steps between measurements of the states."""


class Arm:
    """AdamW with one stored moment, whose updates are compared with those of another arm."""

    def __init__(self, slot: str, quantizer: Quantizer, reset: int | None = None) -> None:
        self.slot, self.quantizer, self.reset = slot, quantizer, reset
        self.param = torch.nn.Parameter(torch.zeros(ROWS, 128))
        self.optimizer = AdamW(
            [self.param], lr=1.0, betas=BETAS, weight_decay=0.0, state={slot: quantizer}, min_size=0, reset=reset
        )
        self.errors = torch.zeros(2, dtype=torch.float64)
        self.lost = self.due = 0

    def step(self, gradient: Tensor) -> Tensor:
        """Return the update."""
        self.param.data.zero_()
        self.param.grad = gradient
        self.optimizer.step()
        return self.param.detach()

    def state(self) -> Tensor:
        """Return the stored moment (zeros before the first step)."""
        return self.optimizer.state_tensor(self.param, self.slot) if self.optimizer.state else torch.zeros(ROWS, 128)


def arms() -> Iterator[Arm]:
    for slot, names in STORED.items():
        for name, how in itertools.product(names, ("nearest", "stochastic")):
            fmt = get_format(name)
            for kind in ("pow2", "fp32") if fmt.scaled else ("pow2",):
                quantizer = Quantizer(fmt, Scaling(kind), how, slot == "exp_avg_sq")  # type: ignore[arg-type]
                yield Arm(slot, quantizer)
                if slot == "exp_avg_sq" and (how, kind) == ("nearest", "pow2"):
                    plan = plan_reset(name, beta=BETAS[1], rounding=how, beta1=BETAS[0], criterion="total")
                    yield Arm(slot, quantizer, plan.period)


def run(share: float, elements: bool, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    exact = {slot: Arm(slot, Quantizer("float32")) for slot in STORED}
    everything = list(arms())
    squares = torch.zeros(2, dtype=torch.float64)
    for step in range(1, steps + 1):
        present = torch.rand(ROWS, 128 if elements else 1, generator=generator) < share
        gradient = present * torch.randn(ROWS, 128, generator=generator)
        masks = [present.expand(ROWS, 128), ~present.expand(ROWS, 128)]
        before = [arm.state() for arm in everything] if step % EVERY == 0 else []
        update = exact["exp_avg"].step(gradient)
        exact["exp_avg_sq"].step(gradient)
        late = 2 * step > steps
        squares += late * torch.stack([(m * update).double().square().sum() for m in masks])
        for arm in everything:
            off = arm.step(gradient) - update
            if late:
                arm.errors += torch.stack([(m * off).double().square().sum() for m in masks])
        for arm, old in zip(everything, before, strict=False):
            due = (old != 0) | (gradient != 0)
            arm.due += late * int(due.sum())
            arm.lost += late * int((due & (arm.state() == old)).sum())
    for arm in everything:
        stored, true = arm.state(), exact[arm.slot].state()
        power = 1 if arm.slot == "exp_avg_sq" else 2
        ratio = float((stored**power).double().sum() / (true**power).double().sum())
        lag = math.log(max(ratio, 1e-30)) / power
        zeros = float(((stored == 0) & (true != 0)).double().mean())
        there, idle = (arm.errors / squares.clamp_min(1e-30)).tolist()
        kind = arm.quantizer.scaling.kind if arm.quantizer.format.scaled else "-"
        how = arm.quantizer.rounding + (f", reset every {arm.reset}" if arm.reset else "")
        print(
            f"{share:6g} {arm.slot:10} {arm.quantizer.format.name:13} {kind:4} {how:25} {there:9.3g} {idle:9.3g} "
            f"{arm.lost / max(arm.due, 1):7.3f} {lag:+7.2f} {zeros:6.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.1, 0.01, 0.001])
    parser.add_argument("--elements", action="store_true", help="every element has its own steps without gradient")
    parser.add_argument("--steps", type=int, default=6000)
    args = parser.parse_args()
    print(f"{'share':>6} {'slot':10} {'format':13} {'':4} {'':25} {'error':>9} {'idle':>9} stalled {'lag':>7}  zeros")
    for share in args.shares:
        run(share, args.elements, args.steps)


if __name__ == "__main__":
    main()
