"""Distance of low-precision weight averages from the fp32 one after a real run, and the time and memory of an update.

``python benchmarks/averaging.py distance`` trains a network on scikit-learn's digits for 20 000 steps. All averages
follow the same run: ours in several formats, and those of torch, timm and ema-pytorch in bfloat16 (the latter two if
installed; timm's rounds stochastically). The table also shows the distances predicted from the fp32 run alone, from its
step sizes and weights. ``formats`` does the same with every 8-bit format. ``cost`` times the update against torch's
``AveragedModel`` with its foreach EMA, interleaved. ``difference`` compares storing the average with storing its
difference to the live weights, at several learning rates and schedules.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import itertools
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from interleaved import interleaved
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from halfulp import Quantizer, Scaling
from halfulp.averaging import EMA, predict

DECAYS = (0.999, 0.9999, 0.99999)
LAG = 1000
"""Steps over which the walk of the weights is measured. It exceeds the memory of the optimizer's momentum."""


def digits() -> tuple[Tensor, Tensor]:
    """Return images of scikit-learn's digits in [0, 1], and their labels."""
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
    """Train with AdamW on noisy digits, and yield after each step."""
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
    """Another library's average of a bfloat16 model that follows the fp32 one step by step."""

    def __init__(self, name: str, live: nn.Module, decay: float) -> None:
        self.name, self.decay = name, decay
        if name == "torch":
            self.average: Any = AveragedModel(live, multi_avg_fn=get_ema_multi_avg_fn(decay))
            self.average.update_parameters(live)
            self.update: Callable[[], Any] = lambda: self.average.update_parameters(live)
            self.model = self.average.module
        elif name == "timm":
            self.average = timm_ema()(live, decay=decay)
            self.update, self.model = lambda: self.average.update(live), self.average.module
        else:
            from ema_pytorch import EMA as Theirs

            self.average = Theirs(live, beta=decay, update_after_step=0, update_every=1, min_value=decay)
            self.average.update()
            self.update, self.model = self.average.update, self.average.ema_model


