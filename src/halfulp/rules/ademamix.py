"""AdEMAMix: a fast and a slow average of the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from halfulp.rules.adam import EXP_AVG, EXP_AVG_SQ, MomentsHyper, max_ratio, moment_scalars, moments
from halfulp.rules.base import Ages, Rule, Scalars, States, clamp, ema, sqrt
from halfulp.rules.slots import GRADIENT, Hyper, StateSlot
from halfulp.rules.transforms import with_weight_decay

__all__ = ["ADEMAMIX", "AdEMAMixHyper"]


@dataclass(frozen=True)
class AdEMAMixHyper(MomentsHyper):
    """Hyper-parameters of AdEMAMix.

    Parameters
    ----------
    betas
        Decays of the fast average, the second moment and the slow average.
    alpha
        Weight of the slow average. The paper uses 5 to 8, its code 2.
    warmup
        Number of steps over which `alpha` rises linearly from 0, and the slow decay rises from the fast one, linearly
        in half-life; 0 for none. The paper uses the length of the run.
    """

    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999)  # type: ignore[assignment]
    weight_decay: float = 0.01
    alpha: float = 5.0
    warmup: int = 0

    def at(self, step: int) -> tuple[float, float]:
        """Return ``(alpha, beta3)`` of a step.

        Examples
        --------
        >>> AdEMAMixHyper(warmup=100).at(0), AdEMAMixHyper(warmup=100).at(100)
        ((0.0, 0.9), (5.0, 0.9999))
        """
        fast, _, slow = self.betas
        if step >= self.warmup or min(fast, slow) == 0.0:
            return self.alpha * min(1.0, step / self.warmup if self.warmup else 1.0), slow
        share, start, end = step / self.warmup, _half_life(fast), _half_life(slow)
        return self.alpha * share, 0.5 ** (1 / ((1 - share) * start + share * end + 1))


def _half_life(beta: float) -> float:
    return math.log(0.5) / math.log(beta) - 1


SLOW = StateSlot("exp_avg_slow", signed=True, decay=lambda h: h.get("beta3", h["betas"][2]), drive=GRADIENT)


def _scalars(hyper: Hyper, ages: Ages) -> Scalars:
    alpha, beta3 = AdEMAMixHyper(betas=hyper["betas"], alpha=hyper["alpha"], warmup=hyper["warmup"]).at(ages["step"])
    c = moment_scalars(hyper, ages)
    age, steady = ages["exp_avg_slow"], ages["step"] >= hyper["warmup"] and hyper["warmup"] == 0
    largest = max_ratio(beta3, hyper["betas"][1], age) * (1 - beta3**age) if steady else math.inf
    slow = alpha * largest if alpha else 0.0  # the largest possible may be infinite
    bound = c["bound"] + slow if hyper["bound_update"] else math.inf
    return {**c, "alpha": alpha, "beta3": beta3, "weight3": 1 - beta3, "bound": bound}


def _update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    exp_avg, exp_avg_sq = moments(grad, states, c)
    slow = ema(states["exp_avg_slow"], grad, c["weight3"])
    denominator = sqrt(exp_avg_sq) * c["inv_sqrt_correction2"] + c["eps"]
    step = clamp((exp_avg / c["correction1"] + slow * c["alpha"]) / denominator, c["bound"])
    return param - step * c["lr"], {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "exp_avg_slow": slow}


ADEMAMIX = with_weight_decay(
    Rule(
        "ademamix", lambda h: (EXP_AVG, EXP_AVG_SQ, SLOW), _scalars, _update, title="AdEMAMix", hyper=AdEMAMixHyper,
        summary="a fast and a slow average of the gradient", source="Pagliardini et al., arXiv 2409.03137",
        notes="""The slow average has no bias correction. With a decay of 0.9999, it is the first state to stall
        (``docs/optimizers.md``).""",
        example='lr=1e-3, alpha=5.0, warmup=10_000, state="8bit"', tier="core",
    )
)  # fmt: skip
