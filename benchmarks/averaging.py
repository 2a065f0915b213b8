"""How far a low-precision weight average is from the fp32 one after a real run; what its update costs; what it takes.

``python benchmarks/averaging.py distance`` trains a network on scikit-learn's digits for 20 000 steps and keeps every
average beside the same run: ours in several formats, and those of torch, timm and ema-pytorch in bfloat16 (timm and
ema-pytorch where installed); ``formats`` does the same with every 8-bit format. ``cost`` times the update against
torch's ``AveragedModel`` with its foreach EMA, interleaved. ``difference`` compares storing the average with storing
its difference to the live weights over a grid of learning rates.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from halfulp import Quantizer, Scaling
from halfulp.averaging import EMA

DECAYS = (0.999, 0.9999, 0.99999)


def digits() -> tuple[Tensor, Tensor]:
    """Images of scikit-learn's digits in [0, 1], and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)


def network(width: int = 128) -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 10, bias=False)
    )


def train(
    model: nn.Module, steps: int, lr: float, schedule: str, before: Callable[[], None] | None = None
) -> Iterator[int]:
    """AdamW steps on noisy digits; yields after each."""
    images, labels = digits()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        factor = 1.0 if schedule == "constant" else (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
        pick = torch.randint(len(images), (32,), generator=generator)
        x = images[pick] + 0.3 * torch.randn(32, 64, generator=generator)
        loss = nn.functional.cross_entropy(model(x), labels[pick])
        optimizer.zero_grad()
        loss.backward()
        if before is not None:
            before()
        optimizer.step()
        yield step


def flat(parameters: Any) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in parameters])


class Peer:
    """A library's average of a bfloat16 model, which follows the fp32 one step by step."""

    def __init__(self, name: str, live: nn.Module, decay: float) -> None:
        self.name, self.decay = name, decay
        if name == "torch":
            self.average: Any = AveragedModel(live, multi_avg_fn=get_ema_multi_avg_fn(decay))
            self.average.update_parameters(live)
            self.update: Callable[[], Any] = lambda: self.average.update_parameters(live)
            self.model = self.average.module
        elif name == "timm":
            from timm.utils import ModelEmaV3

            self.average = ModelEmaV3(live, decay=decay)
            self.update, self.model = lambda: self.average.update(live), self.average.module
        else:
            from ema_pytorch import EMA as Theirs

            self.average = Theirs(live, beta=decay, update_after_step=0, update_every=1, min_value=decay)
            self.average.update()
            self.update, self.model = self.average.update, self.average.ema_model


def peers() -> list[str]:
    found = ["torch"]
    for name, module in (("timm", "timm"), ("ema-pytorch", "ema_pytorch")):
        try:
            __import__(module)
            found.append(name)
        except ImportError:
            print(f"{name} is not installed: left out")
    return found


def ours(formats: bool) -> dict[str, dict[str, Any]]:
    """What is compared: the named formats, or every 8-bit one with several scalings."""
    found: dict[str, dict[str, Any]] = {
        "bf16": {"state": "bf16"},
        "8bit": {"state": "8bit"},
        "4bit": {"state": "4bit"},
        "bf16 nearest": {"state": "bf16", "rounding": "nearest"},
        "8bit nearest": {"state": "8bit", "rounding": "nearest"},
        "bf16 difference": {"state": "bf16", "difference": True},
        "8bit difference": {"state": "8bit", "difference": True},
    }
    if not formats:
        return found
    found = {}
    for fmt in ("float8_e4m3fn", "float8_e3m4", "linear8", "dynamic8"):
        for kind, size in (("pow2", 128), ("pow2", 64), ("pow2", 32), ("fp32", 128)):
            scaling = Scaling(kind, "block", size)  # type: ignore[arg-type]
            found[f"{fmt} {kind} {size}"] = {"state": Quantizer(fmt, scaling)}  # type: ignore[arg-type]
    return found


