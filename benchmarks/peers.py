"""Distance of other libraries' second moments from their reference, seen by the monitor.

AdamW at beta2 = 0.999 takes gradients N(0, scale**2) of scale 1, then 0.1, then 3, with `steps` steps each, on a bf16
matrix. At the end of each part the script prints the mean stored v over its reference, the stalled fraction (of codes,
if an fp32 scale moves the block) and the lag (median log of stored over reference). Missing peers are skipped:

    pip install --no-deps torchao torch-optimi bitsandbytes pytorch-optimizer heavyball
    python benchmarks/peers.py [--steps 3000] [--only NAME] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # the arithmetic is the same uncompiled, and the compiler is slow

import torch
from rich.console import Console
from rich.table import Table

import halfulp

SCALES = (1.0, 0.1, 3.0)
BETAS = (0.9, 0.999)
Maker = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


def _peer(module: str, make: Callable[[Any, list[torch.nn.Parameter]], torch.optim.Optimizer]) -> Maker:
    return lambda params: make(importlib.import_module(module), params)


def _ours(state: str, rounding: str) -> Maker:
    return lambda params: halfulp.AdamW(params, lr=1e-3, state=state, rounding=rounding)


ARMS: dict[str, Maker] = {
    "torch AdamW, bf16 states": lambda params: torch.optim.AdamW(params, lr=1e-3),
    "optimi AdamW, bf16": _peer("optimi", lambda m, p: m.AdamW(p, lr=1e-3, betas=BETAS)),
    "bitsandbytes AdamW8bit": _peer("bitsandbytes", lambda m, p: m.optim.AdamW8bit(p, lr=1e-3)),
    "torchao AdamW8bit": _peer("torchao.optim", lambda m, p: m.AdamW8bit(p, lr=1e-3)),
    "torchao AdamWFp8": _peer("torchao.optim", lambda m, p: m.AdamWFp8(p, lr=1e-3)),
    "torchao AdamW4bit": _peer("torchao.optim", lambda m, p: m.AdamW4bit(p, lr=1e-3)),
    "pytorch-optimizer FlashAdamW": _peer("pytorch_optimizer", lambda m, p: m.FlashAdamW(p, lr=1e-3)),
    "heavyball AdamW, bf16": _peer(
        "heavyball", lambda m, p: m.AdamW(p, lr=1e-3, betas=BETAS, storage_dtype="bfloat16")
    ),
    "halfulp bf16, nearest": _ours("bf16", "nearest"),
    "halfulp bf16, stochastic": _ours("bf16", "stochastic"),
    "halfulp fp8, nearest": _ours("fp8", "nearest"),
    "halfulp fp8, stochastic": _ours("fp8", "stochastic"),
    "halfulp 8bit, stochastic": _ours("8bit", "stochastic"),
    "halfulp 4bit, stochastic": _ours("4bit", "stochastic"),
}


def run(make: Maker, steps: int) -> list[dict[str, Any]]:
    """Return the measurements of the second moment at the end of each part."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(64, 256, dtype=torch.bfloat16))
    optimizer = make([weight])
    gradients = torch.Generator().manual_seed(1)
    found = []
    with halfulp.StallMonitor(optimizer, every=10) as watch:
        for scale in SCALES:
            for _ in range(steps):
                weight.grad = (torch.randn(weight.shape, generator=gradients) * scale).bfloat16()
                optimizer.step()
            m = next(m for m in watch.measure() if m.slot == "exp_avg_sq")
            found.append({"scale": scale, "format": m.format, "ratio": m.ratio, "stalled": m.stalled, "lag": m.lag})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--only", help="arms whose name contains this")
    parser.add_argument("--json", type=Path, help="write the figures to a file as well")
    args = parser.parse_args()
    table = Table("optimizer", "format of v", title=f"second moment after {args.steps} steps at each gradient scale")
    for figure in ("v / reference", "stalled", "lag"):
        table.add_column(f"{figure} at scale {' / '.join(f'{s:g}' for s in SCALES)}", justify="right")
    results: dict[str, list[dict[str, Any]]] = {}
    for name, make in ARMS.items():
        if args.only and args.only not in name:
            continue
        try:
            found = results[name] = run(make, args.steps)
        except ModuleNotFoundError as error:
            print(f"{name}: left out, {error}")
            continue
        cells = [" / ".join(f"{f[k]:{spec}}" for f in found) for k, spec in (("ratio", ".2f"), ("stalled", ".3f"))]
        table.add_row(name, found[0]["format"], *cells, " / ".join(f"{f['lag']:+.2f}" for f in found))
    Console(width=160).print(table)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
