"""Shared by the benchmarks of losses: one small model, trained by several optimizers with the same seeds.

The model is a LLaMA, 64 wide, on the bytes of the standard library. Activations are fp32. Runs of an
optimizer that differ in seed or learning rate share one process: their forward and backward passes are batched, and
each has an optimizer of its own. Learning rates are tuned on a seed that is not used again.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import halfulp
from halfulp.lab.decoder import Decoder
from halfulp.lab.replicas import Replicas
from halfulp.lab.results import Interval
from halfulp.lab.text import load_corpus
from halfulp.lab.tokens import Tokens, prepare_tokens

__all__ = ["DECAY", "Arm", "Setting", "command", "ours", "table"]

DECAY = 0.1
"""The weight decay of every arm."""
Make = Callable[[list[torch.nn.Parameter], float, int], torch.optim.Optimizer]
"""Function that returns an optimizer: (parameters, learning rate, seed)."""


@dataclass(frozen=True)
class Arm:
    """One optimizer, of a library. Its weights have the type `dtype`; gradients are rounded to it."""

    make: Make
    dtype: torch.dtype = torch.float32
    library: str = "halfulp"


def ours(dtype: torch.dtype = torch.float32, **options: Any) -> Arm:
    """Return an arm with ``halfulp.AdamW`` and these options."""
    return Arm(lambda params, lr, seed: halfulp.AdamW(params, lr=lr, weight_decay=DECAY, seed=seed, **options), dtype)


@dataclass(frozen=True)
class Setting:
    """The length of a run, the peak rates tried, the number of seeds after tuning, and the model's layers."""

    steps: int
    rates: tuple[float, ...]
    seeds: int
    layers: int = 2
    context: int = 64
    batch: int = 8
    clip: float = 1.0
    warmup: int = 50
    tuning_seed: int = 1000


def train(arm: Arm, pairs: list[tuple[int, float]], tokens: Tokens, setting: Setting) -> list[float]:
    """Return the validation loss of each run, given by seed and peak rate; NaN for one that diverged."""
    seeds, rates = [s for s, _ in pairs], [r for _, r in pairs]
    runs = Replicas(
        Decoder("llama", tokens.vocab, 64, setting.layers, 4), seeds, rates, betas=(0.9, 0.999), weight_decay=DECAY
    )
    params = [
        {n: torch.nn.Parameter(w[row].to(arm.dtype)) for n, w in runs.weights.items()} for row in range(runs.count)
    ]
    optimizers = [arm.make(list(p.values()), rate, seed) for p, rate, seed in zip(params, rates, seeds, strict=True)]
    for step in range(1, setting.steps + 1):
        show(runs, params)
        batches = {seed: tokens.batch(seed, step, setting.batch) for seed in set(seeds)}
        runs.backward(torch.stack([batches[seed] for seed in seeds]))
        runs.clip(setting.clip)
        share = min(1.0, step / setting.warmup) * 0.5 * (1 + math.cos(math.pi * step / setting.steps))
        for row, (own, optimizer, rate) in enumerate(zip(params, optimizers, rates, strict=True)):
            for name, p in own.items():
                p.grad = runs.weight_grads[name][row].to(arm.dtype)
            for group in optimizer.param_groups:
                set_rate(group, rate * share)
            optimizer.step()
    show(runs, params)
    return [float(x) for x in runs.validation(tokens.validation(64))]


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set a group's learning rate, in its tensor if it has one (torchao)."""
    if torch.is_tensor(group["lr"]):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def show(runs: Replicas, params: list[dict[str, torch.nn.Parameter]]) -> None:
    """Copy the weights to where the model reads them."""
    for row, own in enumerate(params):
        for name, p in own.items():
            runs.weights[name][row].copy_(p.detach())


