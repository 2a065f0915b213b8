"""Rules with fewer states than parameters: Subset-Norm, Subspace-Momentum, FRUGAL."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from halfulp.rules.adam import EXP_AVG, EXP_AVG_SQ, MomentsHyper, moment_scalars, moments, normalise
from halfulp.rules.base import Ages, Rule, Scalars, States, ema
from halfulp.rules.parts import MatrixHyper
from halfulp.rules.slots import Drive, Hyper, Shape, StateSlot
from halfulp.rules.transforms import with_weight_decay

__all__ = [
    "FRUGAL", "SUBSET_NORM", "SUBSPACE_MOMENTUM", "FRUGALHyper", "SubsetNormHyper", "SubspaceMomentumHyper",
]  # fmt: skip


# ---------------------------------------------------------------- Subset-Norm


@dataclass(frozen=True)
class SubsetNormHyper(MomentsHyper):
    """Hyper-parameters of Subset-Norm."""

    lr: float | Tensor = 1e-2


def _by_rows(shape: Shape) -> bool:
    return shape[0] <= math.prod(shape[1:])


def _subset(shape: Shape) -> Shape | None:
    if len(shape) < 2:
        return shape
    return shape[:1] if _by_rows(shape) else (math.prod(shape[1:]),)


def _subset_drive(hyper: Hyper, shape: Shape) -> Drive:
    return Drive("square", shared=math.prod(shape) / math.prod(_subset(shape) or (1,)))


SUBSET_SQ = StateSlot("exp_avg_sq", False, lambda h: h["betas"][1], _subset_drive, alike=True, shape=_subset)


def _subset_sq(grad: Tensor, old: Tensor, c: Scalars) -> tuple[Tensor, Tensor]:
    """Return the new second moment of each subset, and that of each element's subset."""
    matrix, dim = grad.reshape(grad.shape[0], -1) if grad.ndim > 1 else grad, None
    square = matrix * matrix
    if grad.ndim > 1:
        dim = 1 if _by_rows(tuple(grad.shape)) else 0
        square = square.double().sum(dim).float()
    square = old * c["beta2"] + square * c["weight2"]
    return square, square if dim is None else square.unsqueeze(dim).expand_as(matrix).reshape(grad.shape)


