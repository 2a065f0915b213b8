"""Arguments that every optimizer of the library takes, and their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from halfulp.numbers.log import log_once
from halfulp.rules.hyper import check_switch

__all__ = ["GROUP_DEFAULTS", "NOT_GROUP", "STORAGE_KEYS", "Options", "TorchOptions", "without_torch_switches"]

STORAGE_KEYS = ("state", "rounding", "reset", "param_rounding", "master_weights", "seed")
"""Group keys that say how states are kept; hyper-parameters are all others."""


class Options(TypedDict, total=False):
    """Keyword arguments that every optimizer of the library takes; the first six are per-group keys too."""

    state: Any
    rounding: Any
    reset: Any
    param_rounding: str
    master_weights: str | None
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
    capturable: bool
    transforms: Sequence[Any]


class TorchOptions(Options, total=False):
    """Those of :class:`Options`, and the arguments of torch.optim that say how it computes.

    Parameters
    ----------
    foreach, fused
        Taken and ignored, which is logged once: `backend` chooses the kernels.
    differentiable
        Only ``False``; anything else is a ``ValueError``.
    """

    foreach: bool | None
    fused: bool | None
    differentiable: bool


GROUP_DEFAULTS: Options = {
    "state": "8bit",
    "rounding": "stochastic",
    "reset": None,
    "param_rounding": "stochastic",
    "master_weights": None,
    "seed": 0,
    "bound_update": True,
    "maximize": False,
}
NOT_GROUP = (
    "scale",
    "block_size",
    "min_size",
    "keep_fp32",
    "zero_floor",
    "nonfinite",
    "backend",
    "capturable",
    "transforms",
)


def without_torch_switches(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options without torch's own: those that mean nothing here are said once, those that change results refused.

    Parameters
    ----------
    name
        Name of the optimizer, for messages.
    options
        Keyword arguments, of which a copy is returned.

    Raises
    ------
    ValueError
        ``differentiable=True``.
    """
    kept = {k: v for k, v in options.items() if k not in ("foreach", "fused", "differentiable")}
    check_switch("capturable", options.get("capturable", False))
    kept["capturable"] = bool(options.get("capturable"))
    if options.get("differentiable"):
        raise ValueError(f"halfulp.{name} does not support differentiable=True: leave it out")
    for key in ("foreach", "fused"):
        if options.get(key) is not None:
            log_once(f"halfulp.{name} ignores {key}={options[key]}: its kernels are chosen by backend=")
    return kept
