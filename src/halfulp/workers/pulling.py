"""Methods whose workers stay apart and are pulled towards a mean or a center."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from halfulp.rules.hyper import HyperBase
from halfulp.workers.averaging import neighbors
from halfulp.workers.meeting import meeting
from halfulp.workers.method import Method, Seen

__all__ = ["ALDSGD", "DPPF", "EASGD", "LGRAWA", "MGRAWA", "inverse_shares"]


@dataclass(frozen=True)
class ElasticHyper(HyperBase):
    """Hyper-parameters of EASGD.

    Parameters
    ----------
    beta
        Share of the distance to the workers' mean that the center moves. Each worker moves ``beta / workers`` of the
        distance to the center.
    """

    beta: float = 0.9

    above_zero = ("beta",)
    at_most: ClassVar[dict[str, float]] = {"beta": 1}


EASGD = meeting(Method(
    title="EASGD", hyper=ElasticHyper, centre="average", every=10,
    pull=lambda hyper, distance, workers: hyper.beta / workers, centre_share=lambda hyper: hyper.beta,
    summary="workers and a center are pulled towards each other", source="Zhang et al., arXiv 1412.6651",
    example='message="8bit", centre="bf16"',
    notes="The synchronous form. The center (``optimizer.reference``) is an average over meetings, in any format.",
))  # fmt: skip


@dataclass(frozen=True)
class DPPFHyper(HyperBase):
    """Hyper-parameters of DPPF.

    Parameters
    ----------
    pull
        Share of the distance to the mean that a worker is pulled.
    push
        Distance that a worker is pushed away from the mean.
    """

    pull: float = 0.1
    push: float = 0.5

    above_zero = ("pull",)
    at_most: ClassVar[dict[str, float]] = {"pull": 1}


def _pull_push(hyper: DPPFHyper, distance: float, workers: int) -> float:
    return hyper.pull - (hyper.push / distance if distance > 0 else 0.0)


DPPF = meeting(Method(
    title="DPPF", hyper=DPPFHyper, pull=_pull_push,
    summary="workers are pulled to their mean and pushed away from it, so that they span a valley",
    source="arXiv 2507.20424", example='pull=0.1, push=0.5, message="8bit"',
    notes="``x <- x + (mean - x) (pull - push / |x - mean|)`` is a reconstruction. A published summary confirms that "
    "workers settle at the distance ``push / pull``. The paper's schedule of `push` and its defaults are not known. "
    "Without `push`, it is soft averaging. Workers that do not differ are not pushed.",
))  # fmt: skip


@dataclass(frozen=True)
class GRAWAHyper(HyperBase):
    """Hyper-parameters of MGRAWA and LGRAWA.

    Parameters
    ----------
    pull
        Share of the distance to the weighted mean that a worker moves at a meeting.
    between
        Share of the distance to the last weighted mean that it moves between meetings, in equal parts per step.
    decay
        Decay of the average of gradient norms over meetings.
    """

    pull: float = 0.5
    between: float = 0.01
    decay: float = 0.9**8

    below_one: ClassVar[tuple[str, ...]] = ("decay",)
    above_zero = ("pull",)
    at_most: ClassVar[dict[str, float]] = {"pull": 1, "between": 1}


def _by_model(hyper: GRAWAHyper, seen: Seen) -> Tensor:
    return inverse_shares(seen.grad_norms.sum(dim=1))


def _by_layer(hyper: GRAWAHyper, seen: Seen) -> Tensor:
    return inverse_shares(seen.grad_norms)


def inverse_shares(norms: Tensor) -> Tensor:
    """Return shares inversely proportional to norms, which sum to 1 over the workers (dimension 0)."""
    inverse = 1.0 / norms.clamp_min(1e-150)
    return inverse / inverse.sum(dim=0)


_GRAWA = {
    "hyper": GRAWAHyper, "every": 32, "needs": ("grad_norms",), "source": "Dimlioglu and Choromanska, arXiv 2403.04206",
    "pull": lambda hyper, distance, workers: hyper.pull, "between": lambda hyper: hyper.between,
    "smooth": lambda hyper: hyper.decay, "example": 'message="8bit"',
}  # fmt: skip
_NORMS = (
    "Workers in flat regions of the loss count more. The norms are those of the last gradients before a meeting, read "
    "after the step: do not clear them within it."
)
MGRAWA = meeting(Method(
    title="MGRAWA", mix=_by_model, notes=_NORMS,
    summary="workers are pulled to a mean that weights each worker by its inverse gradient norm", **_GRAWA,  # type: ignore[arg-type]
))  # fmt: skip
LGRAWA = meeting(Method(
    title="LGRAWA", mix=_by_layer, notes=_NORMS,
    summary="workers are pulled to a mean that weights each tensor by its inverse gradient norm", **_GRAWA,  # type: ignore[arg-type]
))  # fmt: skip


@dataclass(frozen=True)
class LeaderHyper(HyperBase):
    """Hyper-parameters of AL-DSGD.

    Parameters
    ----------
    c1, c2
        Share in the mean of the neighbor with the lowest loss, and of the neighbor with the highest degree.
    p1, p2
        Share of the distance to each of them that the worker then moves.
    """

    c1: float = 0.3
    c2: float = 0.1
    p1: float = 0.2
    p2: float = 0.2

    def check(self) -> None:
        """See :class:`~halfulp.rules.hyper.HyperBase`."""
        super().check()
        if self.c1 + self.c2 > 1 or self.p1 + self.p2 > 1:
            raise ValueError(f"c1 + c2 and p1 + p2 are at most 1, got {self}")


def _leaders(hyper: LeaderHyper, seen: Seen) -> Tensor:
    row = neighbors(hyper, seen)
    best = int(seen.loss.argmin())
    degrees = [seen.graph.degree(worker) for worker in seen.circle]
    highest = degrees.index(max(degrees))
    for first, second in ((hyper.c1, hyper.c2), (hyper.p1, hyper.p2)):
        row = row * (1 - first - second)
        row[best] += first
        row[highest] += second
    return row


ALDSGD = meeting(Method(
    title="ALDSGD", hyper=LeaderHyper, mix=_leaders, gossip=True, every=1, graph="rings", needs=("loss",),
    summary="gossip led by the neighbors with the lowest loss and the highest degree",
    source="He et al., arXiv 2405.11389", example='message="bf16"',
    notes="Two graphs alternate. `c1`, `c2`, `p1` and `p2` at 0 make it :class:`DPSGD`. The loss comes from "
    "``step(closure)`` or ``optimizer.report(loss=loss)``. The mean over the workers moves towards the leaders. In a "
    "tie, the worker with the lower number leads.",
))  # fmt: skip