def _subset_norm(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    exp_avg = ema(states["exp_avg"], grad, c["weight1"])
    square, spread = _subset_sq(grad, states["exp_avg_sq"], c)
    return param - normalise(exp_avg, spread, c) * c["lr"], {"exp_avg": exp_avg, "exp_avg_sq": square}


SUBSET_NORM = with_weight_decay(
    Rule(
        "subset_norm", lambda h: (EXP_AVG, SUBSET_SQ), moment_scalars, _subset_norm, elementwise=False,
        title="SubsetNorm", hyper=SubsetNormHyper, source="Nguyen & Nguyen, arXiv 2411.07120",
        summary="AdamW with one second moment per row or per column, whichever are fewer",
        notes="""The second moment averages the *sum* of the squared gradients, so steps shrink by the root of the
        subset's size. Use about ten times Adam's learning rate.""",
    )
)  # fmt: skip


# ---------------------------------------------------------------- Subspace-Momentum


@dataclass(frozen=True)
class SubspaceMomentumHyper(SubsetNormHyper, MatrixHyper):
    """Hyper-parameters of Subset-Norm with Subspace-Momentum.

    Parameters
    ----------
    rank
        Rank of the subspace with momentum, along the shorter side of a matrix. Vectors have full momentum.
    period
        Number of steps between changes of the subspace. Each change restarts the momentum.
    """

    rank: int = 128
    period: int = 200

    at_least_one = ("rank", "period")


def _matrix(shape: Shape) -> Shape:
    return (shape[0], math.prod(shape[1:]))


def _subspace_slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    def basis(shape: Shape) -> Shape | None:
        return None if len(shape) < 2 else (min(_matrix(shape)), min(hyper["rank"], *_matrix(shape)))

    def within(shape: Shape) -> Shape:
        side = basis(shape)
        return shape if side is None else (max(_matrix(shape)), side[1])

    def stalls_as(h: Hyper, shape: Shape, age: int) -> tuple[float, float]:
        return h["betas"][0], age if len(shape) < 2 else min(age, h.get("since", age))

    momentum = replace(EXP_AVG, alike=True, stalls_as=stalls_as, shape=within)
    return (momentum, SUBSET_SQ, StateSlot("basis", True, shape=basis, exact=True))


def _subspace_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    step = ages["step"]
    since = step % hyper["period"]
    turn = float(ages["exp_avg"] == 1 or since == 0)
    return {**moment_scalars(hyper, ages), "bound": math.inf, "turn": turn, "since": since}


def _subspace_momentum(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    square, spread = _subset_sq(grad, states["exp_avg_sq"], c)
    if param.ndim < 2:
        exp_avg = ema(states["exp_avg"], grad, c["weight1"])
        return param - normalise(exp_avg, spread, c) * c["lr"], {"exp_avg": exp_avg, "exp_avg_sq": square}
    matrix = grad.reshape(grad.shape[0], -1)
    wide = matrix.shape[0] < matrix.shape[1]
    tall, basis, exp_avg = matrix.T if wide else matrix, states["basis"], states["exp_avg"]
    if c["turn"]:
        found = torch.linalg.svd(tall.double(), full_matrices=False).Vh
        basis, exp_avg = found[: basis.shape[1]].T.float(), torch.zeros_like(exp_avg)
    inside = tall @ basis
    exp_avg = ema(exp_avg, inside, c["weight1"])
    direction = tall + (exp_avg - inside) @ basis.T
    step = normalise((direction.T if wide else direction).reshape(grad.shape), spread, c)
    return param - step * c["lr"], {"exp_avg": exp_avg, "exp_avg_sq": square, "basis": basis}


SUBSPACE_MOMENTUM = with_weight_decay(
    Rule(
        "subspace_momentum", _subspace_slots, _subspace_scalars, _subspace_momentum, elementwise=False,
        title="SubspaceMomentum", hyper=SubspaceMomentumHyper, source="Nguyen & Nguyen, arXiv 2411.07120",
        summary="SubsetNorm with a first moment in a subspace only",
        notes="""The subspace is spanned by the singular vectors of the gradient at the time of the change. The rest of
        each gradient is added to the step directly.""",
        example='lr=1e-2, rank=16, state="8bit"',
    )
)  # fmt: skip


# ---------------------------------------------------------------- FRUGAL


@dataclass(frozen=True)
class FRUGALHyper(MomentsHyper):
    """Hyper-parameters of FRUGAL.

    Parameters
    ----------
    density
        Fraction of the columns (of a matrix: first dimension by all others) that AdamW updates. It updates vectors
        whole.
    period
        Number of steps after which new columns are drawn and the moments restart.
    sign_scale
        Factor of the learning rate for the other columns, which signSGD updates: 1 for pretraining, 0.1 for
        fine-tuning.
    column_seed
        Seed of the random columns.
    """

    density: float = 0.25
    period: int = 200
    sign_scale: float = 1.0
    column_seed: int = 0

    at_least_one = ("period",)
    at_most: ClassVar[dict[str, float]] = {"density": 1}


def _frugal_slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    density = hyper["density"]

    def active(shape: Shape) -> Shape:
        return shape if len(shape) < 2 else (shape[0], round(density * math.prod(shape[1:])))

    def moment(slot: StateSlot, which: int) -> StateSlot:
        def stalls_as(h: Hyper, shape: Shape, age: int) -> tuple[float, float]:
            return h["betas"][which], min(age, h.get("since", age))

        return replace(slot, alike=True, stalls_as=stalls_as, shape=active)

    return moment(EXP_AVG, 0), moment(EXP_AVG_SQ, 1)


def _frugal_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    turn, since = divmod(ages["step"] - 1, hyper["period"])
    within = {k: min(ages[k], since + 1) for k in ("exp_avg", "exp_avg_sq")}
    return {
        **moment_scalars(hyper, within), "since": float(since), "sign_scale": hyper["sign_scale"],
        "draw": float((hyper["column_seed"] * 7919 + turn) % 2**24),
    }  # fmt: skip


def _frugal(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    if not c["since"]:
        states = {name: torch.zeros_like(state) for name, state in states.items()}
    if param.ndim < 2:
        exp_avg, exp_avg_sq = moments(grad, states, c)
        return param - normalise(exp_avg, exp_avg_sq, c) * c["lr"], {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    flat, count = grad.reshape(grad.shape[0], -1), states["exp_avg"].shape[1]
    generator = torch.Generator().manual_seed(int(c["draw"]))
    columns = torch.randperm(flat.shape[1], generator=generator, device="cpu")[:count].sort().values.to(flat.device)
    exp_avg, exp_avg_sq = moments(flat.index_select(1, columns), states, c)
    step = torch.sign(flat) * c["sign_scale"]
    step.index_copy_(1, columns, normalise(exp_avg, exp_avg_sq, c))
    return param - step.reshape(param.shape) * c["lr"], {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


FRUGAL = with_weight_decay(
    Rule(
        "frugal", _frugal_slots, _frugal_scalars, _frugal, elementwise=False, title="FRUGAL", hyper=FRUGALHyper,
        summary="AdamW on some columns, signSGD on the rest", source="Zmushko et al., arXiv 2411.07837",
        notes="The columns are drawn at random.", example='lr=1e-3, density=0.25, state="8bit"',
    )
)  # fmt: skip
