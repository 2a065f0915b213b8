"""Resets triggered by a monitor's measurements instead of a planned period."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from halfulp.engine.resets import Site

__all__ = ["Measured"]


@dataclass
class Measured:
    """Reset the moments of every parameter when a second moment lags or stalls too much.

    A :class:`~halfulp.monitor.StallMonitor` with a small ``every`` must watch the optimizer. The schedule uses its
    measurements of the last counted step, over the whole model. Attach the monitor after creating the optimizer.

    Parameters
    ----------
    lag
        Reset when the absolute lag of a second moment (log of stored over shadow) reaches this. ``None``: ignore the
        lag.
    stalled
        Reset when the stalled fraction of a second moment reaches this. ``None``: ignore it.
    min_age
        Smallest age for a reset, since a young state is noisy by itself.
    monitor
        Set by :meth:`attach`. ``None``: no resets.

    Examples
    --------
    >>> import torch, halfulp
    >>> weight = torch.nn.Parameter(torch.zeros(64, 64))
    >>> schedule = Measured(lag=0.3)
    >>> optimizer = halfulp.AdamW([weight], state="fp8", rounding="nearest", reset=schedule, min_size=0)
    >>> monitor = schedule.attach(halfulp.StallMonitor(optimizer))
    """

    lag: float | None = 0.75
    stalled: float | None = None
    min_age: int = 100
    monitor: Any = field(default=None, repr=False, compare=False)
    _asked: int = field(default=-1, repr=False, compare=False)
    _due: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.lag is None and self.stalled is None:
            raise ValueError("give a lag=, a stalled= fraction or both to reset at")
        if (self.lag is not None and self.lag <= 0) or (self.stalled is not None and not 0 < self.stalled <= 1):
            raise ValueError(f"a lag is above 0 and a stalled fraction in (0, 1]; got {self.lag}, {self.stalled}")
        if self.min_age < 1:
            raise ValueError(f"min_age is at least 1, got {self.min_age}")

    def attach(self, monitor: Any) -> Any:
        """Attach a monitor and return it."""
        self.monitor = monitor
        return monitor

    def due(self, site: Site) -> tuple[str, ...]:
        """See :class:`~halfulp.engine.resets.ResetSchedule`."""
        if self.monitor is None or site.step == 0:
            return ()
        if self._asked != self.monitor.steps:
            self._asked, self._due = self.monitor.steps, self._overdue()
        watched = [s for s in site.slots if s.averages("square") and s.name in self._due]
        return site.names if any(s.age >= self.min_age for s in watched) else ()

    def _overdue(self) -> frozenset[str]:
        return frozenset(
            m.slot
            for m in self.monitor.measure()
            if (self.lag is not None and abs(m.lag) >= self.lag)
            or (self.stalled is not None and m.stalled >= self.stalled)
        )
