"""Bytes of state, step time, and loss on real text, for every optimizer and format.

It covers ``halfulp.optim.OPTIMIZERS``. Each result is appended to a CSV at once, and results in the CSV are not
measured again, so a run can be interrupted anywhere and resumed:

    python benchmarks/optimizers.py loss       # 45 minutes of one core: a small llama on the standard library's source
    python benchmarks/optimizers.py time       # 10 minutes, on an otherwise idle machine
    python benchmarks/optimizers_page.py       # docs/optimizers.md and its figure, from the CSVs

``loss``: each optimizer's learning rate is tuned with fp32 states and a separate seed. The ladder has half-decade
rungs. The search starts at the default and goes downhill until the best rung has a worse one on either side. All
formats then use that rate. Initial weights, batches and random bits depend on the seed, so formats are paired with fp32
by seed.

``time``: each round makes one step of torch's fused fp32 AdamW and one of ours, on the same shapes. The result is their
ratio, as the 20th, 50th and 80th percentile, for the instruction set in use. It uses one thread and processor time.
"""

from __future__ import annotations

import argparse
import csv
import functools
import inspect
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import halfulp
from halfulp.kernels.native import chosen
from halfulp.lab.config import CompareConfig
from halfulp.lab.model import build_model
from halfulp.lab.text import load_corpus
from halfulp.lab.tokens import Tokens, prepare_tokens
from halfulp.lab.train import learning_rate
from halfulp.optim import OPTIMIZERS

ROOT = Path(__file__).resolve().parent.parent
STATES = ("fp32", "8bit", "bf16", "fp4", "fp8", "int8")
"""Formats in the order of running, so that an interrupted run has the most important ones."""
TIMED = ("fp32", "8bit")
SEEDS = (0, 1, 2)
TUNING_SEED = 1000
ARGUMENTS: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9}, "LARS": {"trust_coefficient": 0.1}}
"""Arguments other than the defaults.

SGD without momentum has no state; LARS's default is so small that vectors need their own rate.
"""
MODEL = CompareConfig(steps=250, batch=8, context=64, hidden=64, layers=1, heads=4, warmup=20, clip=1.0, validation=256)
SETTING = f"llama h{MODEL.hidden} l{MODEL.layers} c{MODEL.context} b{MODEL.batch} s{MODEL.steps}"
LAYER = {
    "q": (1024, 1024), "k": (1024, 1024), "v": (1024, 1024), "o": (1024, 1024), "gate": (2816, 1024),
    "up": (2816, 1024), "down": (1024, 2816), "norm1": (1024,), "norm2": (1024,),
}  # fmt: skip
"""One layer of a llama of width 1024, for which bytes of state per parameter are counted."""
SHAPES = {"one": [(2048, 2048)], "many": [(64, 64)] * 256}


