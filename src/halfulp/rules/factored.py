"""Rules with second moments factored into rows and columns: Adafactor, CAME, SMMF.

A tensor of two or more dimensions is taken as a matrix, the first dimension by all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from halfulp.rules.base import (
    Ages,
    Rule,
    Scalars,
    States,
    by_column,
    by_row,
    column_means,
    ema,
    mean,
    rms,
    row_means,
    sqrt,
)  # fmt: skip
from halfulp.rules.hyper import HyperParameters, decay_factors
from halfulp.rules.slots import GRADIENT, SQUARE, Drive, Hyper, Shape, StateSlot
from halfulp.rules.transforms import with_weight_decay

__all__ = [
    "ADAFACTOR", "ADALOMO", "CAME", "SMMF", "AdaLomoHyper", "AdafactorHyper", "CAMEHyper", "SMMFHyper",
    "nearest_square",
]  # fmt: skip


Decay = Callable[[Hyper], float]


def _rows(shape: Shape) -> Shape | None:
    return shape[:1] if len(shape) > 1 else None


def _cols(shape: Shape) -> Shape | None:
    return (math.prod(shape[1:]),) if len(shape) > 1 else None


def _whole(shape: Shape) -> Shape | None:
    return shape if len(shape) < 2 else None


def _mean_sq(name: str, decay: Decay, dim: int, whole_first: bool = False) -> StateSlot:
    """The slot of the mean square of each row (`dim` 0) or column (1)."""

    def drive(hyper: Hyper, shape: Shape) -> Drive:
        return Drive("square", math.prod(shape[1:]) if dim == 0 else shape[0], whole_first=whole_first)

    return StateSlot(name, False, decay, drive, alike=True, shape=(_rows, _cols)[dim])


def _inverse_root(square: Tensor) -> Tensor:
    return 1.0 / torch.clamp(sqrt(square), min=1e-19)


def _over_root(x: Tensor, of: Tensor, states: States, name: str, weight: float, floor: float) -> tuple[Tensor, States]:
    """Return `x` over the root of the second moment of `of`, and its states ``name`` or ``name_row`` and ``name_col``.

    A factored second moment is the outer product of its row and column means, divided by their mean. Its root is
    divided by row by row and column by column, as in the paper's own code, which takes no root of each element.
    """
    square = of * of + floor
    if name in states:
        new = ema(states[name], square, weight)
        return x / torch.clamp(sqrt(new), min=1e-38), {name: new}
    row = ema(states[f"{name}_row"], row_means(square), weight)
    col = ema(states[f"{name}_col"], column_means(square), weight)
    by_rows = by_row(_inverse_root(row / torch.clamp(mean(row), min=1e-38)), x)
    return x * by_rows * by_column(_inverse_root(col), x), {f"{name}_row": row, f"{name}_col": col}


# ---------------------------------------------------------------- Adafactor


@dataclass(frozen=True)
class AdafactorHyper(HyperParameters):
    """Hyper-parameters of Adafactor.

    Parameters
    ----------
    weight_decay
        Weights decay by ``lr * weight_decay`` as in ``torch.optim.Adafactor``, whatever the rate of the step. The
        published rule has no weight decay.
    lr
        With `relative_step`, the upper limit of ``1 / sqrt(step)``; otherwise the learning rate. Both are multiplied by
        the root mean square of the weights, at least `min_scale`.
    decay_power
        The decay of the second moment in step t is ``1 - t**-decay_power``.
    momentum
        Decay of a first moment of the updates; 0 for none.
    clip
        Largest root mean square of an update.
    eps
        Added to squared gradients.
    min_scale
        Lower bound of the root mean square of the weights by which the rate is multiplied.
    relative_step
        Whether the rate falls as ``1 / sqrt(step)``, limited to `lr`.
    """

    lr: float | Tensor = 1e-2
    decay_power: float = 0.8
    momentum: float = 0.0
    clip: float = 1.0
    eps: float = 1e-30
    min_scale: float = 1e-3
    relative_step: bool = True


@dataclass(frozen=True)
class AdaLomoHyper(AdafactorHyper):
    """Hyper-parameters of AdaLomo: Adafactor with a given learning rate."""

    lr: float | Tensor = 1e-3
    relative_step: bool = False


def _growing(hyper: Hyper) -> float:
    """Return Adafactor's decay in the last step, or that of step 1000 before any step."""
    return float(hyper.get("decay", 1 - 1000.0 ** -hyper["decay_power"]))


