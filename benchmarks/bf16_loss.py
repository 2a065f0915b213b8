"""Loss of bf16 weights for several ways to keep the bits below bf16, each at its own best learning rate.

    python benchmarks/bf16_loss.py --out runs/bf16-loss --csv docs/results/bf16_loss.csv

The model is a small LLaMA on bytes of the standard library. Only the weights vary: fp32; bf16 rounded to nearest or
stochastically; bf16 with remainders of 8 or 16 bits. Gradients of bf16 weights are rounded to bf16, activations are
fp32, and AdamW has 8-bit states. Rates are tuned on a separate seed. An interrupted run resumes from its results.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from pathlib import Path
from typing import Any

import torch

import halfulp
from halfulp.lab.decoder import Decoder
from halfulp.lab.replicas import Replicas
from halfulp.lab.results import Interval
from halfulp.lab.text import load_corpus
from halfulp.lab.tokens import Tokens, prepare_tokens

WAYS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "nearest": {"param_rounding": "nearest"},
    "stochastic": {"param_rounding": "stochastic"},
    "remainder8": {"master_weights": "remainder8"},
    "remainder16": {"master_weights": "remainder16"},
}
CONTEXT, BATCH, TUNING_SEED = 64, 8, 1000


def train(way: str, pairs: list[tuple[int, float]], tokens: Tokens, steps: int) -> list[float]:
    """Return validation losses of runs that are trained together, one per pair of seed and peak rate."""
    seeds, rates = [s for s, _ in pairs], [r for _, r in pairs]
    runs = Replicas(Decoder("llama", tokens.vocab, 64, 2, 4), seeds, rates, betas=(0.9, 0.999), weight_decay=0.1)
    dtype = torch.float32 if way == "fp32" else torch.bfloat16
    params = [{n: torch.nn.Parameter(w[row].to(dtype)) for n, w in runs.weights.items()} for row in range(runs.count)]
    optimizers = [
        halfulp.AdamW(list(own.values()), lr=rate, weight_decay=0.1, state="8bit", min_size=0, seed=seed, **WAYS[way])
        for own, seed, rate in zip(params, seeds, rates, strict=True)
    ]
    for step in range(1, steps + 1):
        show(runs, params)
        batches = {seed: tokens.batch(seed, step, BATCH) for seed in set(seeds)}
        runs.backward(torch.stack([batches[seed] for seed in seeds]))
        runs.clip(1.0)
        share = min(1.0, step / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for row, (own, optimizer, rate) in enumerate(zip(params, optimizers, rates, strict=True)):
            for name, p in own.items():
                p.grad = runs.weight_grads[name][row].to(dtype)
            optimizer.param_groups[0]["lr"] = rate * share
            optimizer.step()
    show(runs, params)
    return [float(x) for x in runs.validation(tokens.validation(64))]


def show(runs: Replicas, params: list[dict[str, torch.nn.Parameter]]) -> None:
    """Copy the weights to where the model reads them."""
    for row, own in enumerate(params):
        for name, p in own.items():
            runs.weights[name][row].copy_(p.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 8e-3])
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    prepare_tokens(load_corpus(), "bytes", CONTEXT, args.out / "tokens")
    tokens = Tokens(args.out / "tokens", CONTEXT)
    rows = []
    for way in WAYS:
        path = args.out / f"{way}.json"
        if not path.exists():
            tuned = train(way, [(TUNING_SEED, rate) for rate in args.rates], tokens, args.steps)
            best = args.rates[tuned.index(min(tuned))]
            final = train(way, [(seed, best) for seed in range(args.seeds)], tokens, args.steps)
            path.write_text(json.dumps({"tuned": tuned, "best": best, "final": final}))
        found = json.loads(path.read_text())
        base = json.loads((args.out / "fp32.json").read_text())["final"]
        loss, gap = (
            Interval.of([a - b for a, b in zip(found["final"], of, strict=True)]) for of in ([0.0] * len(base), base)
        )
        assert loss is not None
        assert gap is not None
        rows.append([way, found["best"], loss.mean, gap.mean, gap.half or 0.0, *found["tuned"]])
        above = f"{gap.mean:+.4f} +- {gap.half or 0.0:.4f}"
        print(f"{way:12} rate {found['best']:g}  loss {loss.mean:.4f}  above fp32 {above}", flush=True)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(
                ["weights", "best_lr", "loss", "above_fp32", "half_interval_95", *(f"tuning_{r:g}" for r in args.rates)]
            )
            writer.writerows([w, r, *(f"{x:.4f}" for x in rest)] for w, r, *rest in rows)


if __name__ == "__main__":
    main()
