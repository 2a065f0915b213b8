"""Resume a torch checkpoint in 8 bits: the loss continues without a jump. Draws docs/images/resume.png.

A two-layer network is trained with torch AdamW for 300 steps. It continues in torch, and converted to fp8 and 8bit
states, on the same batches.

    python benchmarks/resume.py [--steps 300] [--out docs/images/resume.png]
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from pictures import PALETTE, axes_of, label_ends, save

import halfulp


def train(net: torch.nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        x = torch.randn(64, 64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = (net(x) - x.roll(1, 1).abs()).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("docs/images/resume.png"))
    args = parser.parse_args()
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64))
    first = torch.optim.AdamW(net.parameters(), lr=1e-3)
    before = train(net, first, 0, args.steps)
    curves = {}
    for name in ("fp8", "8bit"):
        twin = copy.deepcopy(net)
        optimizer = halfulp.AdamW(twin.parameters(), state=name)
        optimizer.load_state_dict(halfulp.convert_state_dict(first.state_dict(), to=optimizer))
        curves[name] = train(twin, optimizer, args.steps, 2 * args.steps)
    reference = train(net, first, args.steps, 2 * args.steps)
    for name, losses in curves.items():
        gaps = [abs(a - b) / b for a, b in zip(losses, reference, strict=True)]
        print(f"{name}: largest gap of the loss to torch's own continuation {max(gaps):.2%}, first step {gaps[0]:.2%}")

    later = range(args.steps, 2 * args.steps)
    figure, (axes, apart) = axes_of(2, height=5.6, sharex=True, height_ratios=[3, 2])
    axes.plot(range(2 * args.steps), before + reference, color="0.5", linewidth=1.2)
    axes.set(ylabel="training loss", yscale="log", title="A torch checkpoint resumed in 8 bits")
    ends = []
    for (name, losses), colour in zip(curves.items(), PALETTE, strict=False):
        axes.plot(later, losses, color=colour, linewidth=0.8)
        gap = [100 * (a / b - 1) for a, b in zip(losses, reference, strict=True)]
        apart.plot(later, gap, color=colour, linewidth=0.8)
        ends.append((name, colour, later[-1], gap[-1]))
    apart.axhline(0, color="0.5", linewidth=0.8)
    apart.set(xlabel="step", ylabel="loss over torch's, %")
    for each in (axes, apart):
        each.axvline(args.steps, color="0.8", zorder=0)
    label_ends(apart, ends)
    save(figure, args.out)


if __name__ == "__main__":
    main()
