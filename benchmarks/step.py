"""Step time, peak extra memory and bytes moved by the CPU kernels and their peers, interleaved in one process.

    python benchmarks/step.py --quick             # 2**20 elements, the main formats: under a minute
    python benchmarks/step.py                     # 2**10 to 2**26, one tensor and 1000, every format and rounding
    python benchmarks/step.py --sizes 24 --threads 2 --peers fused foreach torchao bitsandbytes

Every round makes one step of each arm, in rotating order. A result is the ratio of an arm's step to that of torch's
fused fp32 AdamW in the same round, as the 20th, 50th and 80th percentile. ``--clock cpu`` uses the process's processor
time instead of the wall clock, for a shared machine. Bandwidth is that of a copy in the same run. The script prints a
table and writes a CSV and a plot.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleaved import interleaved
from pictures import PALETTE, axes_of, label_ends, save
from rich.console import Console
from rich.table import Table

import halfulp
from halfulp.kernels import backends

ROOT = Path(__file__).resolve().parent.parent
FORMATS = ("fp32", "bf16", "fp16", "fp8", "fp4", "int8", "int4", "8bit", "4bit")
MAIN = ("bf16", "fp8", "8bit", "fp4", "int8")
FIELDS = (
    "arm", "elements", "tensors", "threads", "ms", "p20", "p50", "p80", "first_ms", "bytes_per_element",
    "share_of_copy_bandwidth", "extra_mb",
)  # fmt: skip


def parameters(elements: int, tensors: int) -> list[torch.nn.Parameter]:
    """Return parameters with gradients: one tensor, or many square ones of 4096 elements."""
    generator = torch.Generator().manual_seed(0)
    if tensors > 1:
        shape: tuple[int, ...] = (64, elements // tensors // 64)
    else:
        shape = (max(1, elements // 4096), min(elements, 4096))
    made = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for _ in range(tensors)]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator) * 0.1
    return made


def arms(formats: list[str], roundings: list[str], peers: list[str]) -> dict[str, tuple[Callable[..., Any], float]]:
    """Return by name: (optimizer class over parameters, bytes that a step reads and writes per element)."""
    found: dict[str, tuple[Callable[..., Any], float]] = {
        "torch fused": (functools.partial(torch.optim.AdamW, fused=True), 28.0)
    }
    if "foreach" in peers:
        found["torch foreach"] = (functools.partial(torch.optim.AdamW, foreach=True), 28.0)
    if "torchao" in peers:
        from torchao.optim import AdamW4bit, AdamW8bit, AdamWFp8

        found |= {
            "torchao fp8": (AdamWFp8, 16.0), "torchao 8-bit": (AdamW8bit, 16.0), "torchao 4-bit": (AdamW4bit, 14.0),
        }  # fmt: skip
    if "bitsandbytes" in peers:
        from bitsandbytes.optim import AdamW8bit as Bnb8bit

        found["bitsandbytes 8-bit"] = (Bnb8bit, 16.0)
    for fmt in formats:
        for rounding in roundings if fmt != "fp32" else roundings[:1]:
            make = functools.partial(halfulp.AdamW, state=fmt, rounding=rounding, min_size=0)
            probe = make([torch.nn.Parameter(torch.zeros(64, 128))])
            state_bytes = sum(probe.memory().by_storage.values()) / (64 * 128)
            name = f"halfulp {fmt}" + ("" if fmt == "fp32" else f" {rounding}")
            found[name] = (make, 12.0 + 2 * state_bytes)
    return found


def copy_bandwidth(elements: int) -> float:
    """Return the bytes per second that a copy of a tensor reads and writes, the best of 7, with torch's threads."""
    source = torch.ones(max(elements, 1 << 22))
    target = torch.empty_like(source)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return 8.0 * source.numel() / min(times)


