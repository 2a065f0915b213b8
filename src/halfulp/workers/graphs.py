"""Whom a worker meets: everyone, its neighbours in a graph, or in graphs that change from meeting to meeting.

What a graph is in a meeting is a pure function of the number of the meeting, so that all workers agree without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from halfulp.numbers.rng import hash_elements, slot_id, stream_keys

__all__ = ["Graph", "Graphs", "Matchings", "RandomPairs", "Turns", "as_graphs", "complete", "ring"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Graph:
    """Workers, and pairs of them that exchange messages.

    Parameters
    ----------
    size
        How many workers.
    edges
        Pairs of their numbers, in any order.

    Raises
    ------
    ValueError
        For a pair that is none of two different workers.

    Examples
    --------
    >>> path = Graph(3, [(0, 1), (1, 2)])
    >>> path.circle(1), path.connected
    ((0, 1, 2), True)
    >>> round(path.share, 2), round(path.consensus, 2)  # 2 / (1 + 3), (3 - 1) / (3 + 1)
    (0.5, 0.5)
    """

    size: int
    edges: frozenset[tuple[int, int]]

    def __init__(self, size: int, edges: Iterable[Sequence[int]]) -> None:
        pairs = [tuple(sorted(edge)) for edge in edges]
        for pair in pairs:
            if len(pair) != 2 or pair[0] == pair[1] or not 0 <= pair[0] < pair[1] < size:
                raise ValueError(f"an edge joins two different workers of 0 to {size - 1}, got {pair}")
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "edges", frozenset(pairs))

    @cached_property
    def _circles(self) -> tuple[tuple[int, ...], ...]:
        circles = [{rank} for rank in range(self.size)]
        for a, b in self.edges:
            circles[a].add(b)
            circles[b].add(a)
        return tuple(tuple(sorted(circle)) for circle in circles)

    def circle(self, rank: int) -> tuple[int, ...]:
        """A worker and its neighbours, in increasing order."""
        return self._circles[rank]

    def degree(self, rank: int) -> int:
        """Number of a worker's neighbours."""
        return len(self._circles[rank]) - 1

    @cached_property
    def laplacian(self) -> Array:
        """Degrees on the diagonal, -1 for each edge."""
        found = np.zeros((self.size, self.size))
        for a, b in self.edges:
            found[a, b] = found[b, a] = -1.0
        np.fill_diagonal(found, -found.sum(axis=1))
        return found

    @cached_property
    def _spectrum(self) -> tuple[float, float]:
        values = np.linalg.eigvalsh(self.laplacian)
        return (float(values[1]), float(values[-1])) if self.size > 1 else (0.0, 0.0)

    @property
    def connected(self) -> bool:
        """Whether a message can go from each worker to every other."""
        return self.size == 1 or self._spectrum[0] > 1e-9

    @cached_property
    def share(self) -> float:
        """Share of each neighbour in a mean: the step ``I - share * laplacian`` brings workers together fastest.

        ``2 / (smallest positive + largest eigenvalue)`` of a connected graph, ``1 / (1 + largest degree)`` of any other
        (1/2 for pairs).
        """
        if self.connected and self.size > 1:
            return 2.0 / sum(self._spectrum)
        return 1.0 / (1 + max((self.degree(rank) for rank in range(self.size)), default=0))

    @property
    def consensus(self) -> float:
        """Factor by which one step brings the workers' distance from their mean down, at least."""
        if self.size == 1:
            return 0.0
        return max(abs(1 - self.share * value) for value in self._spectrum)


class Graphs(Protocol):
    """The graph of each meeting."""

    @property
    def size(self) -> int:
        """How many workers."""
        ...

    def graph(self, meeting: int) -> Graph:
        """The graph of a meeting, which are counted from 1."""
        ...

    def share(self, meeting: int) -> float:
        """Share of each neighbour in the mean of a meeting."""
        ...


