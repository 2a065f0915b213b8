"""Checks of arguments that many functions of the theory share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

from halfulp.numbers.formats import Format
from halfulp.rules.drives import Drive

__all__ = [
    "Criterion", "check_beta", "check_criterion", "check_drifts", "check_number", "check_rates", "check_signed",
    "check_spread", "check_steps",
]  # fmt: skip

Criterion = Literal["residual", "total"]


def check_number(name: str, value: Any, allowed: str, holds: Callable[[float], bool]) -> None:
    """Raise ``ValueError`` unless a value is one real number for which `holds` is true. It is never true of NaN."""
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if math.isnan(number) or not holds(number):
        raise ValueError(f"{name} is {allowed}, got {value!r}")


def check_beta(beta: Any, name: str = "beta") -> None:
    """Raise ``ValueError`` unless a decay is between 0 and 1."""
    check_number(name, beta, "between 0 and 1", lambda x: 0.0 < x < 1.0)


def check_steps(steps: Any, name: str = "steps", least: int = 0, most: int | None = None) -> None:
    """Raise ``ValueError`` unless a number of steps is whole, and neither too small nor too large."""
    allowed = f"a whole number of at least {least}" + ("" if most is None else f" and at most {most}")
    check_number(name, steps, allowed, lambda x: least <= x < math.inf and x == int(x) and (most is None or x <= most))


def check_rates(rates: Any) -> None:
    """Raise ``ValueError`` unless learning rates are one or more positive, finite numbers."""
    if not rates or not all(0 < lr < math.inf for lr in rates):
        raise ValueError(f"learning rates are positive and finite, got {rates}")


def check_spread(spread: Any) -> None:
    """Raise ``ValueError`` unless a spread of logarithms is one that fp32 squares can have."""
    check_number("spread", spread, "between 0 and 10", lambda x: 0.0 <= x <= 10.0)


def check_criterion(criterion: Any) -> None:
    """Raise ``ValueError`` unless a criterion of plans is one of the two."""
    if criterion not in get_args(Criterion):
        raise ValueError(f"criterion is {' or '.join(map(repr, get_args(Criterion)))}, got {criterion!r}")


def check_drifts(drifts: Any) -> None:
    """Raise ``ValueError`` unless drifts are one or more rates that a second moment can follow in full precision.

    It shrinks by at most one e-fold per window, and a gradient's scale by half as much.
    """
    if not isinstance(drifts, Iterable) or isinstance(drifts, str) or not list(drifts):
        raise ValueError(f"drifts are one or more rates from 0 to 0.5, got {drifts!r}")
    for drift in drifts:
        allowed = "a rate from 0 to 0.5, since no second moment follows a faster fall"
        check_number("each of drifts", drift, allowed, lambda x: 0.0 <= x <= 0.5)


def check_signed(fmt: Format, drive: Drive) -> None:
    """Raise ``ValueError`` if a drive of both signs is stored without a sign."""
    if not drive.nonnegative and not fmt.signed:
        raise ValueError(f"a normal drive needs a signed format, {fmt.name} has no sign")
