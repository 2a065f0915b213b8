"""Arms of a scale model: how a run's states are rounded, and when they are reset."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from halfulp.lab.arms import published_period
from halfulp.numbers.quantizer import Rounding
from halfulp.theory.planner import Criterion, plan_reset
from halfulp.theory.similitude import ScaleModel

__all__ = ["ARMS", "DEFAULT_ARMS", "ScaleArm", "period_of", "scale_arm"]


@dataclass(frozen=True)
class ScaleArm:
    """One way to store and reset the states of a run.

    Parameters
    ----------
    rounding
        ``None`` for fp32, ``"nearest"`` or ``"stochastic"``.
    reset
        ``None``: never. ``"planned"``: the planner's period for the format under nearest rounding. ``"total"``: the
        same with that criterion. ``"half"``, ``"double"``: half and twice the planned period. ``"published"``: the
        paper's period, shortened by the factor of the model. A number: the period in steps of the model.
    slots, spare_embedding, staggered
        Slots that a reset sets to zero, whether it spares the embedding, and whether the parameters are reset one after
        another within a period.
    rewarm
        Whether the rate is warmed up again over the first tenth of each cycle.
    stored, embedding_fp32
        Which moments are rounded, and whether those of the embedding stay in fp32.
    stochastic
        Moments that are rounded stochastically, although `rounding` is ``"nearest"``.
    """

    rounding: Rounding | None = None
    reset: str | int | None = None
    slots: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
    spare_embedding: bool = False
    staggered: bool = False
    rewarm: bool = False
    stored: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
    stochastic: tuple[str, ...] = ()
    embedding_fp32: bool = False

    @property
    def random(self) -> bool:
        """Whether the arm needs random words."""
        return self.rounding == "stochastic" or bool(self.stochastic)

    def rounding_of(self, group: str, slot: str) -> Rounding | None:
        """Return how a moment of a group of parameters is rounded, or ``None`` for fp32. Norms are never rounded."""
        if group == "norms" or slot not in self.stored or (self.embedding_fp32 and group == "embedding"):
            return None
        return "stochastic" if slot in self.stochastic else self.rounding


ARMS: dict[str, ScaleArm] = {
    "fp32": ScaleArm(),
    "fp32 + reset": ScaleArm(None, "planned"),
    "nearest": ScaleArm("nearest"),
    "nearest + reset": ScaleArm("nearest", "planned"),
    "nearest + reset (total)": ScaleArm("nearest", "total"),
    "nearest + reset (half)": ScaleArm("nearest", "half"),
    "nearest + reset (double)": ScaleArm("nearest", "double"),
    "nearest + reset (published)": ScaleArm("nearest", "published"),
    "nearest + reset (second moment)": ScaleArm("nearest", "planned", slots=("exp_avg_sq",)),
    "nearest + reset (embedding spared)": ScaleArm("nearest", "planned", spare_embedding=True),
    "nearest + reset (staggered)": ScaleArm("nearest", "planned", staggered=True),
    "nearest + reset (re-warmed)": ScaleArm("nearest", "planned", rewarm=True),
    "nearest (embedding fp32)": ScaleArm("nearest", embedding_fp32=True),
    "nearest (first moment only)": ScaleArm("nearest", stored=("exp_avg",)),
    "nearest (second moment only)": ScaleArm("nearest", stored=("exp_avg_sq",)),
    "nearest (first moment stochastic)": ScaleArm("nearest", stochastic=("exp_avg",)),
    "nearest (second moment stochastic)": ScaleArm("nearest", stochastic=("exp_avg_sq",)),
    "stochastic": ScaleArm("stochastic"),
    "stochastic + reset": ScaleArm("stochastic", "planned"),
}
"""Every arm by name."""

DEFAULT_ARMS = ("fp32", "nearest", "nearest + reset", "stochastic")


def scale_arm(name: str) -> ScaleArm:
    """The arm of a name: one of :data:`ARMS`, or one with a period of its own, as ``nearest + reset (300)``.

    Examples
    --------
    >>> scale_arm("fp32 + reset (40)").reset
    40
    """
    if name in ARMS:
        return ARMS[name]
    given = re.fullmatch(r"(.+ \+ reset.*) \((\d+)\)", name)
    if given is None or given[1] not in ARMS or int(given[2]) < 2:
        raise ValueError(
            f"no arm {name!r}; there are {', '.join(ARMS)}, and resets every N steps of the model (2 or more) as in "
            "'nearest + reset (300)'"
        )
    return replace(ARMS[given[1]], reset=int(given[2]))


def period_of(arm: ScaleArm, model: ScaleModel) -> int | None:
    """Return the steps between resets of an arm in a model, or ``None`` for never.

    The plan is for the model's own format, betas and nearest rounding, whatever the arm's rounding. So the arms with
    resets differ in nothing else.
    """
    if arm.reset is None or isinstance(arm.reset, int):
        return arm.reset
    if arm.reset == "published":
        return model.period(published_period(model.second))
    beta1, beta2 = model.model_betas
    criterion: Criterion = "total" if arm.reset == "total" else "residual"
    plan = plan_reset(model.formats[1], beta=beta2, rounding="nearest", beta1=beta1, criterion=criterion)
    factor = {"half": 0.5, "double": 2.0}.get(arm.reset, 1.0)
    return None if plan.period is None else max(2, round(plan.period * factor))
