"""BAdam: blocks of the parameters take turns."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from halfulp.optim.base import HyperOptimizer
from halfulp.rules.badam import BADAM

__all__ = ["BAdam"]


class BAdam(HyperOptimizer):  # noqa: D101 - its rule says what it is
    rule = BADAM

    def __init__(self, params: Any, *args: Any, **options: Any) -> None:
        self._resting: set[Tensor] = set()
        super().__init__(params, *args, **options)
        self._turn()

    @staticmethod
    def block_of(name: str) -> str:
        """Return the name of the block that a parameter belongs to."""
        layer = re.match(r"(.*?\.)?\d+(?=\.)", name)
        return layer.group() if layer else name.rpartition(".")[0]

    @property
    def blocks(self) -> list[list[Tensor]]:
        """The blocks, in the order of the parameters, without parameters that the user froze."""
        found: dict[str, list[Tensor]] = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.requires_grad or p in self._resting:
                    place = self.place(p)
                    key = str(place.index) if place.name is None else f"{self.block_of(place.name)}."
                    found.setdefault(key, []).append(p)
        return list(found.values())

    @property
    def block(self) -> list[Tensor]:
        """The parameters of the active block."""
        blocks, first = self.blocks, self.param_groups[0]
        if not blocks:
            return []
        steps = sum(max(self.state[p].get("step", 0) if p in self.state else 0 for p in block) for block in blocks)
        round_, place = divmod(steps // first["period"], len(blocks))
        if first["order"] == "random":
            generator = torch.Generator().manual_seed((first["block_seed"] * 7919 + round_) % 2**63)
            place = int(torch.randperm(len(blocks), generator=generator, device="cpu")[place])
        return blocks[place if first["order"] != "descending" else len(blocks) - 1 - place]

    def active_params(self, group: dict[str, Any]) -> list[Tensor]:
        """Return the parameters of a group that are in the :attr:`block`."""
        block = set(self.block)
        return [p for p in group["params"] if p in block]

    def _turn(self) -> None:
        """Activate the block whose turn it is, and freeze all others."""
        everyone, block = [p for b in self.blocks for p in b], set(self.block)
        for p in everyone:
            if p in block:
                self._resting.discard(p)
                p.requires_grad_(True)
            elif p not in self._resting:
                self._resting.add(p)
                p.requires_grad_(False)
                p.grad = None
        self.forget(p for p in everyone if p not in block)

    def _step(self, groups: list[tuple[dict[str, Any], list[Tensor]]]) -> None:
        super()._step(groups)
        self._turn()

    def step_parameters(self, params: Iterable[Tensor]) -> None:
        """Raise ``RuntimeError``, since blocks take turns after whole steps."""
        raise RuntimeError("BAdam switches blocks after whole steps: parameters cannot be stepped one by one")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group. The order of the blocks restarts."""
        super().add_param_group(param_group)
        if len(self.param_groups) > 1:
            self._turn()

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        for key in ("period", "order", "block_seed"):
            first = self.param_groups[0][key]
            if group[key] != first and len(self.param_groups) > 1:
                raise ValueError(f"{key} must be the same in all groups of BAdam, got {group[key]!r} and {first!r}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dictionary, and activate the block whose turn it is."""
        super().load_state_dict(state_dict)
        self._turn()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickling, with the frozen parameters."""
        return {**super().__getstate__(), "_resting": self._resting}
