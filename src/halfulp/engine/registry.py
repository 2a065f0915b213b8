"""Which parameter is which: number, name and group of every parameter of an optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Place", "Registry"]


@dataclass(frozen=True)
class Place:
    """Where a parameter stands: its number over all groups, its name if it has one, and its group."""

    index: int
    name: str | None
    group: dict[str, Any]

    @property
    def label(self) -> str:
        """Name, or number, for messages and tables."""
        return self.name if self.name is not None else f"parameter {self.index}"


class Registry:
    """Places of the parameters of some groups, in order.

    Parameters
    ----------
    groups
        ``optimizer.param_groups``; names are their ``param_names``, as torch keeps them for named parameters.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self._places: dict[Tensor, Place] = {}
        for group in groups:
            names = group.get("param_names")
            for i, param in enumerate(group["params"]):
                self._places[param] = Place(len(self._places), names[i] if names else None, group)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, param: Tensor) -> Place:
        try:
            return self._places[param]
        except KeyError:
            if not isinstance(param, Tensor):
                raise TypeError(
                    f"a parameter is asked for by its tensor, got {param!r}; e.g. model.get_parameter(name)"
                ) from None
            raise KeyError(
                f"a tensor of shape {tuple(param.shape)} is no parameter of this optimizer; "
                "optimizer.add_param_group({'params': [...]}) adds some"
            ) from None

    def __contains__(self, param: object) -> bool:
        return param in self._places
