"""Stalled fraction on the gradients of a real training run: predicted against measured, by age, slot and rounding.

A small language model is trained in fp32 on the source text of the standard library. Its gradients also go to one AdamW
an arm, whose states are stored low and watched by StallMonitor (their parameters are copies that do not move). Two
predictions stand beside what is measured: the plain one, of independent normal gradients of one size and a constant
scale, and that of the drive measured on a sample of the run's blocks (:mod:`halfulp.theory.measured`).

What the drive is like is printed at the end. With --warmup the states start at zero only after so many steps, when the
gradient's scale has settled.

Usage: python benchmarks/theory_training.py [--warmup 500] [--steps 301]
"""

from __future__ import annotations

import argparse
import sysconfig
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import halfulp
from halfulp import get_format
from halfulp.theory.measured import RunDrive

AGES = (10, 30, 100, 200, 300)
BETAS = {"exp_avg": 0.9, "exp_avg_sq": 0.999}
SAMPLED = 2
"""Every second block is in the sample."""


def text() -> torch.Tensor:
    library = Path(sysconfig.get_path("stdlib"))
    data = b"".join(p.read_bytes() for p in sorted(library.glob("*.py")))
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warmup", type=int, default=500)
    parser.add_argument("--steps", type=int, default=301)
    args = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    model, data = LlamaForCausalLM(config), text()
    trainer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    arms = []
    for state in ("bf16", "fp8", "fp4"):
        for rounding in ("nearest", "stochastic"):
            copies = [torch.nn.Parameter(p.detach().clone()) for p in matrices]
            optimizer = halfulp.AdamW(copies, lr=0.0, weight_decay=0.0, state=state, rounding=rounding, min_size=0)
            arms.append((state, rounding, copies, optimizer, halfulp.StallMonitor(optimizer)))
    generator = torch.Generator().manual_seed(1)
    sample, seen = [], []
    for step in range(args.warmup + args.steps):
        starts = torch.randint(len(data) - 64, (8,), generator=generator)
        tokens = torch.stack([data[s : s + 64] for s in starts.tolist()])
        model.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        age = step - args.warmup
        if age >= 0:
            rows = [p.grad[::SAMPLED] for p in matrices if p.grad is not None and p.shape[1] == 64]
            sample.append(torch.cat(rows).double().numpy())  # a row of these matrices is a block
            for state, rounding, copies, optimizer, monitor in arms:
                for copy, source in zip(copies, matrices, strict=True):
                    copy.grad = source.grad
                optimizer.step()
                if age in AGES:
                    seen += [
                        (state, rounding, m.slot, m.age - 1, m.stalled, m.predicted or 0.0) for m in monitor.measure()
                    ]
        trainer.step()
    report(np.stack(sample), seen)


def report(gradients: np.ndarray, seen: list[tuple[str, str, str, int, float, float]]) -> None:
    drive = RunDrive.of(gradients)
    laws = {}
    for state, rounding, slot in dict.fromkeys(row[:3] for row in seen):
        fmt = get_format(state, signed=slot == "exp_avg")
        laws[state, rounding, slot] = drive.law(fmt, beta=BETAS[slot], rounding=rounding, slot=slot)
    print(f"{'state':5} {'rounding':10} {'slot':10} {'age':>5} {'measured':>8} {'plain':>15} {'measured drive':>15}")
    for state, rounding, slot, age, stalled, plain in sorted(seen, key=lambda r: (r[2], r[0], r[1], r[3])):
        better = float(laws[state, rounding, slot].stalled[age])
        print(
            f"{state:5} {rounding:10} {slot:10} {age:5d} {stalled:8.3f} "
            f"{plain:7.3f} ({stalled - plain:+.3f}) {better:6.3f} ({stalled - better:+.3f})"
        )
    relative = gradients / np.where(drive.levels > 0, drive.levels, 1.0)[:, :, None] / drive.sizes
    logs = np.log(drive.sizes)
    print(
        f"root mean square of mean over size {np.sqrt(np.mean(drive.ratios**2)):.3f}; log size within blocks varies by "
        f"{logs.std(axis=1).mean():.3f}; log level of a block from step to step by "
        f"{np.log(np.maximum(drive.levels, 1e-30)).std(axis=0).mean():.3f}; kurtosis beside these "
        f"{np.mean(relative**4):.2f}; correlation of neighbouring steps {np.mean(relative[1:] * relative[:-1]):.3f}; "
        f"zeros {np.mean(gradients == 0):.5f}; level of the last step over the first "
        f"{drive.levels[-1].mean() / drive.levels[0].mean():.2f}"
    )


if __name__ == "__main__":
    main()
