"""The number, name and group of every parameter of an optimizer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import is_
from typing import Any

from torch import Tensor

__all__ = ["Place", "Registry"]


@dataclass(frozen=True)
class Place:
    """The position of a parameter: its number over all groups, its name if any, its group, and its index there."""

    index: int
    name: str | None
    group: dict[str, Any]
    position: int

    @property
    def label(self) -> str:
        """The name, or the number, for messages and tables."""
        return self.name if self.name is not None else f"parameter {self.index}"

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Put the label in front of the message of errors raised within it, unless the message has it."""
        try:
            yield
        except (ValueError, RuntimeError) as error:
            message = str(error)
            if not re.search(rf"(?<![\w.]){re.escape(self.label)}(?![\w.])", message):
                error.args = (f"{self.label}: {message}",)
            raise


class Registry:
    """The positions of the parameters of some groups, in order. Names are the ``param_names`` that torch keeps."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self._places: dict[Tensor, Place] = {}
        self._seen = [(group, list(group["params"])) for group in groups]
        for group in groups:
            names = group.get("param_names")
            for i, param in enumerate(group["params"]):
                name = names[i] if names and i < len(names) else None
                self._places[param] = Place(len(self._places), name, group, i)

    def describes(self, groups: list[dict[str, Any]]) -> bool:
        """Whether the groups and their parameters are the same, in the same order, as when this was built."""
        return self._has_groups(groups) and all(all(map(is_, params, known["params"])) for known, params in self._seen)

    def stands(self, param: Tensor, groups: list[dict[str, Any]]) -> bool:
        """Whether one parameter is still in its position. The other parameters are not compared."""
        place = self._places.get(param)
        return place is not None and self._has_groups(groups) and place.group["params"][place.position] is param

    def _has_groups(self, groups: list[dict[str, Any]]) -> bool:
        """Whether the groups are the same, with as many parameters as then."""
        return len(groups) == len(self._seen) and all(
            group is known and len(params) == len(group["params"])
            for group, (known, params) in zip(groups, self._seen, strict=True)
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
                    f"expected the tensor of a parameter, got {param!r}; use model.get_parameter(name)"
                ) from None
            raise KeyError(
                f"a tensor of shape {tuple(param.shape)} is not a parameter of this optimizer; add it with "
                "optimizer.add_param_group({'params': [...]})"
            ) from None

    def __contains__(self, param: object) -> bool:
        return param in self._places
