"""Loss gaps of the scale models, predicted from one gradient sample of an fp32 run each (halfulp.theory.loss_gap).

For every setting, fp32 runs on tuning seeds give the loss by learning rate. The gradients of 2048 weights are recorded
in one of them, and replayed with the storage of every arm. The measured gaps are those of
`scale_models.csv` and `planner_regret.csv`.

python benchmarks/loss_gap.py --run runs/gap --vim /usr/share/vim/vim90/doc   # 30 minutes of one core; can be resumed
python benchmarks/loss_gap.py                                                # prints the tables, draws the picture
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import planner_regret
import scale_models
import torch
from scipy.stats import spearmanr

from halfulp.lab.figure import COLOURS, canvas
from halfulp.lab.files import read_json, write_json
from halfulp.lab.replicas import Replicas
from halfulp.lab.results import Interval
from halfulp.lab.scale import TUNING_SEED, Job, ScaleConfig, learning_rate, storage, train_job
from halfulp.lab.scale_arms import ScaleArm, scale_arm
from halfulp.lab.scale_report import paired, signed
from halfulp.lab.text import load_corpus
from halfulp.lab.tokens import Tokens, prepare_tokens
from halfulp.numbers.formats import get_format
from halfulp.theory.cost import update_parts
from halfulp.theory.loss_gap import LossByRate, Store, UpdateChange, loss_gap, update_change
from halfulp.theory.predict import second_moment_laws

DOCS = Path(__file__).parents[1] / "docs"
CHANGES, RATES = DOCS / "results" / "loss_gap.csv", DOCS / "results" / "loss_by_rate.csv"
SEEDS = (TUNING_SEED, TUNING_SEED + 1)
WEIGHTS = 2048
"""Sampled weights of a model."""
Single = npt.NDArray[np.float32]
Key = tuple[str, ...]
"""Format, factor, regime, architecture, width and text, as in `scale_models.csv`."""


# ---------------------------------------------------------------- runs of fp32, and what the arms do to their updates


def config_of(key: Key) -> ScaleConfig:
    fmt, factor, regime, architecture, width, _ = key
    size: dict[str, Any] = {"hidden": 32, "layers": 1, "heads": 2, "context": 32} if width == "32" else {}
    steps = 10_000 if fmt == "fp4" else 20_000
    return ScaleConfig(format=fmt, factor=int(factor), regime=regime, architecture=architecture, steps=steps, **size)


def setting(key: Key) -> str:
    """File name of what fp32 runs depend on: everything but the format."""
    return "-".join((*key[1:], str(config_of(key).model.model_steps))).replace(" ", "-")


class Recorder:
    """Records the gradients of some weights of each replica."""

    def __init__(self) -> None:
        self.rows: list[Single] = []
        self.index = torch.zeros(0, dtype=torch.int64)
        self.groups: list[str] = []

    def __call__(self, runs: Replicas) -> None:
        """Record the present gradients."""
        if not self.rows:
            stop = runs.groups["norms"].start
            self.index = torch.from_numpy(np.sort(np.random.default_rng(0).choice(stop, WEIGHTS, replace=False)))
            self.groups = [next(g for g, s in runs.groups.items() if i < s.stop) for i in self.index.tolist()]
        self.rows.append(runs.grads[:, self.index].numpy())


def train_fp32(folder: Path, key: Key, texts: dict[str, Path | None]) -> None:
    """Write the losses of fp32 by learning rate, and a sample of gradients, into a folder."""
    name, config = setting(key), config_of(key)
    tokens = folder / f"tokens-{key[5].split()[0]}-{config.context}"
    if not (tokens / "tokens.json").exists():
        prepare_tokens(load_corpus(texts[key[5]]), "bytes", config.context, tokens)
    ladder = (2.5e-4, 5e-4, 1e-3, 2e-3) if key[4] == "64" else (5e-4, 1e-3, 2e-3, 4e-3)
    jobs = {
        "ladder": Job("fp32", "own", ladder, SEEDS),
        "between": Job("fp32", "own", (round(1.4 * ladder[2], 6),), SEEDS),
        "sample": Job("fp32", "own", (ladder[2],), (TUNING_SEED + 2,)),
    }
    for stage, job in jobs.items():
        path = folder / f"{name}-{stage}.json"
        if path.exists():
            continue
        recorder = Recorder() if stage == "sample" else None
        found = train_job(config, job, Tokens(tokens, config.context), observe=recorder or (lambda runs: None))
        if recorder is not None:
            np.savez(folder / f"{name}.npz", gradients=np.concatenate(recorder.rows), groups=recorder.groups)
        runs = [(seed, lr, loss) for (seed, lr), loss in zip(found["replicas"], found["validation"], strict=True)]
        write_json(path, runs)
        print(path.name, runs, flush=True)


def replayed(folder: Path, key: Key, arm: ScaleArm, period: int | None) -> UpdateChange:
    """Replay the sample of a setting with the storage and the resets of an arm."""
    config = config_of(key)
    sample = np.load(folder / f"{setting(key)}.npz")
    gradients, groups = sample["gradients"], sample["groups"]
    weights = [learning_rate(config, arm, period, step) for step in range(1, len(gradients) + 1)]
    round_ = storage(config, arm)
    generator = torch.Generator().manual_seed(0)

    def store(group: str, slot: str) -> Store:
        def stored(values: Single) -> Single:
            new = torch.from_numpy(values.copy())[None]
            words = torch.randint(-(1 << 31), 1 << 31, new.shape, generator=generator).int()
            round_(group, slot, new, words if arm.rounding == "stochastic" else None)
            return np.asarray(new[0].numpy())

        return stored

    total = UpdateChange(0.0, 0.0, 0.0)
    for group in dict.fromkeys(groups.tolist()):
        spared = arm.spare_embedding and group == "embedding"
        first, second = (period if slot in arm.slots and not spared else None for slot in ("exp_avg", "exp_avg_sq"))
        total += update_change(
            np.ascontiguousarray(gradients[:, groups == group]), betas=config.model.model_betas,
            store=(store(group, "exp_avg"), store(group, "exp_avg_sq")), periods=(first, second), weights=weights,
        )  # fmt: skip
    return total


def foreseen(key: Key, arm: ScaleArm, period: int | None) -> UpdateChange | None:
    """What the chain says about independent normal gradients of the regime; ``None`` for arms that it does not tell."""
    config, model = config_of(key), config_of(key).model
    if key[2] == "jumping" or arm.rounding is None or arm.spare_embedding or len(arm.slots) == 1:
        return None
    beta1, beta2 = model.model_betas
    drift = math.log(10) / (model.model_steps * (1 - beta2)) if key[2] == "falling" else 0.0
    cycle = min(period or model.model_steps, model.model_steps)
    (law,) = second_moment_laws(model.formats[1], beta2, arm.rounding, (drift,), cycle)
    ages = np.arange(model.model_steps) % cycle
    square, product = (part[ages] for part in update_parts(law, beta1, cycle))
    weights = np.array([learning_rate(config, arm, period, step + 1) for step in range(model.model_steps)])
    return UpdateChange(weights.sum(), weights @ product, weights @ square)


# ---------------------------------------------------------------- what was measured


def measured() -> dict[Key, dict[tuple[str, str, float], dict[int, float]]]:
    """Final losses by experiment, then by arm, period and learning rate, then by seed."""
    rows = scale_models.read()
    with planner_regret.CSV.open(newline="") as file:
        for row in csv.DictReader(file):
            fixed = {"format": "fp8", "factor": "8", "architecture": "llama", "width": "32", "text": "stdlib"}
            rows.append({**fixed, **row})
    found: dict[Key, dict[tuple[str, str, float], dict[int, float]]] = {}
    for row in rows:
        if int(row["seed"]) < TUNING_SEED and row["loss"]:
            key = tuple(row[k] for k in scale_models.EXPERIMENT)
            losses = found.setdefault(key, {}).setdefault((row["arm"], row["reset_every"], float(row["lr"])), {})
            losses[int(row["seed"])] = float(row["loss"])
    return found


def run(folder: Path, vim: Path) -> None:
    """Train what is missing; write the CSV files."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    experiments = measured()
    for key in experiments:
        train_fp32(folder, key, {"stdlib": None, "Vim manual": vim})
    with RATES.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*scale_models.EXPERIMENT, "lr", "seed", "loss"))
        for key in experiments:
            for stage in ("ladder", "between", "sample"):
                for seed, lr, loss in read_json(folder / f"{setting(key)}-{stage}.json"):
                    writer.writerow((*key, f"{lr:g}", seed, f"{loss:.5f}"))
    with CHANGES.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        sides = ("step_factor", "step_residual", "theory_factor", "theory_residual")
        writer.writerow((*scale_models.EXPERIMENT, "arm", "reset_every", *sides))
        for key, arms in experiments.items():
            for name, period in dict.fromkeys((name, period) for name, period, _ in arms):
                if name == "fp32":
                    continue
                arm, every = scale_arm(name), int(period) if period else None
                both = (replayed(folder, key, arm, every), foreseen(key, arm, every))
                cells = [f"{x:.4f}" for c in both if c is not None for x in (c.factor, c.residual)]
                writer.writerow((*key, name, period, *cells, *[""] * (4 - len(cells))))
                print(*key, name, period, *cells, flush=True)


