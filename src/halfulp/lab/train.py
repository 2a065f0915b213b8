"""Training of one arm: a loop that measures the optimizer's states and can be interrupted and resumed anywhere.

A run depends on its past only through the checkpoint. Batches are a function of seed and step, the learning rate of the
step, and random bits of seed, parameter, slot and step. A resumed run has the same bits as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfulp.lab.averages import WeightAverages
from halfulp.lab.checkpoint import load_checkpoint, save_checkpoint
from halfulp.lab.config import CompareConfig, RunSpec
from halfulp.lab.files import read_jsonl, write_json, write_text
from halfulp.lab.model import build_model
from halfulp.lab.own import own_prediction, sample_gradients
from halfulp.lab.results import age_at
from halfulp.lab.tokens import Tokens
from halfulp.monitor import Measure, StallMonitor
from halfulp.optim import AdamW

__all__ = ["Progress", "is_measured", "learning_rate", "train"]

LOG_AGES = frozenset(round(1.3**k) for k in range(40))


@dataclass(frozen=True)
class Progress:
    """Progress of a run. `stalled` is that of the second moment in the last measured step."""

    step: int
    loss: float
    validation: float | None
    stalled: float | None
    tokens_per_second: float


def learning_rate(config: CompareConfig, peak: float, step: int) -> float:
    """Return the learning rate at a step (starting at 1): linear warm-up, then a cosine to a tenth of the peak."""
    warmup = min(config.warmup, config.steps)
    if step <= warmup:
        return peak * step / warmup
    done = (step - warmup) / max(config.steps - warmup, 1)
    return peak * (0.55 + 0.45 * math.cos(math.pi * done))


def is_measured(config: CompareConfig, period: int | None, step: int) -> bool:
    """Whether the states are measured at a step: at regular steps, and at ages spaced by factors of 1.3.

    The update of step `t` meets a state with `t - 1` updates since the start or the last reset.
    """
    return step % config.measure_every == 0 or step == config.steps or age_at(step, period) in LOG_AGES


class _Run:
    """The objects of one run."""

    def __init__(self, config: CompareConfig, spec: RunSpec, tokens: Tokens) -> None:
        self.config, self.spec, self.tokens = config, spec, tokens
        self.model = build_model(
            config.model, vocab=tokens.vocab, hidden=config.hidden, layers=config.layers, heads=config.heads,
            context=config.context, seed=spec.seed,
        )  # fmt: skip
        named = list(self.model.named_parameters())
        groups = [
            {"params": [(n, p) for n, p in named if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [(n, p) for n, p in named if p.ndim < 2], "weight_decay": 0.0},
        ]
        state = {"exp_avg": spec.arm.exp_avg, "exp_avg_sq": spec.arm.exp_avg_sq}
        self.optimizer = AdamW(
            [g for g in groups if g["params"]], lr=spec.lr, betas=config.betas, state=state,
            rounding=spec.arm.rounding, reset=spec.period, seed=spec.seed,
        )  # fmt: skip
        self.monitor = StallMonitor(self.optimizer, sample=config.sample, every=1)
        self.gradients = sample_gradients(self.optimizer, config, spec)
        plain = spec.arm.is_fp32 and spec.period is None
        self.averages = (
            WeightAverages(self.model, config.average_decay, spec.seed)
            if plain and config.average_decay is not None
            else None
        )
        self.check = tokens.validation(config.validation)
        self.parts = {
            "optimizer": self.optimizer, "averages": self.averages, "gradients": self.gradients,
            "monitor": self.monitor,
        }  # fmt: skip

    def loss(self, batch: Tensor) -> Tensor:
        logits = self.model(input_ids=batch[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())

    def step(self, step: int) -> tuple[float, bool]:
        """Run one step. Return its loss, and whether the run has diverged (loss or gradient not finite)."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.spec.lr, step)
        loss = self.loss(self.tokens.batch(self.spec.seed, step, self.config.batch))
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        diverged = not (math.isfinite(loss.detach()) and math.isfinite(norm))
        if self.averages is not None and not diverged:
            self.averages.update()
        return float(loss.detach()), diverged

    @torch.no_grad()
    def validation(self) -> float:
        parts = [float(self.loss(part)) * len(part) for part in self.check.split(16)]
        return sum(parts) / len(self.check)


