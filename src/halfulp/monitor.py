"""Watch an optimizer and count which of its updates are rounded away.

:class:`StallMonitor` looks at a fixed sample of coordinates before and after each step, works out what every state
should have become, and compares. It reads only: not a bit of the training changes.

* **stalled fraction**: share of updates after which the stored value is what it was, although the exact successor
  ``beta * v + gain * x`` differs from it. A lost decay (gradient zero, value not) counts; a zero that stays zero does
  not.
* **lag**: median of ``log(stored / shadow)``, the shadow being the same EMA kept in float64 on the sample since the
  monitor was attached. ``ratio`` is the mean stored value over the mean of the shadow (of magnitudes, where signed).
* **off 2x**: share of coordinates more than a factor of two away from their shadow.
* **weights**: for 16-bit parameters, the share of weights that stood still although their update was not zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from halfulp.engine import RuleOptimizer
from halfulp.formats import Format, get_format
from halfulp.monitor_table import MonitorTable, Row
from halfulp.rng import hash_elements, slot_id, stream_keys

__all__ = ["Measure", "StallMonitor"]

TORCH_SLOTS: dict[str, tuple[str, str]] = {
    "exp_avg": ("beta1", "grad"),
    "exp_avg_sq": ("beta2", "grad_sq"),
    "momentum_buffer": ("momentum", "grad"),
    "square_avg": ("alpha", "grad_sq"),
}
"""States of torch.optim that are understood: where their decay stands in the group, and what they average."""


@dataclass
class Watched:
    """One state of one parameter at the sampled coordinates."""

    slot: str
    drive: str
    beta: float
    gain: float
    format: Format
    rounding: str
    age: int
    values: Tensor


@dataclass
class Measure:
    """What one slot looked like in one step, over the sample of the whole model; see the module for the terms.

    `age` is the age of the states that the update met, the median over the parameters.
    """

    slot: str
    format: str
    rounding: str
    beta: float
    drive: str
    age: int
    stalled: float
    lag: float
    ratio: float
    off_2x: float

    @property
    def predicted(self) -> float | None:
        """Stalled fraction that theory gives at this age; ``None`` where it has no answer."""
        return predicted(self.format, self.beta, self.rounding, self.drive, self.age)


@lru_cache(maxsize=65536)
def predicted(fmt: str, beta: float, rounding: str, drive: str, age: int) -> float | None:
    """Predicted stalled fraction of the update that a state of an age meets."""
    from halfulp.theory.stall import stall_probability

    if drive not in ("grad", "grad_sq") or not 0 < beta < 1:
        return None
    slot = "exp_avg_sq" if drive == "grad_sq" else "exp_avg"
    try:
        return stall_probability(get_format(fmt), beta=beta, rounding=rounding, slot=slot, age=age)  # type: ignore[arg-type]
    except ValueError:
        return None


@dataclass
class _Tally:
    """Running sums of one slot of one parameter."""

    watched: Watched
    shadow: Tensor
    stalled: int = 0
    updates: int = 0
    predicted: float = 0.0
    steps: int = 0


@dataclass
class _Sampled:
    """A parameter, its sampled coordinates, and what they were before the step."""

    param: Tensor
    name: str
    index: Tensor
    grad: Tensor | None = None
    weight: Tensor | None = None
    before: dict[str, Tensor] = field(default_factory=dict)
    tallies: dict[str, _Tally] = field(default_factory=dict)
    weights_lost: int = 0
    weights_due: int = 0


class StallMonitor:
    """Watch the states of any ``torch.optim.Optimizer``.

    Parameters
    ----------
    optimizer
        One of ours, or one of torch's (or like them) that keeps ``exp_avg``, ``exp_avg_sq``, ``momentum_buffer`` or
        ``square_avg`` as plain tensors.
    sample
        Coordinates watched in all, shared out over the tensors by size (at least 64 of each). The choice is fixed: the
        same model gives the same coordinates.
    every
        Count updates only in each so many steps; the shadow follows every step all the same.

    Examples
    --------
    >>> import torch, halfulp
    >>> weight = torch.nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16))
    >>> optimizer = torch.optim.AdamW([weight])
    >>> with halfulp.StallMonitor(optimizer) as watch:
    ...     for _ in range(3):
    ...         weight.grad = torch.randn_like(weight)
    ...         optimizer.step()
    >>> [m.slot for m in watch.measure()]
    ['exp_avg', 'exp_avg_sq']
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, sample: int = 16384, every: int = 1) -> None:
        if sample < 1 or every < 1:
            raise ValueError(f"sample and every are positive, got sample={sample}, every={every}")
        self.optimizer, self.sample, self.every = optimizer, sample, every
        self.steps = 0
        self._last: dict[str, list[tuple[_Tally, int, int]]] = {}
        self._sampled: dict[Tensor, _Sampled] = {}
        self._hooks = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def __enter__(self) -> StallMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching; what was measured stays."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    # ---------------------------------------------------------------- watching

    def _params(self) -> Iterator[tuple[dict[str, Any], Tensor, str]]:
        number = 0
        for group in self.optimizer.param_groups:
            names = group.get("param_names")
            for i, param in enumerate(group["params"]):
                yield group, param, names[i] if names else f"parameter {number}"
                number += 1

    def _coordinates(self, param: Tensor, number: int, total: int) -> Tensor:
        count = min(param.numel(), max(64, round(self.sample * param.numel() / max(total, 1))))
        if count == param.numel():
            return torch.arange(count, device=param.device)
        key = stream_keys(0, number, slot_id("monitor"), 0)
        words = hash_elements(key, torch.arange(count, device=param.device))
        return (words * param.numel() >> 32).unique()

    @torch.no_grad()
    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        total = sum(p.numel() for _, p, _ in self._params())
        for number, (group, param, name) in enumerate(self._params()):
            if param.grad is None or param.grad.is_sparse:
                continue
            sampled = self._sampled.get(param)
            if sampled is None:
                sampled = self._sampled[param] = _Sampled(param, name, self._coordinates(param, number, total))
            sampled.grad = _pick(param.grad, sampled.index)
            sampled.weight = _pick(param, sampled.index)
            sampled.before = {w.slot: w.values for w in self._read(group, sampled)}

    @torch.no_grad()
    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self.steps += 1
        counting = self.steps % self.every == 0
        if counting:
            self._last = {}
        for group, param, _ in self._params():
            sampled = self._sampled.get(param)
            if sampled is None or sampled.grad is None or sampled.weight is None:
                continue
            grad = -sampled.grad if group.get("maximize") else sampled.grad
            if group.get("weight_decay") and not _decoupled(self.optimizer, group):
                grad = grad + group["weight_decay"] * sampled.weight
            watched = self._read(group, sampled)
            for w in watched:
                self._count(sampled, w, grad, counting)
            if counting and param.dtype in (torch.bfloat16, torch.float16):
                moving = grad != 0
                for w in watched:
                    moving = moving | ((w.values != 0) if w.drive == "grad" else False)
                still = _pick(param, sampled.index) == sampled.weight
                sampled.weights_due += int(moving.sum())
                sampled.weights_lost += int((moving & still).sum())
            sampled.grad = None

    def _count(self, sampled: _Sampled, w: Watched, grad: Tensor, counting: bool) -> None:
        old = sampled.before.get(w.slot)
        if old is None or w.age == 1:  # first step, or the state was reset within this one
            old = torch.zeros_like(w.values)
        tally = sampled.tallies.get(w.slot)
        if tally is None or w.age == 1:
            fresh = _Tally(w, old.clone())
            if tally is not None:
                fresh.stalled, fresh.updates = tally.stalled, tally.updates
                fresh.predicted, fresh.steps = tally.predicted, tally.steps
            tally = sampled.tallies[w.slot] = fresh
        drive = grad * grad if w.drive == "grad_sq" else grad
        beta, gain = (0.0, 1.0) if w.slot == "momentum_buffer" and w.age == 1 else (w.beta, w.gain)
        tally.shadow = beta * tally.shadow + gain * drive
        tally.watched = w
        if counting:
            due = beta * old + gain * drive != old
            stalled, updates = int((due & (w.values == old)).sum()), int(due.sum())
            tally.stalled, tally.updates, tally.steps = (
                tally.stalled + stalled,
                tally.updates + updates,
                tally.steps + 1,
            )
            expected = predicted(w.format.name, w.beta, w.rounding, w.drive, w.age - 1) if w.age else None
            tally.predicted += math.nan if expected is None else expected
            self._last.setdefault(w.slot, []).append((tally, stalled, updates))

    def _read(self, group: dict[str, Any], sampled: _Sampled) -> list[Watched]:
        param, index = sampled.param, sampled.index
        state = self.optimizer.state.get(param)
        if not state:
            return []
        if isinstance(self.optimizer, RuleOptimizer):
            watched = []
            for s in self.optimizer.states(param):
                beta, gain = s.slot.coefficients(group)
                values = s.quantizer.gather(s.codes, s.scale, param.shape, index).double()
                fmt, rounding = s.quantizer.format, s.quantizer.rounding
                watched.append(Watched(s.slot.name, s.slot.drive, beta, gain, fmt, rounding, s.age, values))
            return watched
        return [w for key in TORCH_SLOTS if (w := _torch_slot(key, group, state, param, index)) is not None]

    # ---------------------------------------------------------------- results

    def measure(self) -> list[Measure]:
        """Figures of each slot in the last counted step, over the whole sample (fp32 states included)."""
        return [_measure(slot, entries) for slot, entries in self._last.items()]

    def table(self) -> MonitorTable:
        """Figures of every slot of every parameter over all counted steps, with a verdict for each slot; printable."""
        rows = []
        for sampled in self._sampled.values():
            due = sampled.weights_due
            for slot, tally in sampled.tallies.items():
                lag, ratio, off = _distance([tally])
                rows.append(
                    Row(
                        parameter=sampled.name,
                        slot=slot,
                        format=tally.watched.format.name,
                        rounding=tally.watched.rounding,
                        beta=tally.watched.beta,
                        updates=tally.updates,
                        stalled=tally.stalled / tally.updates if tally.updates else 0.0,
                        predicted=tally.predicted / tally.steps if tally.steps else math.nan,
                        lag=lag,
                        ratio=ratio,
                        off_2x=off,
                        weights_lost=sampled.weights_lost / due if due else None,
                    )
                )
        return MonitorTable(tuple(rows), self.steps)


