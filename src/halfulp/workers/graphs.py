"""Communication graphs of workers: everyone, fixed neighbors, or graphs that change at every meeting.

The graph of a meeting is a pure function of the meeting's number, so workers agree on it without communication.
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
    """Workers, and the pairs of them that exchange messages.

    Parameters
    ----------
    size
        Number of workers.
    edges
        Pairs of worker numbers, in any order.

    Raises
    ------
    ValueError
        If there is no worker, or a pair does not consist of two different ones.

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
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"size is a number of workers, at least 1; got {size!r}")
        pairs = [tuple(sorted(edge)) for edge in edges]
        for pair in pairs:
            if len(pair) != 2 or not all(isinstance(x, int) for x in pair) or not 0 <= pair[0] < pair[1] < size:
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
        """Return a worker and its neighbors, in increasing order."""
        return self._circles[rank]

    def degree(self, rank: int) -> int:
        """Return the number of a worker's neighbors."""
        return len(self._circles[rank]) - 1

    @cached_property
    def laplacian(self) -> Array:
        """Matrix with degrees on the diagonal and -1 for each edge."""
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
        """Whether there is a path between any two workers."""
        return self.size == 1 or self._spectrum[0] > 1e-9

    @cached_property
    def share(self) -> float:
        """Share of each neighbor in a mean, chosen so that ``I - share * laplacian`` brings workers together fastest.

        ``2 / (smallest positive + largest eigenvalue)`` for a connected graph, ``1 / (1 + largest degree)`` for any
        other (1/2 for pairs).
        """
        if self.connected and self.size > 1:
            return 2.0 / sum(self._spectrum)
        return 1.0 / (1 + max((self.degree(rank) for rank in range(self.size)), default=0))

    @property
    def consensus(self) -> float:
        """Largest factor by which one step scales the workers' distance from their mean."""
        if self.size == 1:
            return 0.0
        return max(abs(1 - self.share * value) for value in self._spectrum)


class Graphs(Protocol):
    """The graph of each meeting."""

    @property
    def size(self) -> int:
        """Number of workers."""
        ...

    def graph(self, meeting: int) -> Graph:
        """Return the graph of a meeting. Meetings are numbered from 1."""
        ...

    def share(self, meeting: int) -> float:
        """Return the share of each neighbor in the mean of a meeting."""
        ...


@dataclass(frozen=True)
class Turns:
    """Graphs of the same workers that alternate from meeting to meeting. A single one stays fixed.

    Examples
    --------
    >>> turns = Turns((ring(4), complete(4)))
    >>> [len(turns.graph(meeting).edges) for meeting in (1, 2, 3)]
    [4, 6, 4]
    """

    graphs: tuple[Graph, ...]

    def __post_init__(self) -> None:
        if not self.graphs or len({graph.size for graph in self.graphs}) != 1:
            raise ValueError(f"alternating graphs must have the same workers, got {self.graphs}")

    @property
    def size(self) -> int:
        """Number of workers."""
        return self.graphs[0].size

    def graph(self, meeting: int) -> Graph:
        """See :class:`Graphs`."""
        return self.graphs[(meeting - 1) % len(self.graphs)]

    def share(self, meeting: int) -> float:
        """See :class:`Graphs`."""
        return self.graph(meeting).share