def peak_extra_mb(step: Callable[[], Any]) -> float:
    """Return the rise of the resident set above its level before a step, in MB (Linux; NaN elsewhere)."""
    clear = Path("/proc/self/clear_refs")
    try:
        clear.write_text("5")  # resets the peak
        before = _status("VmRSS")
        step()
        return max(0.0, (_status("VmHWM") - before) / 1024)
    except (OSError, StopIteration):
        return float("nan")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def measure(
    made: dict[str, tuple[Callable[..., Any], float]],
    elements: int,
    tensors: int,
    rounds: int,
    clock: Callable[[], float],
) -> list[dict[str, Any]]:
    """Return one row per arm."""
    optimizers = {n: make(parameters(elements, tensors), lr=1e-3, weight_decay=0.1) for n, (make, _) in made.items()}
    first = {}
    for name, optimizer in optimizers.items():
        start = time.perf_counter()
        optimizer.step()
        first[name] = time.perf_counter() - start
    # every step directly follows a torch operation
    steps = {name: optimizer.step for name, optimizer in optimizers.items()}
    times = interleaved(steps, rounds, clock, before=lambda: torch.ones(1 << 16).add_(1.0))
    base, bandwidth = np.array(times["torch fused"]), copy_bandwidth(elements)
    rows = []
    for name, (_, moved) in made.items():
        mine = np.array(times[name])
        p20, p50, p80 = np.percentile(mine / base, [20, 50, 80])
        rows.append(
            {
                "arm": name, "elements": elements, "tensors": tensors, "threads": torch.get_num_threads(),
                "ms": 1e3 * float(np.median(mine)), "p20": p20, "p50": p50, "p80": p80, "first_ms": 1e3 * first[name],
                "bytes_per_element": moved,
                "share_of_copy_bandwidth": moved * elements / float(np.median(mine)) / bandwidth,
                "extra_mb": peak_extra_mb(optimizers[name].step),
            }
        )  # fmt: skip
    return rows


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """Print the table of one setting."""
    head = rows[0]
    title = f"{head['elements']} elements in {head['tensors']} tensor(s), {head['threads']} thread(s)"
    columns = ("arm", "ms", "ratio p20", "p50", "p80", "first ms", "B/element", "of copy bandwidth", "extra MB")
    table = Table(*columns, title=title)
    for r in rows:
        table.add_row(
            r["arm"], f"{r['ms']:.3f}", f"{r['p20']:.2f}", f"[bold]{r['p50']:.2f}[/bold]", f"{r['p80']:.2f}",
            f"{r['first_ms']:.1f}", f"{r['bytes_per_element']:.1f}", f"{r['share_of_copy_bandwidth']:.0%}",
            f"{r['extra_mb']:.2f}",
        )  # fmt: skip
    console.print(table)


def plot(rows: list[dict[str, Any]], target: Path) -> None:
    """Plot the ratio to torch's fused step over the size, for single tensors and the largest number of threads."""
    threads = max(r["threads"] for r in rows)
    chosen = [r for r in rows if r["tensors"] == 1 and r["threads"] == threads and r["arm"] != "torch fused"]
    chosen = [
        r for r in chosen if not r["arm"].endswith("nearest") or not any("stochastic" in x["arm"] for x in chosen)
    ]
    figure, (axes,) = axes_of(height=4.5)
    ends = []
    for name, colour in zip(dict.fromkeys(r["arm"] for r in chosen), itertools.cycle(PALETTE), strict=False):
        points = [(r["elements"], r["p50"]) for r in chosen if r["arm"] == name]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.2, color=colour)
        ends.append((name.removeprefix("halfulp ").removesuffix(" stochastic"), colour, *points[-1]))
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="elements of one tensor", ylabel="time of a step / torch fused fp32")
    axes.set_yticks([0.8, 1, 1.5, 2, 3, 4, 6, 8])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.minorticks_off()
    axes.set_title(f"AdamW step on a CPU, {threads} threads, stochastic rounding", fontsize=10)
    label_ends(axes, ends)
    save(figure, target)


def main() -> None:
    """Run the benchmarks that the arguments select."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="+", help="powers of two; default 10 to 26 in steps of 2")
    parser.add_argument("--threads", type=int, nargs="+", default=None)
    parser.add_argument("--formats", nargs="+", default=None)
    parser.add_argument("--roundings", nargs="+", default=["stochastic", "nearest"])
    parser.add_argument("--peers", nargs="*", default=["fused", "foreach"])
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--many", action=argparse.BooleanOptionalAction, default=True, help="1000 tensors of 4096 too")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "results" / "step.csv")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "step.png")
    parser.add_argument("--redraw", type=Path, metavar="CSV", help="draw the picture of an earlier run")
    args = parser.parse_args()
    if args.redraw:
        with args.redraw.open(newline="") as file:
            found = [{k: v if k == "arm" else float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        plot([r | {"threads": int(r["threads"])} for r in found], args.plot)
        return
    sizes = args.sizes or ([20] if args.quick else list(range(10, 27, 2)))
    threads = args.threads or ([torch.get_num_threads()] if args.quick else [1, 2])
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    made = arms(args.formats or list(MAIN if args.quick else FORMATS), args.roundings, args.peers)
    console = Console(width=140)
    console.print(f"cpu kernels: {backends()['cpu']}; torch {torch.__version__}; clock: {args.clock}")
    rows: list[dict[str, Any]] = []
    for count in threads:
        torch.set_num_threads(count)
        settings = [(1 << s, 1) for s in sizes] + ([(1000 * 4096, 1000)] if args.many else [])
        for elements, tensors in settings:
            rounds = args.rounds or (15 if elements >= 1 << 22 else 60)
            rows += measure(made, elements, tensors, rounds, clock)
            show(rows[-len(made) :], console)
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    with args.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    plot(rows, args.plot)
    console.print(f"wrote {args.csv} and {args.plot}")


if __name__ == "__main__":
    sys.exit(main())
