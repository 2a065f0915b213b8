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

__all__ = ["Hyper", "Likeness", "Shape", "StateSlot"]

Hyper = Mapping[str, Any]
Shape = tuple[int, ...]


def _no_decay(hyper: Hyper) -> float:
    return 0.0


def _like_param(shape: Shape) -> Shape | None:
    return shape


@dataclass(frozen=True)
class Likeness:
    """A plain average, zero at first, whose updates stall as those of some state do.

    Stalling does not depend on the scale of what is averaged, only on how it varies; so many a state that averages
    something else than gradients or their squares stalls as one that does.

    Parameters
    ----------
    drive
        ``"grad"``: independent normal inputs; ``"grad_sq"``: squares of such.
    decay
        Of the average.
    age
        Updates that it has seen when the update in question meets it.
    shared
        Number of squares whose mean is one input (``"grad_sq"``).
    ratio
        Mean over deviation of the inputs (``"grad"``).
    whole_first
        Whether the first input is taken as it is, so that nothing builds up from zero.
    """

    drive: str
    decay: float
    age: float
    shared: float = 1.0
    ratio: float = 0.0
    whole_first: bool = False


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
        What the state averages: ``"grad"`` or ``"grad_sq"``, element by element; ``"other"`` for anything else.
    like
        What its updates stall like, where `drive` does not say: ``"grad"`` or ``"grad_sq"`` at its decay and age, or a
        function of the hyper-parameters (with the scalars of the last step), the parameter's shape and the age that
        the update meets. Of an ``"other"`` state without it nothing is predicted.
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
    drive: str = "other"
    like: str | Callable[[Hyper, Shape, int], Likeness] | None = None
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

    def likeness(self, hyper: Hyper, shape: Shape, age: int) -> Likeness | None:
        """What the update that meets this state at an age stalls like, on a parameter of a shape; ``None``: unknown.

        Examples
        --------
        >>> StateSlot("exp_avg", True, lambda h: h["betas"][0], "grad").likeness({"betas": (0.9, 0.999)}, (4, 4), 10)
        Likeness(drive='grad', decay=0.9, age=10, shared=1.0, ratio=0.0, whole_first=False)
        """
        like = self.drive if self.like is None else self.like
        if callable(like):
            return like(hyper, shape, age)
        return Likeness(like, self.decay(hyper), age) if like in ("grad", "grad_sq") else None
