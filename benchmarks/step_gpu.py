"""One optimizer step on a GPU, ours and the installed peers, as ratios of interleaved CUDA-event times.

Needs a GPU; peers: ``pip install torchao bitsandbytes flashoptim torch-optimi heavyball``. Check the bits first:
``TRITON_INTERPRET=0 python -m pytest tests/test_kernels_triton.py``.

    python benchmarks/step_gpu.py
    python benchmarks/step_gpu.py --dtype bfloat16 --csv step_gpu.csv
    python benchmarks/step_gpu.py --dry-run            tests the script on the CPU; its results mean nothing

In every round each optimizer makes one step on its own parameters, in turn. Ratios are taken within a round, against
torch's fused AdamW. The table shows the 20th, 50th and 80th percentile of the ratios, the wall-clock time of a whole
step from an idle GPU to an idle GPU, the first step (including compilation), the bytes of state per parameter, and the
temporary memory of a step. A pair of events includes the host's time when the GPU waits for it, as in training.

For our optimizers it also shows the bandwidth that the step reaches, as a share of that of a large copy measured
before, and the time that ``gpu_model.py`` predicts from bytes and instructions. If a measured step is far from it, the
model is wrong.
"""

from __future__ import annotations

import argparse
import csv
import gc
import importlib
import importlib.metadata
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gpu_model
import torch
from rich.console import Console
from rich.table import Table

import halfulp
from halfulp.numbers.formats import FRIENDLY

Factory = Callable[[list[torch.Tensor]], torch.optim.Optimizer]
BASE = "torch fused"
GPT2 = [(50304, 768), (1024, 768), *[(2304, 768), (768, 768), (3072, 768), (768, 3072)] * 12, *[(768,)] * 25]
"""124 million parameters; biases of the matrices are omitted."""
LLAMA = [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), *[(14336, 4096)] * 2, (4096, 14336), (4096,), (4096,)]
"""One layer of Llama 3 8B."""
WORKLOADS: dict[str, list[tuple[int, ...]]] = {
    "2^20": [(1 << 10, 1 << 10)],
    "2^24": [(1 << 12, 1 << 12)],
    "2^26": [(1 << 13, 1 << 13)],
    "2^28": [(1 << 14, 1 << 14)],
    "32 x 4096": [(64, 64)] * 32,
    "1000 x 4096": [(64, 64)] * 1000,
    "GPT-2 124M": GPT2,
    "Llama-8B layer": LLAMA,
}
SMALL: dict[str, list[tuple[int, ...]]] = {"2^10": [(1 << 5, 1 << 5)], "8 x 4096": [(64, 64)] * 8}
HYPER = {"lr": 1e-3, "weight_decay": 0.1}


def ours(**options: object) -> Factory:
    return lambda params: halfulp.AdamW(params, **HYPER, **options)  # type: ignore[arg-type]


def arms(dtype: torch.dtype) -> dict[str, Factory]:
    """Return every optimizer that can be built here, torch's fused one first."""
    found: dict[str, Factory] = {
        BASE: lambda params: torch.optim.AdamW(params, **HYPER, fused=True),
        "torch foreach": lambda params: torch.optim.AdamW(params, **HYPER, foreach=True),
    }
    for state in FRIENDLY:
        found[f"halfulp {state}"] = ours(state=state)
    found["halfulp 8bit nearest"] = ours(state="8bit", rounding="nearest")
    if dtype != torch.float32:
        for kind in ("remainder8", "remainder16", "fp32"):
            found[f"halfulp 8bit {kind}"] = ours(state="8bit", master_weights=kind)
    return {**found, **peers()}


PEERS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("torchao 8-bit", "torchao.optim", "AdamW8bit", {}),
    ("torchao fp8", "torchao.optim", "AdamWFp8", {}),
    ("torchao 4-bit", "torchao.optim", "AdamW4bit", {}),
    ("bitsandbytes 8-bit", "bitsandbytes.optim", "AdamW8bit", {}),
    ("FlashOptim 8-bit", "flashoptim", "FlashAdamW", {"master_weight_bits": None}),
    ("optimi", "optimi", "AdamW", {}),
    ("HeavyBall", "heavyball", "ForeachAdamW", {}),
    ("Transformer Engine", "transformer_engine.pytorch.optimizers", "FusedAdam", {}),
)
"""Optimizers of other libraries: label, module, class and further arguments."""