class Rows:
    """Rows of a CSV by key, read at the start and appended one by one."""

    def __init__(self, path: Path, key: tuple[str, ...], values: tuple[str, ...]) -> None:
        self.path, self.key, self.fields = path, key, (*key, *values)
        self.found: dict[tuple[str, ...], dict[str, str]] = {}
        if path.exists():
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    self.found[tuple(row[k] for k in key)] = row

    def get(self, measure: Callable[[], dict[str, Any]], *key: object) -> dict[str, str]:
        """Return the row of a key, and measure it if it is missing."""
        at = tuple(map(str, key))
        if at not in self.found:
            row = dict(zip(self.fields, at, strict=False)) | {k: str(v) for k, v in measure().items()}
            new = not self.path.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", newline="") as file:
                writer = csv.DictWriter(file, self.fields, lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(row)
            self.found[at] = row
            print(" ".join(row[k] for k in self.fields), flush=True)
        return self.found[at]


def loss_rows(folder: Path) -> Rows:
    return Rows(folder / "optimizers_loss.csv", ("setting", "optimizer", "state", "seed", "lr"), ("loss", "seconds"))


def time_rows(folder: Path) -> Rows:
    key = ("isa", "optimizer", "state", "shapes")
    return Rows(folder / "optimizers_time.csv", key, ("ms", "p20", "p50", "p80", "rounds"))


def build(name: str, params: Any, state: str, lr: float | None = None, **options: Any) -> Any:
    arguments = {**ARGUMENTS.get(name, {}), **({} if lr is None else {"lr": lr})}
    return getattr(halfulp, name)(params, state=state, **arguments, **options)


def train(name: str, state: str, seed: int, lr: float, tokens: Tokens) -> dict[str, Any]:
    """Return the validation loss at the end of a run; NaN if it diverged."""
    began = time.process_time()
    c = MODEL
    model = build_model(
        c.model, vocab=tokens.vocab, hidden=c.hidden, layers=c.layers, heads=c.heads, context=c.context, seed=seed
    )
    optimizer = build(name, model.named_parameters(), state, lr, seed=seed)

    def loss(batch: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=batch[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    end = math.nan
    for step in range(1, c.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(c, lr, step)
        optimizer.zero_grad()
        value = loss(tokens.batch(seed, step, c.batch))
        value.backward()
        size = torch.nn.utils.clip_grad_norm_(model.parameters(), c.clip)
        if not (math.isfinite(value.detach()) and math.isfinite(size)):
            break
        optimizer.step()
    else:
        with torch.no_grad():
            check = tokens.validation(c.validation)
            end = sum(float(loss(part)) * len(part) for part in check.split(64)) / len(check)
        turning = not stored_bytes(optimizer)  # BAdam, between two blocks
        assert turning or stored_bytes(optimizer) == optimizer.memory().total
    return {"loss": f"{end:.5f}", "seconds": f"{time.process_time() - began:.2f}"}


def stored_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of memory behind all state tensors."""
    tensors = [v for entries in optimizer.state.values() for v in entries.values() if torch.is_tensor(v)]
    return sum(t.untyped_storage().nbytes() for t in tensors)


def rung(step: int) -> float:
    """Return a rung of the ladder of learning rates: 1, 3, 10, 30 ... times a power of ten."""
    return float(f"{(1.0, 3.0)[step % 2] * 10.0 ** (step // 2):g}")


def tune(name: str, loss_at: Callable[[float], float]) -> float:
    """Return the best rung, starting from the one nearest to the default."""
    default = float(inspect.signature(getattr(halfulp, name)).parameters["lr"].default)
    start = round(2 * math.log10(default))
    known: dict[int, float] = {}

    def at(step: int) -> float:
        if step not in known:
            value = loss_at(rung(step))
            known[step] = value if math.isfinite(value) else math.inf
        return known[step]

    best = start
    while True:
        better = min((best, best + 1, best - 1), key=at)
        if better == best or abs(better - start) > 10:
            return rung(best)
        best = better


@dataclass(frozen=True)
class Losses:
    """Results of one optimizer: its learning rate, and the loss of each format by seed."""

    lr: float
    by_state: dict[str, dict[int, float]]


def losses(name: str, rows: Rows, tokens: Tokens | None, states: Iterable[str] = STATES) -> Losses:
    """Return the losses of one optimizer, and measure missing ones. Without `tokens`, nothing is measured."""

    def run(state: str, seed: int, lr: float) -> float:
        if tokens is None and (SETTING, name, state, str(seed), f"{lr:g}") not in rows.found:
            return math.nan
        measure = functools.partial(train, name, state, seed, lr, tokens)  # type: ignore[arg-type]
        return float(rows.get(measure, SETTING, name, state, seed, f"{lr:g}")["loss"])

    lr = tune(name, lambda rate: run("fp32", TUNING_SEED, rate))
    return Losses(lr, {state: {seed: run(state, seed, lr) for seed in SEEDS} for state in states})


def bytes_per_parameter(name: str, state: str) -> float:
    """Return the bytes per parameter for one layer of a llama. Every training run asserts that they match."""
    params = [(n, torch.nn.Parameter(torch.empty(shape, device="meta"))) for n, shape in LAYER.items()]
    return float(build(name, params, state).memory().bytes_per_parameter)


def step_time(name: str, state: str, shapes: list[tuple[int, ...]], seconds: float = 1.5) -> dict[str, Any]:
    """Return the ratio of a step to one of torch's fused AdamW, round by round."""

    def parameters() -> list[torch.nn.Parameter]:
        generator = torch.Generator().manual_seed(0)
        made = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        for p in made:
            p.grad = torch.randn(p.shape, generator=generator) * 0.01
        return made

    arms = [torch.optim.AdamW(parameters(), lr=1e-4, fused=True), build(name, parameters(), state)]
    times: list[list[float]] = [[], []]
    for arm in arms:
        arm.step()
    began = time.process_time()
    while len(times[0]) < 5 or (time.process_time() - began < seconds and len(times[0]) < 101):
        for which in (0, 1) if len(times[0]) % 2 else (1, 0):
            start = time.process_time()
            arms[which].step()
            times[which].append(time.process_time() - start)
    ratios = np.array(times[1]) / np.array(times[0])
    p20, p50, p80 = (f"{v:.3f}" for v in np.percentile(ratios, [20, 50, 80]))
    ms = f"{1e3 * statistics.median(times[1]):.3f}"
    return {"ms": ms, "p20": p20, "p50": p50, "p80": p80, "rounds": len(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("loss", "time"))
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results", help="folder of the CSVs")
    parser.add_argument("--optimizers", default=",".join(c.__name__ for c in OPTIMIZERS), help="names, by commas")
    parser.add_argument("--states", default=",".join(STATES), help="formats, by commas (loss)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names, states = args.optimizers.split(","), args.states.split(",")
    if args.part == "time":
        rows = time_rows(args.results)
        for name in names:
            for state in TIMED:
                for label, shapes in SHAPES.items():
                    rows.get(functools.partial(step_time, name, state, shapes), chosen(), name, state, label)
    else:
        rows = loss_rows(args.results)
        with tempfile.TemporaryDirectory() as folder:
            prepare_tokens(load_corpus(), "bytes", MODEL.context, Path(folder))
            tokens = Tokens(Path(folder), MODEL.context)
            for state in states:  # every optimizer in one format, then the next format
                for name in names:
                    losses(name, rows, tokens, [state])


if __name__ == "__main__":
    main()
