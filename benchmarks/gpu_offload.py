"""CPU offload on a GPU: time of an iteration with and without it, hidden time, and bytes moved.

A stack of linear layers with bf16 weights is trained by 8-bit AdamW with 16-bit remainders on the device, the same
optimizer offloaded, and torch's AdamW offloaded. The script measures the median time of the forward and backward pass
alone, of the optimizer's step alone, and of the whole iteration. Hidden time is the sum of the parts minus the whole:

    python benchmarks/gpu_offload.py --json offload.json
    python benchmarks/gpu_offload.py --dry-run            tests the script on the CPU; its results mean nothing
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import halfulp
from halfulp.lab.files import write_json
from halfulp.training import Offload, offload
from halfulp.training.offloading import Copies

Make = Callable[[nn.Module], torch.optim.Optimizer]
ARMS: dict[str, Make] = {
    "on the device": lambda model: halfulp.AdamW(model.parameters(), lr=1e-4, master_weights="remainder16"),
    "offload": lambda model: offload(halfulp.AdamW(model.parameters(), lr=1e-4, master_weights="remainder16")),
    "offload, torch AdamW": lambda model: offload(torch.optim.AdamW(model.parameters(), lr=1e-4)),
}


class Counted:
    """Copies that count their bytes by direction."""

    def __init__(self, inner: Copies) -> None:
        self.inner, self.moved = inner, {"out": 0, "in": 0}
        self.host, self.finish = inner.host, inner.finish
        self.hosts: set[int] = set()

    def start(self, target: Tensor, source: Tensor) -> Callable[[], None]:
        """Start a copy."""
        self.moved["in" if target.data_ptr() not in self.hosts else "out"] += source.numel() * source.element_size()
        return self.inner.start(target, source)


def counted(optimizer: Any) -> dict[str, int]:
    """Count the bytes that one step copies out and in; none without offload."""
    if not isinstance(optimizer, Offload):
        optimizer.step()
        return {"out": 0, "in": 0}
    inner = optimizer._copies
    watch = optimizer._copies = Counted(inner)
    hosts = [*optimizer.host_of.values(), *optimizer._grads.values()]
    watch.hosts = {host.data_ptr() for host in hosts}
    optimizer.step()
    optimizer._copies = inner
    return watch.moved


def wait(device: str) -> None:
    """Wait until the GPU is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def median(work: Callable[[], object], device: str, rounds: int) -> float:
    """Return the wall-clock milliseconds of some work, from an idle GPU to an idle GPU."""
    times = []
    for _ in range(rounds):
        wait(device)
        begin = time.perf_counter()
        work()
        wait(device)
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


def measure(name: str, make: Make, width: int, layers: int, batch: int, device: str, rounds: int) -> dict[str, Any]:
    """Measure one line of the table."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers))).to(device, torch.bfloat16)
    data = torch.randn(batch, width, device=device, dtype=torch.bfloat16)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    optimizer = make(model)

    def passes() -> None:
        optimizer.zero_grad()
        model(data).square().mean().backward()

    def iteration() -> None:
        passes()
        optimizer.step()

    for _ in range(2):
        iteration()
    alone, step = median(passes, device, rounds), median(optimizer.step, device, rounds)
    whole = median(iteration, device, rounds)
    moved = counted(optimizer)
    return {
        "optimizer": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "passes ms": alone,
        "step ms": step,
        "iteration ms": whole,
        "hidden": max(0.0, alone + step - whole) / step,
        "MB out": moved["out"] / 1e6,
        "MB in": moved["in"] / 1e6,
        "peak MB": torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=24, help="of width x width: 0.4e9 parameters by default")
    parser.add_argument("--batch", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the table there")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, to test the script")
    args = parser.parse_args()
    device = "cpu" if args.dry_run else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu_offload: torch finds no CUDA device here. Run it where one is; --dry-run only tests the script.")
    width, layers, batch, rounds = (64, 3, 8, 2) if args.dry_run else (args.width, args.layers, args.batch, args.rounds)
    rows = [measure(name, make, width, layers, batch, device, rounds) for name, make in ARMS.items()]
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU, dry run: no figure here means anything"
    table = Table(*rows[0], title=f"CPU offload. {where}", title_justify="left")
    for row in rows:
        table.add_row(
            *(f"{v:.3f}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v for v in row.values())
        )
    Console(width=None if sys.stdout.isatty() else 130).print(table)
    if args.json is not None:
        write_json(args.json, {"where": where, "rows": rows})


if __name__ == "__main__":
    main()