def distance(steps: int, lr: float, schedule: str, formats: bool) -> dict[str, dict[str, float]]:
    """Distances to the fp32 average, relative to its norm, and to the way that it has gone."""
    torch.manual_seed(0)
    model = network()
    half = copy.deepcopy(model).bfloat16()
    reference = {d: flat(model.parameters()) for d in DECAYS}
    start = flat(model.parameters())
    averages = {(n, d): EMA(model, d, **options) for n, options in ours(formats).items() for d in DECAYS}
    exact = {d: EMA(model, d, state="fp32") for d in DECAYS}
    theirs = {(n, d): Peer(n, half, d) for n in ([] if formats else peers()) for d in DECAYS}
    differences = [e for e in averages.values() if e.difference]

    def before() -> None:
        for ema in differences:
            ema.before_step()

    for _ in train(model, steps, lr, schedule, before):
        with torch.no_grad():
            for a, b in zip(half.parameters(), model.parameters(), strict=True):
                a.copy_(b)
            now = flat(model.parameters())
            for d in DECAYS:
                reference[d] += (now - reference[d]) * (1 - d)
        for ema in (*averages.values(), *exact.values()):
            ema.update()
        for peer in theirs.values():
            peer.update()
    rows: dict[str, dict[str, float]] = {}
    fp32 = {d: flat(exact[d].parameters()) for d in DECAYS}

    def note(name: str, d: float, values: Tensor) -> None:
        row = rows.setdefault(name, {})
        row[f"{d:g}"] = float((values - fp32[d]).norm() / fp32[d].norm())
        row[f"{d:g} way"] = float((values - fp32[d]).norm() / (fp32[d] - start).norm())
        row[f"{d:g} gone"] = float((values - start) @ (fp32[d] - start) / (fp32[d] - start).square().sum())

    for (name, d), ema in averages.items():
        note(name, d, flat(ema.parameters()))
    for (name, d), peer in theirs.items():
        note(f"{name}, bf16", d, flat(peer.model.parameters()))
    for d in DECAYS:
        note("(float64)", d, reference[d])
    return rows


def show(rows: dict[str, dict[str, float]]) -> None:
    print(f"{'average':28}" + "".join(f"{f'{d:g}':>10}" for d in DECAYS) + "   share of the way gone")
    for name, row in rows.items():
        text = "".join(f"{row[f'{d:g}']:10.5f}" for d in DECAYS)
        print(f"{name:28}{text}   " + "".join(f"{row[f'{d:g} gone']:8.3f}" for d in DECAYS))


def cost(rounds: int, width: int, layers: int) -> None:
    """Update time as a ratio to torch's foreach EMA in fp32, interleaved; and bytes per parameter."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    base = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    base.update_parameters(model)
    averages = {s: EMA(model, 0.999, state=s) for s in ("fp32", "bf16", "8bit", "4bit")}
    runs: dict[str, Callable[[], Any]] = {"torch": lambda: base.update_parameters(model)}
    runs.update({name: ema.update for name, ema in averages.items()})
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    count = sum(p.numel() for p in model.parameters())
    print(f"{count:,} parameters, {torch.get_num_threads()} threads, {rounds} rounds")
    for name in runs:
        ratios = sorted(a / b for a, b in zip(times[name][2:], times["torch"][2:], strict=True))
        size = 4.0 if name == "torch" else averages[name].memory().bytes_per_parameter
        print(f"{name:8} {ratios[len(ratios) // 2]:6.3f} x torch   {size:.3f} bytes per parameter")


def difference(steps: int) -> None:
    """Direct against difference, at constant and decaying learning rates."""
    print(f"{'lr':>8} {'schedule':>9} {'decay':>8} {'state':>6}   direct  difference")
    for lr in (1e-2, 1e-3, 1e-4):
        for schedule in ("constant", "cosine"):
            torch.manual_seed(0)
            model = network()
            exact = {d: EMA(model, d, state="fp32") for d in DECAYS}
            made = {
                (d, s, k): EMA(model, d, state=s, difference=k)
                for d in DECAYS for s in ("bf16", "8bit") for k in (False, True)
            }  # fmt: skip
            kept = [e for e in made.values() if e.difference]
            for _ in train(model, steps, lr, schedule, lambda kept=kept: [e.before_step() for e in kept]):  # type: ignore[misc]
                for ema in (*exact.values(), *made.values()):
                    ema.update()
            for d in DECAYS:
                wanted = flat(exact[d].parameters())
                for s in ("bf16", "8bit"):
                    a, b = (float((flat(made[d, s, k].parameters()) - wanted).norm() / wanted.norm()) for k in (0, 1))
                    print(f"{lr:8g} {schedule:>9} {d:8g} {s:>6} {a:8.5f} {b:8.5f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=["distance", "formats", "cost", "difference"])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--schedule", choices=["constant", "cosine"], default="constant")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.what == "cost":
        cost(args.rounds, 1024, 8)
    elif args.what == "difference":
        difference(args.steps)
    else:
        rows = distance(args.steps, args.lr, args.schedule, args.what == "formats")
        show(rows)
        if args.json:
            with open(args.json, "w") as file:
                json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
