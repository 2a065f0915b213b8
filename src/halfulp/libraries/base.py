"""What an adapter tells about the states of an optimizer: where they lie, how they are coded, how they should move.

An adapter answers for one library. For one parameter it lists its states as :class:`Stored`: the tensors that hold it,
a codec that decodes single elements of them, and the law that its exact successor follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["AUXILIARY", "Adapter", "Codebook", "Codec", "Law", "Located", "Plain", "Skipped", "Stored", "WeightStep"]

Group = Mapping[str, Any]


@dataclass(frozen=True)
class Law:
    """How a state moves in exact arithmetic: ``beta * state + gain * drive``.

    Parameters
    ----------
    drive
        ``"grad"``, ``"grad_sq"``, ``"grad_max"`` (the larger of ``beta * state`` and ``|grad| + gain``, as in
        Adamax), or ``"none"``: a state that is read but not judged.
    coefficients
        ``(beta, gain)`` from the group's hyper-parameters and the age of the state in this step (1 in the first).
    decay
        The beta of the long run, from the hyper-parameters; ``None`` for what is no average.
    predictable
        Whether the build-up that theory predicts by age applies: the state starts at zero and its decay is constant.
    """

    drive: str
    coefficients: Callable[[Group, int], tuple[float, float]]
    decay: Callable[[Group], float] | None = None
    predictable: bool = True

    def advance(self, old: Tensor, grad: Tensor, beta: float | Tensor, gain: float | Tensor) -> Tensor:
        """The exact successor of a state (float64)."""
        if self.drive == "grad_max":
            return torch.maximum(old * beta, grad.abs() + gain)
        return old * beta + (grad * grad if self.drive == "grad_sq" else grad) * gain


AUXILIARY = Law("none", lambda group, age: (0.0, 0.0))
"""For states that the weight update needs, but that are no average."""


@dataclass(frozen=True)
class Located:
    """Where sampled elements lie: one flat index per stored tensor, and what else decoding needs per element."""

    indices: tuple[Tensor, ...]
    extra: Tensor | None = None


class Codec(Protocol):
    """How stored numbers are decoded. Equal codecs are decoded together, so a codec is hashable."""

    @property
    def format(self) -> str:
        """Name of the format, as shown; a name of :mod:`halfulp.numbers.formats` where there is one."""
        ...

    @property
    def rounding(self) -> str:
        """``"nearest"`` or ``"stochastic"``."""
        ...

    def locate(self, shape: torch.Size, index: Tensor) -> Located:
        """Where the elements of a flat index lie in the stored tensors."""
        ...

    def decode(self, parts: list[Tensor], extra: Tensor | None) -> tuple[Tensor, Tensor]:
        """Values (floating point) of gathered elements, and marks that are equal where the stored state stood still.

        The marks are the values, except where a scale in fp32 moves them although the code stands: then the codes.
        """
        ...


@dataclass(frozen=True)
class Plain:
    """A tensor of ordinary floating point numbers."""

    format: str
    rounding: str = "nearest"

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
    law, codec
        How it moves, how it is coded.
    tensors
        What holds it, one for each index of the codec's :class:`Located`.
    holder, key
        The mapping that it was found in, and its key there: when ``holder[key]`` is replaced, it is looked up again.
    """

    slot: str
    law: Law
    codec: Codec
    tensors: tuple[Tensor, ...]
    holder: Mapping[Any, Any]
    key: Any


@dataclass(frozen=True)
class Skipped:
    """A state that is not watched, and why."""

    slot: str
    reason: str


@dataclass(frozen=True)
class WeightStep:
    """What a weight update is computed from: sampled coordinates of one group, all of float64.

    Parameters
    ----------
    weight, grad
        Before the step; the gradient with its sign turned under ``maximize``, without weight decay.
    before, exact, after
        The states, by slot: as stored before the step, their exact successors, as stored after it.
    age
        Of the states in this step, one for each element (1 in the first).
    """

    weight: Tensor
    grad: Tensor
    before: Mapping[str, Tensor]
    exact: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    age: Tensor


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

    def l2(self, optimizer: torch.optim.Optimizer, group: Group) -> float:
        """Weight decay that is added to the gradient before the states see it; 0 where it is decoupled."""
        ...

    def weight_update(self, optimizer: torch.optim.Optimizer, group: Group, step: WeightStep) -> Tensor | str:
        """What the exact update would add to the weights, or why it is not known."""
        ...
