"""One optimizer step on a GPU, ours against the peers that are installed, as ratios of interleaved CUDA-event times.

Needs an NVIDIA GPU; peers: ``pip install torchao bitsandbytes flashoptim``. Check the bits first:
``TRITON_INTERPRET=0 python -m pytest tests/test_kernels_triton.py``.

    python benchmarks/step_gpu.py
    python benchmarks/step_gpu.py --dtype bfloat16 --csv step_gpu.csv
    python benchmarks/step_gpu.py --dry-run            walks through the script on the CPU; its figures mean nothing

In every round each optimizer makes one step on parameters of its own, in turn; a ratio is taken inside its round,
against torch's fused AdamW. The table shows the 20th, 50th and 80th percentile of the ratios, the first step
(compilation included), the bytes of state a parameter, and the memory that a step takes beside what stays. A pair of
events includes the host's time where the GPU waits for it, as in training.
"""

from __future__ import annotations

import argparse
import csv
import gc
import importlib.metadata
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import halfulp
from halfulp.numbers.formats import FRIENDLY

Factory = Callable[[list[torch.Tensor]], torch.optim.Optimizer]
BASE = "torch fused"
WORKLOADS = {
    "2^20": [(1 << 10, 1 << 10)],
    "2^24": [(1 << 12, 1 << 12)],
    "2^26": [(1 << 13, 1 << 13)],
    "1000 x 4096": [(64, 64)] * 1000,
}
SMALL = {"2^10": [(1 << 5, 1 << 5)], "8 x 4096": [(64, 64)] * 8}
HYPER = {"lr": 1e-3, "weight_decay": 0.1}


def ours(**options: object) -> Factory:
    return lambda params: halfulp.AdamW(params, **HYPER, **options)  # type: ignore[arg-type]


def arms(dtype: torch.dtype) -> dict[str, Factory]:
    """Every optimizer that can be made here, torch's fused first."""
    found: dict[str, Factory] = {
        BASE: lambda params: torch.optim.AdamW(params, **HYPER, fused=True),
        "torch foreach": lambda params: torch.optim.AdamW(params, **HYPER, foreach=True),
    }
    for state in FRIENDLY:
        found[f"halfulp {state}"] = ours(state=state)
    found["halfulp 8bit nearest"] = ours(state="8bit", rounding="nearest")
    if dtype != torch.float32:
        found["halfulp 8bit, parameters stochastic"] = ours(state="8bit", param_rounding="stochastic")
    return {**found, **peers()}


def peers() -> dict[str, Factory]:
    """Of torchao, bitsandbytes and FlashOptim, those that are installed."""
    found: dict[str, Factory] = {}
    try:
        from torchao.optim import AdamW4bit, AdamW8bit, AdamWFp8

        found["torchao 8-bit"] = lambda params: AdamW8bit(params, **HYPER)
        found["torchao fp8"] = lambda params: AdamWFp8(params, **HYPER)
        found["torchao 4-bit"] = lambda params: AdamW4bit(params, **HYPER)
    except ImportError:
        pass
    try:
        from bitsandbytes.optim import AdamW8bit as BnbAdamW8bit

        found["bitsandbytes 8-bit"] = lambda params: BnbAdamW8bit(params, **HYPER)
    except ImportError:
        pass
    try:
        from flashoptim import FlashAdamW

        found["FlashOptim 8-bit"] = lambda params: FlashAdamW(params, **HYPER, master_weight_bits=None)
    except ImportError:
        pass
    return found


