"""Host step and host memory of an offloaded AdamW, beside DeepSpeed's CPUAdam and torchao's offload, interleaved.

Every round makes one step of each arm, in an order that rotates, in one process. "Host step" is the update of tensors
in host memory alone, as CPUAdam does it. "With copies" also copies gradients out and weights back; without a GPU, both
are host memory, and torchao's streams are replaced by a stand-in. Peers that are not installed are left out:

    python benchmarks/offload.py --threads 1 2 --csv docs/results/offload.csv
    pip install --target PEERS --no-deps torchao deepspeed einops hjson msgpack py-cpuinfo tqdm ninja

CPUAdam is compiled when it is first built; this takes a few minutes. Add PEERS to PYTHONPATH and PEERS/bin to PATH.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from interleaved import interleaved
from rich.console import Console
from rich.table import Table
from torch import Tensor

import halfulp
from halfulp.kernels import backends
from halfulp.lab.environment import processor
from halfulp.training import offload

BASES = {
    "cpuadam": "DeepSpeed CPUAdam, fp32 weights",
    "torchao": "torchao CPUOffloadOptimizer, fp32 weights",
    "torch_fused": "torch fused, fp32 weights",
}
"""Reference arms, by which the others are divided."""
QUARTILES = {"p25": 25, "p50": 50, "p75": 75}
FIELDS = (
    *("processor", "threads", "elements", "arm", "measured", "host_bytes_per_parameter", "ms"),
    *(f"{q}_of_{base}" for base in BASES for q in QUARTILES),
)


@dataclass
class Arm:
    """One row of the table.

    Parameters
    ----------
    measured
        ``"host step"`` or ``"with copies"``.
    step
        Function that is timed.
    held
        Function that returns the tensors held in host memory between steps, called after a step.
    """

    measured: str
    step: Callable[[], object]
    held: Callable[[], list[Tensor]]


def parameter(elements: int, dtype: torch.dtype) -> torch.nn.Parameter:
    """Return one matrix with a gradient."""
    generator = torch.Generator().manual_seed(0)
    shape = (max(1, elements // 4096), min(elements, 4096))
    p = torch.nn.Parameter((0.02 * torch.randn(shape, generator=generator)).to(dtype))
    p.grad = (1e-3 * torch.randn(p.shape, generator=generator)).to(dtype)
    return p


def tensors_of(optimizer: Any) -> list[Tensor]:
    """Return the parameters and states of an optimizer."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return params + [x for p in params for x in optimizer.state[p].values() if isinstance(x, Tensor)]


def on_host(make: Callable[[list[Any]], Any], elements: int, dtype: torch.dtype) -> Arm:
    """Return the step of an optimizer over host memory."""
    p = parameter(elements, dtype)
    optimizer = make([p])
    return Arm("host step", optimizer.step, lambda: [*tensors_of(optimizer), p.grad])  # type: ignore[list-item]


def offloaded(elements: int, dtype: torch.dtype, **arguments: Any) -> Arm:
    """Return the whole step of an optimizer of halfulp under ``offload``."""
    optimizer = offload(halfulp.AdamW([parameter(elements, dtype)], **arguments))
    return Arm("with copies", optimizer.step, lambda: [*tensors_of(optimizer.optimizer), *optimizer._grads.values()])


def torchao_offload(elements: int, dtype: torch.dtype) -> Arm:
    """Return the whole step of torchao's offload over torch's fused AdamW. A backward hook copies gradients out."""
    from torchao.optim import CPUOffloadOptimizer

    p = parameter(elements, dtype)
    with without_device():
        optimizer = CPUOffloadOptimizer([p], torch.optim.AdamW, lr=1e-3)
    (hook,) = p._post_accumulate_grad_hooks.values()  # type: ignore[union-attr]

    def step() -> None:
        with without_device():
            hook(p)
            optimizer.step()

    def held() -> list[Tensor]:
        (inner,) = optimizer.optim_dict.values()
        return [*tensors_of(inner), optimizer.param_d2h_map[p].grad]

    return Arm("with copies", step, held)


class _Stream:
    """A stream whose work is done immediately."""

    def wait_stream(self, other: object) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Do nothing."""

    def record_event(self) -> _Stream:
        """Return an object with ``synchronize``."""
        return self


@contextlib.contextmanager
def without_device() -> Iterator[None]:
    """Make torchao's offload copy from host memory to host memory within the block."""
    empty_like = torch.empty_like

    def unpinned(x: Tensor, **options: Any) -> Tensor:
        return empty_like(x, **{k: v for k, v in options.items() if k != "pin_memory"})

    with contextlib.ExitStack() as stack:
        if not torch.cuda.is_available():
            for target, value in {
                "torchao.optim.cpu_offload.get_available_devices": lambda: ["cuda"],
                "torch.cuda.Stream": _Stream,
                "torch.cuda.current_stream": _Stream,
                "torch.cuda.stream": lambda stream: contextlib.nullcontext(),
                "torch.empty_like": unpinned,
            }.items():
                stack.enter_context(mock.patch(target, value))
        yield


