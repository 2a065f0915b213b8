"""Loss, bytes and time for four workers: methods, message formats and steps between meetings, on paired seeds.

    python benchmarks/workers.py run digits
    python benchmarks/workers.py run llama
    python benchmarks/workers.py table

``run`` appends each run to docs/results/workers.csv and skips those that are in it. ``table`` prints the tables of
docs/results/workers.md. Workers are threads of this process, and their gradients are computed together. The loss is
that of the mean of their weights after the last step, on held-out data. Times are the processor time of one worker,
without waiting for the others.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from halfulp.lab.decoder import Decoder
from halfulp.lab.text import load_corpus
from halfulp.workers import ALDSGD, DPPF, LGRAWA, DiLoCo, LocalSGD, simulate

FILE = Path(__file__).resolve().parents[1] / "docs" / "results" / "workers.csv"
COLUMNS = ("task", "method", "every", "steps", "seed", "message", "loss", "MB_sent", "meeting_ms")
METHODS: dict[str, Callable[..., Any]] = {
    "LocalSGD": LocalSGD,
    "DiLoCo": lambda inside, **options: DiLoCo(inside, lr=0.7, momentum=0.6, **options),
    "DPPF": lambda inside, **options: DPPF(inside, pull=0.3, push=0.1, **options),
    "LGRAWA": LGRAWA,
    "ALDSGD": ALDSGD,
}
MESSAGES = {
    "fp32": ("fp32", "stochastic"),
    "bf16 nearest": ("bf16", "nearest"),
    "8bit stochastic": ("8bit", "stochastic"),
}
WORKERS = 4
STEPS = {1: 48, 16: 128, 64: 192}
"""Steps of a run, by steps between meetings."""
Weights = list[nn.Parameter]


class Task(Protocol):
    """A model and its data, of one seed."""

    def weights(self) -> Weights:
        """Return the initial weights."""
        ...

    def inside(self, weights: Weights) -> torch.optim.Optimizer:
        """Return the optimizer of a worker."""
        ...

    def gradients(self, stacks: list[Tensor], workers: list[Weights], step: int) -> list[float]:
        """Set the gradients of all workers on their batches of a step, and return the losses.

        Parameters
        ----------
        stacks
            The weights of all workers: tensors of shape ``(workers, *shape)``, whose memory they share.
        workers
            The weights of each worker.
        step
            Number of the step.
        """
        ...

    def held_out(self, weights: Weights) -> float:
        """Return the loss on data that no worker has seen."""
        ...


def drawn(seed: int, worker: int, step: int, below: int, count: int) -> Tensor:
    """Return the places of a worker's batch in the data."""
    generator = torch.Generator().manual_seed(seed * 10**6 + worker * 10**5 + step)
    return torch.randint(below, (count,), generator=generator)


class Digits:
    """An MLP of 64-64-64-10 on scikit-learn's digits, trained by SGD with momentum on batches of 16."""

    def __init__(self, seed: int) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        x, y = torch.tensor(data.data).float() / 16, torch.tensor(data.target)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        x, y = x[order], y[order]
        self.train, self.test, self.seed = (x[:1400], y[:1400]), (x[1400:], y[1400:]), seed

    def weights(self) -> Weights:
        """See :class:`Task`."""
        torch.manual_seed(self.seed)
        return [p for n, m in ((64, 64), (64, 64), (64, 10)) for p in nn.Linear(n, m).parameters()]

    def inside(self, weights: Weights) -> torch.optim.Optimizer:
        """See :class:`Task`."""
        return torch.optim.SGD(weights, lr=0.05, momentum=0.9)

    def _loss(self, weights: Weights, x: Tensor, y: Tensor) -> Tensor:
        for weight, bias in zip(weights[::2], weights[1::2], strict=True):
            x = F.linear(x if weight is weights[0] else x.relu(), weight, bias)
        return F.cross_entropy(x, y)

    def gradients(self, stacks: list[Tensor], workers: list[Weights], step: int) -> list[float]:
        """See :class:`Task`."""
        losses = []
        for worker, weights in enumerate(workers):
            at = drawn(self.seed, worker, step, len(self.train[0]), 16)
            loss = self._loss(weights, self.train[0][at], self.train[1][at])
            loss.backward()
            losses.append(float(loss.detach()))
        return losses

    def held_out(self, weights: Weights) -> float:
        """See :class:`Task`."""
        return float(self._loss(weights, *self.test))