@dataclass(frozen=True)
class Turns:
    """Graphs that take turns, one a meeting; a single one for a graph that stays.

    Parameters
    ----------
    graphs
        Graphs of the same workers.

    Examples
    --------
    >>> turns = Turns((ring(4), complete(4)))
    >>> [len(turns.graph(meeting).edges) for meeting in (1, 2, 3)]
    [4, 6, 4]
    """

    graphs: tuple[Graph, ...]

    def __post_init__(self) -> None:
        if not self.graphs or len({graph.size for graph in self.graphs}) != 1:
            raise ValueError(f"graphs that take turns are of the same workers, got {self.graphs}")

    @property
    def size(self) -> int:
        """How many workers."""
        return self.graphs[0].size

    def graph(self, meeting: int) -> Graph:
        """See :class:`Graphs`."""
        return self.graphs[(meeting - 1) % len(self.graphs)]

    def share(self, meeting: int) -> float:
        """See :class:`Graphs`."""
        return self.graph(meeting).share


@dataclass(frozen=True)
class RandomPairs:
    """Random pairs, drawn anew for each meeting; one worker of an odd number rests.

    Parameters
    ----------
    size
        How many workers.
    seed
        Seed of the draws; the same on every worker.

    Examples
    --------
    >>> sorted(RandomPairs(4).graph(1).edges) == sorted(RandomPairs(4).graph(1).edges)
    True
    """

    size: int
    seed: int = 0

    def graph(self, meeting: int) -> Graph:
        """See :class:`Graphs`."""
        order = draws(self.seed, "pairs", meeting, self.size).argsort().tolist()
        return Graph(self.size, list(zip(order[::2], order[1::2], strict=False)))

    def share(self, meeting: int) -> float:
        """Half: both become their mean."""
        return 0.5


class Matchings:
    """A graph taken apart into matchings, each of which is active in a random share of the meetings (MATCHA).

    Wang et al., arXiv 1905.09435. Matchings are the colours of a greedy edge colouring. Their probabilities maximize
    the second smallest eigenvalue of the expected Laplacian within the budget, by projected gradient ascent; the share
    minimizes the expected distance from the mean that is left after a meeting.

    Parameters
    ----------
    graph
        A connected graph.
    budget
        Expected share of the matchings that are active, in (0, 1].
    seed
        Seed of the draws; the same on every worker.

    Raises
    ------
    ValueError
        For a graph that is not connected, or another budget.

    Examples
    --------
    >>> matchings = Matchings(ring(6), budget=0.5)
    >>> len(matchings.matchings), [round(p, 2) for p in matchings.probabilities]
    (2, [0.5, 0.5])
    >>> matchings.consensus < 1
    True
    """

    def __init__(self, graph: Graph, budget: float = 0.5, seed: int = 0) -> None:
        if not graph.connected:
            raise ValueError(f"matchings are of a connected graph; workers of {sorted(graph.edges)} form several parts")
        if not 0.0 < budget <= 1.0:
            raise ValueError(f"the budget is a share of the matchings, in (0, 1]; got {budget}")
        self.size, self.seed = graph.size, seed
        self.matchings = _coloured(graph)
        self._parts = np.array([m.laplacian for m in self.matchings])
        self.probabilities = _probabilities(self._parts, budget)
        self._share, self.consensus = self._best_share()

    def graph(self, meeting: int) -> Graph:
        """See :class:`Graphs`."""
        drawn = draws(self.seed, "matchings", meeting, len(self.matchings)).double() / 2**32
        active = [m for m, p, x in zip(self.matchings, self.probabilities, drawn.tolist(), strict=True) if x < p]
        return Graph(self.size, [edge for matching in active for edge in matching.edges])

    def share(self, meeting: int) -> float:
        """See :class:`Graphs`; the same in every meeting."""
        return self._share

    def _best_share(self) -> tuple[float, float]:
        """Share, and the expected factor of the distance from the mean in a meeting (root of that of its square)."""
        p = np.array(self.probabilities)[:, None, None]
        mean, spread = (p * self._parts).sum(axis=0), (p * (1 - p) * self._parts).sum(axis=0)
        one = np.eye(self.size)

        def left(share: float) -> float:
            square = one - 2 * share * mean + share**2 * (mean @ mean + 2 * spread) - 1.0 / self.size
            return float(np.abs(np.linalg.eigvalsh(square)).max())

        low, high = 0.0, 1.0
        for _ in range(60):  # convex in the share
            a, b = low + (high - low) / 3, high - (high - low) / 3
            low, high = (low, b) if left(a) < left(b) else (a, high)
        return high, left(high) ** 0.5


