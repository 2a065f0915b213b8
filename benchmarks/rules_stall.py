"""Stalled updates of every state of every optimizer: what theory predicts against what the rule does.

Each optimizer of the library steps on gradients ``N(0, sigma**2)``. ``sigma`` is a factor per row times one per column,
each within an octave. The engine counts the updates that were due and those that left the stored value unchanged, over
two octaves of age. ``StallMonitor`` watches the later one and must agree. The prediction uses only what the rule
declares about the slot (:meth:`halfulp.rules.slots.StateSlot.average`).

    python benchmarks/rules_stall.py                        # 15 minutes; rows already in the CSV are kept
    python benchmarks/rules_stall.py --optimizers ADOPT     # one optimizer, printed

``python benchmarks/optimizers_page.py`` builds the table of the documentation from the CSV.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

import halfulp
from halfulp.monitor.prediction import predicted
from halfulp.optim import OPTIMIZERS
from halfulp.rules.drives import Drive

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {"weight": (128, 128), "embedding": (128, 128), "bias": (2048,)}
"""The second shape is one that Muon leaves to Adam.

The third is a vector, which is also stored in low precision here.
"""
WINDOWS = ((65, 128), (513, 1024))
"""First and last step counted: octaves, since a state that grows with its age meets every mantissa in one."""
CELLS = [(state, rounding) for state in ("bf16", "fp8") for rounding in ("nearest", "stochastic")]
ARGUMENTS: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9}, "AdaMomentum": {"eps": 1e-16}}
"""SGD without momentum has no state. AdaMomentum adds ``eps`` to its second moment at every step. The default would
drown the gradients of this simulation, as it does small gradients in training.
"""
BOUND = 0.02
"""Largest difference that counts as agreement."""
ONE_SCALE = "residuals of normalized updates have one size in all rows and columns, so their mantissas agree"
GROWING = "the decay grows quickly while the state is young, and the prediction uses the last one"
REASONS = {
    ("AdaMod", "exp_avg_lr"): "if the first gradient was near zero, the first rate exceeds all later ones",
    **{(name, f"exp_avg_sq_{side}"): GROWING for name in ("Adafactor", "AdaLomo") for side in ("row", "col")},
    ("AdaMomentum", "exp_avg_sq"): "squares of an average are correlated over ten steps, which shows in a young state",
    ("CAME", "exp_avg_res_row"): ONE_SCALE,
    ("CAME", "exp_avg_res_col"): ONE_SCALE,
    ("CoRe", "step_size"): "not an average: multiplied by 1.2 or 0.74 at each step, it stalls only at its limits",
    ("MicroAdam", "*"): "not an average: a window of gradients and their remainder, both rewritten at each step",
    ("SMMF", "*"): "not an average: two vectors are computed from a whole matrix at each step",
    ("SOAP", "exp_avg_sq"): "every tenth step reorders it, so no code stays in place",
}
"""Reasons why a state is not predicted, or not within the bound. ``*`` applies to all states of an optimizer."""


@dataclass
class Row:
    """One slot of one optimizer with one storage, over one window and all parameters."""

    optimizer: str
    slot: str
    state: str
    rounding: str
    first: int
    last: int
    format: str
    decay: float
    like: str
    due: float
    simulated: float
    predicted: float

    @property
    def off(self) -> float:
        """Simulated minus predicted."""
        return self.simulated - self.predicted


def reason(optimizer: str, slot: str) -> str | None:
    """Return the reason why a slot is not predicted or not within the bound, if any."""
    return REASONS.get((optimizer, slot), REASONS.get((optimizer, "*")))


def scales(shape: tuple[int, ...]) -> torch.Tensor:
    """Return standard deviations. Rows and columns have factors evenly spread over an octave, in random order."""
    generator, made = torch.Generator().manual_seed(5), torch.full(shape, 0.01)
    for dim, size in enumerate(shape):
        places = 2.0 ** (torch.randperm(size, generator=generator) / size)
        made = made * places.reshape([-1 if d == dim else 1 for d in range(len(shape))])
    return made


def simulate(
    name: str, state: str, rounding: str, windows: tuple[tuple[int, int], ...] = WINDOWS, samples: int = 33
) -> list[Row]:
    """Simulate every rounded slot of an optimizer over some windows.

    Raises
    ------
    AssertionError
        If the monitor's counts or predictions in the last window differ from the engine's.
    """
    torch.manual_seed(0)
    params = [(n, torch.nn.Parameter(torch.randn(shape) * 0.02)) for n, shape in SHAPES.items()]
    optimizer = getattr(halfulp, name)(
        params, lr=1e-4, state=state, rounding=rounding, min_size=0, **ARGUMENTS.get(name, {})
    )
    deviations = {n: scales(shape) for n, shape in SHAPES.items()}
    generator = torch.Generator().manual_seed(1)
    tallies: dict[str, _Tally] = {}
    rows: list[Row] = []
    watch = None
    for step in range(1, windows[-1][1] + 1):
        window = next(((a, b) for a, b in windows if a <= step <= b), None)
        if window and step == window[0]:
            tallies = {}
            for _, p in params:
                bound = optimizer._bindings.get(p)
                bound.counts = torch.zeros(len(bound.states), 2, dtype=torch.int64)
            watch = halfulp.StallMonitor(optimizer, every=1) if window == windows[-1] else None
        for n, p in params:
            p.grad = torch.randn(p.shape, generator=generator) * deviations[n]
        optimizer.step()
        if window is None:
            continue
        places = [round(window[0] + i * (window[1] - window[0]) / (samples - 1)) for i in range(samples)]
        for _, p in params:
            bound = optimizer._bindings.get(p)
            hyper = {**optimizer.param_groups[0], **bound.scalars}
            for stored, counts in zip(optimizer.states(p), bound.counts, strict=True):
                if stored.quantizer.format.is_float32:
                    continue
                tally = tallies.setdefault(stored.slot.name, _Tally(stored.quantizer.format.name))
                decay = stored.slot.decay(hyper)
                changing = tally.decays and decay != tally.decays[-1]  # each decay has its own law, so sample a few
                if step in (places[:: samples // 4] if changing else places):
                    met = stored.slot.average(hyper, tuple(p.shape), stored.age - 1)
                    value = None if met is None else predicted(tally.format, rounding, met)
                    tally.predictions.append((stored.shape.numel(), math.nan if value is None else value))
                    tally.decays.append(decay)
                    tally.likes.append("" if met is None else describe(met[0]))
                if step == window[1]:
                    due, stalled = counts.tolist()
                    tally.add(due, stalled, stored.shape.numel() * (window[1] - window[0] + 1))
        if step == window[1]:
            for slot, tally in tallies.items():
                rows.append(Row(name, slot, state, rounding, *window, *tally.row()))
    assert watch is not None
    _compare(watch, rows, windows[-1])
    return rows


class _Tally:
    """Counts of one slot over one window."""

    def __init__(self, fmt: str) -> None:
        self.format = fmt
        self.due, self.stalled, self.all = 0, 0, 0
        self.predictions: list[tuple[int, float]] = []
        self.decays: list[float] = []
        self.likes: list[str] = []

    def add(self, due: int, stalled: int, everything: int) -> None:
        self.due, self.stalled, self.all = self.due + due, self.stalled + stalled, self.all + everything

    def row(self) -> tuple[Any, ...]:
        weight = sum(n for n, _ in self.predictions)
        predicted = sum(n * value for n, value in self.predictions) / weight
        decay = sum(self.decays) / len(self.decays)
        simulated = self.stalled / max(self.due, 1)
        return self.format, decay, self.likes[0], self.due / self.all, simulated, predicted


def describe(drive: Drive) -> str:
    """Describe a drive in a few words."""
    words = f"{drive.kind}s"
    if drive.shared != 1:
        words += f", {drive.shared:g} shared"
    if drive.ratio:
        words += f", mean {drive.ratio:.0f} deviations"
    if drive.whole_first:
        words += ", first one whole"
    return words


def _compare(watch: halfulp.StallMonitor, rows: list[Row], window: tuple[int, int]) -> None:
    """Check that the monitor's sample agrees with the engine's counts, and its predictions, if any, with those here."""
    seen: dict[str, list[tuple[int, float]]] = {}
    expected: dict[str, list[float]] = {}
    for row in watch.table().rows:
        seen.setdefault(row.slot, []).append((row.updates, row.stalled))
        expected.setdefault(row.slot, []).append(row.predicted)
    watch.close()
    for row in rows:
        if (row.first, row.last) == window and row.slot in seen:
            updates = sum(n for n, _ in seen[row.slot])
            share = sum(n * stalled for n, stalled in seen[row.slot]) / max(updates, 1)
            assert abs(share - row.simulated) < 0.01, (row, share)
            assert not any(abs(value - row.predicted) > BOUND for value in expected[row.slot]), (row, expected)


def read(path: Path) -> list[Row]:
    """Read the rows of a CSV."""
    if not path.exists():
        return []
    kinds: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}
    with path.open(newline="") as file:
        return [Row(**{f.name: kinds[str(f.type)](row[f.name]) for f in fields(Row)}) for row in csv.DictReader(file)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", default=",".join(c.__name__ for c in OPTIMIZERS), help="names, by commas")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results", help="folder of the CSV")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = args.results / "rules_stall.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {(r.optimizer, r.state, r.rounding) for r in read(path)}
    for name in args.optimizers.split(","):
        for state, rounding in CELLS:
            if (name, state, rounding) in known:
                continue
            found = simulate(name, state, rounding)
            new = not path.exists()
            with path.open("a", newline="") as file:
                writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
                if new:
                    writer.writeheader()
                for row in found:
                    short = {k: f"{v:.5f}" if isinstance(v, float) else v for k, v in asdict(row).items()}
                    writer.writerow(short)
            for row in found:
                apart = abs(row.off) > BOUND or math.isnan(row.off)
                print(
                    f"{name:16} {row.slot:16} {state:4} {rounding:10} {row.last:5} simulated {row.simulated:.3f} "
                    f"predicted {row.predicted:.3f} {'APART' if apart else ''}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
