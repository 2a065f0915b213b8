"""Shared by the benchmarks: arms that take turns, so that their times can be divided by each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

__all__ = ["interleaved"]


def interleaved(
    arms: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Return the seconds of each arm in each round.

    Parameters
    ----------
    arms
        Functions to time, by name. The order rotates by one arm per round, so that each arm runs first equally often.
    rounds
        Number of calls of each arm.
    clock
        Seconds now.
    before
        Called before each arm, not timed.
    """
    names = list(arms)
    times: dict[str, list[float]] = {name: [] for name in names}
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            before()
            start = clock()
            arms[name]()
            times[name].append(clock() - start)
    return times
