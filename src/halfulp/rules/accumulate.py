"""MADGRAD: dual averaging, with sums in place of moving averages."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from halfulp.rules.base import Ages, Rule, Scalars, States, cbrt, ema
from halfulp.rules.hyper import HyperParameters
from halfulp.rules.slots import GRADIENT, SQUARE, Hyper, Shape, StateSlot
from halfulp.rules.transforms import with_weight_decay

__all__ = ["MADGRAD", "MADGRADHyper"]


@dataclass(frozen=True)
class MADGRADHyper(HyperParameters):
    """Hyper-parameters of MADGRAD. Weight decay is coupled by default, as in the authors' code.

    Parameters
    ----------
    momentum
        The fraction of the way to the new point that each step leaves out.
    eps
        Added to the cube root of the sum of squares, and to `lr`.
    """

    lr: float | Tensor = 1e-2
    decoupled_weight_decay: bool = False
    momentum: float = 0.9
    eps: float = 1e-6


NO_FORGETTING = 1 - 1e-6
"""The decay of an average that behaves like a sum over all relevant steps."""


def _slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    def one(h: Hyper) -> float:
        return 1.0

    # Inputs grow as the root of time. A sum of t of them has the relative size of t/2 (its deviation) or t/1.5 (its
    # mean) equal inputs, and a sum behaves like the start of an average that forgets nothing.
    def seen(share: float) -> Callable[[Hyper, Shape, int], tuple[float, float]]:
        return lambda h, shape, age: (NO_FORGETTING, age / share)

    # nothing bounds a step where rounding made only the sum of squares zero, so it needs 8 bits
    return (
        StateSlot("grad_sum", signed=True, decay=one, drive=GRADIENT, alike=True, stalls_as=seen(2)),
        StateSlot("grad_sum_sq", signed=False, decay=one, drive=SQUARE, alike=True, stalls_as=seen(1.5), least_bits=8),
        StateSlot("initial_param", signed=True, decay=one, init=lambda p: p, exact=True),
    )


def _scalars(hyper: Hyper, ages: Ages) -> Scalars:
    weight = (float(hyper["lr"]) + hyper["eps"]) * math.sqrt(ages["grad_sum"]) if hyper["lr"] else 0.0
    return {"weight": weight, "eps": hyper["eps"], "move": 1 - hyper["momentum"]}


def _update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    total = states["grad_sum"] + grad * c["weight"]
    total_sq = states["grad_sum_sq"] + (grad * grad) * c["weight"]
    root = cbrt(total_sq) + c["eps"]
    target = states["initial_param"] - total / root
    param = ema(param, target, c["move"])
    return param, {"grad_sum": total, "grad_sum_sq": total_sq, "initial_param": states["initial_param"]}


MADGRAD = with_weight_decay(
    Rule(
        "madgrad", _slots, _scalars, _update, title="MADGRAD", hyper=MADGRADHyper,
        summary="dual averaging, with sums instead of moving averages", source="Defazio & Jelassi, arXiv 2101.11075",
        notes="The sums only grow, until nearest rounding freezes them. The initial weights stay in fp32.",
        example='lr=1e-2, state="bf16"',
    )
)  # fmt: skip