@dataclass(frozen=True)
class RandomPairs:
    """Random pairs, drawn for each meeting. With an odd number, one worker rests.

    Parameters
    ----------
    size
        Number of workers.
    seed
        Seed of the draws. It must be the same on every worker.

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
        """Return one half: both workers take their mean."""
        return 0.5


class Matchings:
    """Matchings of a graph, each active in a random share of the meetings (MATCHA).

    Wang et al., arXiv 1905.09435. Matchings are the colors of a greedy edge coloring. Their probabilities maximize
    the second smallest eigenvalue of the expected Laplacian within the budget, by projected gradient ascent. The share
    minimizes the expected distance from the mean after a meeting.

    Parameters
    ----------
    graph
        A connected graph.
    budget
        Expected share of active matchings, in (0, 1].
    seed
        Seed of the draws. It must be the same on every worker.

    Raises
    ------
    ValueError
        If the graph is not connected, has one worker, or the budget is out of range.

    Examples
    --------
    >>> matchings = Matchings(ring(6), budget=0.5)
    >>> len(matchings.matchings), [round(p, 2) for p in matchings.probabilities]
    (2, [0.5, 0.5])
    >>> matchings.consensus < 1
    True
    """

    def __init__(self, graph: Graph, budget: float = 0.5, seed: int = 0) -> None:
        if not graph.connected or not graph.edges:
            raise ValueError(
                f"matchings are of a connected graph of two workers or more; got {graph.size} workers with the edges "
                f"{sorted(graph.edges)}"
            )
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
        """See :class:`Graphs`. It is the same for every meeting."""
        return self._share

    def _best_share(self) -> tuple[float, float]:
        """Return the share, and the root mean square factor of the distance from the mean per meeting."""
        p = np.array(self.probabilities)[:, None, None]
        mean, spread = (p * self._parts).sum(axis=0), (p * (1 - p) * self._parts).sum(axis=0)
        one = np.eye(self.size)

        def left(share: float) -> float:
            square = one - 2 * share * mean + share**2 * (mean @ mean + 2 * spread) - 1.0 / self.size
            return float(np.abs(np.linalg.eigvalsh(square)).max())

        low, high = 0.0, 1.0
        for _ in range(60):  # the function is convex in the share
            a, b = low + (high - low) / 3, high - (high - low) / 3
            low, high = (low, b) if left(a) < left(b) else (a, high)
        return high, left(high) ** 0.5


def draws(seed: int, what: str, meeting: int, count: int) -> torch.Tensor:
    """Return 32-bit random words for a meeting, the same on every worker."""
    return hash_elements(stream_keys(seed, 0, slot_id(what), meeting), torch.arange(count, device="cpu"))


def _coloured(graph: Graph) -> tuple[Graph, ...]:
    """Split a graph into matchings: each edge, in order, gets the first colour free at both ends."""
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
    """Return the nearest point of the unit cube whose coordinates sum to at most `total`."""
    if np.clip(p, 0, 1).sum() <= total:
        return np.clip(p, 0, 1)
    low, high = float(p.min()) - 1.0, float(p.max())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(p - middle, 0, 1).sum() > total else (low, middle)
    return np.clip(p - high, 0, 1)


def ring(size: int) -> Graph:
    """Return a ring: each worker is connected to the next, and the last to the first.

    Parameters
    ----------
    size
        Number of workers.

    Examples
    --------
    >>> sorted(ring(3).edges)
    [(0, 1), (0, 2), (1, 2)]
    """
    return Graph(size, {tuple(sorted((i, (i + 1) % size))) for i in range(size)} if size > 1 else ())


def complete(size: int) -> Graph:
    """Return a complete graph: each worker is connected to every other.

    Parameters
    ----------
    size
        Number of workers.

    Examples
    --------
    >>> round(complete(4).consensus, 6)  # one meeting is enough
    0.0
    """
    return Graph(size, [(a, b) for b in range(size) for a in range(b)])


def rings(size: int) -> Turns:
    """Return two alternating rings: one along the numbers, one along the even and then the odd numbers."""
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
    """Return the graphs for ``graph=``: a name, a :class:`Graph`, a list to alternate, or :class:`Graphs`.

    Raises
    ------
    ValueError
        If it is anything else, has another number of workers, or some workers never hear of the others.

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
    if isinstance(given, Turns) and not Graph(size, [edge for graph in given.graphs for edge in graph.edges]).connected:
        raise ValueError(
            "the graphs leave the workers in separate parts, which never agree: join them by an edge; got "
            f"{[sorted(graph.edges) for graph in given.graphs]}"
        )
    return given
