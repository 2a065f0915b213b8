"""Number, name and group of every parameter of an optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from operator import is_
from typing import Any

from torch import Tensor

__all__ = ["Place", "Registry"]


@dataclass(frozen=True)
class Place:
    """Where a parameter stands: its number over all groups, its name if it has one, its group, and its place in it."""

    index: int
    name: str | None
    group: dict[str, Any]
    position: int

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
        self._seen = [(group, list(group["params"])) for group in groups]
        for group in groups:
            names = group.get("param_names")
            for i, param in enumerate(group["params"]):
                name = names[i] if names and i < len(names) else None
                self._places[param] = Place(len(self._places), name, group, i)

    def describes(self, groups: list[dict[str, Any]]) -> bool:
        """Whether the groups, and the parameters in them, are the same and in the same order as they were."""
        return len(groups) == len(self._seen) and all(
            group is known and len(params) == len(group["params"]) and all(map(is_, params, group["params"]))
            for group, (known, params) in zip(groups, self._seen, strict=True)
        )

    def stands(self, param: Tensor, groups: list[dict[str, Any]]) -> bool:
        """Whether one parameter is still where it was, which takes no look at the others."""
        place = self._places.get(param)
        return (
            place is not None
            and len(groups) == len(self._seen)
            and all(
                group is known and len(params) == len(group["params"])
                for group, (known, params) in zip(groups, self._seen, strict=True)
            )
            and place.group["params"][place.position] is param
        )

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Any:
        return iter(self._places)

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
