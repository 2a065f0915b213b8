"""The declaration of optimizer states.

A rule declares each of its states as a :class:`StateSlot`, and the engine stores it with a
:class:`~halfulp.numbers.quantizer.Quantizer`. States are stored as plain tensors with keys like torch's. For a slot
``exp_avg``, the codes are ``exp_avg`` and the scales are ``exp_avg_scale`` (if the format has them). ``exp_avg_age``
counts the steps since the slot was last zero, for its bias correction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from halfulp.numbers.quantizer import Rounding, check_rounding
from halfulp.rules.drives import GRADIENT, SQUARE, WEIGHT, Drive

__all__ = ["GRADIENT", "SQUARE", "WEIGHT", "Drive", "Hyper", "Shape", "StateSlot"]

Hyper = Mapping[str, Any]
Shape = tuple[int, ...]


def _no_decay(hyper: Hyper) -> float:
    return 0.0


def _like_param(shape: Shape) -> Shape | None:
    return shape


@dataclass(frozen=True)
class StateSlot:
    """One state of a rule.

    Parameters
    ----------
    name
        The key in the optimizer's state, as in torch: ``exp_avg``, ``exp_avg_sq``, ``momentum_buffer`` ...
    signed
        ``False`` for a state that is never negative. It may use an unsigned format.
    decay
        The coefficient ``beta`` of ``beta * state + gain * drive``, as a function of the group's hyper-parameters.
        Scalars of the last step override these, for a decay that changes from step to step.
    drive
        What the state averages (see :class:`~halfulp.rules.drives.Drive`), or a function of the hyper-parameters and
        the parameter's shape that returns it. Without a drive, nothing is predicted.
    alike
        Whether its inputs are not the gradients of the same element (or their squares), but vary like them.
    stalls_as
        A function of the hyper-parameters (with the scalars of the last step), the parameter's shape and the state's
        age before the update. It returns the decay and age of the plain average from zero whose updates stall like this
        state's, or ``None`` if there is none. By default, these are `decay` and the state's own age.
    gain
        The factor of the drive, by default ``1 - beta``.
    shape
        The shape of the state, from the shape of the parameter; ``None`` for parameters that do not have it.
    exact
        Never quantize this state. For scalars, small vectors, bases, and anything else that rounding would break.
    least_bits
        The number of bits that it needs. If one ``state=`` for all slots has fewer bits, this slot is stored as
        ``"8bit"``. A format given for this slot by name is used as it is.
    rounding
        Overrides the optimizer's rounding, unless that is given by slot. (A running maximum would keep every overshoot
        of stochastic rounding, so it uses nearest.)
    init
        The initial value, from the parameter; by default zero.
    """

    name: str
    signed: bool
    decay: Callable[[Hyper], float] = _no_decay
    drive: Drive | Callable[[Hyper, Shape], Drive] | None = None
    alike: bool = False
    stalls_as: Callable[[Hyper, Shape, int], tuple[float, float] | None] | None = None
    gain: Callable[[Hyper], float] | None = None
    shape: Callable[[Shape], Shape | None] = _like_param
    exact: bool = False
    least_bits: int = 0
    rounding: Rounding | None = None
    init: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ValueError(f"a slot has a name such as 'exp_avg', got {self.name!r}")
        if not (self.drive is None or isinstance(self.drive, Drive) or callable(self.drive)):
            raise TypeError(
                f"drive of the slot {self.name!r} is GRADIENT, SQUARE, another Drive or a function, got {self.drive!r}"
            )
        for what, of in (("decay", "hyper"), ("gain", "hyper"), ("shape", "shape"), ("init", "param")):
            given = getattr(self, what)
            if not callable(given) and (given is not None or what in ("decay", "shape")):
                raise TypeError(f"{what} of the slot {self.name!r} is a function (lambda {of}: ...), got {given!r}")
        if self.least_bits not in range(9):
            raise ValueError(f"least_bits of the slot {self.name!r} is 0 to 8, got {self.least_bits!r}")
        if self.rounding is not None:
            check_rounding(self.rounding, f"rounding of the slot {self.name!r}")

    def coefficients(self, hyper: Hyper) -> tuple[float, float]:
        """Return ``(beta, gain)`` under given hyper-parameters."""
        beta = self.decay(hyper)
        return beta, 1.0 - beta if self.gain is None else self.gain(hyper)

    def averages(self, hyper: Hyper, shape: Shape) -> Drive | None:
        """Return the drive of the state for a parameter of this shape, or ``None`` if there is no theory for it."""
        return self.drive(hyper, shape) if callable(self.drive) else self.drive

    def average(self, hyper: Hyper, shape: Shape, age: int) -> tuple[Drive, float, float] | None:
        """Return the drive, decay and age of the plain average that stalls like this state at an age.

        These are the arguments of :func:`halfulp.theory.predict.predict`. The result is ``None`` if there is no theory.

        Examples
        --------
        >>> EXP_AVG = StateSlot("exp_avg", True, lambda h: h["betas"][0], GRADIENT)
        >>> EXP_AVG.average({"betas": (0.9, 0.999)}, (4, 4), 10)[1:]
        (0.9, 10)
        """
        drive = self.averages(hyper, shape)
        if drive is None:
            return None
        found = (self.decay(hyper), age) if self.stalls_as is None else self.stalls_as(hyper, shape, age)
        return None if found is None else (drive, *found)
