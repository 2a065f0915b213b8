"""Warnings about codes that were set to 0 from outside, in formats whose code 0 is not zero."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from torch import Tensor

from halfulp.engine.slot_state import SlotState
from halfulp.engine.states import Bound
from halfulp.numbers.log import log_once

__all__ = ["Written", "has_other_zero", "tell_zeroed"]

_version = attrgetter("_version")


def has_other_zero(state: SlotState) -> bool:
    """Return whether code 0 decodes to something other than zero, as in formats whose levels are sorted."""
    fmt = state.quantizer.format
    return fmt.bits <= 8 and fmt.decode(0) != 0.0


def tell_zeroed(state: SlotState) -> None:
    """Warn if rows of a state hold code 0 only, as after ``zero_()``, and code 0 is not zero."""
    codes, scale = state.codes, state.scale
    rows = (codes.reshape(len(codes) if codes.ndim > 1 else 1, -1) == 0).all(1)
    if scale is not None and len(scale) == len(rows) and scale.ndim > 1:
        rows &= (state.quantizer.scaling.values(scale) != 0).reshape(len(rows), -1).any(1)
    if codes.numel() and bool(rows.any()):
        fmt = state.quantizer.format
        log_once(
            f"{state.slot.name} in optimizer.state was set to 0 from outside. Code 0 of {fmt.name} stands for "
            f"{fmt.decode(0):.3g} times the scale, not for zero: use optimizer.reset_state([{state.slot.name!r}], "
            "params=[...], rows=...)",
            level=30,
        )


class Written:
    """Detects that codes were written between steps, by the version counters of their tensors.

    Parameters
    ----------
    bounds
        Bound parameters. Codes in formats whose code 0 is not zero are watched.
    """

    def __init__(self, bounds: Iterable[Bound]) -> None:
        self._states = [s for b in bounds if b.lasting for s in b.states if has_other_zero(s)]
        self._codes: list[Tensor] = [s.codes for s in self._states]
        self._versions = [*map(_version, self._codes)]

    def look(self) -> None:
        """Warn about codes written since the last call that are 0. Steps do not change the version counters."""
        versions = [*map(_version, self._codes)]
        if versions != self._versions:
            for state, now, then in zip(self._states, versions, self._versions, strict=True):
                if now != then:
                    tell_zeroed(state)
            self._versions = versions
