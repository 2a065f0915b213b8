"""Adam with a different second moment or direction: AdaBelief, AdaMomentum, diffGrad, EXAdam, AdaMod, AdaBound."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from halfulp.numbers.single import fp32
from halfulp.rules.adam import (
    EXP_AVG,
    EXP_AVG_SQ,
    MAX_EXP_AVG_SQ,
    TWO_MOMENTS,
    MomentsHyper,
    moment_scalars,
    moments,
    normalise,
    second_moment,
)  # fmt: skip
from halfulp.rules.base import Ages, Rule, Scalars, States, clamp, ema, maximum, minimum, sigmoid, sqrt
from halfulp.rules.slots import GRADIENT, Drive, Hyper, Shape, StateSlot
from halfulp.rules.transforms import with_weight_decay

__all__ = [
    "ADABELIEF", "ADABOUND", "ADAMOD", "ADAMOMENTUM", "DIFFGRAD", "EXADAM", "AdaBeliefHyper", "AdaBoundHyper",
    "AdaModHyper", "AdaMomentumHyper",
]  # fmt: skip

BELIEF_SQ = replace(EXP_AVG_SQ, alike=True)


# ---------------------------------------------------------------- AdaBelief


@dataclass(frozen=True)
class AdaBeliefHyper(MomentsHyper):
    """Hyper-parameters of AdaBelief.

    Parameters
    ----------
    eps
        Added to the second moment in every step, and to its root.
    """

    eps: float = 1e-16


def _adabelief(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    exp_avg = ema(states["exp_avg"], grad, c["weight1"])
    exp_avg_sq = second_moment(grad - exp_avg, states, c) + c["eps"]
    denominator = sqrt(exp_avg_sq) * c["inv_sqrt_correction2"] + c["eps"]
    step = exp_avg / c["correction1"] / denominator
    return param - step * c["lr"], {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


SURPRISE_SQ = replace(BELIEF_SQ, least_bits=8)
"""With steady gradients it becomes arbitrarily small beside the first moment, and 4 bits would round it to zero."""
ADABELIEF = with_weight_decay(
    Rule(
        "adabelief", lambda h: (EXP_AVG, SURPRISE_SQ), moment_scalars, _adabelief, title="AdaBelief",
        hyper=AdaBeliefHyper, source="Zhuang et al., arXiv 2010.07468",
        summary="Adam with the second moment of the gradient's deviation from its average",
        example='lr=1e-3, state="bf16"',
    )
)  # fmt: skip


# ---------------------------------------------------------------- AdaMomentum


@dataclass(frozen=True)
class AdaMomentumHyper(MomentsHyper):
    """Hyper-parameters of AdaMomentum.

    Parameters
    ----------
    eps
        Added to the second moment in every step, and nowhere else.
    """

    weight_decay: float = 5e-4
    decoupled_weight_decay: bool = False


def _adamomentum(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    exp_avg = ema(states["exp_avg"], grad, c["weight1"])
    exp_avg_sq = second_moment(exp_avg, states, c) + c["eps"]
    step = exp_avg / c["correction1"] / (sqrt(exp_avg_sq) * c["inv_sqrt_correction2"])
    return param - step * c["lr"], {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


ADAMOMENTUM = with_weight_decay(
    Rule(
        "adamomentum", lambda h: (EXP_AVG, BELIEF_SQ), moment_scalars, _adamomentum, title="AdaMomentum",
        hyper=AdaMomentumHyper, summary="Adam with the second moment of the first moment",
        source="Wang et al., arXiv 2106.11514", notes="The first step is ``lr / (1 - beta1)``: pair it with a warm-up.",
        example='lr=1e-4, state="8bit"',
    )
)  # fmt: skip


# ---------------------------------------------------------------- diffGrad

PREVIOUS = StateSlot("previous_grad", signed=True, drive=GRADIENT)


def _diffgrad(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    exp_avg, exp_avg_sq = moments(grad, states, c)
    friction = sigmoid((states["previous_grad"] - grad).abs())
    step = friction * normalise(exp_avg, exp_avg_sq, c)
    return param - step * c["lr"], {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "previous_grad": grad}


DIFFGRAD = with_weight_decay(
    Rule(
        "diffgrad", lambda h: (EXP_AVG, EXP_AVG_SQ, PREVIOUS), moment_scalars, _diffgrad, title="DiffGrad",
        hyper=MomentsHyper, summary="Adam with steps damped where the gradient hardly changes",
        source="Dubey et al., arXiv 1909.11015",
    )
)  # fmt: skip


# ---------------------------------------------------------------- EXAdam


def _exadam_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    beta1, beta2 = hyper["betas"]
    c = moment_scalars(hyper, ages)
    grad_share = 1 / (math.sqrt(1 - beta2) * c["inv_sqrt_correction2"] * c["correction1"])  # grad**2 <= v / (1 - beta2)
    return {
        **c, "left1": beta1 ** ages["exp_avg"], "left2": beta2 ** ages["exp_avg_sq"],
        "bound": 2 * (c["bound"] + grad_share * (1 + 1e-6)),
    }  # fmt: skip


def _exadam(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    exp_avg, exp_avg_sq = moments(grad, states, c)
    square = exp_avg * exp_avg
    debias1 = exp_avg_sq / (exp_avg_sq + c["eps"]) * c["left2"] + 1
    debias2 = square / (square + c["eps"]) * c["left1"] + 1
    root = sqrt(exp_avg_sq * (c["inv_sqrt_correction2"] * c["inv_sqrt_correction2"]) * debias2)
    step = clamp((exp_avg + grad) / c["correction1"] * debias1 / (root + c["eps"]), c["bound"])
    return param - step * c["lr"], {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


EXADAM = with_weight_decay(
    Rule(
        "exadam", lambda h: TWO_MOMENTS, _exadam_scalars, _exadam, title="EXAdam", hyper=MomentsHyper,
        summary="Adam with joint bias corrections and an extra gradient term", source="arXiv 2412.20302",
        notes="This follows the authors' code. The first step is 16 times Adam's, so use a smaller `lr`.",
        example='lr=1e-4, state="8bit"',
    )
)  # fmt: skip


# ---------------------------------------------------------------- AdaMod


@dataclass(frozen=True)
class AdaModHyper(MomentsHyper):
    """Hyper-parameters of AdaMod.

    Parameters
    ----------
    betas
        Decays of the first moment, of the second moment and of the average of the rates.
    eps
        Added to the uncorrected root of the second moment.
    """

    betas: tuple[float, float, float] = (0.9, 0.99, 0.9999)  # type: ignore[assignment]


def _rates_drive(hyper: Hyper, shape: Shape) -> Drive:
    """Return the drive of rates. Their relative deviation is half that of the second moment, sqrt(2 (1-b) / (1+b))."""
    beta2 = hyper["betas"][1]
    return Drive("gradient", ratio=2 / math.sqrt(2 * (1 - beta2) / (1 + beta2)))


def _rates_stall_as(hyper: Hyper, shape: Shape, age: int) -> tuple[float, float]:
    """Return the decay and a larger age, since the first rates are large by the bias correction of the first moment."""
    beta1, _, beta3 = hyper["betas"]
    return beta3, age + sum(1 / (1 - beta1**t) - 1 for t in range(1, min(age, 1000) + 1))


RATES = StateSlot("exp_avg_lr", False, lambda h: h["betas"][2], _rates_drive, alike=True, stalls_as=_rates_stall_as)


def _rate(exp_avg_sq: Tensor, c: Scalars) -> Tensor:
    """Return Adam's learning rate of each coordinate, bias corrections included."""
    return c["lr"] / c["inv_sqrt_correction2"] / c["correction1"] / (sqrt(exp_avg_sq) + c["eps"])