def _adafactor_slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    moments = (
        _mean_sq("exp_avg_sq_row", _growing, 0, whole_first=True),
        _mean_sq("exp_avg_sq_col", _growing, 1, whole_first=True),
        StateSlot("exp_avg_sq", False, _growing, drive=Drive("square", whole_first=True), shape=_whole),
    )
    if hyper["momentum"] == 0:
        return moments
    return (*moments, StateSlot("exp_avg", signed=True, decay=lambda h: h["momentum"], drive=GRADIENT, alike=True))


def _adafactor_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    lr, step = float(hyper["lr"]), ages["step"]
    age = ages.get("exp_avg_sq", ages.get("exp_avg_sq_row", step))
    weight, (keep, l2) = age ** -hyper["decay_power"], decay_factors(hyper)
    return {
        "keep": keep, "l2": l2,
        "rate": min(lr, step**-0.5) if hyper["relative_step"] else lr, "weight": weight, "decay": 1 - weight,
        "eps": hyper["eps"], "clip": hyper["clip"], "min_scale": hyper["min_scale"], "weight1": 1 - hyper["momentum"],
    }  # fmt: skip


def _adafactor(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    if c["l2"] != 0.0:
        grad = grad + param * c["l2"]
    step, new = _over_root(grad, grad, states, "exp_avg_sq", c["weight"], c["eps"])
    step = step * (1.0 / torch.clamp(rms(step) / c["clip"], min=1.0))
    step = step * (torch.clamp(rms(param), min=c["min_scale"]) * c["rate"])
    if "exp_avg" in states:
        step = new["exp_avg"] = ema(states["exp_avg"], step, c["weight1"])
    return param * c["keep"] - step, new  # the rate uses the weights before decay


ADAFACTOR = Rule(
    "adafactor", _adafactor_slots, _adafactor_scalars, _adafactor, elementwise=False, title="Adafactor",
    hyper=AdafactorHyper, summary="Adam with a second moment factored into rows and columns",
    source="Shazeer & Stern, arXiv 1804.04235",
    notes="""It follows ``torch.optim.Adafactor``, whose ``beta2_decay=-0.8`` is ``decay_power=0.8`` here. Its
    ``eps=(None, 1e-3)`` is ``eps`` and ``min_scale``, and its ``d`` is ``clip``.""",
    example='lr=1e-2, momentum=0.9, state="8bit"', tier="core",
)  # fmt: skip
ADALOMO = replace(
    ADAFACTOR, title="AdaLomo", hyper=AdaLomoHyper, source="Lv et al., arXiv 2310.10195", tier="contributed",
    summary="Adafactor with a given learning rate, made to run during the backward pass",
    notes="See :func:`~halfulp.training.release.release_gradients`.", example='lr=1e-3, state="fp32"',
)  # fmt: skip


# ---------------------------------------------------------------- CAME


@dataclass(frozen=True)
class CAMEHyper(HyperParameters):
    """Hyper-parameters of CAME.

    Parameters
    ----------
    betas
        Decays of the update, of the second moment and of the residual.
    eps
        Added to squared gradients and to squared residuals.
    clip
        Largest root mean square of an update.
    """

    lr: float | Tensor = 2e-4
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999)
    eps: tuple[float, float] = (1e-30, 1e-16)
    clip: float = 1.0


def _came_slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    def beta(i: int) -> Decay:
        return lambda h: float(h["betas"][i])

    return (
        StateSlot("exp_avg", True, beta(0), GRADIENT, alike=True),
        _mean_sq("exp_avg_sq_row", beta(1), 0),
        _mean_sq("exp_avg_sq_col", beta(1), 1),
        StateSlot("exp_avg_sq", False, beta(1), drive=SQUARE, shape=_whole),
        _mean_sq("exp_avg_res_row", beta(2), 0),
        _mean_sq("exp_avg_res_col", beta(2), 1),
    )


def _came_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    weights = {f"weight{i + 1}": 1 - beta for i, beta in enumerate(hyper["betas"])}
    return {
        "lr": float(hyper["lr"]),
        "eps1": hyper["eps"][0],
        "eps2": hyper["eps"][1],
        "clip": hyper["clip"],
        **weights,
    }


