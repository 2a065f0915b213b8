"""fp32 runs of the scale models, and what every arm's storage does to the updates that their gradients give.

For every experiment of `scale_models.csv` and `planner_regret.csv`, fp32 runs on tuning seeds give the loss by learning
rate. The gradients of 2048 weights are recorded in one of them, and replayed with the storage of every arm.

python benchmarks/loss_gap_runs.py runs/gap --vim /usr/share/vim/vim90/doc   # 30 minutes of one core; can be resumed
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import planner_regret
import scale_models
import torch
from scale_models import Experiment

from halfulp.lab.files import read_json, write_json
from halfulp.lab.replicas import Replicas
from halfulp.lab.scale import TUNING_SEED, Job, ScaleConfig, learning_rate, storage, train_job
from halfulp.lab.scale_arms import ScaleArm, scale_arm
from halfulp.lab.text import load_corpus
from halfulp.lab.tokens import Tokens, prepare_tokens
from halfulp.theory.cost import update_parts
from halfulp.theory.loss_gap import Store, UpdateChange, update_change
from halfulp.theory.predict import second_moment_laws

RESULTS = Path(__file__).parents[1] / "docs" / "results"
CHANGES, RATES = RESULTS / "loss_gap.csv", RESULTS / "loss_by_rate.csv"
SEEDS = (TUNING_SEED, TUNING_SEED + 1)
WEIGHTS = 2048
"""Sampled weights of a model."""
Single = npt.NDArray[np.float32]


def config_of(key: Experiment) -> ScaleConfig:
    size: dict[str, Any] = {"hidden": 32, "layers": 1, "heads": 2, "context": 32} if key.width == "32" else {}
    return ScaleConfig(
        format=key.format, factor=int(key.factor), betas=(0.9, float(key.beta2)), steps=int(key.steps),
        regime=key.regime, architecture=key.architecture, **size,
    )  # fmt: skip


def setting(key: Experiment) -> str:
    """File name of what fp32 runs depend on: everything but the format."""
    return "-".join(key[1:]).replace(" ", "-")


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


def train_fp32(folder: Path, key: Experiment, texts: dict[str, Path | None]) -> None:
    """Write the losses of fp32 by learning rate, and a sample of gradients, into a folder."""
    name, config = setting(key), config_of(key)
    tokens = folder / f"tokens-{key.text.split()[0]}-{config.context}"
    if not (tokens / "tokens.json").exists():
        prepare_tokens(load_corpus(texts[key.text]), "bytes", config.context, tokens)
    ladder = (2.5e-4, 5e-4, 1e-3, 2e-3) if key.width == "64" else (5e-4, 1e-3, 2e-3, 4e-3)
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


def replayed(folder: Path, key: Experiment, arm: ScaleArm, period: int | None) -> UpdateChange:
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
            round_(group, slot, new, torch.randint(-(1 << 31), 1 << 31, new.shape, generator=generator).int())
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


def foreseen(key: Experiment, arm: ScaleArm, period: int | None) -> UpdateChange | None:
    """What the chain says about independent normal gradients of the regime; ``None`` for arms that it does not tell."""
    config, model = config_of(key), config_of(key).model
    rounding = arm.rounding_of("layer 0", "exp_avg_sq")
    spared = arm.spare_embedding or arm.embedding_fp32 or len(arm.slots) == 1
    if key.regime == "jumping" or rounding is None or spared:
        return None
    beta1, beta2 = model.model_betas
    drift = math.log(10) / (model.model_steps * (1 - beta2)) if key.regime == "falling" else 0.0
    cycle = min(period or model.model_steps, model.model_steps)
    (law,) = second_moment_laws(model.formats[1], beta2, rounding, (drift,), cycle)
    ages = np.arange(model.model_steps) % cycle
    square, product = (part[ages] for part in update_parts(law, beta1, cycle))
    weights = np.array([learning_rate(config, arm, period, step + 1) for step in range(model.model_steps)])
    return UpdateChange(weights.sum(), weights @ product, weights @ square)


def measured() -> dict[Experiment, dict[tuple[str, str, float], dict[int, float]]]:
    """Final losses by experiment, then by arm, period and learning rate, then by seed."""
    rows = scale_models.read()
    with planner_regret.CSV.open(newline="") as file:
        for row in csv.DictReader(file):
            rows.append({**Experiment(format="fp8", width="32")._asdict(), **row})
    found: dict[Experiment, dict[tuple[str, str, float], dict[int, float]]] = {}
    for row in rows:
        if int(row["seed"]) < TUNING_SEED and row["loss"]:
            key = Experiment.of(row)
            losses = found.setdefault(key, {}).setdefault((row["arm"], row["reset_every"], float(row["lr"])), {})
            losses[int(row["seed"])] = float(row["loss"])
    return found


def main() -> None:
    """Train what is missing, and write the CSV files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the fp32 runs; trains what is missing in it")
    parser.add_argument("--vim", type=Path, help="folder of the Vim manual")
    given = parser.parse_args()
    folder, vim = given.folder, given.vim
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    experiments = measured()
    for key in experiments:
        train_fp32(folder, key, {"stdlib": None, "Vim manual": vim})
    with RATES.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*Experiment._fields, "lr", "seed", "loss"))
        for key in experiments:
            for stage in ("ladder", "between", "sample"):
                for seed, lr, loss in read_json(folder / f"{setting(key)}-{stage}.json"):
                    writer.writerow((*key, f"{lr:g}", seed, f"{loss:.5f}"))
    with CHANGES.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        sides = ("step_factor", "step_residual", "theory_factor", "theory_residual")
        writer.writerow((*Experiment._fields, "arm", "reset_every", *sides))
        for key, arms in experiments.items():
            for name, period in dict.fromkeys((name, period) for name, period, _ in arms):
                if name == "fp32":
                    continue
                arm, every = scale_arm(name), int(period) if period else None
                both = (replayed(folder, key, arm, every), foreseen(key, arm, every))
                cells = [f"{x:.4f}" for c in both if c is not None for x in (c.factor, c.residual)]
                writer.writerow((*key, name, period, *cells, *[""] * (4 - len(cells))))
                print(*key, name, period, *cells, flush=True)


if __name__ == "__main__":
    main()
