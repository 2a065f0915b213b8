"""Muon: which parameters are matrices for it, and which go to AdamW."""

from __future__ import annotations

import fnmatch
from typing import Any

from torch import Tensor

from halfulp.optim.base import HyperOptimizer
from halfulp.rules.base import Rule
from halfulp.rules.matrix import MUON, MUON_FALLBACK

__all__ = ["Muon"]


class Muon(HyperOptimizer):  # noqa: D101 - its rule says what it is
    rule = MUON

    def rules(self, group: dict[str, Any]) -> tuple[Rule, ...]:
        """Muon, and its fallback."""
        return (MUON, MUON_FALLBACK)

    def rule_for(self, group: dict[str, Any], param: Tensor) -> Rule:
        """The fallback for vectors, and for matrices whose name matches a pattern."""
        name = self.registry[param].name
        named = name is not None and any(fnmatch.fnmatchcase(name, p) for p in group["fallback"])
        return MUON_FALLBACK if param.ndim < 2 or named else MUON
