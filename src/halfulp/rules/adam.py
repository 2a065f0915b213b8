"""Adam and AdamW."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from torch import Tensor

from halfulp.rules.base import Ages, Rule, Scalars, States, clamp, ema, maximum, sqrt
from halfulp.rules.hyper import HyperBase, HyperParameters, decay_factors
from halfulp.rules.slots import GRADIENT, SQUARE, Hyper, StateSlot

__all__ = [
    "ADAM", "ADAMW", "EXP_AVG", "EXP_AVG_SQ", "MAX_EXP_AVG_SQ", "TWO_MOMENTS", "AdamHyper", "AdamWHyper",
    "MomentsHyper", "max_ratio", "moment_scalars", "moments", "normalise", "second_moment",
]  # fmt: skip

EXP_AVG = StateSlot("exp_avg", signed=True, decay=lambda h: h["betas"][0], drive=GRADIENT)
EXP_AVG_SQ = StateSlot("exp_avg_sq", signed=False, decay=lambda h: h["betas"][1], drive=SQUARE)
TWO_MOMENTS = (EXP_AVG, EXP_AVG_SQ)
MAX_EXP_AVG_SQ = StateSlot("max_exp_avg_sq", signed=False, decay=lambda h: 1.0, rounding="nearest")
"""A running maximum. Stochastic rounding would keep every overshoot forever."""


@dataclass(frozen=True)
class MomentsHyper(HyperParameters):
    """Hyper-parameters of rules with Adam's two moments.

    Parameters
    ----------
    betas
        Decays of the first and the second moment.
    eps
        Added to the root of the bias-corrected second moment.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


def max_ratio(beta1: float, beta2: float, age: int) -> float:
    """Return the largest value of ``|m_hat| / sqrt(v_hat)`` in exact arithmetic at a given age.

    By Cauchy-Schwarz on the two weighted sums, ``m**2 <= (1-b1)**2 / (1-b2) * sum_k (b1**2/b2)**k * v``. The bound is 1
    at age 1 and 7.27 in the long run at (0.9, 0.999). For ``b1**2 >= b2`` it grows without limit. If a stored ``v`` was
    rounded to zero while ``m`` is nonzero, the ratio exceeds the bound and the step is cut back to it.
    """
    if beta2 == 0.0:
        return math.inf if beta1 > 0.0 and age > 1 else 1.0
    ratio = beta1 * beta1 / beta2
    if ratio > 1.0 and age * math.log(ratio) > 600.0:
        return math.inf
    total = float(age) if ratio == 1.0 else (1 - ratio**age) / (1 - ratio)
    correction = math.sqrt(1 - beta2**age) / (1 - beta1**age)
    return (1 - beta1) / math.sqrt(1 - beta2) * math.sqrt(total) * correction


def moment_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    """Return ``lr`` and the scalars that :func:`moments` and :func:`normalise` need."""
    beta1, beta2 = hyper["betas"][:2]
    age1, age2 = ages["exp_avg"], ages["exp_avg_sq"]
    return {
        "lr": float(hyper["lr"]),
        "eps": hyper["eps"],
        "weight1": 1 - beta1,
        "beta2": beta2,
        "weight2": 1 - beta2,
        "correction1": 1 - beta1**age1,
        "inv_sqrt_correction2": 1 / math.sqrt(1 - beta2**age2),
        "bound": max_ratio(beta1, beta2, max(age1, age2)) * (1 + 1e-6) if hyper["bound_update"] else math.inf,
    }


def second_moment(x: Tensor, states: States, c: Scalars) -> Tensor:
    """Return the second moment after a gradient, or after what a rule squares in its place."""
    return states["exp_avg_sq"] * c["beta2"] + (x * x) * c["weight2"]


def moments(grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, Tensor]:
    """Return Adam's two moments after this gradient."""
    return ema(states["exp_avg"], grad, c["weight1"]), second_moment(grad, states, c)


def normalise(exp_avg: Tensor, exp_avg_sq: Tensor, c: Scalars) -> Tensor:
    """Return Adam's bias-corrected ratio of the moments, within the bound of exact arithmetic."""
    denominator = sqrt(exp_avg_sq) * c["inv_sqrt_correction2"] + c["eps"]
    return clamp(exp_avg / c["correction1"] / denominator, c["bound"])


