"""Declaration of a method: what a worker computes from the messages of a meeting, as pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from halfulp.rules.hyper import HyperBase
from halfulp.workers.graphs import Graph

__all__ = ["Method", "NoHyper", "Seen", "mean"]


@dataclass(frozen=True)
class NoHyper(HyperBase):
    """No hyper-parameters."""


@dataclass(frozen=True)
class Seen:
    """What a worker knows at a meeting besides the tensors.

    Parameters
    ----------
    rank
        Number of this worker.
    circle
        Numbers of the workers whose messages it has, including its own, in increasing order.
    meeting
        Number of the meeting, starting at 1.
    loss, samples
        The report of each worker in the circle, float64 of shape ``(workers,)``.
    grad_norms
        Gradient norm of each tensor at each worker, float64 of shape ``(workers, tensors)``.
    graph, share
        The graph of this meeting, and the share of a neighbor in a mean.
    seed
        Seed of the random bits.

    Examples
    --------
    >>> from halfulp.workers.graphs import complete
    >>> loss = torch.tensor([2.0, 1.0], dtype=torch.float64)
    >>> seen = Seen(0, (0, 1), 1, loss, torch.ones(2), torch.ones(2, 3), complete(2), 0.5, 0)
    >>> mean(None, seen)
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    rank: int
    circle: tuple[int, ...]
    meeting: int
    loss: Tensor
    samples: Tensor
    grad_norms: Tensor
    graph: Graph
    share: float
    seed: int


Mix = Callable[[Any, Seen], Tensor]
"""Function that returns the coefficients of the messages from the hyper-parameters and what is seen: float64 of shape
``(workers,)`` or ``(workers, tensors)``. They sum to 1 over the workers.
"""


def mean(hyper: Any, seen: Seen) -> Tensor:
    """Return equal coefficients."""
    return torch.full((len(seen.circle),), 1.0 / len(seen.circle), dtype=torch.float64, device="cpu")


def _whole(hyper: Any, distance: float, workers: int) -> float:
    return 1.0


def _nothing(hyper: Any) -> float:
    return 0.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Method:
    """Declaration of what workers do when they meet.

    At a meeting each worker sends its weights. The target is their sum with the coefficients of :attr:`mix`. The
    weights are then pulled to the target, or to the center, which follows the target.

    Parameters
    ----------
    title
        Name of the class.
    hyper
        Class of the hyper-parameters.
    mix
        Coefficients of the messages.
    pull
        Share of the distance to the target that the weights move, from the hyper-parameters, the Euclidean distance
        over the whole model and the number of workers. Default: 1. A negative share moves away from the target.
    between
        Share of the distance to the last target that they move between meetings, in equal parts per step.
    centre
        How the common center follows the target, if the method has one. ``"average"``: it moves by
        :attr:`centre_share` of the distance, and the workers are pulled to its previous position. ``"outer"``: it takes
        a step of :attr:`outer`, and every worker takes its position.
    centre_share
        See `centre`.
    outer
        Function that builds the outer optimizer from parameters, hyper-parameters, and keyword arguments for its
        states. Its gradient is minus the mean change.
    finish
        Function that changes the target of a tensor. Its arguments are the hyper-parameters, the target, the workers'
        tensors, and a function that sums a number over the ranks that hold parts of the tensor.
    clients
        Function that returns the workers that take part in a meeting, from the hyper-parameters, the seed, the number
        of the meeting and the number of workers. Default: all.
    gossip
        Whether only neighbors in a graph exchange messages.
    smooth
        Decay of the average over meetings of the gradient norms sent. 0 sends those of the last step.
    every
        Default number of steps between meetings.
    graph
        Default graph.
    needs
        Reports that the method requires: ``"loss"``, ``"grad_norms"``.
    summary, source, notes, example
        As for :class:`~halfulp.rules.base.Rule`.

    Examples
    --------
    >>> from halfulp.workers import Alone, meeting
    >>> Soft = meeting(Method(title="Soft", pull=lambda hyper, distance, workers: 0.5, every=4))
    >>> optimizer = Soft(torch.optim.SGD(torch.nn.Linear(2, 2).parameters()), group=Alone())
    """

    title: str
    hyper: type[HyperBase] = NoHyper
    mix: Mix = mean
    pull: Callable[[Any, float, int], float] = _whole
    between: Callable[[Any], float] = _nothing
    centre: Literal["", "average", "outer"] = ""
    centre_share: Callable[[Any], float] = _nothing
    outer: Callable[..., torch.optim.Optimizer] | None = None
    finish: Callable[[Any, Tensor, Sequence[Tensor], Callable[[float], float]], Tensor] | None = None
    clients: Callable[[Any, int, int, int], tuple[int, ...]] | None = None
    gossip: bool = False
    smooth: Callable[[Any], float] = _nothing
    every: int = 16
    graph: str = "complete"
    needs: tuple[str, ...] = ()
    summary: str = ""
    source: str = ""
    notes: str = ""
    example: str = ""