def _came(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    step, new = _over_root(grad, grad, states, "exp_avg_sq", c["weight2"], c["eps1"])
    step = step * (1.0 / torch.clamp(rms(step) / c["clip"], min=1.0))
    exp_avg = step_ = ema(states["exp_avg"], step, c["weight1"])
    if "exp_avg_res_row" in states:
        step_, more = _over_root(exp_avg, step - exp_avg, states, "exp_avg_res", c["weight3"], c["eps2"])
        new = {**new, **more}
    return param - step_ * c["lr"], {**new, "exp_avg": exp_avg}


CAME = with_weight_decay(
    Rule(
        "came", _came_slots, _came_scalars, _came, elementwise=False, title="CAME", hyper=CAMEHyper,
        summary="Adafactor with updates divided by their deviation from their average",
        source="Luo et al., arXiv 2307.02047", notes="There is no bias correction, so the first steps are large.",
    )
)  # fmt: skip


# ---------------------------------------------------------------- SMMF


@dataclass(frozen=True)
class SMMFHyper(HyperParameters):
    """Hyper-parameters of SMMF.

    Parameters
    ----------
    eps
        Added to the root of the second moment.
    momentum, growth
        The decay of the first moment in step t is ``momentum * growth**(t - 1)``.
    decay_power
        The decay of the second moment in step t is ``1 - t**-decay_power``. The paper uses 0.5 for convolutional
        networks and 0.8 for transformers.
    """

    eps: float = 1e-8
    momentum: float = 0.9
    growth: float = 0.999
    decay_power: float = 0.8


def nearest_square(count: int) -> tuple[int, int]:
    """Return the sides of the most nearly square matrix of `count` elements, the longer first.

    Examples
    --------
    >>> nearest_square(64 * 3), nearest_square(7)
    ((16, 12), (7, 1))
    """
    short = next(n for n in range(math.isqrt(max(count, 1)), 0, -1) if count % n == 0)
    return max(count, 1) // short, short


BITS = 24
"""The number of signs that one fp32 number stores exactly, as an integer."""


def _smmf_slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    def rows(shape: Shape) -> Shape:
        return nearest_square(math.prod(shape))[:1]

    def cols(shape: Shape) -> Shape:
        return nearest_square(math.prod(shape))[1:]

    def beta1(h: Hyper) -> float:
        return float(h.get("beta1", h["momentum"]))

    def beta2(h: Hyper) -> float:
        return float(h.get("beta2", 1 - 1000.0 ** -h["decay_power"]))

    return (
        StateSlot("exp_avg_row", False, beta1, shape=rows),
        StateSlot("exp_avg_col", False, beta1, shape=cols),
        StateSlot("exp_avg_sq_row", False, beta2, shape=rows),
        StateSlot("exp_avg_sq_col", False, beta2, shape=cols),
        StateSlot("signs", False, shape=lambda s: (-(-math.prod(s) // BITS),), exact=True),
    )


def _smmf_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    step = ages["exp_avg_sq_row"]
    beta1 = hyper["momentum"] * hyper["growth"] ** (step - 1)
    beta2 = 1 - step ** -hyper["decay_power"]
    return {"lr": float(hyper["lr"]), "eps": hyper["eps"], "beta1": beta1, "beta2": beta2}


def _compress(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return row sums, and column sums over the total. Their product has the same sums, and is exact for rank one."""
    wide = matrix.double()
    row, col = wide.sum(1), wide.sum(0)
    return row.float(), (col / torch.clamp(col.sum(), min=1e-300)).float()


def _pack_signs(x: Tensor) -> Tensor:
    bits = torch.nn.functional.pad((x < 0).double().reshape(-1), (0, -x.numel() % BITS)).reshape(-1, BITS)
    return (bits * 2.0 ** torch.arange(BITS, device=x.device, dtype=torch.float64)).sum(1).float()


def _unpack_signs(words: Tensor, count: int) -> Tensor:
    bits = words.to(torch.int32).unsqueeze(1) >> torch.arange(BITS, device=words.device, dtype=torch.int32) & 1
    return (1 - 2 * bits.reshape(-1)[:count]).float()


def _smmf(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    sides, s = nearest_square(param.numel()), states
    g = grad.reshape(sides)
    signs = _unpack_signs(s["signs"], param.numel()).reshape(sides)
    first = signs * (s["exp_avg_row"].unsqueeze(1) * s["exp_avg_col"]) * c["beta1"] + g * (1 - c["beta1"])
    second = s["exp_avg_sq_row"].unsqueeze(1) * s["exp_avg_sq_col"] * c["beta2"] + g * g * (1 - c["beta2"])
    param = param - (first / (sqrt(second) + c["eps"])).reshape(param.shape) * c["lr"]
    row, col = _compress(first.abs())
    row_sq, col_sq = _compress(second)
    return param, {
        "exp_avg_row": row, "exp_avg_col": col, "exp_avg_sq_row": row_sq, "exp_avg_sq_col": col_sq,
        "signs": _pack_signs(first),
    }  # fmt: skip


SMMF = with_weight_decay(
    Rule(
        "smmf", _smmf_slots, _smmf_scalars, _smmf, elementwise=False, title="SMMF", hyper=SMMFHyper,
        summary="Adam with both moments factored after reshaping to a near square",
        source="Park & Lee, arXiv 2412.08894", notes="The signs of the first moment take 1.33 bits per weight.",
        example='lr=1e-3, state="bf16"',
    )
)  # fmt: skip