def _pick(x: Tensor, index: Tensor) -> Tensor:
    return x.detach().reshape(-1)[index].double()


def _decoupled(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> bool:
    if "decoupled_weight_decay" in group:
        return bool(group["decoupled_weight_decay"])
    return type(optimizer).__name__ in ("AdamW", "Lion", "NAdamW")


def _torch_slot(key: str, group: dict[str, Any], state: dict[str, Any], param: Tensor, index: Tensor) -> Watched | None:
    tensor = state.get(key)
    if not isinstance(tensor, Tensor) or tensor.shape != param.shape or not tensor.is_floating_point():
        return None
    where, drive = TORCH_SLOTS[key]
    if where in ("beta1", "beta2"):
        if "betas" not in group:
            return None
        beta = float(group["betas"][int(where[-1]) - 1])
    else:
        if where not in group:
            return None
        beta = float(group[where])
    gain = 1.0 - float(group.get("dampening", 0.0)) if key == "momentum_buffer" else 1.0 - beta
    age = int(state["step"]) if "step" in state else 0
    name = str(tensor.dtype).removeprefix("torch.")
    fmt = get_format("float32" if name == "float64" else name)
    return Watched(key, drive, beta, gain, fmt, "nearest", age, _pick(tensor, index))


def _distance(tallies: list[_Tally]) -> tuple[float, float, float]:
    """Lag, ratio of means and share off by more than 2x of some slots together."""
    stored = torch.cat([t.watched.values for t in tallies]).abs()
    shadow = torch.cat([t.shadow for t in tallies]).abs()
    alive = (shadow > 0) | (stored > 0)
    if not bool(alive.any()):
        return 0.0, 1.0, 0.0
    quotient = stored[alive] / shadow[alive]
    off = ((quotient > 2) | (quotient < 0.5)).double().mean()
    mean = float(shadow.mean())
    both = quotient[(quotient > 0) & torch.isfinite(quotient)]
    lag = float(both.log().median()) if both.numel() else math.inf
    return lag, float(stored.mean()) / mean if mean > 0 else math.inf, float(off)


def _measure(slot: str, entries: list[tuple[_Tally, int, int]]) -> Measure:
    """Sum up the states that are stored alike: the format of most of the sample (others are kept in fp32)."""
    sizes: dict[str, int] = {}
    for tally, _, _ in entries:
        sizes[tally.watched.format.name] = sizes.get(tally.watched.format.name, 0) + tally.shadow.numel()
    low = {name: n for name, n in sizes.items() if name != "float32"}
    chosen = max(low or sizes, key=lambda name: sizes[name])
    mine = [(t, s, u) for t, s, u in entries if t.watched.format.name == chosen]
    first = mine[0][0].watched
    ages = sorted(t.watched.age for t, _, _ in mine)
    lag, ratio, off = _distance([t for t, _, _ in mine])
    return Measure(
        slot=slot,
        format=chosen,
        rounding=first.rounding,
        beta=first.beta,
        drive=first.drive,
        age=max(ages[len(ages) // 2] - 1, 0),
        stalled=sum(s for _, s, _ in mine) / max(sum(u for _, _, u in mine), 1),
        lag=lag,
        ratio=ratio,
        off_2x=off,
    )