def draws(seed: int, what: str, meeting: int, count: int) -> torch.Tensor:
    """32-bit random words of a meeting, which all workers agree on."""
    return hash_elements(stream_keys(seed, 0, slot_id(what), meeting), torch.arange(count))


def _coloured(graph: Graph) -> tuple[Graph, ...]:
    """Matchings that make up a graph: each edge, in order, gets the first colour that is free at both ends."""
    colours: list[list[tuple[int, int]]] = []
    for edge in sorted(graph.edges):
        free = next((c for c in colours if not any(set(edge) & set(other) for other in c)), None)
        if free is None:
            colours.append(free := [])
        free.append(edge)
    return tuple(Graph(graph.size, edges) for edges in colours)


def _probabilities(parts: Array, budget: float) -> tuple[float, ...]:
    count = len(parts)
    p = np.full(count, budget)
    best, found = p, -1.0
    for k in range(400):
        values, vectors = np.linalg.eigh((p[:, None, None] * parts).sum(axis=0))
        if values[1] > found + 1e-12:
            best, found = p, float(values[1])
        slope = np.einsum("i,mij,j->m", vectors[:, 1], parts, vectors[:, 1])
        p = _within(p + 0.5 / (k + 2) * slope, budget * count)
    return tuple(float(x) for x in best)


def _within(p: Array, total: float) -> Array:
    """Nearest point of the unit cube whose coordinates add up to at most a total."""
    if np.clip(p, 0, 1).sum() <= total:
        return np.clip(p, 0, 1)
    low, high = float(p.min()) - 1.0, float(p.max())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(p - middle, 0, 1).sum() > total else (low, middle)
    return np.clip(p - high, 0, 1)


def ring(size: int) -> Graph:
    """Each worker and the next; the last and the first.

    Parameters
    ----------
    size
        How many workers.

    Examples
    --------
    >>> sorted(ring(3).edges)
    [(0, 1), (0, 2), (1, 2)]
    """
    return Graph(size, {tuple(sorted((i, (i + 1) % size))) for i in range(size)} if size > 1 else ())


def complete(size: int) -> Graph:
    """Each worker with every other.

    Parameters
    ----------
    size
        How many workers.

    Examples
    --------
    >>> round(complete(4).consensus, 6)  # one meeting is enough
    0.0
    """
    return Graph(size, [(a, b) for b in range(size) for a in range(b)])


def rings(size: int) -> Turns:
    """Two rings that take turns: along the numbers, and along the even and then the odd ones."""
    order = [*range(0, size, 2), *range(1, size, 2)]
    second = [(order[a], order[b]) for a, b in ring(size).edges]
    return Turns((ring(size), Graph(size, second)))


NAMED: dict[str, Callable[[int], Graphs]] = {
    "ring": lambda n: Turns((ring(n),)),
    "rings": rings,
    "complete": lambda n: Turns((complete(n),)),
    "pairs": RandomPairs,
}


def as_graphs(given: Any, size: int) -> Graphs:
    """The graphs that ``graph=`` says: a name, a :class:`Graph`, several that take turns, or :class:`Graphs`.

    Raises
    ------
    ValueError
        For anything else, and for graphs of another number of workers.

    Examples
    --------
    >>> as_graphs("ring", 4).graph(1) == ring(4)
    True
    """
    if isinstance(given, str):
        if given not in NAMED:
            raise ValueError(f"graph is one of {sorted(NAMED)}, a Graph, several that take turns; got {given!r}")
        given = NAMED[given](size)
    elif isinstance(given, Graph):
        given = Turns((given,))
    elif isinstance(given, (tuple, list)) and all(isinstance(graph, Graph) for graph in given):
        given = Turns(tuple(given))
    if not callable(getattr(given, "graph", None)) or not callable(getattr(given, "share", None)):
        raise ValueError(f"graph is one of {sorted(NAMED)}, a Graph, several that take turns; got {given!r}")
    if given.size != size:
        raise ValueError(f"the graph has {given.size} workers, the process group {size}")
    return given