def peers() -> dict[str, Factory]:
    """Return the optimizers of other installed libraries."""
    found: dict[str, Factory] = {}
    for label, module, name, more in PEERS:
        try:
            kind = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
        found[label] = lambda params, kind=kind, more=more: kind(params, **HYPER, **more)  # type: ignore[misc]
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
        """Wait until the GPU is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def milliseconds(self) -> float:
        """Return the time of one step."""
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

    def wall(self) -> float:
        """Return the milliseconds of a whole step, from an idle GPU to an idle GPU."""
        self.wait()
        begin = time.perf_counter()
        self.optimizer.step()
        self.wait()
        return (time.perf_counter() - begin) * 1e3

    def extra_bytes(self) -> int:
        """Return the temporary memory of a step."""
        if self.device != "cuda":
            return 0
        self.wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.optimizer.step()
        self.wait()
        return torch.cuda.max_memory_allocated() - before

    def state_bytes(self) -> float:
        """Return the bytes of state per parameter.

        Tensors inside tensor subclasses count, and shared storages count once.
        """
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


def copy_bandwidth(device: str) -> float:
    """Return the bytes per second that a copy of half a gigabyte reads and writes."""
    if device != "cuda":
        return 1e10
    source = torch.empty(1 << 28, dtype=torch.bfloat16, device=device)
    target, times = torch.empty_like(source), []
    for _ in range(7):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return 2 * source.numel() * 2 / statistics.median(times)


def predicted(arm: str, dtype: torch.dtype, elements: int, ms: float, device: str, copy: float) -> dict[str, object]:
    """Return the share of a copy's bandwidth that our step reached, and the model's predicted time."""
    storage = arm.removeprefix("halfulp ")
    if dtype != torch.float32 and storage == "8bit":
        storage = "8bit stochastic"
    elif dtype != torch.float32 and "remainder" not in storage:
        return {}
    gpu = gpu_model.present(copy) if device == "cuda" else gpu_model.Gpu("sm_90", copy / gpu_model.REACHED, 1, 1e9)
    code = gpu_model.read_code().get((gpu.target, storage))
    if arm == storage or code is None:
        return {}
    seconds, bound = gpu_model.seconds(code, gpu, elements)
    reached = elements * code.bytes / (ms / 1e3) / copy
    return {"of copy": reached, "predicted ms": 1e3 * seconds, "bound": bound}


def measure(
    name: str, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: str, rounds: int, copy: float
) -> list[dict[str, object]]:
    """Return one row per optimizer for one list of tensors."""
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
        ms, elements = statistics.median(times[arm]), sum(p.numel() for p in arm_running.params)
        rows.append(
            {
                "workload": name,
                "optimizer": arm,
                "ms": ms,
                "wall ms": statistics.median(arm_running.wall() for _ in range(min(rounds, 9))),
                **predicted(arm, dtype, elements, ms, device, copy),
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
    "workload": "", "optimizer": "", "ms": ".3f", "wall ms": ".3f", "of copy": ".0%", "predicted ms": ".3f",
    "bound": "", "ratio p20": ".3f", "ratio p50": ".3f", "ratio p80": ".3f",
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
    names = [
        "torch",
        "triton",
        "torchao",
        "bitsandbytes",
        "flashoptim",
        "torch-optimi",
        "heavyball",
        "transformer-engine",
    ]
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
    copy = copy_bandwidth(device)
    for name, shapes in workloads.items():
        large = sum(math.prod(shape) for shape in shapes) > 1 << 26
        rounds = 3 if args.dry_run else args.rounds // 4 if large else args.rounds
        rows += measure(name, shapes, dtype, device, rounds, copy)
    console = Console(width=None if sys.stdout.isatty() else 170)
    console.print(show(rows, f"AdamW, {args.dtype} parameters. {versions(device)}"))
    for row in rows:
        if "failed" in row:
            console.print(f"{row['optimizer']} on {row['workload']}: {row['failed']}", markup=False)
    if args.csv is not None:
        partial = args.csv.with_name(args.csv.name + ".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*COLUMNS, "failed"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(args.csv)


if __name__ == "__main__":
    main()
