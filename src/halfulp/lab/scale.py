"""The published experiment in miniature: what nearest rounding costs in loss, and what recovers it.

A scale model (:mod:`halfulp.theory.similitude`) of a long run is trained under several arms. Learning rates are tuned
for every arm on separate seeds. Then each arm runs with fresh seeds, the same for all arms, at its own best rate and at
fp32's. The result is the validation loss minus that of fp32 with the same seed.

A run folder contains ``config.json``, ``tokens/`` and one result file per job, so that a stopped experiment can be
resumed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfulp.checkpoint.files import read_file, write_file
from halfulp.lab.decoder import Decoder
from halfulp.lab.files import check_tokens, read_json, write_json
from halfulp.lab.replicas import Replicas, Store, round_fraction_
from halfulp.lab.scale_arms import DEFAULT_ARMS, ScaleArm, period_of, scale_arm
from halfulp.lab.tokens import Tokens
from halfulp.numbers.formats import get_format
from halfulp.numbers.quantizer import Quantizer
from halfulp.theory.arguments import check_rates, check_steps
from halfulp.theory.similitude import ScaleModel, scale_model
from halfulp.theory.stepper import Update, successor

__all__ = ["Job", "ScaleConfig", "load_results", "run_scale_model", "train_job"]

REGIMES = ("constant", "falling", "jumping")
TUNING_SEED = 1_000_000
"""First seed of the ladders. The seeds of the final runs start at 0."""
CHECKPOINT = 250
"""Steps between the checkpoints of a job."""


@dataclass(frozen=True)
class ScaleConfig:
    """Configuration of a scale model's experiment.

    Parameters
    ----------
    format, betas, steps, factor
        The original run, and the factor by which the model is shorter; see
        :func:`~halfulp.theory.similitude.scale_model`.
    arms
        Names of arms (:func:`~halfulp.lab.scale_arms.scale_arm`). They include fp32, the reference.
    lrs
        Ladder of peak learning rates, from which each arm gets its best one. With a single rate there is no ladder. The
        rates belong to the model, whose updates are noisier than the original's.
    seeds, tuning_seeds
        Number of seeds of the final runs and of the ladder.
    regime
        Scale of the gradients over the run: ``"constant"``, ``"falling"`` (tenfold over the run) or ``"jumping"``
        (divided by ten halfway).
    clip
        Largest norm of a gradient; ``None`` for no clipping. Clipping at every step would hide the regime.
    blocks
        ``False``: the states are rounded to the model's fraction bits at any exponent. ``True``: they use the format
        itself, in blocks of one row with power-of-two scales, at the model's betas.
    warmup
        A share of the run.
    """

    format: str = "bf16"
    betas: tuple[float, float] = (0.9, 0.999)
    steps: int = 20_000
    factor: int = 8
    arms: tuple[str, ...] = DEFAULT_ARMS
    lrs: tuple[float, ...] = (5e-4, 1e-3, 2e-3)
    seeds: int = 6
    tuning_seeds: int = 1
    regime: str = "constant"
    clip: float | None = None
    blocks: bool = False
    architecture: str = "llama"
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    batch: int = 2
    context: int = 64
    warmup: float = 0.02
    weight_decay: float = 0.1
    validation: int = 256

    def __post_init__(self) -> None:
        for name in self.arms:
            scale_arm(name)
        if "fp32" not in self.arms:
            raise ValueError("the arms are compared with fp32: name it among them")
        if self.regime not in REGIMES:
            raise ValueError(f"the regime is one of {', '.join(REGIMES)}; got {self.regime!r}")
        for name in ("seeds", "tuning_seeds", "batch", "context", "validation"):
            check_steps(getattr(self, name), name, least=1)
        if not 0 <= self.warmup <= 1 or (self.clip is not None and not self.clip > 0):
            raise ValueError(f"warmup is a share of the run and clip positive, got {self.warmup} and {self.clip}")
        check_rates(self.lrs)
        _ = self.model, self.decoder(vocab=1)

    @property
    def model(self) -> ScaleModel:
        """The scale model."""
        return scale_model(self.format, betas=self.betas, steps=self.steps, factor=self.factor)

    def decoder(self, vocab: int) -> Decoder:
        """Return the language model for a vocabulary of this size."""
        return Decoder(self.architecture, vocab, self.hidden, self.layers, self.heads)


@dataclass(frozen=True)
class Job:
    """Runs of one arm that are trained together: every seed with every rate."""

    arm: str
    stage: str
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of the result file."""
        return f"{self.stage}-{re.sub(r'[^a-z0-9]+', '-', self.arm).strip('-')}.json"

    @property
    def replicas(self) -> list[tuple[int, float]]:
        """Pairs of (seed, rate), one per run."""
        return [(seed, lr) for lr in self.lrs for seed in self.seeds]