def command(arms: Mapping[str, Arm], setting: Setting, description: str | None) -> None:
    """Run a benchmark of these arms with the arguments of the command line, whose defaults are those of `setting`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--csv", type=Path, help="table to write")
    parser.add_argument("--only", default="", help="the first arm, and those whose name contains this")
    parser.add_argument("--steps", type=int, default=setting.steps)
    parser.add_argument("--seeds", type=int, default=setting.seeds)
    parser.add_argument("--rates", type=float, nargs="+", default=setting.rates)
    args = parser.parse_args()
    first = next(iter(arms))
    wanted = {name: arm for name, arm in arms.items() if name == first or args.only in name}
    study(wanted, replace(setting, steps=args.steps, seeds=args.seeds, rates=tuple(args.rates)), args.out, args.csv)


def study(arms: Mapping[str, Arm], setting: Setting, out: Path, results: Path | None) -> None:
    """Run what is missing in the folder `out`, print each arm's loss, and write the CSV `results`.

    Every arm runs at its best rate and at that of the first arm. Both are compared with the first arm, seed by seed.
    Arms of libraries that are not installed are left out.
    """
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    prepare_tokens(load_corpus(), "bytes", setting.context, out / "tokens")
    tokens = Tokens(out / "tokens", setting.context)
    rows: list[list[Any]] = []
    base: list[float] = []
    for name, arm in arms.items():
        if find_spec(arm.library) is None:
            print(f"{name}: left out, {arm.library} is not installed")
            continue
        runs = _Results(out / f"{name}.json")
        tuned = runs.get(arm, [(setting.tuning_seed, rate) for rate in setting.rates], tokens, setting)
        best = min(range(len(tuned)), key=lambda i: math.inf if math.isnan(tuned[i]) else tuned[i])
        rate = setting.rates[best]
        common = rate if not rows else float(rows[0][1])
        own, same = (
            runs.get(arm, [(seed, r) for seed in range(setting.seeds)], tokens, setting) for r in (rate, common)
        )
        base = base or own
        gaps = [Interval.of([a - b for a, b in zip(losses, base, strict=True)]) for losses in (own, same)]
        figures = [x for gap in gaps if gap is not None for x in (gap.mean, gap.half or 0.0)]
        rows.append([name, f"{rate:g}", *(f"{x:.4f}" for x in (sum(own) / len(own), *figures, *tuned))])
        print(
            "{:28} rate {}  loss {}  difference {} ± {}, at the first arm's rate {} ± {}".format(*rows[-1]), flush=True
        )
    if results:
        heads = ["arm", "best_lr", "loss", "difference", "half_interval_95", "difference_same_lr", "half_same_lr"]
        with results.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*heads, *(f"tuning_{r:g}" for r in setting.rates)])
            writer.writerows(rows)


def table(results: Path) -> str:
    """Return the table of a page: differences from the first arm of a CSV, at its rate and at each arm's own."""
    with results.open(newline="") as file:
        first, *others = csv.DictReader(file)
    lines = [
        f"| loss minus that of {first['arm']} | at lr {first['best_lr']}, best for {first['arm']} "
        "| at its own best lr | own best lr |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in others:
        same, own = (
            f"{float(row[mean]):+.3f} ± {float(row[half]):.3f}"
            for mean, half in (("difference_same_lr", "half_same_lr"), ("difference", "half_interval_95"))
        )
        lines.append(f"| {row['arm']} | {same} | {own} | {row['best_lr']} |")
    return "\n".join(lines)


class _Results:
    """The losses of an arm by seed and rate, in a file. What is missing is measured."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, arm: Arm, pairs: list[tuple[int, float]], tokens: Tokens, setting: Setting) -> list[float]:
        """Return the losses of some runs."""
        keys = [f"seed {seed}, rate {rate:g}" for seed, rate in pairs]
        missing = [(key, pair) for key, pair in zip(keys, pairs, strict=True) if key not in self.found]
        if missing:
            losses = train(arm, [pair for _, pair in missing], tokens, setting)
            self.found |= dict(zip([key for key, _ in missing], losses, strict=True))
            self.path.write_text(json.dumps(self.found, indent=1))
        return [self.found[key] for key in keys]
