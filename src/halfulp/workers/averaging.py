"""Averaging methods: workers take the mean of all workers, or of their neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from halfulp.rules.base import total
from halfulp.rules.hyper import HyperBase
from halfulp.workers.meeting import meeting
from halfulp.workers.method import Method, Seen

__all__ = ["DPSGD", "LocalSGD", "VarianceCorrected", "neighbours"]


LOCAL_SGD = Method(
    title="LocalSGD", summary="every worker becomes the mean of all",
    source="Stich, arXiv 1805.09767", example='every=16, message="8bit"',
    notes="With ``every=1`` and fp32 messages it is training on one large batch. Optimizer states stay with the "
    "workers.",
)  # fmt: skip
LocalSGD = meeting(LOCAL_SGD)


def neighbours(hyper: HyperBase, seen: Seen) -> Tensor:
    """Return the coefficients of the mean over neighbours: ``share`` for each, the rest for the worker itself."""
    row = torch.full((len(seen.circle),), seen.share, dtype=torch.float64, device="cpu")
    row[seen.circle.index(seen.rank)] = 1.0 - seen.share * (len(seen.circle) - 1)
    return row


DPSGD = meeting(Method(
    title="DPSGD", mix=neighbours, gossip=True, every=1, graph="ring",
    summary="every worker goes towards its neighbours", source="Lian et al., arXiv 1705.09056",
    example='message="bf16"',
    notes="``x <- x + share * sum over neighbours of (x_j - x)`` with ``share = 2 / (smallest positive + largest "
    "eigenvalue of the graph's Laplacian)``. The mean over the workers stays as it is, also where messages are "
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
    size = whole(float(mean.numel()))

    def moments(x: Tensor) -> tuple[float, float]:
        middle = whole(float(total(x))) / size
        return middle, max(whole(float(total(x, x))) / size - middle * middle, 0.0)

    middle, variance = moments(mean)
    wanted = sum(moments(part)[1] for part in parts) / len(parts)
    return (mean - middle) * (wanted / (variance + hyper.eps)) ** 0.5 + middle


VarianceCorrected = meeting(Method(
    title="VarianceCorrected", hyper=VarianceHyper, finish=_corrected,
    summary="every worker becomes the mean of all, each tensor of it scaled back to the variance of the workers'",
    source="arXiv 2404.04616", example='message="8bit"',
    notes="``w <- m + (mean - m) sqrt(target / (Var(mean) + eps))``, where ``m`` is the mean over the elements of the "
    "tensor and `target` the mean variance of the workers' tensors.",
))  # fmt: skip