# ---------------------------------------------------------------- predictions beside measurements


@dataclass(frozen=True)
class Gap:
    """A measured gap, with what the replay and the chain say about the updates."""

    key: Key
    arm: str
    reset: str
    lr: float
    fp32_lr: float
    best: float
    """Learning rate at which fp32 was best."""
    tuned: bool
    """Whether both are at their own best rates. Otherwise both have one rate."""
    measured: Interval
    sample: UpdateChange
    chain: UpdateChange | None
    curve: LossByRate

    @property
    def title(self) -> str:
        """The experiment."""
        return str(scale_models.title(dict(zip(scale_models.EXPERIMENT, self.key, strict=True))))

    @property
    def stable(self) -> bool:
        """Whether the rate is at most fp32's best one."""
        return self.lr <= self.best


Predictor = Callable[[Gap], tuple[float, float] | None]
"""Function that returns the part of a prediction that needs no fit, and what the fitted number is multiplied by."""


def from_sample(gap: Gap) -> tuple[float, float] | None:
    return _parts(gap, gap.sample)


def from_chain(gap: Gap) -> tuple[float, float] | None:
    return None if gap.chain is None else _parts(gap, gap.chain)


def _parts(gap: Gap, change: UpdateChange) -> tuple[float, float]:
    by_rate = loss_gap(change, gap.curve, gap.lr, fp32_lr=gap.fp32_lr, per_residual=0.0)
    return by_rate, change.residual


