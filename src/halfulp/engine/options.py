"""The arguments that every optimizer of the library takes, and their defaults."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

from halfulp.numbers.log import log_once
from halfulp.rules.hyper import check_switch

__all__ = ["GROUP_DEFAULTS", "NOT_GROUP", "STORAGE_KEYS", "Options", "TorchOptions", "checked_options"]

STORAGE_KEYS = ("state", "rounding", "reset", "param_rounding", "master_weights", "seed")
"""The group keys that describe storage. All others are hyper-parameters."""


class Options(TypedDict, total=False):
    """Keyword arguments that every optimizer of the library takes. The first six are also group keys.

    Parameters
    ----------
    state
        The format of the states: ``"8bit"`` (default), ``"bf16"``, ``"4bit"``, ``"fp32"``, ``"fp16"``, ``"fp8"``,
        ``"fp4"``, ``"int8"``, ``"int4"`` or a full name; a dtype; a :class:`~halfulp.numbers.formats.Format`; or a
        :class:`~halfulp.numbers.quantizer.Quantizer`, whose rounding and ``zero_floor`` take precedence. A mapping from
        slot names to these sets each state by itself; missing slots get the default. Can be set per group.
    rounding
        ``"stochastic"`` (default) or ``"nearest"``, or a mapping from slot names, where missing slots get the default.
        Can be set per group.
    reset
        ``None``, a period in steps, ``"auto"`` (the planner), a :class:`~halfulp.engine.resets.ResetSchedule` or a
        function. Can be set per group.
    param_rounding
        How 16-bit parameters are rounded: ``"stochastic"`` (default) preserves updates below half a gap on average,
        ``"nearest"`` drops them. Can be set per group.
    master_weights
        What is stored in addition to 16-bit parameters, so that the rule updates fp32 weights: ``None`` (default);
        ``"fp32"`` (4 bytes per parameter); ``"remainder16"`` (2 bytes: the bits that bfloat16 cuts off; training is
        bit-identical to fp32 weights); or ``"remainder8"`` (1 byte: weights of 15 fraction bits, rounded by
        `param_rounding`). Remainders need bfloat16 parameters. Can be set per group.
    seed
        The seed of the random bits. Saved in checkpoints.
    scale, block_size, min_size, keep_fp32, zero_floor
        See :class:`~halfulp.engine.storage.StorageOptions`.
    bound_update
        Limit each coordinate of an update to what exact arithmetic allows (Adam family). No effect if all states are
        fp32.
    capturable
        Allow :meth:`step` to be recorded in a CUDA graph, with the Triton kernels. See :meth:`advance`.
    nonfinite
        What to do with non-finite values. ``"skip"`` (default) leaves the affected tile (128 elements of a row, or the
        blocks of the states) unchanged, counts it in :attr:`skipped`, and logs it once. A rule that is not
        elementwise skips the whole parameter, and a rule that needs a sum over the model (SWATS, AMSGD,
        :func:`~halfulp.clip_global`) skips all parameters. ``"raise"`` checks every gradient before the step and raises
        ``FloatingPointError`` with nothing changed, at the cost of one more pass.
    backend
        ``None`` picks the fastest backend that supports the step. ``"reference"``, ``"cpu"`` or ``"triton"`` picks that
        one or raises an error.
    maximize
        Step along the gradient, to maximize.
    transforms
        Functions from a rule to a rule, applied to the gradient in this order. See :mod:`halfulp.rules.transforms`.
    """

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
NOT_GROUP = tuple(key for key in Options.__annotations__ if key not in GROUP_DEFAULTS)
"""The options of the whole optimizer, which a group cannot have."""


def checked_options(name: str, hyper: Iterable[str], options: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of an optimizer's options without torch's switches. Log switches that have no effect.

    The names of the optimizer and of its hyper-parameters are for messages. Raise ``TypeError`` for unknown options,
    and ``ValueError`` if ``differentiable=True``.
    """
    kept = {k: v for k, v in options.items() if k not in ("foreach", "fused", "differentiable")}
    check_switch("capturable", options.get("capturable", False))
    kept["capturable"] = bool(options.get("capturable"))
    if options.get("differentiable"):
        raise ValueError(f"halfulp.{name} does not support differentiable=True: leave it out")
    for key in ("foreach", "fused"):
        if options.get(key) is not None:
            log_once(f"halfulp.{name} ignores {key}={options[key]}: its kernels are chosen by backend=")
    unknown = set(kept) - set(Options.__annotations__)
    if unknown:
        near = difflib.get_close_matches(sorted(unknown)[0], [*hyper, *Options.__annotations__], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise TypeError(f"{name} got unknown arguments {sorted(unknown)}.{hint}")
    return kept
