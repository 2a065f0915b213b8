"""Step time of Muon and SOAP relative to another implementation of the same rule.

The other implementations are torch's Muon and pytorch-optimizer's SOAP. The arms take turns. A turn of SOAP has ten
steps, its default period. The script prints the least and the median ratio, and writes docs/results/matrix_step.csv:

    pip install --no-deps pytorch-optimizer
    python benchmarks/matrix_step.py [--sides 512] [--rounds 9] [--threads 1]
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch

import halfulp

CSV = Path(__file__).resolve().parent.parent / "docs" / "results" / "matrix_step.csv"
FIELDS = ("optimizer", "peer", "side", "state", "threads", "peer_ms", "ms", "least_ratio", "median_ratio")
STATES = ("fp32", "8bit")
Maker = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


def torch_muon(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Muon(params, lr=1e-3)


def other_soap(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP

    made: torch.optim.Optimizer = SOAP(params, lr=1e-3)
    return made


PEERS: dict[str, tuple[str, Maker, int]] = {
    "SOAP": ("pytorch-optimizer", other_soap, 10), "Muon": ("torch", torch_muon, 1),
}  # fmt: skip
"""The other library, its optimizer, and the steps of a turn."""


def started(make: Maker, side: int) -> torch.optim.Optimizer:
    """An optimizer of one square matrix, after two steps."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(side, side, generator=generator) * 0.02)
    weight.grad = torch.randn(side, side, generator=generator) * 1e-3
    optimizer = make([weight])
    for _ in range(2):
        optimizer.step()
    return optimizer


def seconds(optimizer: torch.optim.Optimizer, steps: int) -> float:
    """Time of a step, averaged over a turn."""
    began = time.perf_counter()
    for _ in range(steps):
        optimizer.step()
    return (time.perf_counter() - began) / steps


def measure(name: str, side: int, rounds: int) -> list[dict[str, object]]:
    """One row for each state format."""
    peer, make, steps = PEERS[name]
    arms = {"peer": started(make, side)}
    for state in STATES:
        arms[state] = started(lambda ps, state=state: getattr(halfulp, name)(ps, lr=1e-3, state=state), side)  # type: ignore[misc]
    times = [{arm: seconds(optimizer, steps) for arm, optimizer in arms.items()} for _ in range(rounds)]
    rows = []
    for state in STATES:
        ratios = [one[state] / one["peer"] for one in times]
        rows.append({
            "optimizer": name, "peer": peer, "side": side, "state": state, "threads": torch.get_num_threads(),
            "peer_ms": f"{1e3 * min(one['peer'] for one in times):.1f}",
            "ms": f"{1e3 * min(one[state] for one in times):.1f}", "least_ratio": f"{min(ratios):.3f}",
            "median_ratio": f"{statistics.median(ratios):.3f}",
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--sides", nargs="+", type=int, default=[512])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path, default=CSV)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with args.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        for name in args.optimizers:
            for side in args.sides:
                for row in measure(name, side, args.rounds):
                    writer.writerow(row)
                    file.flush()
                    print(*(row[field] for field in FIELDS))


if __name__ == "__main__":
    main()