class Arm:
    """One optimizer on its own copy of the parameters."""

    def __init__(self, make: Factory, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.device = device
        self.params = [torch.randn(s, generator=generator).to(device, dtype).requires_grad_() for s in shapes]
        for p in self.params:
            p.grad = (torch.randn(p.shape, generator=generator) * 1e-3).to(device, dtype)
        self.optimizer = make(self.params)
        begin = time.perf_counter()
        self.optimizer.step()
        self.wait()
        self.first = (time.perf_counter() - begin) * 1e3

    def wait(self) -> None:
        """Until the GPU is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def milliseconds(self) -> float:
        """Time of one step."""
        self.wait()
        if self.device != "cuda":
            begin = time.perf_counter()
            self.optimizer.step()
            return (time.perf_counter() - begin) * 1e3
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        self.optimizer.step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def extra_bytes(self) -> int:
        """Memory that a step takes for itself."""
        if self.device != "cuda":
            return 0
        self.wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.optimizer.step()
        self.wait()
        return torch.cuda.max_memory_allocated() - before

    def state_bytes(self) -> float:
        """Bytes of state a parameter; tensors inside of tensor subclasses count, storages shared by views once."""
        storages: dict[int, int] = {}

        def add(value: object) -> None:
            if isinstance(value, torch.Tensor):
                inner = getattr(value, "__tensor_flatten__", None)
                if inner is not None:
                    for name in inner()[0]:
                        add(getattr(value, name))
                else:
                    storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            elif isinstance(value, dict):
                for item in value.values():
                    add(item)

        add(dict(self.optimizer.state))
        return sum(storages.values()) / sum(p.numel() for p in self.params)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[round(share * (len(ordered) - 1))]


def measure(
    name: str, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: str, rounds: int
) -> list[dict[str, object]]:
    """One line for each optimizer, over one list of tensors."""
    running: dict[str, Arm] = {}
    rows: list[dict[str, object]] = []
    for arm, make in arms(dtype).items():
        try:
            running[arm] = Arm(make, shapes, dtype, device)
        except Exception as error:
            if arm == BASE:
                raise
            rows.append({"workload": name, "optimizer": arm, "failed": f"{type(error).__name__}: {error}"[:100]})
    for arm_running in running.values():
        for _ in range(3):
            arm_running.milliseconds()
    times: dict[str, list[float]] = {arm: [] for arm in running}
    for _ in range(rounds):
        for arm, arm_running in running.items():
            times[arm].append(arm_running.milliseconds())
    for arm, arm_running in running.items():
        ratios = [t / base for t, base in zip(times[arm], times[BASE], strict=True)]
        rows.append(
            {
                "workload": name,
                "optimizer": arm,
                "ms": statistics.median(times[arm]),
                **{f"ratio p{round(100 * q)}": percentile(ratios, q) for q in (0.2, 0.5, 0.8)},
                "first ms": arm_running.first,
                "state B/param": arm_running.state_bytes(),
                "extra MB": arm_running.extra_bytes() / 1e6,
            }
        )
    running.clear()
    gc.collect()
    return rows


COLUMNS = {
    "workload": "", "optimizer": "", "ms": ".3f", "ratio p20": ".3f", "ratio p50": ".3f", "ratio p80": ".3f",
    "first ms": ".1f", "state B/param": ".3f", "extra MB": ".2f",
}  # fmt: skip


def show(rows: list[dict[str, object]], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column, form in COLUMNS.items():
        table.add_column(column, justify="right" if form else "left", no_wrap=column == "ms")
    for i, row in enumerate(rows):
        cells = [format(row[c], form) if c in row else "" for c, form in COLUMNS.items()]
        if "failed" in row:
            cells[2] = "failed"
        last = i + 1 == len(rows) or rows[i + 1]["workload"] != row["workload"]
        table.add_row(*cells, end_section=last)
    return table


def versions(device: str) -> str:
    names = ["torch", "triton", "torchao", "bitsandbytes", "flashoptim"]
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU, dry run: no figure here means anything"
    return f"{where}; {', '.join(found)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of parameters, gradients")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--csv", type=Path, help="also write the table there")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, to test the script")
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        sys.exit("step_gpu: torch finds no CUDA device here. Run it where one is; --dry-run only tests the script.")
    if not args.dry_run and os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("step_gpu: TRITON_INTERPRET=1 runs Triton kernels in numpy. Unset it to measure.")
    device, workloads = ("cpu", SMALL) if args.dry_run else ("cuda", WORKLOADS)
    dtype = getattr(torch, args.dtype)
    rows: list[dict[str, object]] = []
    for name, shapes in workloads.items():
        rows += measure(name, shapes, dtype, device, 3 if args.dry_run else args.rounds)
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(show(rows, f"AdamW, {args.dtype} parameters. {versions(device)}"))
    for row in rows:
        if "failed" in row:
            console.print(f"{row['optimizer']} on {row['workload']}: {row['failed']}", markup=False)
    if args.csv is not None:
        partial = args.csv.with_name(args.csv.name + ".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*COLUMNS, "failed"])
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(args.csv)


if __name__ == "__main__":
    main()
