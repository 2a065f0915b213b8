"""Stalled fraction on the gradients of a real training run: predicted and measured, by age, slot and rounding.

A small language model is trained in fp32 on the source text of the standard library. Its gradients also go to one AdamW
per arm, whose low-precision states StallMonitor watches at every coordinate (their parameters are copies that do not
move). The states start at zero after --warmup steps, when the gradient's scale has settled. The measurement is compared
with the plain prediction, for independent normal gradients of equal size and constant scale, and with that of the drive
measured on all of the run's blocks, on half of them, and on the other half (halfulp.theory.measured).

--ladder stores surrogates of the gradients instead, each with one property destroyed, and prints how much the stalled
fraction changes. --foretell uses the drive of an equal number of steps before the states' start, and shows what must be
known about the later steps.

Usage: python benchmarks/theory_training.py [--ladder | --foretell] [--model neox] [--seed 1] [--warmup 500]
"""

from __future__ import annotations

import argparse

import numpy as np
from theory_surrogates import SURROGATES, levels, stored
from training_run import AGES, BETAS, CELLS, Cell, Run, train

from halfulp import get_format
from halfulp.theory.measured import RunDrive

SAMPLED = 2
"""The sample is every second block."""
COURSES = 8
"""Number of simulated courses of a run, for the spread of a forecast."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warmup", type=int, default=500)
    parser.add_argument("--steps", type=int, default=301)
    parser.add_argument("--ladder", action="store_true", help="surrogates of the gradients")
    parser.add_argument("--foretell", action="store_true", help="the drive of the steps before")
    parser.add_argument("--block", type=int, help="of --ladder: blocks of this size alone")
    parser.add_argument("--model", choices=["llama", "neox"], default="llama")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    before = args.steps if args.foretell else 0
    run = train(args.warmup, args.steps, before, name=args.model, seed=args.seed)
    if args.ladder:
        ladder(run, args.block)
    elif args.foretell:
        foretell(run)
    else:
        explain(run)


def predicted(drives: list[RunDrive], cell: Cell) -> np.ndarray:
    """Return the stalled fraction at every age under drives of several widths, weighted by elements."""
    state, rounding, slot = cell
    fmt = get_format(state, signed=slot == "exp_avg")
    laws = [d.law(fmt, beta=BETAS[slot], rounding=rounding, slot=slot).stalled for d in drives]
    return np.average(laws, axis=0, weights=[d.elements for d in drives])


def table(run: Run, columns: dict[str, list[RunDrive]]) -> None:
    """Print measured and predicted values at every logged age, and the worst of each column by state and slot."""
    print(f"{'state':5} {'rounding':10} {'slot':10} {'age':>4} measured {'plain':>14}", *(f"{c:>16}" for c in columns))
    worst: dict[tuple[str, str, str], float] = {}
    for cell in CELLS:
        curves = {name: predicted(drives, cell) for name, drives in columns.items()}
        for age in AGES:
            seen, line = run.measured[cell, age], []
            for name, value in {"plain": run.plain[cell, age], **{n: c[age] for n, c in curves.items()}}.items():
                line.append(f"{value:8.3f} ({100 * (seen - value):+5.1f})")
                key = (cell[0], cell[2], name)
                worst[key] = max(worst.get(key, 0.0), abs(seen - value))
            print(f"{cell[0]:5} {cell[1]:10} {cell[2]:10} {age:4d} {seen:8.3f}", *line)
    for (state, slot, name), miss in worst.items():
        print(f"worst of {state:4} {slot:10} {name:16} {100 * miss:5.1f} points")


def explain(run: Run) -> None:
    every = [RunDrive.of(g) for g in run.gradients.values()]
    halves = [[RunDrive.of(g[:, part::SAMPLED]) for g in run.gradients.values()] for part in (0, 1)]
    table(run, {"all blocks": every, "half of them": halves[0], "other half": halves[1]})
    for (size, g), drive in zip(run.gradients.items(), every, strict=True):
        level = np.log(np.sqrt(np.square(g).mean(axis=2))).std(axis=0).mean()
        rest = (g - np.stack(list(drive.together()))) / np.stack(list(drive.spread()))
        print(
            f"blocks of {size}: log level varies by {level:.2f} from step to step; kurtosis {kurtosis(g):.1f}, of what "
            f"the patterns leave {kurtosis(rest):.2f}; squares in the patterns {drive.shared:.2f}; zeros "
            f"{np.mean(g == 0):.1e}; {kept(drive) / g.size:.0%} as many figures as gradients"
        )


def kept(drive: RunDrive) -> int:
    """Return the number of values in a drive."""
    return drive.patterns.size + drive.amplitudes.size + drive.sizes.size + drive.levels.size


def kurtosis(g: np.ndarray) -> float:
    """Return the kurtosis of each element over the steps, averaged over the elements."""
    return float(np.mean(np.mean(g**4, axis=0) / np.square(np.mean(np.square(g), axis=0))))


def foretell(run: Run) -> None:
    """Predict later steps from earlier ones: at the logged ages, at all ages from 10 on, and averaged over these."""
    early = [g[: run.before].astype(float) for g in run.gradients.values()]
    later = [g[run.before :].astype(float) for g in run.gradients.values()]
    drives = [RunDrive.of(g) for g in early]
    rng = np.random.default_rng(0)
    alike = [_turned(g, rng) for g in early]
    fed = {
        "their levels, in the steps after": [g / levels(g) * levels(a) for g, a in zip(later, alike, strict=True)],
        "steps alike, levels of those after": [a / levels(a) * levels(g) for g, a in zip(later, alike, strict=True)],
    }
    for cell in CELLS:
        seen = stored(later, cell)
        curves = {
            "the steps before": predicted(drives, cell),
            "steps alike": predicted([d.later() for d in drives], cell),
            **{name: stored(gradients, cell) for name, gradients in fed.items()},
        }
        courses = [predicted([d.later(k, together=True) for d in drives], cell) for k in range(COURSES)]
        spread = np.std(courses, axis=0, ddof=1)
        named = f"{cell[0]:4} {cell[1]:10} {cell[2]:10}"
        for name, curve in curves.items():
            off = 100 * (seen - curve)
            print(
                f"{named} {name:35} logged ages {np.abs(off[list(AGES)]).max():5.1f}  any {np.abs(off[10:]).max():5.1f}"
                f"  root mean square {np.sqrt(np.square(off[10:]).mean()):5.1f}  average {off[10:].mean():+5.1f}"
            )
        within = np.abs(seen - curves["steps alike"])[10:] <= 2 * spread[10:]
        averages = 100 * np.std([c[10:].mean() for c in courses], ddof=1)
        print(
            f"{named} {COURSES} courses of steps alike: deviation of an age "
            f"{100 * np.sqrt(np.square(spread[10:]).mean()):.1f}, of the average {averages:.1f}; {within.mean():.0%} "
            "of the ages within two deviations",
            flush=True,
        )


def _turned(g: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Start each block at its own step, and wrap around."""
    order = (np.arange(len(g))[:, None] + rng.integers(len(g), size=g.shape[1])) % len(g)
    return np.take_along_axis(g, order[:, :, None], axis=0)