@dataclass(frozen=True)
class AdamHyper(HyperBase):
    """Hyper-parameters of Adam, in the order of ``torch.optim.Adam``.

    Parameters
    ----------
    lr
        Learning rate, a float or a tensor of one element.
    betas
        Decays of the first and the second moment.
    eps
        Added to the root of the bias-corrected second moment.
    weight_decay
        ``weight_decay * param`` is added to the gradient.
    amsgrad
        Divide by the largest second moment so far (Reddi et al., arXiv 1904.09237). As in ``torch.optim``, the maximum
        is that of the uncorrected moment.
    decoupled_weight_decay
        Shrink parameters by ``lr * weight_decay`` per step instead, as in :class:`~halfulp.AdamW`.
    """

    lr: float | Tensor = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False
    decoupled_weight_decay: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class AdamWHyper(AdamHyper):
    """Hyper-parameters of AdamW, in the order of ``torch.optim.AdamW``.

    Parameters
    ----------
    weight_decay
        Parameters shrink by ``lr * weight_decay`` per step.
    """

    weight_decay: float = 1e-2
    decoupled_weight_decay: bool = field(default=True, init=False)


def _slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    return (*TWO_MOMENTS, MAX_EXP_AVG_SQ) if hyper.get("amsgrad", False) else TWO_MOMENTS


def _scalars(hyper: Hyper, ages: Ages) -> Scalars:
    (beta1, beta2), (keep, l2) = hyper["betas"], decay_factors(hyper)
    age1, age2 = ages["exp_avg"], ages["exp_avg_sq"]
    correction1, correction2 = 1 - beta1**age1, 1 - beta2**age2
    bound = math.inf
    if hyper["bound_update"]:
        bound = max_ratio(beta1, beta2, max(age1, age2)) * correction1
    return {
        "keep": keep,
        "l2": l2,
        "weight1": 1 - beta1,
        "beta2": beta2,
        "weight2": 1 - beta2,
        "inv_sqrt_correction2": 1 / math.sqrt(correction2),
        "eps": hyper["eps"],
        "bound": bound * (1 + 1e-6),
        "step_size": float(hyper["lr"]) / correction1,
    }


def _update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    if c["l2"] != 0.0:
        grad = grad + param * c["l2"]
    exp_avg, exp_avg_sq = moments(grad, states, c)
    new, square = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}, exp_avg_sq
    if "max_exp_avg_sq" in states:
        square = new["max_exp_avg_sq"] = maximum(states["max_exp_avg_sq"], exp_avg_sq)
    denominator = sqrt(square) * c["inv_sqrt_correction2"] + c["eps"]
    ratio = clamp(exp_avg / denominator, c["bound"])
    return param * c["keep"] - ratio * c["step_size"], new


ADAM = Rule(
    "adam", _slots, _scalars, _update, title="Adam", hyper=AdamHyper, tier="core",
    summary="two moments of the gradient, bias-corrected", source="Kingma & Ba, arXiv 1412.6980",
    notes="""The arguments are those of ``torch.optim.Adam``. With ``state="fp32"``, steps agree to a few units in the
    last place, since each operation here rounds separately (``docs/bit-contract.md``).""",
)  # fmt: skip
ADAMW = replace(
    ADAM, title="AdamW", hyper=AdamWHyper, summary="Adam with decoupled weight decay",
    source="Loshchilov & Hutter, arXiv 1711.05101", notes="The arguments are those of ``torch.optim.AdamW``.",
    example="""
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.AdamW(model.parameters(), lr=3e-4, state={"exp_avg": "fp8", "exp_avg_sq": "bf16"})
    >>> print(optimizer.memory().by_storage)
    {'float8_e4m3fn:pow2:block128': 4160, 'bfloat16': 8192, 'float32': 512}
    >>> model(torch.ones(1, 64)).sum().backward(); optimizer.step()
    >>> optimizer.state_tensor(model.weight, "exp_avg").shape
    torch.Size([64, 64])
    """,
)  # fmt: skip
