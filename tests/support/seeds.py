"""The seeds of random tests: ``HALFULP_FIRST_SEED=100000`` starts from another one, to try what no run has tried."""

from __future__ import annotations

import os

FIRST = int(os.environ.get("HALFULP_FIRST_SEED", "0"))


def many(variable: str, default: int) -> int:
    """Return how many random cases an environment variable asks for."""
    return int(os.environ.get(variable, default))