PREDICTORS: dict[str, Predictor] = {
    "factor and residual": from_sample,
    "factor alone": lambda gap: (_parts(gap, gap.sample)[0], 0.0),
    "residual alone": lambda gap: (0.0, gap.sample.residual),
    "both, by theory without a sample": from_chain,
    "no gap": lambda gap: (0.0, 0.0),
}


def changes() -> dict[tuple[Key, str, str], tuple[UpdateChange, UpdateChange | None]]:
    """What the sample and the chain say, by experiment, arm and period."""

    def change(factor: str, residual: str) -> UpdateChange | None:
        return UpdateChange(1.0, float(factor), float(factor) ** 2 / (1 - float(residual))) if factor else None

    found = {}
    with CHANGES.open(newline="") as file:
        for row in csv.DictReader(file):
            sample = change(row["step_factor"], row["step_residual"])
            assert sample is not None
            key = tuple(row[k] for k in scale_models.EXPERIMENT)
            found[key, row["arm"], row["reset_every"]] = sample, change(row["theory_factor"], row["theory_residual"])
    return found


def curves(runs: dict[Key, dict[tuple[str, str, float], dict[int, float]]]) -> dict[Key, LossByRate]:
    """Loss of fp32 by learning rate in every experiment, over the seeds of tuning and of the final runs."""
    losses: dict[Key, dict[float, list[float]]] = {}
    with RATES.open(newline="") as file:
        for row in csv.DictReader(file):
            key = tuple(row[k] for k in scale_models.EXPERIMENT)
            losses.setdefault(key, {}).setdefault(float(row["lr"]), []).append(float(row["loss"]))
    for key, each in runs.items():
        for (arm, _, lr), final in each.items():
            if arm == "fp32":
                losses[key].setdefault(lr, []).extend(final.values())
    return {key: LossByRate({lr: sum(x) / len(x) for lr, x in each.items()}) for key, each in losses.items()}


