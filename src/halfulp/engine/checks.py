"""Checks of parameters, gradients and groups before a step changes anything."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from halfulp.engine.master import master_kind
from halfulp.engine.registry import Registry
from halfulp.engine.sharding import agree, local
from halfulp.numbers.log import warn_once

if TYPE_CHECKING:
    from halfulp.engine.optimizer import RuleOptimizer

__all__ = [
    "PARAM_DTYPES", "check_allocated", "check_gradients", "check_group", "check_param", "check_patterns", "is_dry_run",
    "tell_idle", "tell_replaced",
]  # fmt: skip

PARAM_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_param(param: Tensor) -> None:
    """Raise ``ValueError`` for a parameter that no optimizer here can update."""
    if param.dtype not in PARAM_DTYPES:
        raise ValueError(
            f"parameters must be float32, bfloat16 or float16 (the arithmetic is fp32); got {param.dtype} of shape "
            f"{tuple(param.shape)}: use model.float(), .bfloat16() or .half(), or freeze it (requires_grad=False)"
        )
    if param.layout != torch.strided:
        raise ValueError(
            f"parameters must be dense; got one of layout {param.layout}: use param.to_dense() in the model"
        )


def check_group(groups: list[dict[str, Any]]) -> None:
    """Raise ``ValueError`` for a parameter of the last group that cannot be updated, or not with its master weights."""
    params = groups[-1]["params"]
    if len({*map(id, params)}) < len(params):
        twice = next(p for i, p in enumerate(params) if any(p is q for q in params[:i]))
        raise ValueError(
            f"a parameter of shape {tuple(twice.shape)} is in its group twice, and each step would update it twice. "
            "Tied weights are one parameter: model.parameters() has them once"
        )
    for param in params:
        if param.requires_grad:
            try:
                check_param(param)
                master_kind(groups[-1]["master_weights"], param, "the parameter")
            except ValueError:
                with Registry(groups)[param].naming():
                    raise


def check_patterns(patterns: Sequence[str], groups: list[dict[str, Any]]) -> None:
    """Raise ``ValueError`` for `keep_fp32` patterns without names, and warn of patterns that match none."""
    if patterns and not any("param_names" in g for g in groups):
        raise ValueError("keep_fp32 patterns need names: pass model.named_parameters() instead of parameters()")
    names = [name for g in groups for name in g.get("param_names", ())]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            warn_once(f"keep_fp32 pattern {pattern!r} matches no parameter name ({', '.join(names[:3])} ...)")


def check_gradients(optimizer: RuleOptimizer, params: Sequence[Tensor]) -> None:
    """Raise for parameters or gradients that a step cannot use. ``nonfinite="raise"`` includes non-finite gradients."""
    for p in params:
        grad = p.grad
        assert grad is not None
        if (
            grad.layout is not torch.strided
            or p.dtype not in PARAM_DTYPES
            or grad.dtype not in PARAM_DTYPES
            or p.is_meta
            or grad.shape != p.shape
        ):
            _refuse(optimizer, p, grad)
    if optimizer.nonfinite == "raise":
        bad = next((p for p in params if not bool(torch.isfinite(local(p.grad)).all())), None)  # type: ignore[arg-type]
        if agree(bad is not None, list(params)):
            label = "a parameter on another rank" if bad is None else optimizer.place(bad).label
            raise FloatingPointError(
                f"the gradient of {label} is not finite; nothing was changed. Skip this step, or use nonfinite='skip' "
                "to skip only the tiles concerned"
            )


def _refuse(optimizer: RuleOptimizer, param: Tensor, grad: Tensor) -> None:
    label = optimizer.place(param).label
    if grad.layout != torch.strided:
        name = type(optimizer).__name__
        raise RuntimeError(f"{label}: {name} needs dense gradients, got a sparse one: use sparse=False")
    with optimizer.place(param).naming():
        check_param(param)  # model.double() after the optimizer was built
    check_allocated(param, label)
    raise RuntimeError(
        f"the gradient of {label} is {grad.dtype} of shape {tuple(grad.shape)}, the parameter {param.dtype} of "
        f"shape {tuple(param.shape)}: call zero_grad() and backward() again after changing a parameter"
    )


def check_allocated(param: Tensor, label: str) -> None:
    """Raise ``RuntimeError`` for a parameter on the meta device."""
    if param.is_meta:
        raise RuntimeError(
            f"{label} is on the meta device: allocate the model first (model.to_empty(device=...)), then build the "
            "optimizer"
        )


def is_dry_run(groups: Sequence[tuple[dict[str, Any], list[Tensor]]], steps: Iterable[int]) -> bool:
    """Whether this first step only creates states: the learning rate and all gradients are zero.

    ``torch.distributed.checkpoint`` makes such a step before it saves or loads. It must not count, since the next step
    would get the bias correction and the random bits of a second one.
    """
    if any(float(group["lr"]) != 0.0 for group, params in groups if params) or any(steps):
        return False
    params = [p for _, found in groups for p in found]
    moved = any(bool(torch.count_nonzero(local(p.grad))) for p in params if p.grad is not None)
    return not agree(moved, params)


def tell_idle(steps: int, count: int) -> None:
    """Warn at the second step in a row without any gradient. One such step silences a warning of schedulers."""
    if steps == 2 and count:
        warn_once(
            f"none of the {count} parameters had a gradient in two steps in a row: nothing is trained. backward() was "
            "not called, or the model has other parameters by now (load_state_dict(assign=True), a new head or "
            "embedding): build the optimizer from those"
        )


def tell_replaced(before: Registry, now: Registry, state: Mapping[Any, Any]) -> None:
    """Warn if parameters were replaced by tensors without states. torch's optimizers do not say so."""
    gone = [p for p in before if p not in now and state.get(p)]
    new = [now[p].label for p in now if p not in before and not state.get(p)]
    if gone and new:
        warn_once(
            f"{', '.join(new[:3])}{' ...' if len(new) > 3 else ''}: replaced in optimizer.param_groups by a tensor "
            "without state, whose state starts at zero; the state of the old tensor is still in optimizer.state"
        )
