"""Declaration of a method: what a worker makes of the messages of a meeting, as pure functions."""

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
    """What a worker knows at a meeting, beside the tensors.

    Parameters
    ----------
    rank
        Number of this worker.
    circle
        Numbers of the workers whose messages it has, in increasing order, its own among them.
    meeting
        Number of the meeting, from 1.
    loss, samples
        What each worker of the circle reported, float64 of shape ``(workers,)``.
    grad_norms
        Norm of each tensor's gradient at each worker, float64 of shape ``(workers, tensors)``.
    graph, share
        The graph of this meeting, and the share of a neighbour in a mean.
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
"""From hyper-parameters and what is seen to the coefficients of the messages: float64 of shape ``(workers,)``, or
``(workers, tensors)``. They add up to 1 over the workers."""


def mean(hyper: Any, seen: Seen) -> Tensor:
    """Equal coefficients."""
    return torch.full((len(seen.circle),), 1.0 / len(seen.circle), dtype=torch.float64)


def _whole(hyper: Any, distance: float, workers: int) -> float:
    return 1.0


def _nothing(hyper: Any) -> float:
    return 0.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Method:
    """What workers do when they meet.

    A meeting goes: each worker sends its weights; the target is their sum with the coefficients of :attr:`mix`; the
    weights are pulled to the target (or to the centre, which follows the target).

    Parameters
    ----------
    title
        Name of the class.
    hyper
        Class of the hyper-parameters.
    mix
        Coefficients of the messages.
    pull
        Share of the way to the target that the weights go, from the hyper-parameters, the distance to it (Euclidean,
        over the whole model) and the number of workers; 1 without. Negative: away from it.
    between
        Share of the way to the last target that they go from one meeting to the next, in equal parts a step.
    centre
        Whether there is a centre beside the workers, common to all, and how it follows the target:
        ``"average"``, by :attr:`centre_share` of the way, while the workers are pulled to where it was; ``"outer"``, by
        a step of :attr:`outer`, after which every worker is where it is.
    centre_share
        See there.
    outer
        Makes the outer optimizer: from parameters, hyper-parameters, and keyword arguments for its states. Its gradient
        is centre minus target.
    finish
        Changes the target of a tensor, from the hyper-parameters, the target, the workers' tensors, and a function that
        adds a number up over the ranks that hold parts of the tensor.
    clients
        The workers that take part in a meeting, from the hyper-parameters, the seed, the number of the meeting and that
        of workers; all without.
    gossip
        Only neighbours in a graph exchange messages.
    smooth
        Decay of the average, over meetings, of the gradient norms that are sent; 0 sends those of the last step.
    every
        Steps from one meeting to the next, unless the user says otherwise.
    graph
        The graph, unless the user says otherwise.
    needs
        Figures without which it cannot work: ``"loss"``, ``"grad_norms"``.
    summary, source, notes, example
        As of :class:`~halfulp.rules.base.Rule`.

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
