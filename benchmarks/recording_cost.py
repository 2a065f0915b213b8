"""Cost of recording gradients in an arm of `halfulp compare`, from its first step to its summary.

The same arm is trained with and without its gradient sample, in turn, in one single-threaded process. The script
compares the processor time of the steps, of the checkpoints with the recorded gradients, and of the final prediction.
The runs must end in the same bits.

Usage: python benchmarks/recording_cost.py [--arm fp8-nearest] [--pairs 8] [--steps 500]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file

from halfulp import GradientSample
from halfulp.lab import train as arm
from halfulp.lab.compare import prepare_run_folder
from halfulp.lab.config import CompareConfig, RunSpec
from halfulp.lab.own import own_prediction
from halfulp.lab.text import load_corpus
from halfulp.optim import AdamW


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", default="fp8-nearest")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()
    config = CompareConfig(arms=(args.arm,), steps=args.steps)
    predicting: list[float] = []

    def timed(sample: GradientSample, optimizer: AdamW, spec: RunSpec) -> dict[str, list[float]]:
        begin = time.process_time()
        found = own_prediction(sample, optimizer, spec)
        predicting.append(time.process_time() - begin)
        return found

    with tempfile.TemporaryDirectory() as name, mock.patch.object(arm, "own_prediction", timed):
        root = Path(name)
        config = prepare_run_folder(root / "runs", config, load_corpus())
        seconds: dict[int, list[float]] = {config.gradient_blocks: [], 0: []}
        for pair in range(-1, args.pairs):  # the first pair warms up
            for blocks in sorted(seconds, reverse=pair % 2 == 0):
                folder = root / f"{blocks}_{pair}"
                begin = time.process_time()
                arm.train(folder, root / "runs" / "tokens", replace(config, gradient_blocks=blocks), config.runs()[0])
                seconds[blocks].append(time.process_time() - begin)
            ratio = seconds[config.gradient_blocks][-1] / seconds[0][-1]
            print(f"pair {pair}: {seconds[0][-1]:.2f} s without, {ratio:.4f} with", flush=True)
        ends = [load_file(root / f"{blocks}_0" / "checkpoint.safetensors") for blocks in seconds]
        same = all(torch.equal(ends[0][key], ends[1][key]) for key in ends[1])
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)][1:]
    share = statistics.median(predicting) / statistics.median(seconds[0])
    print(
        f"{args.arm}, {args.steps} steps, {config.gradient_blocks} blocks: with / without "
        f"{statistics.median(ratios):.4f} (median of {args.pairs} pairs, {min(ratios):.4f} to {max(ratios):.4f}), "
        f"of which the prediction at the end {share:.4f}; {'the same bits' if same else 'OTHER BITS'}"
    )
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
