"""One step of a stored average, shared by all simulations and ensembles, for NumPy arrays and tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy.typing as npt
from torch import Tensor

__all__ = ["StoredAverage", "Update", "successor"]

Values = TypeVar("Values", npt.NDArray[Any], Tensor)


def successor(beta: float, value: Values, inputs: Values) -> Values:
    """Return the average after one more input. Each operation is rounded in the dtype of the values.

    Examples
    --------
    >>> import torch
    >>> successor(0.75, torch.tensor([4.0]), torch.tensor([8.0]))
    tensor([5.])
    """
    new = beta * value
    new += (1 - beta) * inputs
    return new


@dataclass(frozen=True, eq=False)
class Update(Generic[Values]):
    """Effect of one step on the stored values. `exact` is the successor of `before` before rounding for storage.

    Examples
    --------
    >>> import torch
    >>> Update(torch.ones(2), torch.ones(2), torch.tensor([1.1, 1.0])).stalled  # one update was due, and it stalled
    1.0
    """

    before: Values
    after: Values
    exact: Values

    @cached_property
    def due(self) -> Values:
        """Whether the step would change each value."""
        return self.exact != self.before

    @cached_property
    def lost(self) -> Values:
        """Whether the step would change the value, but the stored value is unchanged."""
        return self.due & (self.after == self.before)

    @property
    def stalled(self) -> float:
        """Share of due updates that stalled; 0 if none was due."""
        return int(self.lost.sum()) / max(int(self.due.sum()), 1)


class StoredAverage(Generic[Values]):
    """An exponential moving average of many elements, rounded for storage at each step.

    `store` is a function that returns the stored values and their codes for new values. :attr:`value` and :attr:`codes`
    are the present ones.

    Examples
    --------
    >>> import torch
    >>> average = StoredAverage(0.5, lambda x: (x.round(), x.round()), torch.zeros(3))
    >>> average.step(torch.tensor([0.0, 1.0, 3.0])).lost
    tensor([False,  True, False])
    >>> average.value
    tensor([0., 0., 2.])
    """

    def __init__(self, beta: float, store: Callable[[Values], tuple[Values, Values]], start: Values) -> None:
        self.beta = beta
        self.store: Callable[[Values], tuple[Values, Values]] = store
        self.value: Values = start
        self.codes: Values = start

    def step(self, inputs: Values) -> Update[Values]:
        """Average one more input of each element."""
        before, exact = self.value, successor(self.beta, self.value, inputs)
        self.value, self.codes = self.store(exact)
        return Update(before, self.value, exact)
