"""The arguments that every optimizer of the library takes, and their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from halfulp.numbers.log import log_once
from halfulp.rules.hyper import check_switch

__all__ = ["GROUP_DEFAULTS", "NOT_GROUP", "STORAGE_KEYS", "Options", "TorchOptions", "without_torch_switches"]

STORAGE_KEYS = ("state", "rounding", "reset", "param_rounding", "master_weights", "seed")
"""The group keys that describe storage. All others are hyper-parameters."""


class Options(TypedDict, total=False):
    """Keyword arguments that every optimizer of the library takes. The first six are also group keys."""

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
    """:class:`Options`, plus the implementation switches of ``torch.optim``.

    Parameters
    ----------
    foreach, fused
        Accepted and ignored, which is logged once: `backend` chooses the kernels.
    differentiable
        Only ``False``. Anything else raises ``ValueError``.
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
    """Return options without torch's switches. Log those that have no effect; raise for those that change results.

    Parameters
    ----------
    name
        The name of the optimizer, for messages.
    options
        The keyword arguments. A copy is returned.

    Raises
    ------
    ValueError
        If ``differentiable=True``.
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