def _adamod_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    c = moment_scalars(hyper, ages)
    bound = c["bound"] if fp32(c["lr"]) else 0.0  # a rate of zero times an infinite bound would be NaN
    return {**c, "bound": bound, "beta3": hyper["betas"][2], "weight3": 1 - hyper["betas"][2]}


def _adamod(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    exp_avg, exp_avg_sq = moments(grad, states, c)
    rate = _rate(exp_avg_sq, c)
    average = states["exp_avg_lr"] * c["beta3"] + rate * c["weight3"]
    step = clamp(minimum(rate, average) * exp_avg, c["lr"] * c["bound"])  # no more than Adam's
    return param - step, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "exp_avg_lr": average}


ADAMOD = with_weight_decay(
    Rule(
        "adamod", lambda h: (EXP_AVG, EXP_AVG_SQ, RATES), _adamod_scalars, _adamod, title="AdaMod", hyper=AdaModHyper,
        summary="Adam with each coordinate's rate capped by its long-term average",
        source="Ding et al., arXiv 1910.12249",
    )
)  # fmt: skip


# ---------------------------------------------------------------- AdaBound


@dataclass(frozen=True)
class AdaBoundHyper(MomentsHyper):
    """Hyper-parameters of AdaBound.

    Parameters
    ----------
    eps
        Added to the uncorrected root of the second moment.
    final_lr
        Final learning rate. It follows a schedule of `lr`.
    gamma
        Pace of the bounds, which are ``1 - 1 / (gamma t + 1)`` and ``1 + 1 / (gamma t)`` times `final_lr` in step t.
    amsbound
        Divide by the largest second moment so far (AMSBound).
    """

    final_lr: float = 0.1
    gamma: float = 1e-3
    amsbound: bool = False


def _adabound_slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    return (*TWO_MOMENTS, MAX_EXP_AVG_SQ) if hyper["amsbound"] else TWO_MOMENTS


def _adabound_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    lr, step = float(hyper["lr"]), hyper["gamma"] * ages["step"]
    final = hyper["final_lr"] * (lr / float(hyper.get("initial_lr", lr)) if lr else 0.0)
    low, high = final * (1 - 1 / (step + 1)), final * (1 + 1 / step) if step else math.inf
    return {**moment_scalars(hyper, ages), "low": low, "high": high}


def _adabound(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    exp_avg, exp_avg_sq = moments(grad, states, c)
    new, square = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}, exp_avg_sq
    if "max_exp_avg_sq" in states:
        square = new["max_exp_avg_sq"] = maximum(states["max_exp_avg_sq"], exp_avg_sq)
    return param - torch.clamp(_rate(square, c), c["low"], c["high"]) * exp_avg, new


ADABOUND = with_weight_decay(
    Rule(
        "adabound", _adabound_slots, _adabound_scalars, _adabound, title="AdaBound", hyper=AdaBoundHyper,
        summary="Adam that turns into SGD through bounds on each coordinate's rate",
        source="Luo et al., arXiv 1902.09843",
        notes="With ``amsbound=True`` it is AMSBound.", example='lr=1e-3, final_lr=0.1, state="8bit"',
    )
)  # fmt: skip
