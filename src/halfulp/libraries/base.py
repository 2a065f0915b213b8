"""Adapters: where the states of an optimizer lie, how they are coded, and how they should move.

An adapter answers for one library. For one parameter it lists its states as :class:`Stored`: the tensors that hold it
and a codec that decodes single elements of them. How they move in exact arithmetic is a rule, in the terms of this
library's own optimizers (:class:`Followed`): the rule that the optimizer follows, or averages alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from halfulp.rules.base import Rule
from halfulp.rules.slots import Hyper, StateSlot

__all__ = [
    "COMPENSATED",
    "Adapter",
    "Codebook",
    "Codec",
    "Followed",
    "Located",
    "Plain",
    "Skipped",
    "Stored",
    "averages",
]

Group = Mapping[str, Any]


@dataclass(frozen=True)
class Followed:
    """The rule that a parameter follows in exact arithmetic.

    Parameters
    ----------
    rule
        Its states are those that are stored, by name; one without a drive is read, but not judged.
    hyper
        Hyper-parameters of the rule, from the group and the parameter; asked in each step, after it.
    weights
        Why the rule does not say how the weights move; ``None`` where it does.
    apart
        Whether hyper-parameters differ between parameters of one rule.
    """

    rule: Rule
    hyper: Callable[[Group, Tensor], Hyper]
    weights: str | None = None
    apart: bool = False


@lru_cache(maxsize=256)
def averages(slots: tuple[StateSlot, ...]) -> Rule:
    """A rule of plain averages, ``beta * state + gain * drive``, that leaves the weights alone.

    Decays may ask the hyper-parameters for ``"age"``, that of the state in the step (1 in the first). ``"l2"`` is
    weight decay that is added to the gradient before the states see it.
    """

    def scalars(hyper: Hyper, ages: Mapping[str, int]) -> dict[str, float]:
        found = {"l2": hyper.get("l2", 0.0)}
        for slot in slots:
            beta, gain = slot.coefficients({**hyper, "age": ages[slot.name]})
            found |= {f"{slot.name} beta": beta, f"{slot.name} gain": gain}
        return found

    def update(param: Tensor, grad: Tensor, states: dict[str, Tensor], c: dict[str, float]) -> Any:
        if c["l2"] != 0.0:
            grad = grad + param * c["l2"]
        new = {}
        for slot in slots:
            drive = slot.averages({}, ())
            x = grad * grad if drive is not None and drive.kind == "square" else grad
            new[slot.name] = states[slot.name] * c[f"{slot.name} beta"] + x * c[f"{slot.name} gain"]
        return param, new

    return Rule("averages", lambda hyper: slots, scalars, update)


COMPENSATED = "compensated: what the weights lose is kept beside them"
"""Why the movement of 16-bit weights says nothing."""


@dataclass(frozen=True)
class Located:
    """Where sampled elements lie: one flat index per stored tensor, and what else decoding needs per element."""

    indices: tuple[Tensor, ...]
    extra: Tensor | None = None


class Codec(Protocol):
    """Decoder of stored numbers. Equal codecs are decoded together, so a codec is hashable."""

    @property
    def format(self) -> str:
        """Name of the format, as shown; a name of :mod:`halfulp.numbers.formats` where there is one."""
        ...

    @property
    def rounding(self) -> str:
        """``"nearest"`` or ``"stochastic"``."""
        ...

    @property
    def moving(self) -> bool:
        """Whether scales of blocks move the values although the codes stand."""
        ...

    def locate(self, shape: torch.Size, index: Tensor) -> Located:
        """Where the elements of a flat index lie in the stored tensors."""
        ...

    def decode(self, parts: list[Tensor], extra: Tensor | None) -> tuple[Tensor, Tensor]:
        """Values (floating point) of gathered elements, and marks that are equal where the stored state stood still.

        The marks are the values, except where a scale moves them although the code stands: then the codes.
        """
        ...


@dataclass(frozen=True)
class Plain:
    """A tensor of ordinary floating point numbers."""

    format: str
    rounding: str = "nearest"
    moving = False

    def locate(self, shape: torch.Size, index: Tensor) -> Located:
        """See :class:`Codec`."""
        return Located((index,))

    def decode(self, parts: list[Tensor], extra: Tensor | None) -> tuple[Tensor, Tensor]:
        """See :class:`Codec`."""
        return parts[0], parts[0]


@dataclass(frozen=True)
class Codebook:
    """Codes of 8 or 4 bits into a list of levels, times an fp32 scale for each block of consecutive elements.

    Parameters
    ----------
    format, rounding
        As shown.
    levels
        Value of each code.
    block
        Elements that share a scale; 0 for one scale of the whole tensor.
    high_first
        Two codes share a byte, the even element in the high half.
    """

    format: str
    levels: tuple[float, ...]
    block: int
    high_first: bool = False
    rounding: str = "nearest"
    moving = True

    def locate(self, shape: torch.Size, index: Tensor) -> Located:
        """See :class:`Codec`."""
        scale = index // self.block if self.block else torch.zeros_like(index)
        if self.high_first:
            return Located((index // 2, scale), 4 * (1 - index % 2))
        return Located((index, scale))

    def decode(self, parts: list[Tensor], extra: Tensor | None) -> tuple[Tensor, Tensor]:
        """See :class:`Codec`."""
        codes, scale = parts
        picked = codes.long() if extra is None else (codes.long() >> extra) & 15
        return _levels(self.levels, codes.device)[picked] * scale, picked


@lru_cache(maxsize=64)
def _levels(levels: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(levels, dtype=torch.float32, device=device)


@dataclass(frozen=True)
class Stored:
    """One state of one parameter.

    Parameters
    ----------
    slot
        Its name: the field's (``exp_avg`` ...), whatever the library calls it.
    codec
        How it is coded.
    tensors
        What holds it, one for each index of the codec's :class:`Located`.
    holder, key
        The mapping that it was found in, and its key there: when ``holder[key]`` is replaced, it is looked up again.
    """

    slot: str
    codec: Codec
    tensors: tuple[Tensor, ...]
    holder: Mapping[Any, Any]
    key: Any


@dataclass(frozen=True)
class Skipped:
    """A state that is not watched, and why."""

    slot: str
    reason: str


class Adapter(Protocol):
    """Knowledge of one library's optimizers.

    `counts_resets` says that :meth:`age` is cheap and falls back when a state is set to zero.
    """

    name: str
    counts_resets: bool

    def recognises(self, optimizer: torch.optim.Optimizer, entries: Mapping[Any, Any]) -> bool:
        """Whether the entries that an optimizer keeps for a parameter are this library's."""
        ...

    def stored(
        self, optimizer: torch.optim.Optimizer, group: Group, param: Tensor, entries: Mapping[Any, Any]
    ) -> list[Stored | Skipped]:
        """States of a parameter."""
        ...

    def age(self, group: Group, entries: Mapping[Any, Any], slot: str) -> int | None:
        """Steps that a state has seen since it was zero, ``None`` where the library does not say. May synchronise."""
        ...

    def follows(
        self, optimizer: torch.optim.Optimizer, group: Group, param: Tensor, slots: Collection[str]
    ) -> Followed:
        """How a parameter and its states move, given the slots of it that can be read."""
        ...