def read() -> list[Gap]:
    """Every gap that was measured: at rates that fp32 ran at, and at the own best rates of both."""
    experiments, known, found = measured(), changes(), list[Gap]()
    by_rate = curves(experiments)

    def mean(losses: dict[int, float]) -> float:
        return sum(losses.values()) / len(losses)

    for key, runs in experiments.items():
        fp32 = {lr: losses for (arm, _, lr), losses in runs.items() if arm == "fp32"}
        best = min(fp32, key=lambda lr: mean(fp32[lr]))
        for arm, reset in dict.fromkeys((arm, reset) for arm, reset, _ in runs if arm != "fp32"):
            mine = {lr: losses for (a, r, lr), losses in runs.items() if (a, r) == (arm, reset)}
            own = min(mine, key=lambda lr: mean(mine[lr]))
            pairs = [(lr, lr, False) for lr in mine if lr in fp32] + [(own, best, True)] * (len(mine) > 1)
            for lr, fp32_lr, tuned in pairs:
                interval = paired(mine[lr], fp32[fp32_lr])
                if interval is not None and interval.half is not None:
                    sides = known[key, arm, reset]
                    found.append(Gap(key, arm, reset, lr, fp32_lr, best, tuned, interval, *sides, by_rate[key]))
    return found


def fitted(gaps: Iterable[Gap], predictor: Predictor) -> float:
    """The number that fits gaps best, by least squares."""
    pairs = [(gap.measured.mean, *parts) for gap in gaps if (parts := predictor(gap)) is not None]
    found, offset, slope = (np.array(column) for column in zip(*pairs, strict=True))
    square = slope @ slope
    return float(slope @ (found - offset) / square) if square else 0.0


def at_one_rate(gaps: list[Gap]) -> list[Gap]:
    """The gaps at one rate, up to fp32's best one: those that the number is fitted on."""
    return [gap for gap in gaps if not gap.tuned and gap.stable]


def left_out(gaps: list[Gap], predictor: Predictor) -> dict[Key, float]:
    """For every experiment, the number that fits all others."""
    some = at_one_rate(gaps)
    return {
        key: fitted([gap for gap in some if gap.key != key], predictor) for key in dict.fromkeys(g.key for g in gaps)
    }


def score(gaps: list[Gap], predictor: Predictor, fits: dict[Key, float]) -> str:
    """Mean error, rank correlation, and share within the intervals, as cells of a table."""
    found, predicted, half = [], [], []
    for gap in gaps:
        parts = predictor(gap)
        if parts is not None and gap.measured.half is not None:
            found.append(gap.measured.mean)
            predicted.append(parts[0] + fits[gap.key] * parts[1])
            half.append(gap.measured.half)
    error = np.abs(np.subtract(predicted, found))
    rank = spearmanr(predicted, found).statistic if len(set(predicted)) > 1 else math.nan
    within = np.mean(error <= half)
    return f"{len(found)} | {error.mean():.3f} | {'-' if math.isnan(rank) else f'{rank:.2f}'} | {within:.0%}"


