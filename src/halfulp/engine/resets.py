"""Schedules for resetting states to zero.

A reset zeroes the moments *and* their ages, so that bias correction restarts with them. Resetting the moments alone
makes the first Adam step 3.16 times too large at betas (0.9, 0.999).

A schedule is any object with ``due(site) -> tuple of slot names``. It is called before each step of each parameter and
returns the slots to reset. An integer stands for :class:`Every` and ``"auto"`` for :class:`Planned`; a function of the
:class:`Site` is also a schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from numbers import Integral
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from halfulp.engine.sharding import is_sharded
from halfulp.numbers.formats import Format
from halfulp.numbers.log import log_once

if TYPE_CHECKING:
    from halfulp.engine.slot_state import SlotState
    from halfulp.rules.slots import Drive, Hyper, Shape
    from halfulp.theory.arguments import Criterion

__all__ = ["Every", "Planned", "ResetSchedule", "Site", "Staggered", "as_schedule"]


@dataclass(frozen=True)
class SlotSite:
    """What a schedule knows about one slot. `drive` is what it averages, or ``None`` if it is no plain average."""

    name: str
    format: Format
    rounding: str
    signed: bool
    drive: Drive | None
    decay: float
    age: int

    @classmethod
    def of(cls, state: SlotState, hyper: Hyper, shape: Shape) -> SlotSite:
        """Describe a state, given the hyper-parameters, the scalars of the last step, and the parameter's shape."""
        slot, stored = state.slot, state.quantizer
        drive = None if slot.alike else slot.averages(hyper, shape)
        return cls(
            slot.name, stored.format, stored.rounding, slot.signed, drive, slot.coefficients(hyper)[0], state.age
        )

    def averages(self, kind: str) -> bool:
        """Whether the slot averages the gradient (or its square) of each element."""
        return self.drive is not None and self.drive.kind == kind