def arms(elements: int) -> dict[str, Arm]:
    """Return every arm whose library is installed, with initialized states."""
    fp32, bf16 = torch.float32, torch.bfloat16
    made: dict[str, Arm] = {
        BASES["torch_fused"]: on_host(lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True), elements, fp32)
    }
    try:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        made[BASES["cpuadam"]] = on_host(lambda p: DeepSpeedCPUAdam(p, lr=1e-3, weight_decay=0.01), elements, fp32)
        made["DeepSpeed CPUAdam, bf16 weights"] = on_host(
            lambda p: DeepSpeedCPUAdam(p, lr=1e-3, weight_decay=0.01), elements, bf16
        )
    except ModuleNotFoundError as error:
        print(f"DeepSpeed is left out: {error}")
    try:
        made[BASES["torchao"]] = torchao_offload(elements, fp32)
        made["torchao CPUOffloadOptimizer, bf16 weights and states"] = torchao_offload(elements, bf16)
    except ModuleNotFoundError as error:
        print(f"torchao is left out: {error}")
    cases: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
        "fp32 weights, fp32 states": (fp32, {"state": "fp32"}),
        "fp32 weights, 8-bit": (fp32, {"state": "8bit"}),
        "bf16 weights, 8-bit": (bf16, {"state": "8bit"}),
        "bf16 + remainder8, 8-bit": (bf16, {"state": "8bit", "master_weights": "remainder8"}),
        "bf16 + remainder16, 8-bit": (bf16, {"state": "8bit", "master_weights": "remainder16"}),
        "bf16 + fp32, 8-bit": (bf16, {"state": "8bit", "master_weights": "fp32"}),
    }
    for name, (dtype, arguments) in cases.items():
        made[f"halfulp, {name}"] = on_host(
            lambda p, arguments=arguments: halfulp.AdamW(p, lr=1e-3, **arguments), elements, dtype
        )
        made[f"halfulp offload, {name}"] = offloaded(elements, dtype, lr=1e-3, **arguments)
    for arm in made.values():
        arm.step()
    return made


def measure(made: dict[str, Arm], elements: int, rounds: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """Return one row per arm."""
    times = interleaved({name: arm.step for name, arm in made.items()}, rounds, clock)
    rows = []
    for name, arm in made.items():
        mine = np.array(times[name])
        row: dict[str, Any] = {
            "processor": processor(), "threads": torch.get_num_threads(), "elements": elements,
            "arm": name, "measured": arm.measured,
            "host_bytes_per_parameter": round(sum(x.nbytes for x in arm.held()) / elements, 2),
            "ms": round(1e3 * float(np.median(mine)), 2),
        }  # fmt: skip
        for short, base in BASES.items():
            if base in times:
                ratios = mine / np.array(times[base])
                row |= {f"{q}_of_{short}": round(float(np.percentile(ratios, at)), 3) for q, at in QUARTILES.items()}
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """Print the table for one number of threads."""
    head = rows[0]
    table = Table("arm", "measured", title=f"{head['elements']:,} elements, {head['threads']} threads")
    for column in ("host bytes", "ms", "of CPUAdam (quartiles)", "of torchao's offload", "of torch fused"):
        table.add_column(column, justify="right")
    for r in rows:
        ratios = [
            f"{r[f'p50_of_{short}']:.2f} ({r[f'p25_of_{short}']:.2f} to {r[f'p75_of_{short}']:.2f})"
            if f"p50_of_{short}" in r
            else ""
            for short in BASES
        ]
        table.add_row(r["arm"], r["measured"], f"{r['host_bytes_per_parameter']:.2f}", f"{r['ms']:.1f}", *ratios)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=1 << 24)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a machine that is shared")
    parser.add_argument("--csv", type=Path, help="write the figures there as well")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    console = Console(width=None if sys.stdout.isatty() else 170)
    console.print(f"{processor()}; {backends()['cpu']}; torch {torch.__version__}; clock: {args.clock}")
    made, rows = arms(args.elements), []
    for threads in args.threads:
        torch.set_num_threads(threads)
        found = measure(
            made, args.elements, args.rounds, time.process_time if args.clock == "cpu" else time.perf_counter
        )
        show(found, console)
        rows += found
    if args.csv is not None:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
