"""Muon, with AdamW for what is no matrix."""

from __future__ import annotations

import fnmatch
from typing import Any

from torch import Tensor

from halfulp.optim.base import HyperOptimizer
from halfulp.rules.base import Rule
from halfulp.rules.matrix import MUON, MUON_FALLBACK, MuonHyper

__all__ = ["Muon"]


class Muon(HyperOptimizer):
    """Muon: the momentum of each matrix, orthogonalised; AdamW for vectors, embeddings and output layers.

    Jordan et al., 2024; Liu et al., arXiv 2502.16982. Which matrices go to AdamW is decided by name (`fallback`), so
    pass ``model.named_parameters()``. ``torch.optim.Muon`` takes matrices only; its ``eps`` is ``ns_eps`` here, and its
    ``adjust_lr_fn`` is ``"original"`` unless given. Arguments: :class:`~halfulp.rules.matrix.MuonHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.Muon(model.named_parameters(), lr=1e-3, state="8bit")
    """

    rule = MUON
    hyper = MuonHyper

    def rules(self, group: dict[str, Any]) -> tuple[Rule, ...]:
        """Muon, and its fallback."""
        return (MUON, MUON_FALLBACK)

    def rule_for(self, group: dict[str, Any], param: Tensor) -> Rule:
        """The fallback for vectors, and for matrices whose name matches a pattern."""
        name = self.registry[param].name
        named = name is not None and any(fnmatch.fnmatchcase(name, p) for p in group["fallback"])
        return MUON_FALLBACK if param.ndim < 2 or named else MUON