@cache
def text() -> tuple[Tensor, Tensor]:
    """Return the bytes of Python's standard library, split by file for training and validation."""
    corpus = load_corpus()
    joined = ("\0".join(files).encode() for files in (corpus.train, corpus.validation))
    first, second = (torch.frombuffer(bytearray(part), dtype=torch.uint8).long() for part in joined)
    return first, second


class Llama:
    """The lab's LLaMA (98 624 parameters) on bytes of source text, trained by AdamW on 4 windows of 32 bytes."""

    model, context, batch = Decoder("llama", vocab=256, hidden=64, layers=2, heads=4), 32, 4

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.train, validation = text()
        starts = torch.linspace(0, len(validation) - self.context - 1, 512).long()
        self.test = self._windows(validation, starts)

    def _windows(self, data: Tensor, starts: Tensor) -> Tensor:
        return data[starts.unsqueeze(-1) + torch.arange(self.context + 1)]

    def weights(self) -> Weights:
        """See :class:`Task`."""
        generator = torch.Generator().manual_seed(self.seed)
        shapes = {name: shape for group in self.model.shapes.values() for name, shape in group.items()}
        self.names = list(shapes)
        return [
            nn.Parameter(0.02 * torch.randn(shape, generator=generator) if len(shape) > 1 else torch.ones(shape))
            for shape in shapes.values()
        ]

    def inside(self, weights: Weights) -> torch.optim.Optimizer:
        """See :class:`Task`."""
        return torch.optim.AdamW(weights, lr=3e-3, fused=True)

    def gradients(self, stacks: list[Tensor], workers: list[Weights], step: int) -> list[float]:
        """See :class:`Task`."""
        below = len(self.train) - self.context - 1
        at = torch.stack([drawn(self.seed, worker, step, below, self.batch) for worker in range(len(workers))])
        grads = [torch.empty_like(stack) for stack in stacks]
        for worker, weights in enumerate(workers):
            for weight, grad in zip(weights, grads, strict=True):
                weight.grad = grad[worker]
        named, slopes = (dict(zip(self.names, tensors, strict=True)) for tensors in (stacks, grads))
        found: list[float] = self.model.losses(named, self._windows(self.train, at), slopes).tolist()
        return found

    def held_out(self, weights: Weights) -> float:
        """See :class:`Task`."""
        named = {name: w.detach().unsqueeze(0) for name, w in zip(self.names, weights, strict=True)}
        return float(self.model.losses(named, self.test.unsqueeze(0)))


TASKS: dict[str, Callable[[int], Task]] = {"digits": Digits, "llama": Llama}


def run(task: Task, method: str, message: str, every: int) -> list[str]:
    """Return the held-out loss, the megabytes that each worker sent, and milliseconds per meeting."""
    stacks = [torch.stack([w.detach()] * WORKERS) for w in task.weights()]
    workers = [[nn.Parameter(stack[rank]) for stack in stacks] for rank in range(WORKERS)]
    fmt, rounding = MESSAGES[message]
    losses: list[float] = []
    here = torch.zeros(0, dtype=torch.uint8)

    def work(peers: Any) -> tuple[int, float]:
        weights, meetings = workers[peers.rank], []
        optimizer = METHODS[method](
            task.inside(weights), every=every, message=fmt, rounding=rounding, group=peers, min_size=0
        )
        meet = optimizer.meet

        def timed() -> None:
            began = time.thread_time()
            meet()
            meetings.append(time.thread_time() - began)

        optimizer.meet = timed
        for step in range(STEPS[every]):
            optimizer.zero_grad()
            peers.exchange(here, None)  # all workers have made the last step
            if peers.rank == 0:
                losses[:] = task.gradients(stacks, workers, step)
            peers.exchange(here, None)
            optimizer.report(loss=losses[peers.rank])
            optimizer.step()
        return optimizer.sent_bytes, sum(meetings) / len(meetings)

    sent, meeting = simulate(WORKERS, work, timeout=600)[0]
    with torch.no_grad():
        mean = [nn.Parameter(torch.stack(each).mean(dim=0)) for each in zip(*workers, strict=True)]
        return [f"{task.held_out(mean):.6f}", f"{sent / 1e6:.3f}", f"{1e3 * meeting:.2f}"]


