"""Declaration of optimizer states.

A rule declares each of its states as a :class:`StateSlot`; the engine stores it with a
:class:`~halfulp.numbers.quantizer.Quantizer`. Stored tensors are plain ones under torch-like keys:
for a slot ``exp_avg`` the codes are ``exp_avg``, the scales ``exp_avg_scale`` (where the format has them), and
``exp_avg_age`` counts the steps since the slot was last zero, which is what its bias correction takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from halfulp.numbers.quantizer import Rounding
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
        Key in the optimizer's state, as in torch: ``exp_avg``, ``exp_avg_sq``, ``momentum_buffer`` ...
    signed
        ``False`` for a state that is never negative: it may use an unsigned format.
    decay
        The coefficient ``beta`` of ``beta * state + gain * drive``, from the group's hyper-parameters, over which the
        scalars of the last step are laid (for a decay that changes from step to step).
    drive
        What the state averages, see :class:`~halfulp.rules.drives.Drive`; a function of the hyper-parameters and the
        parameter's shape where it depends on these. Of a state without it nothing is predicted.
    alike
        Its inputs are not the gradients of the same element (or their squares) but something that varies as these do.
    stalls_as
        Decay and age of the plain average from zero whose updates stall as its own, where these are not `decay` and
        the steps since it was zero: a function of the hyper-parameters (with the scalars of the last step), the
        parameter's shape and the age that the update meets; ``None`` for none.
    gain
        The factor of the drive, ``1 - beta`` unless given.
    shape
        Shape of the state from the shape of the parameter; ``None`` for parameters that do not have it.
    exact
        Never quantized: a scalar, a small vector, a basis, anything that rounding would break. Stays in fp32.
    least_bits
        Bits that it needs: where one ``state=`` for all slots has fewer, this one is stored as ``"8bit"``. A format
        that is given for this slot by name is taken as it is.
    rounding
        Overrides the optimizer's rounding unless that is given by slot (a running maximum keeps every overshoot of
        stochastic rounding, so it asks for nearest).
    init
        Initial value, from the parameter; zero without.
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

    def coefficients(self, hyper: Hyper) -> tuple[float, float]:
        """``(beta, gain)`` under given hyper-parameters."""
        beta = self.decay(hyper)
        return beta, 1.0 - beta if self.gain is None else self.gain(hyper)

    def averages(self, hyper: Hyper, shape: Shape) -> Drive | None:
        """Drive of the state of a parameter with a shape; ``None`` where theory has none."""
        return self.drive(hyper, shape) if callable(self.drive) else self.drive

    def average(self, hyper: Hyper, shape: Shape, age: int) -> tuple[Drive, float, float] | None:
        """Drive, decay and age of the plain average that the update which meets this state at an age stalls as.

        What :func:`halfulp.theory.predict.predict` takes; ``None`` where there is no theory.

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
