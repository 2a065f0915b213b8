"""Loss over bytes for four workers: methods, message formats and steps between meetings, on paired seeds.

    python benchmarks/workers.py digits --seeds 3
    python benchmarks/workers.py llama --seeds 3 --every 16

Workers are threads of this process. The loss is that of the mean of their weights, at the end, on held-out data.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from halfulp.workers import ALDSGD, DPPF, LGRAWA, DiLoCo, LocalSGD, simulate

METHODS: dict[str, Callable[..., Any]] = {
    "local SGD": LocalSGD,
    "DiLoCo": lambda inside, **options: DiLoCo(inside, lr=0.7, momentum=0.6, **options),
    "DPPF": lambda inside, **options: DPPF(inside, pull=0.3, push=0.1, **options),
    "LGRAWA": LGRAWA,
    "AL-DSGD": ALDSGD,
}
FORMATS = {
    "fp32": ("fp32", "stochastic"),
    "bf16 nearest": ("bf16", "nearest"),
    "8bit stochastic": ("8bit", "stochastic"),
}
WORKERS = 4


class Digits:
    """An MLP on scikit-learn's digits."""

    steps = 128

    def __init__(self, seed: int) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        x, y = torch.tensor(data.data).float() / 16, torch.tensor(data.target)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        x, y = x[order], y[order]
        self.train, self.test, self.seed = (x[:1400], y[:1400]), (x[1400:], y[1400:]), seed

    def model(self) -> nn.Module:
        """Return a model initialized from the present state of torch's generator."""
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def inside(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of a worker."""
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def loss(self, model: nn.Module, worker: int, step: int) -> Tensor:
        """Return the loss of a worker on its batch of a step."""
        generator = torch.Generator().manual_seed(self.seed * 10**6 + worker * 10**5 + step)
        at = torch.randint(len(self.train[0]), (16,), generator=generator)
        return nn.functional.cross_entropy(model(self.train[0][at]), self.train[1][at])

    def held_out(self, model: nn.Module) -> float:
        """Return the loss on data that no worker has seen."""
        return float(nn.functional.cross_entropy(model(self.test[0]), self.test[1]))


class Llama:
    """The small LLaMA of the examples, on the bytes of Python's standard library."""

    steps = 192

    def __init__(self, seed: int) -> None:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
        from _text import model, windows

        text = windows(8192)
        self.make, self.train, self.test, self.seed = model, text[:-64], text[-64:], seed

    def model(self) -> nn.Module:
        """Return a model initialized from the present state of torch's generator."""
        return self.make()

    def inside(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of a worker."""
        return torch.optim.AdamW(model.parameters(), lr=3e-3)

    def loss(self, model: nn.Module, worker: int, step: int) -> Tensor:
        """Return the loss of a worker on its batch of a step."""
        generator = torch.Generator().manual_seed(self.seed * 10**6 + worker * 10**5 + step)
        batch = self.train[torch.randint(len(self.train), (4,), generator=generator)]
        return model(input_ids=batch, labels=batch).loss  # type: ignore[no-any-return]

    def held_out(self, model: nn.Module) -> float:
        """Return the loss on data that no worker has seen."""
        return float(model(input_ids=self.test, labels=self.test).loss)


def run(task: Any, method: str, message: str, every: int) -> tuple[float, float, float]:
    """Return the held-out loss, the megabytes that each worker sent, and the seconds."""
    torch.manual_seed(task.seed)
    models = [task.model() for _ in range(WORKERS)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    fmt, rounding = FORMATS[message]

    def work(peers: Any) -> int:
        model = models[peers.rank]
        optimizer = METHODS[method](
            task.inside(model), every=every, message=fmt, rounding=rounding, group=peers, min_size=0
        )
        for step in range(task.steps):
            optimizer.zero_grad()
            loss = task.loss(model, peers.rank, step)
            loss.backward()
            optimizer.report(loss=loss)
            optimizer.step()
        return int(optimizer.sent_bytes)

    start = time.perf_counter()
    sent = simulate(WORKERS, work, timeout=300)[0]
    seconds = time.perf_counter() - start
    with torch.no_grad():
        for mean, *others in zip(*(model.parameters() for model in models), strict=True):
            mean.copy_(torch.stack([mean, *others]).mean(dim=0))
        return task.held_out(models[0]), sent / 1e6, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("digits", "llama"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--every", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    options = parser.parse_args()
    tasks = [{"digits": Digits, "llama": Llama}[options.task](seed) for seed in range(options.seeds)]
    for task in tasks:
        task.steps = options.steps or task.steps
    print("| method | every | loss, fp32 | bf16 nearest | 8bit stochastic | MB sent: fp32 | bf16 | 8bit | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for method in options.methods:
        for every in options.every:
            found = {m: [run(task, method, m, every) for task in tasks] for m in FORMATS}
            full = torch.tensor([loss for loss, _, _ in found["fp32"]])
            cells = [f"{full.mean():.4f}"]
            for message in list(FORMATS)[1:]:
                gap = torch.tensor([loss for loss, _, _ in found[message]]) - full
                error = gap.std() / len(gap) ** 0.5 if len(gap) > 1 else 0.0
                cells.append(f"{gap.mean():+.4f} ± {error:.4f}")
            cells += [f"{rows[0][1]:.2f}" for rows in found.values()]
            cells.append(f"{sum(row[2] for rows in found.values() for row in rows) / 3 / len(tasks):.1f}")
            print(f"| {method} | {every} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
