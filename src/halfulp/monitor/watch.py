"""The monitor: hooks around the step of an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from halfulp.engine.sharding import local
from halfulp.libraries import unwrap
from halfulp.monitor.binding import Member, coordinates
from halfulp.monitor.group import GroupWatch
from halfulp.monitor.hooked import Hooked, harmless
from halfulp.monitor.results import Measure, measures, rows, weights
from halfulp.monitor.table import MonitorTable, stalled_of

__all__ = ["StallMonitor"]


class StallMonitor(Hooked):
    """Watch the states of any ``torch.optim.Optimizer``.

    Parameters
    ----------
    optimizer
        An optimizer of halfulp, of torch, or of a library known to :mod:`halfulp.libraries`, or a wrapper with such an
        optimizer as ``.optimizer``.
    sample
        Total number of coordinates, divided among the tensors by size, at least 64 for each. The same model always
        gives the same coordinates. For a sharded parameter they are taken from this rank's part.
    every
        Steps between counted steps. The shadow follows every step.
    model
        Provides parameter names if the optimizer was not built from named parameters.

    Attributes
    ----------
    steps
        Number of steps seen.

    Examples
    --------
    >>> import torch, halfulp
    >>> weight = torch.nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16))
    >>> optimizer = torch.optim.AdamW([weight])
    >>> with halfulp.StallMonitor(optimizer, every=1) as watch:
    ...     for _ in range(3):
    ...         weight.grad = torch.randn_like(weight)
    ...         optimizer.step()
    >>> [m.slot for m in watch.measure()]
    ['exp_avg', 'exp_avg_sq']
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        sample: int = 16384,
        every: int = 10,
        model: torch.nn.Module | None = None,
    ) -> None:
        if sample < 1 or every < 1:
            raise ValueError(f"sample and every must be positive, got sample={sample}, every={every}")
        self.optimizer, self.sample, self.every = unwrap(optimizer), sample, every
        self.steps = 0
        self._names: dict[Tensor, str] = {} if model is None else {p: n for n, p in model.named_parameters()}
        self._watches: dict[tuple[int, torch.device], GroupWatch] = {}
        self._layout: list[Any] = []
        self._began = False
        self._loaded: dict[str, Tensor] = {}
        self._reports: list[Callable[[int], None]] = []
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._before),
            self.optimizer.register_step_post_hook(self._after),
        ]

    def __reduce__(self) -> Any:
        """Copy the shadows, not what was counted: the copy watches the copy of the optimizer."""
        return _again, (self.optimizer, self.sample, self.every, self._names, self.state_dict())

    # ---------------------------------------------------------------- watching

    def _params(self) -> Iterator[tuple[int, Tensor, str]]:
        number = 0
        for at, group in enumerate(self.optimizer.param_groups):
            names = group.get("param_names")
            for i, param in enumerate(group["params"]):
                yield at, param, names[i] if names else self._names.get(param, f"parameter {number}")
                number += 1

    def _harmless(self, watch: GroupWatch | None = None) -> AbstractContextManager[None]:
        """Let an error stop the watching of a group, or of the whole optimizer, but not the training."""
        if watch is None:
            return harmless("StallMonitor: watching the optimizer", self.stop)
        return harmless("StallMonitor: watching a parameter group", watch.stop)

    def _before(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._began = False
        if self.stopped:
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._begin()
            return None

        def watched() -> Any:
            loss = closure()
            self._begin()  # now the gradients are final, and weights and states not yet changed
            return loss

        if len(args) > 1:
            return (args[0], watched, *args[2:]), kwargs
        return args, {**kwargs, "closure": watched}

    @torch.no_grad()
    def _begin(self) -> None:
        with self._harmless():
            self._follow()
            counting = (self.steps + 1) % self.every == 0
            for watch in self._alive():
                with self._harmless(watch):
                    watch.before(counting)
            if self._loaded:
                self._restore()
            self._began = True

    def _alive(self) -> list[GroupWatch]:
        return [watch for watch in self._watches.values() if not watch.stopped]

    def _follow(self) -> None:
        """Watch the optimizer's present parameters, each from its first gradient on."""
        groups = self.optimizer.param_groups
        layout = [
            (at, param, param.dtype, param.shape, param.device, param.grad is None)
            for at, group in enumerate(groups) for param in group["params"]
        ]  # fmt: skip
        for (at, _), watch in self._watches.items():
            watch.group = groups[at] if at < len(groups) else watch.group  # load_state_dict creates new ones
        if len(layout) == len(self._layout) and all(map(_alike, layout, self._layout)):
            return
        self._layout = layout
        known = {m.param: m for watch in self._watches.values() for m in watch.members if not m.changed}
        wanted: dict[tuple[int, torch.device], list[Member]] = {key: [] for key in self._watches}
        total = sum(local(p).numel() for _, p, *_ in layout)
        for number, (at, param, name) in enumerate(self._params()):
            member = known.get(param)
            if member is None:
                if param.grad is None or param.grad.is_sparse or param.is_meta:
                    continue
                member = Member.of(param, name, number, _count(self.sample, param, total))
            wanted.setdefault((at, param.device), []).append(member)
        for key, members in wanted.items():
            if key not in self._watches:
                self._watches[key] = GroupWatch(self.optimizer, groups[key[0]], key[1])
            watch = self._watches[key]
            if members != watch.members and not watch.stopped:
                with self._harmless(watch):
                    watch.set_members(members)

    @torch.no_grad()
    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if not self._began:
            return
        self._began = False
        self.steps += 1
        with self._harmless():
            found_inf = getattr(optimizer, "found_inf", None)
            if found_inf is not None and bool(found_inf):  # GradScaler with a fused optimizer: the step was skipped
                return
            scale = getattr(optimizer, "grad_scale", None)
            for watch in self._alive():
                with self._harmless(watch):
                    watch.after(1.0 if scale is None else float(scale))
        if self.steps % self.every == 0:
            for report in list(self._reports):
                with harmless("StallMonitor: a report", partial(self._reports.remove, report)):
                    report(self.steps)

    # ---------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Tensor]:
        """Return the shadows by parameter number and slot, so that a resumed run keeps its lag.

        Counts are not included.
        """
        numbers = {param: number for number, (_, param, _) in enumerate(self._params())}
        return {
            f"{numbers[param]}.{slot}": shadow.clone()
            for watch in self._watches.values()
            for param, slot, shadow in watch.shadows()
        }

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Continue from the shadows of another monitor on the same model, before the first step.

        Raises
        ------
        RuntimeError
            If this monitor has seen a step already.
        ValueError
            If the shadows do not fit the parameters.
        """
        if self.steps:
            raise RuntimeError(f"load shadows before the first step; this monitor has seen {self.steps}")
        params = [param for _, param, _ in self._params()]
        total = sum(local(p).numel() for p in params)
        for key, shadow in state_dict.items():
            number = int(key.split(".")[0])
            if number >= len(params):
                raise ValueError(f"shadows of {number + 1} parameters for an optimizer of {len(params)}")
            size = len(coordinates(params[number], number, _count(self.sample, params[number], total)))
            if shadow.numel() != size:
                raise ValueError(
                    f"the loaded shadow {key} has {shadow.numel()} elements, the sample {size}: use the same model and "
                    "the same sample="
                )
        self._loaded = dict(state_dict)

    def _restore(self) -> None:
        numbers = {param: number for number, (_, param, _) in enumerate(self._params())}
        for watch in self._watches.values():
            for param, slot, shadow in watch.shadows():
                loaded = self._loaded.pop(f"{numbers[param]}.{slot}", None)
                if loaded is not None:
                    shadow.copy_(loaded)

    # ---------------------------------------------------------------- results

    def measure(self) -> list[Measure]:
        """Return the measurements of each slot in the last counted step, in fp32 only if no state is lower."""
        return measures(self._watches.values())

    def table(self) -> MonitorTable:
        """Return a printable table of every slot of every parameter over all counted steps, with a verdict per slot."""
        watches = self._watches.values()
        reasons = (watch.counts.weight_reason for watch in watches if watch.binding.any_low)
        notes = tuple(sorted({why for why in reasons if why is not None}))
        return MonitorTable(tuple(rows(watches)), self.steps, self.skipped, tuple(weights(watches)), notes)

    def weights_stalled(self) -> float | None:
        """Return the share of updates of 16-bit weights that stalled so far, or ``None`` if there are none.

        Parameters are weighted by their elements.
        """
        return stalled_of(weights(self._watches.values()))

    def weights_moved(self) -> float | None:
        """Return the share of the intended movement of 16-bit weights that took place, or ``None`` if unknown.

        1 is right.
        """
        tallies = [t for watch in self._watches.values() for t in watch.counts.flushed_weights()]
        intended = sum(t.intended for t in tallies)
        return sum(t.moved for t in tallies) / intended if intended else None

    @property
    def skipped(self) -> dict[tuple[str, str], str]:
        """The states that are not watched: (parameter, slot) -> reason."""
        return {key: why for watch in self._watches.values() for key, why in watch.binding.skipped.items()}

    def on_step(self, report: Callable[[int], None]) -> None:
        """Call ``report(steps)`` after each counted step."""
        self._reports.append(report)


def _again(
    optimizer: torch.optim.Optimizer, sample: int, every: int, names: dict[Tensor, str], shadows: dict[str, Tensor]
) -> StallMonitor:
    watch = StallMonitor(optimizer, sample=sample, every=every)
    watch._names, watch._loaded = names, shadows
    return watch


def _alike(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return a[1] is b[1] and a[0] == b[0] and a[2:] == b[2:]


def _count(sample: int, param: Tensor, total: int) -> int:
    """Return the number of a parameter's elements in the sample."""
    return max(64, round(sample * local(param).numel() / max(total, 1)))