def stored(file: Path) -> list[dict[str, str]]:
    """Return the runs of a CSV file."""
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def make(options: argparse.Namespace) -> None:
    """Make the runs that are not in the file, one seed after the other."""
    done = {tuple(row[name] for name in COLUMNS[:6]) for row in stored(options.file)}
    if not done:
        options.file.write_text(",".join(COLUMNS) + "\n")
    for seed, every, method, message in product(range(options.seeds), options.every, options.methods, MESSAGES):
        key = (options.task, method, str(every), str(STEPS[every]), str(seed), message)
        if key not in done:
            row = [*key, *run(TASKS[options.task](seed), method, message, every)]
            with options.file.open("a", newline="") as lines:
                csv.writer(lines, lineterminator="\n").writerow(row)
            print(*row, flush=True)


def table(rows: list[dict[str, str]]) -> Iterator[str]:
    """Yield the lines of a table: differences to fp32 messages, ± one standard error over seeds, and their mean."""
    yield "| method | every | loss, fp32 | bf16 | 8 bits | MB: fp32 | bf16 | 8 bits | ms: fp32 | bf16 | 8 bits |"
    yield f"|---|{'---:|' * 10}"
    cells: dict[tuple[str, str], dict[str, dict[str, dict[str, str]]]] = {}
    for row in rows:
        cells.setdefault((row["method"], row["every"]), {}).setdefault(row["message"], {})[row["seed"]] = row
    pooled: dict[str, list[tuple[float, float]]] = {}
    order = {name: at for at, name in enumerate(METHODS)}
    for (method, every), found in sorted(cells.items(), key=lambda cell: (order[cell[0][0]], int(cell[0][1]))):
        seeds = sorted(set.intersection(*(set(found.get(message, {})) for message in MESSAGES)))
        if len(seeds) < 2:
            continue
        losses = {m: torch.tensor([float(found[m][s]["loss"]) for s in seeds], dtype=torch.float64) for m in MESSAGES}
        line = [method, every, f"{losses['fp32'].mean():.4f}"]
        for message in list(MESSAGES)[1:]:
            gap = losses[message] - losses["fp32"]
            mean, error = float(gap.mean()), float(gap.std()) / math.sqrt(len(seeds))
            pooled.setdefault(message, []).append((mean, error))
            line.append(f"{mean:+.4f} ± {error:.4f}")
        line += [found[m][seeds[0]]["MB_sent"] for m in MESSAGES]
        line += [f"{sum(float(found[m][s]['meeting_ms']) for s in seeds) / len(seeds):.0f}" for m in MESSAGES]
        yield f"| {' | '.join(line)} |"
    means = [
        f"{sum(m for m, _ in each) / len(each):+.4f} ± {math.sqrt(sum(e * e for _, e in each)) / len(each):.4f}"
        for each in pooled.values()
    ]
    yield f"| mean | | | {' | '.join(means)} | {'| ' * 6}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=FILE)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("task", choices=list(TASKS))
    runs.add_argument("--seeds", type=int, default=3)
    runs.add_argument("--every", type=int, nargs="+", default=list(STEPS), choices=list(STEPS))
    runs.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    commands.add_parser("table")
    options = parser.parse_args()
    if options.command == "run":
        make(options)
        return
    for task in TASKS:
        print(f"\n{task}\n", *table([row for row in stored(options.file) if row["task"] == task]), sep="\n")


if __name__ == "__main__":
    main()
