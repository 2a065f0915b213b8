"""SPAM: Adam with clipped gradient spikes and periodic resets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from halfulp.rules.adam import MomentsHyper, moment_scalars, moments, normalise
from halfulp.rules.base import Ages, Rule, Scalars, States, maximum, minimum, sqrt
from halfulp.rules.slots import GRADIENT, SQUARE, Drive, Hyper, Shape, StateSlot
from halfulp.rules.transforms import with_weight_decay

__all__ = ["SPAM", "SPAMHyper"]


@dataclass(frozen=True)
class SPAMHyper(MomentsHyper):
    """Hyper-parameters of SPAM.

    Parameters
    ----------
    eps
        Added to the uncorrected root of the second moment, as in the authors' code.
    threshold
        A coordinate is a spike if its squared gradient exceeds `threshold` times its second moment; 0 for never.
    period
        Number of steps between resets of both moments; 0 for never. Unlike ``reset=``, these resets do not restart the
        bias correction. A warm-up follows them instead.
    warmup
        Number of steps of that warm-up, a cosine from 0.01 to 1.
    patience
        Number of steps without clipping after a reset and at the start.
    """

    eps: float = 1e-6
    threshold: float = 5000.0
    period: int = 500
    warmup: int = 150
    patience: int = 20


def _moment(name: str, which: int, drive: Drive) -> StateSlot:
    """A moment whose decay is zero in a step that resets it."""

    def stalls_as(h: Hyper, shape: Shape, age: int) -> tuple[float, float]:
        return h["betas"][which], min(age, h.get("since", age))

    return StateSlot(
        name, not drive.nonnegative, lambda h: h["betas"][which] * h.get("keep_states", 1.0), drive,
        stalls_as=stalls_as, gain=lambda h: 1 - h["betas"][which],
    )  # fmt: skip


MOMENTS = (_moment("exp_avg", 0, GRADIENT), _moment("exp_avg_sq", 1, SQUARE))


def _scalars(hyper: Hyper, ages: Ages) -> Scalars:
    c, step, period, warmup = moment_scalars(hyper, ages), ages["step"], hyper["period"], hyper["warmup"]
    since = step % period if period else step
    after_reset = period > 0 and step >= period
    rate = 1 - 0.99 * 0.5 * (1 + math.cos(math.pi * since / warmup)) if after_reset and since < warmup else 1.0
    return {
        **c,
        "eps": c["eps"] * c["inv_sqrt_correction2"],  # the authors add it to the uncorrected root
        "since": since,
        "keep_states": 0.0 if after_reset and since == 0 else 1.0,
        "threshold": hyper["threshold"] if since >= hyper["patience"] and hyper["threshold"] else math.inf,
        "rate": rate,
        "bound": math.inf if after_reset else c["bound"],
    }


def _update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    if not c["keep_states"]:
        states = {name: torch.zeros_like(state) for name, state in states.items()}
    if c["threshold"] != math.inf:
        limit = sqrt(states["exp_avg_sq"] * c["threshold"])
        grad = minimum(maximum(grad, -limit), limit)
    exp_avg, exp_avg_sq = moments(grad, states, c)
    step = normalise(exp_avg, exp_avg_sq, c) * c["rate"]
    return param - step * c["lr"], {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


SPAM = with_weight_decay(
    Rule(
        "spam", lambda h: MOMENTS, _scalars, _update, title="SPAM", hyper=SPAMHyper,
        summary="Adam with clipped gradient spikes and periodic resets",
        source="Huang et al., arXiv 2501.06842",
        notes="""The sparse masks of the paper are left out. Compare its resets with ``reset="auto"`` (``period=0``
        turns them off).""",
        example='lr=1e-3, state="fp8"',
    )
)  # fmt: skip
