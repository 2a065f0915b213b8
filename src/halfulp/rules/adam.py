"""Adam and AdamW."""

from __future__ import annotations

import math

from torch import Tensor

from halfulp.rules.base import Ages, Rule, Scalars, States, clamp, sqrt
from halfulp.state import Hyper, StateSlot

__all__ = ["ADAM", "max_ratio"]


def max_ratio(beta1: float, beta2: float, age: int) -> float:
    """Largest value that ``|m_hat| / sqrt(v_hat)`` can take in exact arithmetic at a given age.

    By Cauchy-Schwarz on the two weighted sums, ``m**2 <= (1-b1)**2 / (1-b2) * sum_k (b1**2/b2)**k * v``. It is 1 at age
    1 and 7.27 in the long run at (0.9, 0.999); for ``b1**2 >= b2`` it grows without limit. A stored ``v`` that was
    rounded to zero beside a non-zero ``m`` would exceed it: the step is then cut back to the bound.
    """
    if beta2 == 0.0:
        return math.inf if beta1 > 0.0 and age > 1 else 1.0
    ratio = beta1 * beta1 / beta2
    if ratio > 1.0 and age * math.log(ratio) > 600.0:
        return math.inf
    total = float(age) if ratio == 1.0 else (1 - ratio**age) / (1 - ratio)
    correction = math.sqrt(1 - beta2**age) / (1 - beta1**age)
    return (1 - beta1) / math.sqrt(1 - beta2) * math.sqrt(total) * correction


def _slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    return (
        StateSlot("exp_avg", signed=True, decay=lambda h: h["betas"][0], drive="grad"),
        StateSlot("exp_avg_sq", signed=False, decay=lambda h: h["betas"][1], drive="grad_sq"),
    )


def _scalars(hyper: Hyper, ages: Ages) -> Scalars:
    (beta1, beta2), lr, weight_decay = hyper["betas"], float(hyper["lr"]), hyper["weight_decay"]
    decoupled = hyper["decoupled_weight_decay"]
    age1, age2 = ages["exp_avg"], ages["exp_avg_sq"]
    correction1, correction2 = 1 - beta1**age1, 1 - beta2**age2
    bound = math.inf
    if hyper["bound_update"]:
        bound = max_ratio(beta1, beta2, max(age1, age2)) * correction1
    return {
        "keep": 1 - lr * weight_decay if decoupled else 1.0,
        "l2": 0.0 if decoupled else weight_decay,
        "weight1": 1 - beta1,
        "beta2": beta2,
        "weight2": 1 - beta2,
        "inv_sqrt_correction2": 1 / math.sqrt(correction2),
        "eps": hyper["eps"],
        "bound": bound * (1 + 1e-6),
        "step_size": lr / correction1,
    }


def _update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    exp_avg, exp_avg_sq = states["exp_avg"], states["exp_avg_sq"]
    if c["l2"] != 0.0:
        grad = grad + param * c["l2"]
    exp_avg = exp_avg + (grad - exp_avg) * c["weight1"]
    exp_avg_sq = exp_avg_sq * c["beta2"] + (grad * grad) * c["weight2"]
    denominator = sqrt(exp_avg_sq) * c["inv_sqrt_correction2"] + c["eps"]
    ratio = clamp(exp_avg / denominator, c["bound"])
    return param * c["keep"] - ratio * c["step_size"], {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


ADAM = Rule("adam", _slots, _scalars, _update)
"""Adam (Kingma & Ba, arXiv 1412.6980) and, with decoupled weight decay, AdamW (Loshchilov & Hutter, 1711.05101)."""
