"""Rules that use the norm of a whole tensor: AdamP, LAMB, LARS."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from halfulp.numbers.single import fp32
from halfulp.rules.adam import TWO_MOMENTS, MomentsHyper, moment_scalars, moments, normalise
from halfulp.rules.base import Ages, Rule, Scalars, States, by_row, mean, row_means, sides, sqrt, total
from halfulp.rules.hyper import HyperParameters
from halfulp.rules.slots import GRADIENT, Hyper, StateSlot

__all__ = ["ADAMP", "LAMB", "LARS", "AdamPHyper", "LAMBHyper", "LARSHyper"]


# ---------------------------------------------------------------- AdamP


@dataclass(frozen=True)
class AdamPHyper(MomentsHyper):
    """Hyper-parameters of AdamP.

    Parameters
    ----------
    eps
        Added to the root of the bias-corrected second moment, and to norms.
    delta
        Weights count as scale-invariant if the cosine with their gradient is below ``delta / sqrt(dimension)``.
    wd_ratio
        Factor of the weight decay for scale-invariant weights.
    """

    delta: float = 0.1
    wd_ratio: float = 0.1


def _adamp_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    c, decay, decoupled = moment_scalars(hyper, ages), hyper["weight_decay"], hyper["decoupled_weight_decay"]
    shrink = c["lr"] * decay if decoupled else 0.0
    return {
        **c, "delta": hyper["delta"], "l2": 0.0 if decoupled else decay, "keep": 1 - shrink,
        "keep_invariant": 1 - shrink * hyper["wd_ratio"],
    }  # fmt: skip


@dataclass(frozen=True)
class _View:
    """Weights as vectors, one for each channel or one for the layer: their lengths, and their sums of products."""

    length: Tensor
    param_sq: Tensor
    grad_sq: Tensor
    param_grad: Tensor
    param_step: Tensor

    def invariant(self, c: Scalars) -> Tensor:
        """Whether the weights are nearly orthogonal to their gradient, as those before a normalization are."""
        norms = sqrt(self.param_sq) * sqrt(self.grad_sq) + c["eps"]
        return self.param_grad.abs() / norms * sqrt(self.length) < c["delta"]

    def radial(self, c: Scalars) -> Tensor:
        """The radial part of the step, as a factor of the weights."""
        norm = sqrt(self.param_sq) + c["eps"]
        return self.param_step / (norm * norm)


def _project(param: Tensor, grad: Tensor, step: Tensor, c: Scalars) -> tuple[Tensor, Tensor]:
    """Return the step, without its radial part if the weights are scale-invariant, and the decayed weights."""
    rows, cols = sides(param)
    of_rows = [row_means(x) * cols for x in (param * param, grad * grad, param * grad, param * step)]
    channels, layer = _View(cols, *of_rows), _View(rows * cols, *(mean(x) * rows for x in of_rows))
    by_channel = mean(torch.where(channels.invariant(c), torch.zeros_like(of_rows[0]), 1.0)) == 0.0  # each of them
    by_layer = layer.invariant(c)
    zero = torch.zeros_like(layer.param_sq)
    radial = torch.where(by_channel, channels.radial(c), torch.where(by_layer, layer.radial(c), zero))
    keep = torch.where(by_channel | by_layer, zero + c["keep_invariant"], zero + c["keep"])
    return step - param * by_row(radial, param), param * keep


def _adamp(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    exp_avg, exp_avg_sq = moments(grad if c["l2"] == 0.0 else grad + param * c["l2"], states, c)
    step, kept = normalise(exp_avg, exp_avg_sq, c), param * c["keep"]
    if param.ndim > 1:
        step, kept = _project(param, grad, step, c)
    return kept - step * c["lr"], {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


ADAMP = Rule(
    "adamp", lambda h: TWO_MOMENTS, _adamp_scalars, _adamp, elementwise=False, title="AdamP", hyper=AdamPHyper,
    summary="Adam without the step component along weights that a normalization layer follows",
    source="Heo et al., arXiv 2006.08217",
)  # fmt: skip


# ---------------------------------------------------------------- LAMB


@dataclass(frozen=True)
class LAMBHyper(MomentsHyper):
    """Hyper-parameters of LAMB.

    Parameters
    ----------
    eps
        Added to the root of the second moment, which is corrected according to `bias_correction`.
    weight_decay, decoupled_weight_decay
        ``weight_decay * param`` is part of the update whose norm is scaled, whatever `decoupled_weight_decay` is.
    max_norm
        Largest norm of the weights in the scaling; ``None`` for no limit. The paper names no value; other libraries use
        10.
    bias_correction
        ``"moments"`` corrects both moments (the paper's algorithm 2). ``"none"`` corrects neither, as in earlier
        versions of the paper and libraries based on them, for training with a warm-up. ``"step"`` corrects neither, but
        divides the step by ``1 - beta1**t`` after scaling its norm, as pytorch-optimizer does, which makes the first
        step ten times too long.
    """

    eps: float = 1e-6
    max_norm: float | None = None
    bias_correction: str = "moments"

    choices: ClassVar[dict[str, tuple[str, ...]]] = {"bias_correction": ("moments", "none", "step")}


def _lamb_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    c, limit = moment_scalars(hyper, ages), hyper["max_norm"]
    lr = c["lr"] / c["correction1"] if hyper["bias_correction"] == "step" else c["lr"]
    if hyper["bias_correction"] != "moments":
        bound = c["bound"] * c["correction1"] * c["inv_sqrt_correction2"]
        c = {**c, "correction1": 1.0, "inv_sqrt_correction2": 1.0, "bound": bound}
    return {
        **c, "lr": lr, "weight_decay": hyper["weight_decay"], "max_norm": math.inf if limit is None else limit,
    }  # fmt: skip


def _lamb_step(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, Tensor, Tensor]:
    """Return the step before its norm is scaled, and the new moments."""
    exp_avg, exp_avg_sq = moments(grad, states, c)
    return normalise(exp_avg, exp_avg_sq, c) + param * c["weight_decay"], exp_avg, exp_avg_sq


def _lamb_measure(param: Tensor, grad: Tensor, states: States, c: Scalars) -> dict[str, Tensor]:
    step = _lamb_step(param, grad, states, c)[0]
    return {"param_sq": total(param, param), "step_sq": total(step, step)}


def _lamb_combine(sums: Mapping[str, float], c: Scalars) -> Scalars:
    """Return the learning rate times the factor that gives the step the norm of the weights."""
    own, size = min(fp32(sums["param_sq"] ** 0.5), c["max_norm"]), fp32(sums["step_sq"] ** 0.5)
    return {"rate": (fp32(own / size) if own > 0 and size > 0 else 1.0) * c["lr"]}


def _lamb(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    step, exp_avg, exp_avg_sq = _lamb_step(param, grad, states, c)
    return param - step * c["rate"], {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


LAMB = Rule(
    "lamb", lambda h: TWO_MOMENTS, _lamb_scalars, _lamb, measure=_lamb_measure, combine=_lamb_combine, per_tensor=True,
    title="LAMB", hyper=LAMBHyper, tier="core",
    summary="Adam with updates scaled to the norm of the weights", source="You et al., arXiv 1904.00962, algorithm 2",
)  # fmt: skip


# ---------------------------------------------------------------- LARS


@dataclass(frozen=True)
class LARSHyper(HyperParameters):
    """Hyper-parameters of LARS.

    Parameters
    ----------
    momentum
        Decay of the buffer. Each scaled gradient is added without dampening.
    weight_decay, decoupled_weight_decay
        ``weight_decay * param`` is added to the gradients of tensors with two or more dimensions.
        `decoupled_weight_decay` must be false.
    trust_coefficient
        Norm of a tensor's scaled gradient over that of its weights.
    """

    lr: float | Tensor = 1.0
    momentum: float = 0.9
    decoupled_weight_decay: bool = False
    trust_coefficient: float = 1e-3

    choices: ClassVar[dict[str, tuple[bool, ...]]] = {"decoupled_weight_decay": (False,)}


def _lars_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    return {name: float(hyper[name]) for name in ("lr", "momentum", "weight_decay", "trust_coefficient")}


def _lars_measure(param: Tensor, grad: Tensor, states: States, c: Scalars) -> dict[str, Tensor]:
    return {"param_sq": total(param, param), "grad_sq": total(grad, grad)}


def _lars_combine(sums: Mapping[str, float], c: Scalars) -> Scalars:
    own, grad = fp32(sums["param_sq"] ** 0.5), fp32(sums["grad_sq"] ** 0.5)
    size = fp32(grad + fp32(own * c["weight_decay"]))
    return {"trust": fp32(own * c["trust_coefficient"]) / size if own > 0 and size > 0 else 1.0}


def _lars(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    if param.ndim > 1:
        grad = (grad + param * c["weight_decay"]) * c["trust"]
    buffer = states["momentum_buffer"] * c["momentum"] + grad
    return param - buffer * c["lr"], {"momentum_buffer": buffer}


LARS_BUFFER = StateSlot("momentum_buffer", True, lambda h: h["momentum"], GRADIENT, alike=True, gain=lambda h: 1.0)
LARS = Rule(
    "lars", lambda h: (LARS_BUFFER,), _lars_scalars, _lars, measure=_lars_measure, combine=_lars_combine,
    per_tensor=True, title="LARS", hyper=LARSHyper,
    summary="SGD with momentum on gradients scaled to the norm of the weights", source="You et al., arXiv 1708.03888",
)  # fmt: skip