def _slots(measures: list[Measure]) -> dict[str, dict[str, Any]]:
    names = ("format", "rounding", "beta", "drive", "age", "stalled", "lag", "ratio", "off_2x")
    return {m.slot: {n: getattr(m, n) for n in names} for m in measures}


def train(
    folder: Path,
    data: Path,
    config: CompareConfig,
    spec: RunSpec,
    *,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train one arm to its end, from its checkpoint if there is one. Return whether it got there; divergence is an end.

    The run's folder receives ``checkpoint.safetensors``, ``metrics.jsonl`` and finally ``summary.json``. `data` was
    written by :func:`~halfulp.lab.tokens.prepare_tokens`. `report` is called after each step, and so is `stop`: if it
    returns true, the run stops with a checkpoint.
    """
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(config, spec, Tokens(data, config.context))
    checkpoint, metrics = folder / "checkpoint.safetensors", folder / "metrics.jsonl"
    state: dict[str, Any] = {"step": 0, "loss_sum": 0.0, "loss_count": 0, "seconds": 0.0}
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, run.model, run.parts)
    rows = [row for row in read_jsonl(metrics) if row["step"] <= state["step"]]
    write_text(metrics, "".join(json.dumps(row) + "\n" for row in rows))
    began, first, diverged = time.perf_counter() - state["seconds"], state["step"], False
    started = time.perf_counter()
    stalled = validation = None
    with metrics.open("a") as file:
        for step in range(first + 1, config.steps + 1):
            loss, diverged = run.step(step)
            state["loss_sum"], state["loss_count"] = state["loss_sum"] + loss, state["loss_count"] + 1
            if diverged or is_measured(config, spec.period, step):
                row = {
                    "step": step,
                    "loss": state["loss_sum"] / state["loss_count"],
                    "slots": _slots(run.monitor.measure()),
                }
                state["loss_sum"], state["loss_count"] = 0.0, 0
                second = row["slots"].get("exp_avg_sq")
                stalled = second["stalled"] if second else None
                if not diverged and (step % (5 * config.measure_every) == 0 or step == config.steps):
                    row["validation"] = validation = run.validation()
                row["seconds"] = round(time.perf_counter() - began, 3)
                file.write(json.dumps(row) + "\n")
                file.flush()
            pace = (step - first) * config.batch * config.context / (time.perf_counter() - started)
            report(Progress(step, loss, validation, stalled, pace))
            last = diverged or step == config.steps
            stopping = not last and stop()
            if last or stopping or step % config.checkpoint_every == 0:
                state["step"], state["seconds"] = step, time.perf_counter() - began
                save_checkpoint(checkpoint, run.model, run.parts, state)
            if stopping:
                return False
            if last:
                break
    _summary(folder, run, state, validation, diverged)
    return True


def _summary(folder: Path, run: _Run, state: dict[str, Any], validation: float | None, diverged: bool) -> None:
    memory = run.optimizer.memory()
    if validation is None and not diverged:  # resumed from a checkpoint of the last step
        validation = run.validation()
    averages = None if run.averages is None or diverged else run.averages.measure(run.validation)
    known = run.gradients is not None and not diverged and run.gradients.recorded >= 2
    own = own_prediction(run.gradients, run.optimizer, run.spec) if known and run.gradients is not None else None
    write_json(
        folder / "summary.json",
        {
            "steps": state["step"],
            "diverged": diverged,
            "validation": None if diverged else validation,
            "seconds": round(state["seconds"], 2),
            "parameters": memory.parameters,
            "state_bytes": memory.total,
            "bytes_per_parameter": memory.bytes_per_parameter,
            "by_storage": memory.by_storage,
            "kept_fp32": memory.kept_fp32,
            "skipped": sum(run.optimizer.skipped.values()),
            "averages": averages,
            "own_prediction": own,
        },
    )