def learning_rate(config: ScaleConfig, arm: ScaleArm, period: int | None, step: int) -> float:
    """Return the factor of the peak rate at a step (starting at 1): warm-up, then a cosine to zero."""
    total = config.model.model_steps
    warmup = max(1, round(config.warmup * total))
    share = step / warmup if step <= warmup else 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (total - warmup))
    if arm.rewarm and period is not None and step > period:
        share *= min(1.0, ((step - 1) % period + 1) / max(1, period // 10))
    return share


def gradient_scale(config: ScaleConfig, step: int) -> float:
    """Return the factor of the gradients at a step."""
    total = config.model.model_steps
    if config.regime == "falling":
        return float(10.0 ** -(step / total))
    return 0.1 if config.regime == "jumping" and 2 * step > total else 1.0


def storage(config: ScaleConfig, arm: ScaleArm) -> Store:
    """Return the rounding function of an arm (see :data:`~halfulp.lab.replicas.Store`)."""
    first, second = config.model.formats
    bits = {"exp_avg": first.mantissa_bits, "exp_avg_sq": second.mantissa_bits}
    real = {
        slot: Quantizer(get_format(config.format, signed=signed), zero_floor=not signed)
        for slot, signed in (("exp_avg", True), ("exp_avg_sq", False))
    }

    def store(group: str, slot: str, values: Tensor, words: Tensor | None) -> None:
        rounding = arm.rounding_of(group, slot)
        if rounding is None:
            return
        words = words if rounding == "stochastic" else None
        if not config.blocks:
            round_fraction_(values, bits[slot], words)
            return
        quantizer, rows = real[slot].with_rounding(rounding), values.reshape(-1, config.hidden)
        random = None if words is None else words.reshape(rows.shape).long() & 0xFFFFFFFF
        values.copy_(quantizer.dequantize(*quantizer.quantize(rows, random), rows.shape).reshape(values.shape))

    return store


class _Watch:
    """Measurements of the second moments of a job, per replica. Norms, which come last, are left out."""

    def __init__(self, runs: Replicas) -> None:
        self.runs, self.rows = runs, list[dict[str, Any]]()
        self.watched = slice(0, runs.groups["norms"].start)
        self.shadow = torch.zeros_like(runs.params[:, self.watched])
        self.before: Tensor | None = None

    @property
    def stored(self) -> Tensor:
        """The stored second moment."""
        return self.runs.states["exp_avg_sq"][:, self.watched]

    def follow(self, measured: bool) -> None:
        """Update the same average in fp32, without rounding or resets. Call this before a step."""
        beta2, grads = self.runs.betas[1], self.runs.grads[:, self.watched]
        self.shadow.mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
        self.before = self.stored.clone() if measured else None

    def record(self, losses: Tensor) -> None:
        """Record the stalled fraction, and the mean stored value over the mean of the shadow, after a measured step.

        Both means are of bias-corrected values, as used in the update, so that a state is not small after a reset.
        """
        assert self.before is not None
        beta2, grads, stored = self.runs.betas[1], self.runs.grads[:, self.watched], self.stored
        update = Update(self.before, stored, successor(beta2, self.before, grads * grads))
        stalled = update.lost.sum(1) / update.due.sum(1).clamp_min(1)
        corrected = torch.zeros(self.runs.count, dtype=torch.float64)
        for group, span in self.runs.groups.items():
            if group != "norms":
                corrected += stored[:, span].double().sum(1) / (1 - beta2 ** self.runs.ages[group]["exp_avg_sq"])
        exact = self.shadow.double().sum(1) / (1 - beta2**self.runs.steps)
        ratio = corrected / exact.clamp_min(1e-300)
        self.rows.append(
            {
                "step": self.runs.steps,
                "loss": losses.tolist(),
                "stalled": stalled.double().tolist(),
                "ratio": ratio.tolist(),
            }
        )


def train_job(
    config: ScaleConfig,
    job: Job,
    tokens: Tokens,
    checkpoint: Path | None = None,
    observe: Callable[[Replicas], None] = lambda runs: None,
) -> dict[str, Any]:
    """Train all runs of a job.

    The checkpoint is written every :data:`CHECKPOINT` steps, and resumed from if it exists. `observe` is called before
    every step, when the gradients are there. The result has ``replicas`` (seed, rate), ``validation`` (``None`` if a
    run diverged), ``rows`` of measurements, and ``period``.
    """
    arm, model = scale_arm(job.arm), config.model
    period = period_of(arm, model)
    runs = Replicas(
        config.decoder(tokens.vocab),
        [s for s, _ in job.replicas], [lr for _, lr in job.replicas], betas=model.model_betas,
        weight_decay=config.weight_decay, store=storage(config, arm), stochastic=arm.random,
    )  # fmt: skip
    watch = _Watch(runs)
    names = tuple(n for n in runs.groups if not (arm.spare_embedding and n == "embedding"))
    every = max(1, model.model_steps // 50)
    if checkpoint is not None and checkpoint.exists():
        saved = read_file(checkpoint)
        runs.load_state_dict(saved["runs"])
        watch.rows = saved["rows"]
        watch.shadow.copy_(saved["shadow"])
    for step in range(runs.steps + 1, model.model_steps + 1):
        if period is not None:
            due = [
                n for i, n in enumerate(names)
                if step > 1 and (step - 1) % period == (i * period // len(names) if arm.staggered else 0)
            ]  # fmt: skip
            runs.reset(tuple(due), arm.slots)
        batches = {seed: tokens.batch(seed, step, config.batch) for seed in job.seeds}
        losses = runs.backward(torch.stack([batches[seed] for seed in runs.seeds]))
        if config.clip is not None:
            runs.clip(config.clip)
        if config.regime != "constant":
            runs.grads.mul_(gradient_scale(config, step))
        observe(runs)
        watch.follow(step % every == 0)
        runs.step(learning_rate(config, arm, period, step))
        if step % every == 0:
            watch.record(losses)
        if checkpoint is not None and step % CHECKPOINT == 0:
            write_file({"runs": runs.state_dict(), "rows": watch.rows, "shadow": watch.shadow}, checkpoint)
    final = runs.validation(tokens.validation(config.validation))
    return {
        "arm": job.arm,
        "stage": job.stage,
        "period": period,
        "replicas": job.replicas,
        "validation": [
            float(x) if math.isfinite(x) and not n else None for x, n in zip(final, runs.skipped, strict=True)
        ],
        "rows": watch.rows,
    }


def _work(folder: Path, config: ScaleConfig, job: Job) -> None:
    torch.set_num_threads(1)
    checkpoint = folder / f"{job.name}.part"
    write_json(folder / job.name, train_job(config, job, Tokens(folder / "tokens", config.context), checkpoint))
    checkpoint.unlink(missing_ok=True)


def ladder(config: ScaleConfig) -> list[Job]:
    """Return the jobs that tune the rate of every arm; none if there is a single rate."""
    if len(config.lrs) == 1:
        return []
    seeds = tuple(TUNING_SEED + i for i in range(config.tuning_seeds))
    return [Job(arm, "ladder", config.lrs, seeds) for arm in config.arms]


def best_rate(result: dict[str, Any]) -> float:
    """Return the rate of a ladder with the lowest mean validation loss. Rates with a diverged run do not count."""
    means: dict[float, list[float | None]] = {}
    for (_, lr), loss in zip(result["replicas"], result["validation"], strict=True):
        means.setdefault(lr, []).append(loss)
    good = {lr: sum(v) / len(v) for lr, v in means.items() if None not in v}  # type: ignore[arg-type]
    if not good:
        raise ValueError(f"every rate of the ladder diverged in the arm {result['arm']!r}: give smaller ones with --lr")
    return min(good, key=good.__getitem__)


def own_rates(config: ScaleConfig, ladders: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the best rate of every arm, from the results of the ladders."""
    if len(config.lrs) == 1:
        return dict.fromkeys(config.arms, config.lrs[0])
    return {arm: best_rate(ladders[arm]) for arm in config.arms}


def finals(config: ScaleConfig, ladders: dict[str, dict[str, Any]]) -> list[Job]:
    """Return the jobs of the final runs: every arm at its own best rate (``"own"``), and at fp32's if that differs."""
    own, seeds = own_rates(config, ladders), tuple(range(config.seeds))
    common = own["fp32"]
    at_own = [Job(arm, "own", (lr,), seeds) for arm, lr in own.items()]
    return at_own + [Job(arm, "common", (common,), seeds) for arm, lr in own.items() if lr != common]


def load_results(folder: Path, jobs: list[Job], stage: str) -> dict[str, dict[str, Any]]:
    """Return the results of a stage's finished jobs, by arm."""
    done = [job for job in jobs if job.stage == stage and (folder / job.name).exists()]
    return {job.arm: read_json(folder / job.name) for job in done}


def run_scale_model(
    folder: Path,
    config: ScaleConfig,
    *,
    jobs: int,
    report: Callable[[Job, int, int], None] = lambda job, done, of: None,
) -> None:
    """Run every job that is not done yet, `jobs` at a time, in single-threaded processes.

    The folder holds ``tokens/`` (:func:`~halfulp.lab.tokens.prepare_tokens`). ``config.json`` and the results go there.
    `report` is called after each job, with the number of jobs done and the total, for each of the two stages.
    """
    import multiprocessing

    check_tokens(folder)
    write_json(folder / "config.json", asdict(config))
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    stages = (lambda: ladder(config), lambda: finals(config, load_results(folder, ladder(config), "ladder")))
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        try:
            for stage in stages:
                todo = stage()
                left = [job for job in todo if not (folder / job.name).exists()]
                running = {pool.submit(partial(_work, folder, config, job)): job for job in left}
                for done, future in enumerate(as_completed(running), len(todo) - len(left) + 1):
                    future.result()
                    report(running[future], done, len(todo))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
