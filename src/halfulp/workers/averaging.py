"""Averaging methods: workers take the mean of all workers, or of their neighbors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from halfulp.rules.base import total
from halfulp.rules.hyper import HyperBase
from halfulp.workers.meeting import meeting
from halfulp.workers.method import Method, Seen

__all__ = ["DPSGD", "LocalSGD", "VarianceCorrected", "neighbors"]


LOCAL_SGD = Method(
    title="LocalSGD", summary="every worker takes the mean of all",
    source="Stich, arXiv 1805.09767", example='every=16, message="8bit"',
    notes="With ``every=1`` and fp32 messages it is training on one large batch. Optimizer states stay with the "
    "workers.",
)  # fmt: skip
LocalSGD = meeting(LOCAL_SGD)


def neighbors(hyper: HyperBase, seen: Seen) -> Tensor:
    """Return the coefficients of the mean over neighbors: ``share`` for each, the rest for the worker itself."""
    row = torch.full((len(seen.circle),), seen.share, dtype=torch.float64, device="cpu")
    row[seen.circle.index(seen.rank)] = 1.0 - seen.share * (len(seen.circle) - 1)
    return row


DPSGD = meeting(Method(
    title="DPSGD", mix=neighbors, gossip=True, every=1, graph="ring",
    summary="every worker moves towards its neighbors", source="Lian et al., arXiv 1705.09056",
    example='message="bf16"',
    notes="``x <- x + share * sum over neighbors of (x_j - x)`` with ``share = 2 / (smallest positive + largest "
    "eigenvalue of the graph's Laplacian)``. The mean over the workers is preserved, even if messages are "
    "rounded. With ``graph=Matchings(...)`` it is MATCHA.",
))  # fmt: skip


@dataclass(frozen=True)
class VarianceHyper(HyperBase):
    """Hyper-parameters of variance-corrected averaging.

    Parameters
    ----------
    eps
        Added to the variance of the mean.
    """

    eps: float = 1e-6


def _corrected(hyper: VarianceHyper, mean: Tensor, parts: Sequence[Tensor], whole: Callable[[float], float]) -> Tensor:
    """Return the mean of tensors, scaled around its own mean to have the mean of their variances."""
    size = max(whole(float(mean.numel())), 1.0)

    def moments(x: Tensor) -> tuple[float, float]:
        middle = whole(float(total(x))) / size
        return middle, max(whole(float(total(x, x))) / size - middle * middle, 0.0)

    middle, variance = moments(mean)
    wanted = sum(moments(part)[1] for part in parts) / len(parts)
    return (mean - middle) * (wanted / (variance + hyper.eps)) ** 0.5 + middle


VarianceCorrected = meeting(Method(
    title="VarianceCorrected", hyper=VarianceHyper, finish=_corrected,
    summary="every worker takes the mean of all, each tensor rescaled to the workers' variance",
    source="arXiv 2404.04616", example='message="8bit"',
    notes="``w <- m + (mean - m) sqrt(target / (Var(mean) + eps))``, where ``m`` is the mean over the elements of the "
    "tensor and `target` the mean variance of the workers' tensors.",
))  # fmt: skip
