"""Draw the figures of docs/theory.md and its notebook, and print its tables.

Usage: python benchmarks/theory_figures.py [--out docs/images] [--tables]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from pictures import PALETTE

from halfulp import Quantizer, Scaling, get_format, plan_reset, stall_curve, stall_probability
from halfulp.lab.canvas import canvas
from halfulp.theory.blocks import Blocks, block_law, follow
from halfulp.theory.chain import Chain
from halfulp.theory.simulation import SCENARIOS, simulate, simulate_blocks
from halfulp.theory.sizes import draw_sizes
from halfulp.theory.transient import transient

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.published import BETA, CELLS, STALLED

FORMATS = ("bf16", "fp8", "fp4")


def buildup(out: Path) -> None:
    with canvas(out / "theory_buildup.png", 2, (12.8, 4.0), grid=True) as (stalled, mean):
        for name, colour in zip(FORMATS, PALETTE, strict=False):
            for how, style in (("nearest", "-"), ("stochastic", "--")):
                law = transient(Chain(get_format(name, signed=False), 0.999, how), 10_000)
                stalled.plot(law.ages, law.stalled, color=colour, ls=style, label=f"{name}, {how}")
                mean.plot(law.ages[1:], law.mean[1:], color=colour, ls=style)
            closed = stall_curve(name, beta=0.999, rounding="nearest", steps=10_000, model="build-up")
            stalled.plot(range(10_000), closed, color=colour, ls=":", lw=1)
        mean.plot(law.ages[1:], law.exact_mean[1:], color="black", lw=3, alpha=0.25, label="exact")
        stalled.set(xscale="log", xlim=(1, 1e4), ylim=(0, 1.02), xlabel="age in steps",
                    ylabel="share of stalled updates", title="stalling by age (dotted: closed form)")  # fmt: skip
        mean.set(xscale="log", yscale="log", xlim=(1, 1e4), xlabel="age in steps", ylabel="mean stored value / sigma²",
                 title="what is stored (beta 0.999)")  # fmt: skip
        stalled.legend()
        mean.legend()


def planner(out: Path) -> None:
    with canvas(out / "theory_planner.png", 2, (12.8, 4.0), grid=True) as (cost, scale):
        for name, colour in zip(FORMATS, PALETTE, strict=False):
            for criterion, style in (("residual", "-"), ("total", ":")):
                plan = plan_reset(name, beta=0.999, rounding="nearest", criterion=criterion)  # type: ignore[arg-type]
                assert plan.period is not None
                worst = plan.costs.max(axis=0)
                label = f"{name}: {plan.period} steps" if criterion == "residual" else None
                cost.plot(range(1, len(worst) + 1), worst, style, color=colour, label=label)
                cost.plot(plan.period, worst[plan.period - 1], "o", color=colour)
            periods = [plan_reset(name, beta=0.999, rounding="nearest", beta1=b).period for b in BETA1]
            scale.plot(BETA1, periods, "o-", color=colour, label=name)
        cost.set(xscale="log", yscale="log", xlabel="reset period in steps", ylabel="error of Adam's update",
                 title="cost of a period (beta2 0.999, nearest; dotted: total)")  # fmt: skip
        scale.set(
            yscale="log", xlabel="beta1", ylabel="planned period", title="a slower first moment wants rarer resets"
        )
        cost.legend()
        scale.legend()


BETA1 = (0.8, 0.85, 0.9, 0.95)


def ratchet(out: Path) -> None:
    with canvas(out / "theory_ratchet.png", 2, (12.0, 6.4), rows=2, grid=True) as axes:
        for ax, (scenario, sigma) in zip(axes, SCENARIOS.items(), strict=True):
            for name, colour in zip(FORMATS, PALETTE, strict=False):
                for how, style in (("nearest", "-"), ("stochastic", "--")):
                    quantizer = Quantizer(get_format(name, signed=False), Scaling("pow2"), how, zero_floor=True)  # type: ignore[arg-type]
                    run = list(simulate(quantizer, beta=0.999, steps=2000, sigma=sigma, coordinates=512))
                    ax.plot([s.step for s in run], [s.mean for s in run], color=colour, ls=style, lw=1.2,
                            label=f"{name}, {how}" if scenario == "drop" else None)  # fmt: skip
            ax.plot([s.step for s in run], [s.exact for s in run], color="black", lw=3, alpha=0.25)
            ax.set(yscale="log", title=scenario, xlabel="step", ylabel="mean second moment", ylim=(2e-3, 20))
        axes[1].legend(fontsize=8)


def blocks(out: Path) -> None:
    with canvas(out / "theory_blocks.png", 2, (12.8, 4.0), grid=True) as axes:
        names = ("ufloat4_e2m2", "ufloat4_e3m1", "ufloat4_e4m0")
        for name, colour in zip(names, PALETTE, strict=False):
            sizes = draw_sizes(128, 128, 1.0)
            law = follow(Blocks(get_format(name), 0.99, "stochastic"), sizes, np.ones(101))
            run = list(simulate(Quantizer(get_format(name), Scaling("pow2"), "stochastic"), beta=0.99, steps=101,
                                sizes=torch.from_numpy(sizes)))  # fmt: skip
            axes[0].plot(law.ages[1:], law.zeros[1:], color=colour, label=f"{name}: predicted")
            axes[0].plot([s.step for s in run], [s.zeros for s in run], color=colour, ls=":", label="simulation")
        fmt = get_format("float8_e4m3fn")
        for kind, colour in (("pow2", PALETTE[0]), ("fp32", PALETTE[1])):
            for how, style in (("nearest", "-"), ("stochastic", "--")):
                law = block_law(Blocks(fmt, 0.99, how, scale_kind=kind), 500, precision=0.005)
                seen = simulate_blocks(Quantizer(fmt, Scaling(kind), how, True), beta=0.99, steps=500)  # type: ignore[arg-type]
                axes[1].plot(law.ages, np.exp(law.lag), color=colour, ls=style, label=f"{kind}, {how}")
                axes[1].plot(law.ages[10::20], np.exp(seen.figures[9::20, 1]), ".", color=colour, ms=5)
        axes[0].set(xlabel="age in steps", ylabel="share of codes that are zero", ylim=(0, 1),
                    title="underflow: log-normal blocks, stochastic")  # fmt: skip
        axes[1].set(
            xlabel="age in steps",
            ylabel="stored / exact",
            title="E4M3 in even blocks, beta 0.99 (dots: simulation)",
        )
        axes[0].legend(fontsize=8, ncol=3, loc="lower right", bbox_to_anchor=(1.0, 0.15))
        axes[1].legend()


PREDICTED = {
    "exp_avg_sq": (
        ("float16",), ("bfloat16",), ("ufloat8_e4m4", "float8_e3m4"), ("float8_e4m3fn", "ufloat8_e5m3"),
        ("float8_e5m2", "ufloat4_e2m2"), ("ufloat4_e3m1", "float4_e2m1fn"), ("ufloat4_e4m0",), ("udynamic8",),
        ("ulinear8",), ("uint4",),
    ),
    "exp_avg": (
        ("float16",), ("bfloat16",), ("float8_e3m4",), ("float8_e4m3fn",), ("float8_e5m2",), ("float4_e2m1fn",),
        ("dynamic8",), ("linear8",), ("int4",),
    ),
}  # fmt: skip
"""Rows of the prediction tables. Formats with the same fraction bits have one law while their range suffices."""
PLANNED = (
    "bfloat16", "float16", "ufloat8_e4m4", "float8_e4m3fn", "ufloat4_e2m2", "ufloat4_e3m1", "ufloat4_e4m0", "udynamic8",
    "uint4",
)  # fmt: skip


def tables() -> None:
    print("| model | run | bf16 NR | bf16 SR | fp8 NR | fp8 SR |\n| --- | --- | --- | --- | --- | --- |")
    closed = [stall_probability(f, beta=BETA, rounding=r, model="one-step") for f, r in CELLS]
    worst, worst_closed = 0.0, 0.0
    for model, (steps, measured) in STALLED.items():
        ours = [float(stall_curve(f, beta=BETA, rounding=r, steps=steps).mean()) for f, r in CELLS]
        cells = [
            f"{m:.3f} ({100 * (o - m):+.1f} / {100 * (c - m):+.1f})"
            for m, o, c in zip(measured, ours, closed, strict=True)
        ]
        worst = max(worst, *(abs(o - m) for o, m in zip(ours, measured, strict=True)))
        worst_closed = max(worst_closed, *(abs(c - m) for c, m in zip(closed, measured, strict=True)))
        print(f"| {model} | {steps} | {' | '.join(cells)} |")
    print(f"\nworst: chain {100 * worst:.2f} points, closed form {100 * worst_closed:.2f}\n")
    betas = (0.9, 0.95, 0.99, 0.999, 0.9999)
    for slot, rows in PREDICTED.items():
        print(f"| `{slot}` | {' | '.join(f'{b:g}' for b in betas)} |\n| --- |{' --- |' * len(betas)}")
        for names in rows:
            cells = []
            for beta in betas:
                two = [stall_probability(names[0], beta=beta, rounding=r, slot=slot) for r in ("nearest", "stochastic")]  # type: ignore[arg-type]
                cells.append(" / ".join(f"{100 * p:.1f}" for p in two))
            print(f"| {', '.join(names)} | {' | '.join(cells)} |", flush=True)
        print()
    print("| nearest | 0.95 | 0.99 | 0.999 | 0.9999 |\n| --- | --- | --- | --- | --- |")
    for name in PLANNED:
        plans = [plan_reset(name, beta=b, rounding="nearest").period for b in betas[1:]]
        print(f"| {name} | {' | '.join('never' if p is None else str(p) for p in plans)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--tables", action="store_true", help="print the tables only")
    args = parser.parse_args()
    if args.tables:
        tables()
        return
    for draw in (buildup, planner, ratchet, blocks):
        draw(args.out)


if __name__ == "__main__":
    main()
