"""Momentum and sums: adaptive memory, MADGRAD, Gravity, complex momentum, CoRe."""

from __future__ import annotations

from halfulp.optim.base import HyperOptimizer
from halfulp.rules import accumulate, adaptive_memory, others

__all__ = ["AMSGD", "MADGRAD", "AMAdamW", "CoRe", "ComplexMomentum", "Gravity"]


class AMSGD(HyperOptimizer):
    """SGD with adaptive memory: the momentum coefficient is set in each step.

    Topollai & Choromanska, arXiv 2510.04988. One coefficient for the whole model. Arguments:
    :class:`~halfulp.rules.adaptive_memory.AMSGDHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.AMSGD(model.parameters(), lr=0.1, state="8bit")
    """

    rule = adaptive_memory.AMSGD
    hyper = adaptive_memory.AMSGDHyper


class AMAdamW(HyperOptimizer):
    """AdamW with adaptive memory: each tensor sets its momentum coefficient in each step.

    Topollai & Choromanska, arXiv 2510.04988. Arguments: :class:`~halfulp.rules.adaptive_memory.AMAdamWHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.AMAdamW(model.parameters(), lr=1e-3, state="8bit")
    """

    rule = adaptive_memory.AMADAMW
    hyper = adaptive_memory.AMAdamWHyper


class MADGRAD(HyperOptimizer):
    """MADGRAD: dual averaging; sums in place of moving averages.

    Defazio & Jelassi, arXiv 2101.11075. Starting values of the weights stay in fp32. Arguments:
    :class:`~halfulp.rules.accumulate.MADGRADHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.MADGRAD(model.parameters(), lr=1e-2, state="bf16")
    """

    rule = accumulate.MADGRAD
    hyper = accumulate.MADGRADHyper


class Gravity(HyperOptimizer):
    """Gravity: momentum on gradients that shrink where they are large.

    Bahrami & Zadeh, arXiv 2101.09192. Arguments: :class:`~halfulp.rules.others.GravityHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.Gravity(model.parameters(), lr=0.1, state="8bit")
    """

    rule = others.GRAVITY
    hyper = others.GravityHyper


class ComplexMomentum(HyperOptimizer):
    """Complex momentum, for games: heavy-ball at phase 0, negative momentum at pi.

    Lorraine et al., arXiv 2102.08431. Arguments: :class:`~halfulp.rules.others.ComplexMomentumHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.ComplexMomentum(model.parameters(), lr=1e-2, state="8bit")
    """

    rule = others.COMPLEX_MOMENTUM
    hyper = others.ComplexMomentumHyper


class CoRe(HyperOptimizer):
    """CoRe: Rprop's step sizes on Adam's direction.

    Eckhoff & Reiher, arXiv 2307.15663, without weight freezing. Arguments: :class:`~halfulp.rules.others.CoReHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.CoRe(model.parameters(), lr=1e-3, state="bf16")
    """

    rule = others.CORE
    hyper = others.CoReHyper
