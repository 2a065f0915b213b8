"""Muon: the choice between matrices and parameters that AdamW updates."""

from __future__ import annotations

import fnmatch
from typing import Any

from torch import Tensor

from halfulp.engine.sharding import is_flat
from halfulp.numbers.log import log_once, warn_once
from halfulp.optim.base import HyperOptimizer
from halfulp.rules.base import Rule
from halfulp.rules.matrix import MUON, MUON_FALLBACK
from halfulp.rules.parts import Split, in_parts

__all__ = ["Muon"]

EXPERTS = in_parts(MUON, Split.of("stacked"))


class Muon(HyperOptimizer):  # noqa: D101 - its rule says what it is
    rule = MUON

    def rules(self, group: dict[str, Any]) -> tuple[Rule, ...]:
        """Return Muon with the group's split, Muon for stacked experts, and the fallback."""
        return (*super().rules(group), EXPERTS, MUON_FALLBACK)

    def rule_for(self, group: dict[str, Any], param: Tensor) -> Rule:
        """Return the fallback for vectors and for matrices whose name matches a pattern. Experts are found by name."""
        place, patterns = self.place(param), group["fallback"]
        name = place.name
        if is_flat(param):
            warn_once(
                "Muon: FSDP1 gives it flat parts of matrices, which all go to AdamW. Shard with fully_shard "
                "(FSDP2) instead"
            )
        if param.ndim < 2 or (name is not None and any(fnmatch.fnmatchcase(name, p) for p in patterns)):
            return MUON_FALLBACK
        if name is None and patterns:
            warn_once(
                "Muon: parameters have no names, so embeddings and output layers are treated as hidden layers. "
                "Pass model.named_parameters(), or fallback=() if the model has none"
            )
        if param.ndim == 3 and group["split"] is None and name is not None and "expert" in name:
            log_once(
                f"Muon: {name} of shape {tuple(param.shape)} is treated as {param.shape[0]} matrices because of its "
                "name"
            )
            return EXPERTS
        return super().rule_for(group, param)
