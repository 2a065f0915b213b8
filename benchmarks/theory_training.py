"""Stalled fraction on the gradients of a real training run: predicted against measured, by age, slot and rounding.

A small language model is trained in fp32 on the source text of the standard library. Its gradients also go to one AdamW
an arm, whose states are stored low and watched by StallMonitor (their parameters are copies that do not move). The
prediction takes independent normal gradients of a constant scale, so the reasons to be off are shown beside it: the
e-folds by which the gradient's root mean square has changed since the states were zero, and the share of coordinates
without gradient. With --warmup the states start at zero only after so many steps, when the gradient's scale has
settled.

Usage: python benchmarks/theory_training.py [--warmup 400] [--steps 301]
"""

from __future__ import annotations

import argparse
import math
import sysconfig
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import halfulp

AGES = (30, 100, 200, 300, 500, 1000)


def text() -> torch.Tensor:
    library = Path(sysconfig.get_path("stdlib"))
    data = b"".join(p.read_bytes() for p in sorted(library.glob("*.py")))
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warmup", type=int, default=400)
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
    print(
        f"{'state':5} {'rounding':10} {'slot':10} {'age':>5} {'measured':>8} {'predicted':>9} {'off':>7} "
        f"{'scale':>6} {'no gradient':>11}"
    )
    first = 0.0
    for step in range(args.warmup + args.steps):
        starts = torch.randint(len(data) - 64, (8,), generator=generator)
        tokens = torch.stack([data[s : s + 64] for s in starts.tolist()])
        model.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        age = step - args.warmup
        if age >= 0:
            size = sum(float(p.grad.square().sum()) for p in matrices if p.grad is not None)
            zero = sum(int((p.grad == 0).sum()) for p in matrices) / sum(p.numel() for p in matrices)
            first = first if age else math.log(size) / 2
            for state, rounding, copies, optimizer, monitor in arms:
                for copy, source in zip(copies, matrices, strict=True):
                    copy.grad = source.grad
                optimizer.step()
                if age not in AGES:
                    continue
                for m in monitor.measure():
                    print(
                        f"{state:5} {rounding:10} {m.slot:10} {m.age:5d} {m.stalled:8.3f} {m.predicted or 0.0:9.3f} "
                        f"{m.stalled - (m.predicted or 0.0):+7.3f} {math.log(size) / 2 - first:+6.2f} {zero:11.3f}",
                        flush=True,
                    )
        trainer.step()


if __name__ == "__main__":
    main()
