"""Codes that were set to 0 from outside, in formats whose code 0 is not zero: they are stored as zeros."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from halfulp.engine.sharding import has_memory
from halfulp.engine.slot_state import SlotState
from halfulp.numbers.log import warn_once

__all__ = ["Written", "has_other_zero", "mend_replaced_"]

UNLIKELY = 8
"""A row of at least this many equal codes is taken for one that was set from outside, if the scales were not."""


def has_other_zero(state: SlotState) -> bool:
    """Return whether code 0 decodes to something other than zero, as in formats whose levels are sorted."""
    fmt = state.quantizer.format
    return fmt.bits <= 8 and fmt.decode(0) != 0.0


def _rows_of_0(codes: Tensor) -> Tensor:
    return (codes.reshape(len(codes) if codes.ndim > 1 else 1, -1) == 0).all(1)


def _mend_(state: SlotState, rows: Tensor) -> None:
    """Store zeros in rows of codes, and say so."""
    codes, zeros = state.codes, state.quantizer.zeros(state.shape, state.codes.device)[0]
    if codes.ndim > 1:
        codes[rows] = zeros[rows]
    else:
        codes.copy_(zeros)
    fmt = state.quantizer.format
    warn_once(
        f"{state.slot.name} in optimizer.state was set to 0 from outside. Code 0 of {fmt.name} stands for "
        f"{fmt.decode(0):.3g} times the scale, so the code of zero is stored there. "
        f"optimizer.reset_state([{state.slot.name!r}], params=[...], rows=...) does it in every format"
    )


def mend_replaced_(state: SlotState, before: Tensor) -> None:
    """Store zeros in the rows of a new tensor of codes that are all 0, but were not in the tensor before it."""
    if has_other_zero(state) and has_memory(before) and before.shape == state.codes.shape and before.numel():
        rows = _rows_of_0(state.codes) & ~_rows_of_0(before.to(state.codes.device))
        if bool(rows.any()):
            _mend_(state, rows)


def _tell_written(state: SlotState) -> None:
    """Warn of codes that may have been set to 0 one by one."""
    fmt = state.quantizer.format
    if bool((state.codes == 0).any()):
        warn_once(
            f"codes of {state.slot.name} in optimizer.state were written from outside. Code 0 of {fmt.name} stands for "
            f"{fmt.decode(0):.3g} times the scale, not for zero: use optimizer.reset_state()"
        )


class Written:
    """Detects that codes were written in place between steps without their scales, by version counters.

    Codes in formats whose code 0 is not zero are watched.
    """

    def __init__(self, states: Sequence[SlotState]) -> None:
        self._states = [s for s in states if has_other_zero(s)]
        self.codes = [s.codes for s in self._states]
        """The watched codes."""
        self._seen = self._versions()

    def _versions(self) -> list[tuple[int, int]]:
        return [(s.codes._version, -1 if s.scale is None else s.scale._version) for s in self._states]

    def look(self) -> None:
        """Store zeros in rows of codes that were set to 0 since the last call, or warn of single codes."""
        now = self._versions()
        for state, (codes, scale), (codes_then, scale_then) in zip(self._states, now, self._seen, strict=True):
            if codes != codes_then and scale == scale_then and state.codes.numel():
                rows = _rows_of_0(state.codes)
                if state.codes[:1].numel() >= UNLIKELY and bool(rows.any()):
                    _mend_(state, rows)
                else:
                    _tell_written(state)
        self._seen = self._versions()