def timm_ema() -> Any:
    """Return timm's ``ModelEmaV3``, even if the package cannot be imported because torchvision does not match."""
    try:
        from timm.utils import ModelEmaV3
    except (ImportError, RuntimeError):
        package = importlib.util.find_spec("timm")
        if package is None or not package.submodule_search_locations:
            raise
        path = f"{package.submodule_search_locations[0]}/utils/model_ema.py"
        spec = importlib.util.spec_from_file_location("timm_model_ema", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        ModelEmaV3 = module.ModelEmaV3
    return ModelEmaV3


def peers() -> list[str]:
    found = ["torch"]
    for name, module in (("timm", "timm"), ("ema-pytorch", "ema_pytorch")):
        if importlib.util.find_spec(module) is None:
            print(f"{name} is not installed: left out")
        else:
            found.append(name)
    return found


def ours(formats: bool) -> dict[str, dict[str, Any]]:
    """Return the arms: the named formats, or every 8-bit one with several scalings."""
    found: dict[str, dict[str, Any]] = {
        "bf16": {"state": "bf16"},
        "8bit": {"state": "8bit"},
        "float8_e4m3fn": {"state": "float8_e4m3fn"},
        "4bit": {"state": "4bit"},
        "bf16 nearest": {"state": "bf16", "rounding": "nearest"},
        "8bit nearest": {"state": "8bit", "rounding": "nearest"},
        "bf16 difference": {"state": "bf16", "difference": True},
        "8bit difference": {"state": "8bit", "difference": True},
        "float8_e4m3fn difference": {"state": "float8_e4m3fn", "difference": True},
    }
    if not formats:
        return found
    found = {}
    for fmt in ("float8_e4m3fn", "float8_e3m4", "linear8", "dynamic8"):
        for kind, size in (("pow2", 128), ("pow2", 32), ("fp32", 128)):
            scaling = Scaling(kind, "block", size)  # type: ignore[arg-type]
            found[f"{fmt} {kind} {size}"] = {"state": Quantizer(fmt, scaling, "stochastic")}  # type: ignore[arg-type]
    return found


def distance(steps: int, lr: float, schedule: str, formats: bool, only: str = "") -> dict[str, Any]:
    """Return measured and predicted distances to the fp32 average, and shares of its displacement."""
    torch.manual_seed(0)
    model = network()
    half = copy.deepcopy(model).bfloat16()
    start = copy.deepcopy(model)
    chosen = {n: options for n, options in ours(formats).items() if only in n}
    averages = {(n, d): EMA(model, d, **options) for n, options in chosen.items() for d in DECAYS}
    exact = {d: EMA(model, d, state="fp32") for d in DECAYS}
    theirs = {(n, d): Peer(n, half, d) for n in ([] if formats or only else peers()) for d in DECAYS}
    differences = [e for e in averages.values() if e.difference]
    for ema in averages.values():
        ema.counts = {}  # updates that were due and that stalled
    walk = Walk(model)
    marks = {round(10 ** (k / 8)) for k in range(8, 64)} | {steps}
    rows: dict[str, Any] = {}

    def before() -> None:
        for ema in differences:
            ema.before_step()

    for step in train(model, steps, lr, schedule, before):
        with torch.no_grad():
            for a, b in zip(half.parameters(), model.parameters(), strict=True):
                a.copy_(b)
        for ema in (*averages.values(), *exact.values()):
            ema.update()
        for peer in theirs.values():
            peer.update()
        walk.follow(step + 1)
        if step + 1 in marks:
            values = {key: flat(ema.parameters()) for key, ema in averages.items()}
            values |= {(f"{n}, bf16", d): flat(peer.model.parameters()) for (n, d), peer in theirs.items()}
            for (name, d), value in values.items():
                wanted, origin = flat(exact[d].parameters()), flat(start.parameters())
                way = wanted - origin
                row = rows.setdefault(name, {}).setdefault(f"{d:g}", {"at": [], "distance": [], "gone": []})
                row["at"].append(step + 1)
                row["distance"].append(float((value - wanted).norm() / wanted.norm()))
                row["gone"].append(float((value - origin) @ way / way.square().sum()))
    for (name, d), ema in averages.items():
        row = rows[name][f"{d:g}"]
        assert ema.counts is not None
        due, stalled = (sum(int(c[0, k]) for c in ema.counts.values()) for k in (0, 1))
        row["stalled"] = stalled / due
        if not ema.difference:
            row["predicted"] = expected(ema, exact[d], start, d, walk.steps(), steps)
    return {"steps": steps, "lr": lr, "schedule": schedule, "walk": walk.steps(), "rows": rows}


class Walk:
    """The weights as a random walk: the standard deviation over a long lag, divided by the root of the lag."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.last = {n: p.detach().clone() for n, p in model.named_parameters()}
        self.sums, self.count = dict.fromkeys(self.last, 0.0), 0

    def follow(self, step: int) -> None:
        """Record a step, numbered from 1."""
        if step % LAG:
            return
        self.count += 1
        for n, p in self.model.named_parameters():
            self.sums[n] += float((p.detach() - self.last[n]).square().mean()) / LAG
            self.last[n] = p.detach().clone()

    def steps(self) -> dict[str, float]:
        """Return the step sizes by name; empty for a run shorter than the lag."""
        return {n: math.sqrt(total / self.count) for n, total in self.sums.items()} if self.count else {}


def expected(
    ema: EMA, exact: EMA, start: nn.Module, d: float, steps: dict[str, float], updates: int
) -> dict[str, float]:
    """Predict an average from the fp32 run: the noise at its final weights, and what is frozen at its first weights."""
    if not steps:
        return {}
    q = ema.store.quantizer
    twin = EMA({n: exact.value(n) for n in exact.live} if q.stochastic else start, d, state=q, rounding=q.rounding)
    found = predict(twin, d, steps, updates)
    square = gone = stalled = number = 0.0
    for n, one in found.items():
        count = exact.live[n].numel()
        square += one.distance**2 * float(twin.value(n).double().square().sum())
        gone, stalled, number = gone + one.gone * count, stalled + one.stalled * count, number + count
    wanted = flat(exact.parameters()).norm()
    return {"distance": math.sqrt(square) / float(wanted), "gone": gone / number, "stalled": stalled / number}


def show(found: dict[str, Any]) -> None:
    print(f"{found['steps']} steps, lr {found['lr']:g}, {found['schedule']}; predicted in brackets")
    print("walk of the weights, a step: " + ", ".join(f"{n} {s:.2e}" for n, s in found["walk"].items()))
    print(f"{'average':26}" + "".join(f"{f'distance {d:g}':>20}" for d in DECAYS) + "   movement")
    for name, row in found["rows"].items():
        print(f"{name:26}" + "".join(cell(row[f"{d:g}"], "distance") for d in DECAYS), end="")
        print("".join(cell(row[f"{d:g}"], "gone") for d in DECAYS))


def cell(row: dict[str, Any], key: str) -> str:
    predicted = row.get("predicted", {}).get(key)
    return f"{row[key][-1]:11.4f} " + (f"({predicted:6.4f})" if predicted is not None else " " * 8)


def plot(found: dict[str, Any], path: str) -> None:
    """Plot the distance over the run, one panel per decay."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = {
        "torch, bf16": ("torch and ema-pytorch, bf16", "#c44e52", "-", 2.4),
        "bf16 nearest": ("halfulp bf16, nearest", "#dd8452", "--", 1.6),
        "8bit nearest": ("halfulp 8 bits, nearest", "#937860", "--", 1.6),
        "8bit": ("halfulp 8 bits, stochastic", "#4c72b0", "-", 2.0),
        "bf16": ("halfulp bf16, stochastic", "#55a868", "-", 2.0),
        "timm, bf16": ("timm, bf16 (stochastic)", "#222222", ":", 2.0),
    }
    figure, axes = plt.subplots(1, len(DECAYS), figsize=(11, 3.9), sharey=True, layout="constrained")
    for axis, d in zip(axes, DECAYS, strict=True):
        for name, (label, color, style, width) in drawn.items():
            if name not in found["rows"]:
                continue
            row = found["rows"][name][f"{d:g}"]
            axis.plot(row["at"], row["distance"], color=color, linestyle=style, linewidth=width, label=label)
            if "predicted" in row:
                axis.plot(
                    row["at"][-1], row["predicted"]["distance"], "o", color=color, markerfacecolor="white", zorder=3
                )
        axis.set(xscale="log", yscale="log", title=f"decay {d:g}", xlabel="step", xlim=(10, found["steps"] * 1.4))
        axis.grid(alpha=0.3)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_ylabel("distance to the fp32 average,\nrelative to its norm")
    axes[0].plot([], [], "o", color="#555555", markerfacecolor="white", label="predicted from the fp32 run")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def cost(rounds: int, width: int, layers: int) -> None:
    """Print update times relative to torch's foreach EMA in fp32, interleaved, and bytes per parameter."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    base = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    base.update_parameters(model)
    averages = {s: EMA(model, 0.999, state=s) for s in ("fp32", "bf16", "8bit", "4bit")}
    runs: dict[str, Callable[[], Any]] = {"torch": lambda: base.update_parameters(model)}
    runs.update({name: ema.update for name, ema in averages.items()})
    times = interleaved(runs, rounds)
    count = sum(p.numel() for p in model.parameters())
    print(f"{count:,} parameters, {torch.get_num_threads()} threads, {rounds} rounds")
    for name in runs:
        ratios = sorted(a / b for a, b in zip(times[name][2:], times["torch"][2:], strict=True))
        size = 4.0 if name == "torch" else averages[name].memory().bytes_per_parameter
        print(f"{name:8} {ratios[len(ratios) // 2]:6.3f} x torch   {size:.3f} bytes per parameter")


def difference(steps: int, lrs: list[float], schedules: list[str]) -> None:
    """Compare storing the average with storing the difference, at each learning rate and schedule."""
    print(f"{'lr':>8} {'schedule':>9} {'decay':>8} {'state':>6}   direct  difference")
    for lr, schedule in itertools.product(lrs, schedules):
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
                print(f"{lr:8g} {schedule:>9} {d:8g} {s:>6} {a:8.5f} {b:8.5f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=["distance", "formats", "cost", "difference"])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3], help="several: for difference")
    parser.add_argument("--schedule", choices=["constant", "cosine"], nargs="+", default=["constant"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", default="", help="averages with this in their name (distance, formats)")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--plot", help="draw the distances over the run here (distance)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.what == "cost":
        cost(args.rounds, 1024, 8)
        cost(args.rounds, 64, 24)  # dominated by the cost of a call
    elif args.what == "difference":
        difference(args.steps, args.lr, args.schedule)
    else:
        found = distance(args.steps, args.lr[0], args.schedule[0], args.what == "formats", args.only)
        show(found)
        if args.json:
            with open(args.json, "w") as file:
                json.dump(found, file, indent=1)
        if args.plot:
            plot(found, args.plot)


if __name__ == "__main__":
    main()