def ladder(run: Run, block: int | None) -> None:
    """Print how much the stalled fraction changes: the largest value over logged ages and both roundings, in points."""
    gradients = {size: g for size, g in run.gradients.items() if block in (None, size)}
    halves = [g[:, ::SAMPLED].astype(float) for g in gradients.values()]
    shown = [(state, slot) for slot in ("exp_avg_sq", "exp_avg") for state in ("bf16", "fp8", "fp4")]
    print("| gradients |", " | ".join(f"{state} `{slot}`" for state, slot in shown), "|")
    print("| --- |" + " --- |" * len(shown))
    real = {cell: stored(halves, cell)[list(AGES)] for cell in CELLS}
    if block is None:
        measured = {cell: np.array([run.measured[cell, age] for age in AGES]) for cell in CELLS}
        every = [g.astype(float) for g in gradients.values()]
        line("themselves, all blocks", {c: measured[c] - stored(every, c)[list(AGES)] for c in CELLS}, shown)
        line("themselves, half of them", {c: measured[c] - real[c] for c in CELLS}, shown)
    for name, surrogate in SURROGATES.items():
        fed = [surrogate(g) for g in halves]
        line(name, {cell: real[cell] - stored(fed, cell)[list(AGES)] for cell in CELLS}, shown)
    line("the plain theory", {c: real[c] - np.array([run.plain[c, age] for age in AGES]) for c in CELLS}, shown)


def line(name: str, gaps: dict[Cell, np.ndarray], shown: list[tuple[str, str]]) -> None:
    cells = []
    for state, slot in shown:
        found = np.concatenate([gaps[state, rounding, slot] for rounding in ("nearest", "stochastic")])
        cells.append(f"{100 * found[np.abs(found).argmax()]:+.1f}")
    print(f"| {name} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
