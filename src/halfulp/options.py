"""Arguments that every optimizer of the library takes, and their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

__all__ = ["GROUP_DEFAULTS", "NOT_GROUP", "STORAGE_KEYS", "Options"]

STORAGE_KEYS = ("state", "rounding", "reset", "param_rounding", "seed")
"""Group keys that say how states are kept; hyper-parameters are all others."""


class Options(TypedDict, total=False):
    """Keyword arguments that every optimizer of the library takes; the first five are per-group keys too."""

    state: Any
    rounding: Any
    reset: Any
    param_rounding: str
    seed: int
    scale: str
    block_size: int
    min_size: int
    keep_fp32: str | Sequence[str]
    zero_floor: bool
    bound_update: bool
    nonfinite: str
    backend: str | None
    maximize: bool
    transforms: Sequence[Any]


GROUP_DEFAULTS: Options = {
    "state": "8bit",
    "rounding": "stochastic",
    "reset": None,
    "param_rounding": "nearest",
    "seed": 0,
    "bound_update": True,
    "maximize": False,
}
NOT_GROUP = ("scale", "block_size", "min_size", "keep_fp32", "zero_floor", "nonfinite", "backend", "transforms")
