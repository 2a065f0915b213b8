"""The published experiment in miniature: what nearest rounding costs in loss, and what gives it back.

A scale model (:mod:`halfulp.theory.similitude`) of a long run is trained under several arms. Learning rates are tuned
for every arm on seeds of their own; then each arm runs with fresh seeds, the same for all, at its own best rate and at
fp32's. What is compared is the validation loss less that of fp32 with the same seed.

A run folder holds ``config.json``, ``tokens/`` and one file of results for each job, so that a run that was stopped
goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfulp.lab.files import read_json, write_json
from halfulp.lab.replicas import Replicas, round_fraction
from halfulp.lab.scale_arms import ARMS, DEFAULT_ARMS, ScaleArm, period_of
from halfulp.lab.tokens import Tokens
from halfulp.numbers.formats import get_format
from halfulp.numbers.quantizer import Quantizer
from halfulp.theory.similitude import ScaleModel, scale_model

__all__ = ["Job", "ScaleConfig", "load_results", "run_scale_model", "train_job"]

REGIMES = ("constant", "falling", "jumping")
TUNING_SEED = 1_000_000
"""First seed of the ladders; the seeds of the final runs count from 0."""


@dataclass(frozen=True)
class ScaleConfig:
    """Everything that a scale model's experiment depends on.

    Parameters
    ----------
    format, betas, steps, factor
        Of the original run, and by how much the model is shorter; see :func:`~halfulp.theory.similitude.scale_model`.
    arms
        Names of :data:`~halfulp.lab.scale_arms.ARMS`; fp32, which all are compared with, is among them.
    lrs
        Ladder of peak rates. They belong to the model: its updates are noisier than the original's.
    seeds, tuning_seeds
        How many for the final runs, and for the ladder.
    regime
        What happens to the scale of the gradients: ``"constant"`` leaves it as it is, ``"falling"`` lets it fall
        tenfold over the run, ``"jumping"`` divides it by ten halfway.
    clip
        Largest norm of a gradient, ``None`` for none: clipping that always binds would hide the regime.
    blocks
        ``False``: the states are rounded to the model's fraction bits at any exponent. ``True``: the format itself in
        blocks of a row of the model with power-of-two scales, at the model's betas.
    architecture, hidden, layers, heads, batch, context, warmup, weight_decay, validation
        Of the model and its training; `warmup` is a share of the run.
    """

    format: str = "bf16"
    betas: tuple[float, float] = (0.9, 0.999)
    steps: int = 20_000
    factor: int = 8
    arms: tuple[str, ...] = DEFAULT_ARMS
    lrs: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3)
    seeds: int = 6
    tuning_seeds: int = 1
    regime: str = "constant"
    clip: float | None = None
    blocks: bool = False
    architecture: str = "llama"
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    batch: int = 4
    context: int = 64
    warmup: float = 0.02
    weight_decay: float = 0.1
    validation: int = 256

    def __post_init__(self) -> None:
        unknown = [a for a in self.arms if a not in ARMS]
        if unknown:
            raise ValueError(f"no arms {unknown}; there are {', '.join(ARMS)}")
        if "fp32" not in self.arms:
            raise ValueError("the arms are compared with fp32: name it among them")
        if self.regime not in REGIMES:
            raise ValueError(f"the regime is one of {', '.join(REGIMES)}; got {self.regime!r}")
        if self.seeds < 1 or self.tuning_seeds < 1:
            raise ValueError(f"seeds and tuning_seeds are at least 1, got {self.seeds} and {self.tuning_seeds}")
        if not self.lrs or not all(0 < lr < math.inf for lr in self.lrs):
            raise ValueError(f"learning rates are positive and finite, got {self.lrs}")
        _ = self.model

    @property
    def model(self) -> ScaleModel:
        """The scale model."""
        return scale_model(self.format, betas=self.betas, steps=self.steps, factor=self.factor)

    @staticmethod
    def from_json(values: dict[str, Any]) -> ScaleConfig:
        """From ``config.json``."""
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return ScaleConfig(**given)


@dataclass(frozen=True)
class Job:
    """Runs of one arm that are trained side by side: every seed with every rate."""

    arm: str
    stage: str
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """File of its results."""
        return f"{self.stage}-{self.arm.replace(' + ', '+').replace(', ', '-').replace(' ', '_')}.json"

    @property
    def replicas(self) -> list[tuple[int, float]]:
        """(seed, rate) of each run."""
        return [(seed, lr) for lr in self.lrs for seed in self.seeds]


def learning_rate(config: ScaleConfig, arm: ScaleArm, period: int | None, step: int) -> float:
    """Share of the peak rate in a step (the first is 1): warm-up, then a cosine down to zero."""
    total = config.model.model_steps
    warmup = max(1, round(config.warmup * total))
    share = step / warmup if step <= warmup else 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (total - warmup))
    if arm.rewarm and period is not None and step > period:
        share *= min(1.0, ((step - 1) % period + 1) / max(1, period // 10))
    return share


def gradient_scale(config: ScaleConfig, step: int) -> float:
    """Factor of the gradients in a step."""
    total = config.model.model_steps
    if config.regime == "falling":
        return float(10.0 ** -(step / total))
    return 0.1 if config.regime == "jumping" and 2 * step > total else 1.0


def storage(config: ScaleConfig, arm: ScaleArm) -> Callable[..., Tensor]:
    """How an arm stores a new state (see :data:`~halfulp.lab.replicas.Storage`)."""
    first, second = config.model.formats
    bits = {"exp_avg": first.mantissa_bits, "exp_avg_sq": second.mantissa_bits}
    real = {
        slot: Quantizer(
            get_format(config.format, signed=signed), rounding=arm.rounding or "nearest", zero_floor=not signed
        )
        for slot, signed in (("exp_avg", True), ("exp_avg_sq", False))
    }

    def store(name: str, slot: str, value: Tensor, words: Callable[[], Tensor]) -> Tensor:
        spared = name == "norms" or slot not in arm.stored or (arm.embedding_fp32 and name == "embedding")
        if arm.rounding is None or spared:
            return value
        random = words() if arm.rounding == "stochastic" else None
        if not config.blocks:
            return round_fraction(value, bits[slot], random)
        rows = value.reshape(-1, config.hidden)
        codes = real[slot].quantize(rows, None if random is None else random.reshape(rows.shape))
        return real[slot].dequantize(*codes, rows.shape).reshape(value.shape)

    return store


@dataclass
class _Watch:
    """What is measured of the second moments of a job, per replica."""

    beta2: float
    shadow: dict[str, Tensor] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def see(self, moments: dict[str, tuple[Tensor, Tensor, Tensor]], grads: dict[str, Tensor]) -> None:
        """Follow the same average in fp32, never rounded nor reset."""
        for name, (old, _, _) in moments.items():
            if name != "norms":
                before = self.shadow.get(name, torch.zeros_like(old))
                self.shadow[name] = before * self.beta2 + grads[name].square() * (1 - self.beta2)

    def record(self, step: int, moments: dict[str, tuple[Tensor, Tensor, Tensor]], losses: Tensor) -> None:
        """Stalled fraction, and mean stored value over the mean of the shadow."""
        due = stalled = stored_sum = shadow_sum = torch.zeros(len(losses), dtype=torch.float64)
        for name, (old, new, stored) in moments.items():
            if name != "norms":
                moves = new != old
                due = due + moves.sum(1)
                stalled = stalled + (moves & (stored == old)).sum(1)
                stored_sum = stored_sum + stored.double().sum(1)
                shadow_sum = shadow_sum + self.shadow[name].double().sum(1)
        self.rows.append(
            {
                "step": step,
                "loss": losses.tolist(),
                "stalled": (stalled / due.clamp_min(1)).tolist(),
                "ratio": (stored_sum / shadow_sum.clamp_min(1e-300)).tolist(),
            }
        )


def train_job(config: ScaleConfig, job: Job, tokens: Tokens) -> dict[str, Any]:
    """Train the runs of a job to their end.

    Returns
    -------
    dict
        ``replicas`` (seed, rate), ``validation`` (``None`` where a run diverged), ``rows`` of measurements, ``period``.
    """
    arm, model = ARMS[job.arm], config.model
    period = period_of(arm, model)
    runs = Replicas(
        [s for s, _ in job.replicas], [lr for _, lr in job.replicas], architecture=config.architecture,
        vocab=tokens.vocab, hidden=config.hidden, layers=config.layers, heads=config.heads, context=config.context,
        betas=model.model_betas, weight_decay=config.weight_decay, store=storage(config, arm),
    )  # fmt: skip
    watch = _Watch(model.model_betas[1])
    names = tuple(n for n in runs.params if not (arm.spare_embedding and n == "embedding"))
    every = max(1, model.model_steps // 50)
    for step in range(1, model.model_steps + 1):
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
        scale = gradient_scale(config, step)
        moments = runs.step(learning_rate(config, arm, period, step), scale)
        watch.see(moments, {n: p.grad * scale for n, p in runs.params.items() if p.grad is not None})
        if step % every == 0:
            watch.record(step, moments, losses)
    final = runs.validation(tokens.validation(config.validation))
    return {
        "arm": job.arm,
        "stage": job.stage,
        "period": period,
        "replicas": job.replicas,
        "validation": [float(x) if math.isfinite(x) and ok else None for x, ok in zip(final, runs.finite, strict=True)],
        "rows": watch.rows,
    }


def _work(folder: Path, config: ScaleConfig, job: Job) -> None:
    torch.set_num_threads(1)
    write_json(folder / job.name, train_job(config, job, Tokens(folder / "tokens", config.context)))


def ladder(config: ScaleConfig) -> list[Job]:
    """Jobs that tune the rate of every arm."""
    seeds = tuple(TUNING_SEED + i for i in range(config.tuning_seeds))
    return [Job(arm, "ladder", config.lrs, seeds) for arm in config.arms]


def best_rate(result: dict[str, Any]) -> float:
    """Rate of a ladder with the lowest mean validation loss; rates at which a run diverged do not count."""
    means: dict[float, list[float | None]] = {}
    for (_, lr), loss in zip(result["replicas"], result["validation"], strict=True):
        means.setdefault(lr, []).append(loss)
    good = {lr: sum(v) / len(v) for lr, v in means.items() if None not in v}  # type: ignore[arg-type]
    if not good:
        raise ValueError(f"every rate of the ladder diverged in the arm {result['arm']!r}: give smaller ones by --lr")
    return min(good, key=good.__getitem__)


def finals(config: ScaleConfig, ladders: dict[str, dict[str, Any]]) -> list[Job]:
    """Jobs of the final runs: every arm at its own best rate and at that of fp32."""
    common = best_rate(ladders["fp32"])
    seeds = tuple(range(config.seeds))
    return [Job(a, "final", tuple(dict.fromkeys((best_rate(ladders[a]), common))), seeds) for a in config.arms]


def load_results(folder: Path, jobs: list[Job]) -> dict[str, dict[str, Any]]:
    """Results of the jobs that are done, by arm."""
    return {job.arm: read_json(folder / job.name) for job in jobs if (folder / job.name).exists()}


def run_scale_model(
    folder: Path,
    config: ScaleConfig,
    *,
    jobs: int,
    report: Callable[[Job, int, int], None] = lambda job, done, of: None,
) -> None:
    """Do every job that is not done yet, `jobs` at a time, in processes of one thread.

    Parameters
    ----------
    folder
        With ``tokens/`` in it (:func:`~halfulp.lab.tokens.prepare_tokens`); gets ``config.json`` and the results.
    config
        The experiment.
    jobs
        Processes.
    report
        Called when a job is done, with the number of jobs done and of all jobs.
    """
    import multiprocessing

    write_json(folder / "config.json", asdict(config))
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    of, done = 2 * len(config.arms), 0
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        try:
            for stage in (lambda: ladder(config), lambda: finals(config, load_results(folder, ladder(config)))):
                todo = stage()
                running = {}
                for job in todo:
                    if (folder / job.name).exists():
                        done += 1
                    else:
                        running[pool.submit(partial(_work, folder, config, job))] = job
                for future in as_completed(running):
                    future.result()
                    done += 1
                    report(running[future], done, of)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
