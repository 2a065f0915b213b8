"""Loss under Lookahead by the format of its slow weights, paired seeds: a byte model of one module's source.

    python benchmarks/lookahead.py [--steps 400] [--seeds 3]

Prints the mean loss of the last 50 steps for each format, and its difference to fp32 with the standard error over the
seeds.
"""

from __future__ import annotations

import argparse
import inspect

import torch
from torch import nn

import halfulp

FORMATS = ("fp32", "bf16", "8bit", "fp8", "int8", "4bit")


def run(state: str, seed: int, steps: int) -> float:
    """Mean loss of the last 50 steps."""
    data = torch.tensor([min(b, 127) for b in inspect.getsource(argparse).encode()[:20_000]])
    inputs, targets = torch.stack([data[:-2], data[1:-1]], 1), data[2:]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(128, 16), nn.Flatten(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 128))
    inside = halfulp.AdamW(model.parameters(), lr=1e-2, state="fp32")
    optimizer = halfulp.Lookahead(inside, 5, 0.5, state=state, min_size=0, block_size=32)
    losses = []
    for step in range(steps):
        index = torch.randint(len(targets), (128,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[index]), targets[index])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-50:]) / 50


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {s: torch.tensor([run(s, seed, given.steps) for seed in range(given.seeds)]) for s in FORMATS}
    for state, losses in found.items():
        apart = losses - found["fp32"]
        error = apart.std() / given.seeds**0.5 if given.seeds > 1 else torch.tensor(float("nan"))
        print(f"{state:6} {losses.mean():.4f}  {apart.mean():+.4f} +- {error:.4f}")


if __name__ == "__main__":
    main()
