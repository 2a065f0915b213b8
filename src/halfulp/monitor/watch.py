"""The monitor itself: hooks around the step of an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from halfulp.engine.sharding import local
from halfulp.libraries import unwrap
from halfulp.monitor.group import GroupWatch
from halfulp.monitor.hooked import Hooked
from halfulp.monitor.results import Measure, measures, rows
from halfulp.monitor.sample import Member, coordinates
from halfulp.monitor.table import MonitorTable

__all__ = ["StallMonitor"]


class StallMonitor(Hooked):
    """Watch the states of any ``torch.optim.Optimizer``.

    Parameters
    ----------
    optimizer
        One of ours, of torch's, or of a library that :mod:`halfulp.libraries` knows; also inside a wrapper that keeps
        it as ``.optimizer``.
    sample
        Coordinates watched in all, shared out over the tensors by size (at least 64 of each). The choice is fixed: the
        same model gives the same coordinates.
    every
        Count updates only in each so many steps; the shadow follows every step all the same. The coordinates are those
        of this rank's part of a sharded parameter.
    model
        Gives the parameters their names, where the optimizer was not built from named parameters.

    Attributes
    ----------
    steps
        Steps seen.

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
            raise ValueError(f"sample and every are positive, got sample={sample}, every={every}")
        self.optimizer, self.sample, self.every = unwrap(optimizer), sample, every
        self.steps = 0
        self._names = {} if model is None else {p: n for n, p in model.named_parameters()}
        self._watches: dict[tuple[int, torch.device], GroupWatch] = {}
        self._known: set[Tensor] = set()
        self._began = False
        self._loaded: dict[str, Tensor] = {}
        self._reports: list[Callable[[int], None]] = []
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._before),
            self.optimizer.register_step_post_hook(self._after),
        ]

    # ---------------------------------------------------------------- watching

    def _params(self) -> Iterator[tuple[int, dict[str, Any], Tensor, str]]:
        number = 0
        for at, group in enumerate(self.optimizer.param_groups):
            names = group.get("param_names")
            for i, param in enumerate(group["params"]):
                yield at, group, param, names[i] if names else self._names.get(param, f"parameter {number}")
                number += 1

    def _before(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._began = False
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._begin()
            return None

        def watched() -> Any:
            loss = closure()
            self._begin()  # only now are the gradients those of the step; weights and states are still untouched
            return loss

        if len(args) > 1:
            return (args[0], watched, *args[2:]), kwargs
        return args, {**kwargs, "closure": watched}

    @torch.no_grad()
    def _begin(self) -> None:
        for (at, _), watch in self._watches.items():
            watch.group = self.optimizer.param_groups[at]  # load_state_dict makes new ones
        if any(p.grad is not None and p not in self._known for g in self.optimizer.param_groups for p in g["params"]):
            self._meet()
        counting = (self.steps + 1) % self.every == 0
        for watch in self._watches.values():
            watch.before(counting)
            watch.gather_grads()
        if self._loaded:
            self._restore()
        self._began = True

    def _meet(self) -> None:
        """Watch parameters that have a gradient for the first time."""
        params = list(self._params())
        total = sum(local(p).numel() for _, _, p, _ in params)
        for number, (at, group, param, name) in enumerate(params):
            if param in self._known or param.grad is None or param.grad.is_sparse:
                continue
            self._known.add(param)
            size = local(param).numel()
            index = coordinates(param, number, max(64, round(self.sample * size / max(total, 1))))
            key = (at, param.device)
            if key not in self._watches:
                self._watches[key] = GroupWatch(self.optimizer, group, param.device)
            self._watches[key].add(Member(param, name, index))

    @torch.no_grad()
    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if not self._began:
            return
        self._began = False
        self.steps += 1
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):  # GradScaler with a fused optimizer: the step did nothing
            return
        scale = getattr(optimizer, "grad_scale", None)
        for watch in self._watches.values():
            watch.after(1.0 if scale is None else float(scale))
        if self.steps % self.every == 0:
            for report in self._reports:
                report(self.steps)

    # ---------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Tensor]:
        """Shadows, by parameter number and slot: what a run that is continued needs for its lag to go on.

        What was counted so far is not in it.
        """
        numbers = {param: number for number, (_, _, param, _) in enumerate(self._params())}
        return {
            f"{numbers[param]}.{slot}": shadow.clone()
            for watch in self._watches.values()
            for param, slot, shadow in watch.shadows()
        }

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Go on from the shadows of another monitor on an optimizer and a sample alike; before the first step.

        Raises
        ------
        RuntimeError
            This monitor has seen a step already.
        ValueError
            In the next step, if the shadows do not fit.
        """
        if self.steps:
            raise RuntimeError(f"load shadows before the first step; this monitor has seen {self.steps}")
        self._loaded = dict(state_dict)

    def _restore(self) -> None:
        numbers = {param: number for number, (_, _, param, _) in enumerate(self._params())}
        for watch in self._watches.values():
            for param, slot, shadow in watch.shadows():
                loaded = self._loaded.pop(f"{numbers[param]}.{slot}", None)
                if loaded is None:
                    continue
                if loaded.shape != shadow.shape:
                    raise ValueError(
                        f"the loaded shadow of {slot} of parameter {numbers[param]} has {loaded.numel()} elements, the "
                        f"sample {shadow.numel()}: use the same model and the same sample="
                    )
                shadow.copy_(loaded)

    # ---------------------------------------------------------------- results

    def measure(self) -> list[Measure]:
        """Figures of each slot in the last counted step, over the whole sample; of fp32 only where nothing is lower."""
        return measures(self._watches.values())

    def table(self) -> MonitorTable:
        """Figures of every slot of every parameter over all counted steps, with a verdict for each slot; printable."""
        return MonitorTable(tuple(rows(self._watches.values())), self.steps, self.skipped)

    def weights_lost(self) -> float | None:
        """Share of the updates of 16-bit weights lost so far; ``None`` where there are none."""
        counts = [w.weight_counts.sum(0).tolist() for w in self._watches.values() if w.weight_counts is not None]
        due = sum(c[0] for c in counts)
        return sum(c[1] for c in counts) / due if due else None

    @property
    def weight_notes(self) -> list[str]:
        """Why the size of a weight update is not known, where it is not (see :mod:`halfulp.monitor`)."""
        return sorted({w.weight_reason for w in self._watches.values() if w.weight_reason is not None})

    @property
    def skipped(self) -> dict[tuple[str, str], str]:
        """States that are not watched: (parameter, slot) -> why."""
        return {key: why for watch in self._watches.values() for key, why in watch.skipped.items()}

    def on_step(self, report: Callable[[int], None]) -> None:
        """Call ``report(steps)`` after each step that was counted."""
        self._reports.append(report)