def scores(gaps: list[Gap]) -> list[str]:
    """Errors of every predictor, as lines of a Markdown table."""
    groups = {
        "up to fp32's best lr": at_one_rate(gaps),
        "above it": [gap for gap in gaps if not gap.tuned and not gap.stable],
        "own best lr": [gap for gap in gaps if gap.tuned],
    }
    lines = [
        "| prediction from | at | gaps | mean error | rank correlation | within the interval |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, predictor in PREDICTORS.items():
        fits = left_out(gaps, predictor)
        lines += [f"| {name} | {group} | {score(chosen, predictor, fits)} |" for group, chosen in groups.items()]
    return lines


def predicted(gaps: list[Gap]) -> list[float]:
    """Every gap as predicted with the number that fits the other experiments."""
    fits = left_out(gaps, from_sample)
    return [offset + fits[gap.key] * slope for gap in gaps for offset, slope in [_parts(gap, gap.sample)]]


def table(gaps: list[Gap]) -> list[str]:
    """Predicted and measured gaps as lines of a Markdown table."""
    lines = [
        "| experiment | arm | reset every | lr | factor | residual | predicted | measured |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for gap, guess in zip(gaps, predicted(gaps), strict=True):
        if gap.lr != gap.fp32_lr or not gap.tuned:
            lr = f"{gap.lr:g}" if gap.lr == gap.fp32_lr else f"{gap.lr:g} (fp32: {gap.fp32_lr:g})"
            cells = (
                gap.title, gap.arm, gap.reset, lr, f"{gap.sample.factor:.2f}", f"{gap.sample.residual:.3f}",
                f"{guess:+.3f}", signed(gap.measured),
            )  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(gaps: list[Gap], path: Path) -> None:
    """Measured by predicted gaps, below and above fp32's best rate."""
    guesses = list(zip(gaps, predicted(gaps), strict=True))
    panels = {
        "Up to fp32's best learning rate": [(gap, x) for gap, x in guesses if not gap.tuned and gap.stable],
        "Above it": [(gap, x) for gap, x in guesses if not gap.tuned and not gap.stable],
    }
    with canvas(path, 2, (12.5, 5.6)) as both:
        for axes, (title, chosen) in zip(both, panels.items(), strict=True):
            axes.plot((-0.1, 0.2), (-0.1, 0.2), color=COLOURS[32], linewidth=1, zorder=0)
            for at, fmt in enumerate(dict.fromkeys(gap.key[0] for gap, _ in chosen)):
                mine = [(x, gap.measured) for gap, x in chosen if gap.key[0] == fmt]
                colour = COLOURS[get_format(fmt).bits]
                axes.errorbar(
                    [x for x, _ in mine], [y.mean for _, y in mine], yerr=[y.half or 0.0 for _, y in mine], fmt="o",
                    color=colour, elinewidth=0.7, markersize=5,
                )  # fmt: skip
                axes.text(0.03, 0.97 - 0.06 * at, fmt, transform=axes.transAxes, color=colour, va="top")
            axes.set(xlim=(-0.06, 0.14), ylim=(-0.2, 0.2), xlabel="predicted gap, nats")
            axes.set_title(title, loc="left", fontweight="bold")
        both[0].set_ylabel("measured gap, nats")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of the fp32 runs; trains what is missing in it")
    parser.add_argument("--vim", type=Path, help="folder of the Vim manual, for --run")
    parser.add_argument("--picture", type=Path, default=DOCS / "images" / "loss_gap.png")
    given = parser.parse_args()
    if given.run is not None:
        run(given.run, given.vim)
        return
    gaps = read()
    fits = left_out(gaps, from_sample).values()
    whole = fitted(at_one_rate(gaps), from_sample)
    print(f"nats per unit of residual: {whole:.3f}; {min(fits):.3f} to {max(fits):.3f} without one experiment")
    print(*table(gaps), "", *scores(gaps), sep="\n")
    draw(gaps, given.picture)


if __name__ == "__main__":
    main()
