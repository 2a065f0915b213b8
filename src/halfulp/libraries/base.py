"""Adapters: where a library stores optimizer states, how they are encoded, and how they should move.

An adapter describes one library. For each parameter it lists the states as :class:`Stored`: their tensors, and a codec
that decodes single elements. It expresses their exact movement as a rule (:class:`Followed`): the optimizer's complete
rule, or only its averages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from halfulp.rules.base import Rule
from halfulp.rules.slots import Hyper, Shape, StateSlot

__all__ = [
    "COMPENSATED", "Adapter", "Codebook", "Codec", "Entries", "Followed", "Group", "Located", "Plain", "Skipped",
    "Stored", "averages", "no_theory", "other_shape",
]  # fmt: skip

Group = Mapping[str, Any]
Entries = Mapping[Any, Any]
"""What an optimizer keeps for a parameter."""


@dataclass(frozen=True)
class Followed:
    """The rule that a parameter follows in exact arithmetic.

    Parameters
    ----------
    rule
        Rule with the stored states, by name. A state without a drive is read, but not judged.
    hyper
        Function that returns the rule's hyper-parameters from the group and the parameter. Called after each step.
    weights
        Reason why the rule does not determine how the weights move, or ``None`` if it does.
    apart
        Whether hyper-parameters differ between the parameters of one rule.
    """

    rule: Rule
    hyper: Callable[[Group, Tensor], Hyper]
    weights: str | None = None
    apart: bool = False


@lru_cache(maxsize=256)
def averages(slots: tuple[StateSlot, ...]) -> Rule:
    """Return a rule of plain averages, ``beta * state + gain * drive``, which does not change the weights.

    The hyper-parameters passed to decays have ``"age"``, the state's age in this step (1 in the first). ``"l2"`` is the
    weight decay added to the gradient before the states are updated.
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


def no_theory(hyper: Hyper, shape: Shape, age: int) -> None:
    """Say that no theory covers a state (see ``stalls_as`` of :class:`~halfulp.rules.slots.StateSlot`)."""


COMPENSATED = "compensated: what the weights lose is kept beside them"
"""Reason why the movement of 16-bit weights is not informative."""


@dataclass(frozen=True)
class Located:
    """Where sampled elements are stored: a flat index per tensor, and further data needed to decode each element."""

    indices: tuple[Tensor, ...]
    extra: Tensor | None = None


class Codec(Protocol):
    """Decoder of stored numbers. It must be hashable, since states with equal codecs are decoded together."""

    @property
    def format(self) -> str:
        """Name of the format for display; a name in :mod:`halfulp.numbers.formats` if there is one."""
        ...

    @property
    def rounding(self) -> str:
        """``"nearest"`` or ``"stochastic"``."""
        ...

    @property
    def moving(self) -> bool:
        """Whether block scales move the values while the codes are unchanged."""
        ...

    def locate(self, shape: torch.Size, index: Tensor) -> Located:
        """Return where the elements of a flat index are stored."""
        ...

    def decode(self, parts: list[Tensor], extra: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return floating-point values of gathered elements, and marks that are equal if the state did not change.

        The marks are the values, or the codes if a scale moves the values while the codes are unchanged.
        """
        ...


@dataclass(frozen=True)
class Plain:
    """A tensor of ordinary floating-point numbers."""

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
    """Codes of 8 or 4 bits into a list of levels, times an fp32 scale per block of consecutive elements.

    Parameters
    ----------
    format, rounding
        Names for display.
    levels
        Value of each code.
    block
        Elements per scale; 0 for one scale for the whole tensor.
    high_first
        For two codes per byte, whether the even element is in the high half.
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
        The standard name (``exp_avg`` ...), whatever the library calls it.
    codec
        Its codec.
    tensors
        The tensors that hold it, one per index of the codec's :class:`Located`.
    holder, key
        The mapping that contains it and its key there. When ``holder[key]`` is replaced, the state is looked up again.
    """

    slot: str
    codec: Codec
    tensors: tuple[Tensor, ...]
    holder: Entries
    key: Any


@dataclass(frozen=True)
class Skipped:
    """A state that is not watched, and why."""

    slot: str
    reason: str


def other_shape(slot: str, state: Tensor, param: Tensor) -> Skipped:
    """Return what is said of a state that does not have the shape of its parameter."""
    return Skipped(slot, f"of shape {tuple(state.shape)}, the parameter {tuple(param.shape)}")


class Adapter(Protocol):
    """Description of one library's optimizers.

    `counts_resets` says that :meth:`age` is cheap and restarts when a state is set to zero.
    """

    name: str
    counts_resets: bool

    def recognises(self, optimizer: Optimizer, entries: Entries) -> bool:
        """Whether the entries that an optimizer keeps for a parameter are this library's."""
        ...

    def stored(self, optimizer: Optimizer, group: Group, param: Tensor, entries: Entries) -> list[Stored | Skipped]:
        """Return the states of a parameter."""
        ...

    def age(self, group: Group, entries: Entries, slot: str) -> int | None:
        """Return the steps since a state was zero, or ``None`` if the library does not say.

        May synchronize the device.
        """
        ...

    def follows(self, optimizer: Optimizer, group: Group, param: Tensor, slots: Collection[str]) -> Followed:
        """Return how a parameter and its states move, given its readable slots."""
        ...