@dataclass(frozen=True)
class Site:
    """What a schedule knows about one parameter.

    Parameters
    ----------
    step
        The number of steps of this parameter so far.
    index, count
        The number of the parameter, and how many parameters the optimizer has.
    slots, grad
        The states of the parameter, and the gradient of this step, if called within one.
    """

    step: int
    index: int
    count: int
    slots: tuple[SlotSite, ...]
    grad: Tensor | None = None

    @property
    def mostly_zero(self) -> bool:
        """Whether more than half of the gradient is zero, as for an embedding. This waits for the device."""
        if self.grad is None:
            return False
        some = (self.grad != 0).sum()  # over all ranks
        whole = some.full_tensor() if is_sharded(some) else some  # type: ignore[attr-defined]
        return int(whole) < self.grad.numel() / 2

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all slots."""
        return tuple(s.name for s in self.slots)


@runtime_checkable
class ResetSchedule(Protocol):
    """An object that chooses the slots of a parameter to reset before its next step.

    Examples
    --------
    >>> import torch, halfulp
    >>> class Once:
    ...     def due(self, site):
    ...         return site.names if site.step == 100 else ()
    >>> optimizer = halfulp.AdamW([torch.nn.Parameter(torch.ones(64, 64))], reset=Once())
    """

    def due(self, site: Site) -> tuple[str, ...]:
        """Return the slots to reset now; empty for none."""
        ...


@dataclass(frozen=True)
class Every:
    """Reset every slot (or the named ones) of every parameter each `period` steps.

    Parameters
    ----------
    period
        The period in steps, at least 1.
    names
        The slots to reset; by default all.

    Raises
    ------
    ValueError
        If the period is below 1.

    Examples
    --------
    >>> Every(300).due(Site(step=600, index=0, count=1, slots=()))
    ()
    """

    period: int
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.period < 1:
            raise ValueError(f"a reset period must be at least 1 step, got {self.period}")

    def offset(self, site: Site) -> int:
        """Return the step, modulo the period, at which this parameter is reset."""
        return 0

    def due(self, site: Site) -> tuple[str, ...]:
        """See :class:`ResetSchedule`."""
        if site.step == 0 or site.step % self.period != self.offset(site):
            return ()
        return tuple(n for n in site.names if self.names is None or n in self.names)


@dataclass(frozen=True)
class Staggered(Every):
    """Like :class:`Every`, but the parameters take turns, so that no step resets the whole model.

    Parameters
    ----------
    period, names
        As for :class:`Every`.

    Examples
    --------
    >>> [Staggered(300).offset(Site(step=0, index=i, count=3, slots=())) for i in range(3)]
    [0, 100, 200]
    """

    def offset(self, site: Site) -> int:
        """Return the step, modulo the period, at which this parameter is reset."""
        return site.index * self.period // site.count


@dataclass(frozen=True)
class Planned:
    """Reset at the period that the planner finds for each second moment's format, rounding and decay, or never.

    The moments of a parameter are reset together. Parameters without a second moment are never reset: a signed state
    swings through zero by itself. Nor are second moments that start at their first square (ADOPT, Adafactor): their
    scale would be that of a single gradient, and ``E[1 / v]`` right after the reset is infinite. A parameter whose
    gradient is mostly zero when a reset is due (an embedding) is skipped, since rows that get no gradient afterwards
    would have no scale.

    Parameters
    ----------
    stagger
        Whether the parameters take turns.
    criterion
        What a plan minimizes, ``"residual"`` or ``"total"``: see :func:`~halfulp.theory.planner.plan_reset`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.AdamW(model.parameters(), state="fp8", rounding="nearest", reset=Planned(stagger=True))
    """

    stagger: bool = False
    criterion: Criterion = "residual"

    def __post_init__(self) -> None:
        from halfulp.theory.arguments import check_criterion

        check_criterion(self.criterion)

    def period(self, site: Site) -> int | None:
        """Return the planned period of a parameter in steps, or ``None`` for never."""
        planned = [s for s in site.slots if s.averages("square")]
        started = next((s for s in planned if s.drive is not None and s.drive.whole_first), None)
        if started is not None:
            log_once(
                f"reset='auto' never resets {started.name}: it starts from its first square rather than from zero, so "
                "a reset would put its scale back to that of a single gradient"
            )
            return None
        beta1 = next((s.decay for s in site.slots if s.averages("gradient")), 0.9)
        periods = [_planned_period(s.format, s.rounding, s.decay, beta1, self.criterion) for s in planned]
        return min((p for p in periods if p is not None), default=None)

    def due(self, site: Site) -> tuple[str, ...]:
        """See :class:`ResetSchedule`."""
        period = self.period(site)
        if period is None:
            return ()
        due = (Staggered if self.stagger else Every)(period).due(site)
        if due and site.mostly_zero:
            log_once(
                f"reset='auto' skips parameter {site.index} while its gradient is mostly zero, as for an embedding; "
                "use stochastic rounding for such tensors"
            )
            return ()
        return due


@cache
def _planned_period(fmt: Format, rounding: str, beta: float, beta1: float, criterion: Criterion) -> int | None:
    if fmt.is_float32 or beta == 0.0:
        return None
    from halfulp.theory.planner import plan_reset

    return plan_reset(fmt, beta=beta, rounding=rounding, beta1=beta1, criterion=criterion).period


@dataclass(frozen=True)
class _Function:
    function: Callable[[Site], tuple[str, ...] | bool]

    def due(self, site: Site) -> tuple[str, ...]:
        answer = self.function(site)
        if isinstance(answer, bool):
            return site.names if answer else ()
        return tuple(answer)


def as_schedule(reset: object) -> ResetSchedule | None:
    """Return the schedule for a ``reset=`` argument.

    ``None`` is never, an integer :class:`Every`, and ``"auto"`` :class:`Planned`. Others are a :class:`ResetSchedule`,
    or a function of the :class:`Site` that returns slot names, or True for all slots.
    """
    if reset is None:
        return None
    if isinstance(reset, Integral) and not isinstance(reset, bool):
        return Every(int(reset))
    if reset == "auto":
        return Planned()
    if isinstance(reset, ResetSchedule) and not isinstance(reset, type):
        return reset
    if callable(reset) and not isinstance(reset, type):
        return _Function(reset)
    raise ValueError(f"reset must be None, a period in steps, 'auto', a ResetSchedule or a function; got {reset!r}")
