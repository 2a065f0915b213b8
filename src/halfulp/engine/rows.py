"""Rows of states: resetting some of them, and carrying them over to a parameter that has grown or was pruned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from halfulp.engine.checks import check_param
from halfulp.engine.sharding import is_sharded
from halfulp.engine.slot_state import SlotState

if TYPE_CHECKING:
    from halfulp.engine.optimizer import RuleOptimizer

__all__ = ["reset_rows_", "resize_states", "row_index"]

Rows = Tensor | Sequence[int] | slice


def row_index(rows: Rows, param: Tensor) -> Tensor:
    """Return rows of a parameter as a tensor of indices. Raise ``ValueError`` for invalid rows."""
    if param.ndim == 0:
        raise ValueError("a parameter without dimensions has no rows")
    if is_sharded(param):
        raise ValueError("rows of sharded parameters cannot be selected: every rank has only some of them")
    count = param.shape[0]
    if isinstance(rows, slice):
        return torch.arange(count, device=param.device)[rows]
    index = torch.as_tensor(rows, device=param.device)
    if index.dtype == torch.bool:
        if index.shape != (count,):
            raise ValueError(f"a mask of rows must have shape ({count},), got {tuple(index.shape)}")
        return index.nonzero().reshape(-1)
    if index.numel() == 0:
        return index.long().reshape(-1)
    if index.ndim != 1 or index.is_floating_point() or not bool(((index >= -count) & (index < count)).all()):
        raise ValueError(f"rows must be numbers below {count}, a mask or a slice; got {rows!r}")
    return index.long() % count


def _has_rows(state: SlotState, shape: torch.Size) -> bool:
    """Whether a state has a row or an element per row of its parameter. Raise ``ValueError`` if it mixes rows."""
    if state.shape == shape or (len(state.shape) > 0 and state.shape.numel() == state.shape[0] == shape[0]):
        return True
    if math.prod(state.shape[:1]) != shape[0] or state.shape == shape[1:] or state.shape.numel() <= 1:
        return False  # a factor of the columns, or one number for all
    raise ValueError(
        f"{state.slot.name} of shape {tuple(state.shape)} mixes the rows of the parameter, so single rows cannot "
        "be reset or moved: call reset_state() without rows"
    )


def reset_rows_(states: Sequence[SlotState], param: Tensor, index: Tensor) -> None:
    """Reset rows of states to their initial value, in place. The ages are kept."""
    for state in [s for s in states if _has_rows(s, param.shape)]:
        codes, scale = state._initial(param)
        if len(state.shape) > 1 or not state.quantizer.format.scaled:
            state.codes[index] = codes[index]
            if scale is not None and state.scale is not None and scale.shape[:1] == codes.shape[:1]:
                state.scale[index] = scale[index]
        else:  # a vector's blocks hold several rows: write the values with new scales
            values, initial = state.read(), state.quantizer.dequantize(codes, scale, state.shape)
            values[index] = initial[index]
            state.stored().write_(*state.quantizer.with_rounding("nearest").quantize(values))


@torch.no_grad()
def resize_states(
    optimizer: RuleOptimizer, old: Tensor, new: Tensor, rows: Tensor | Sequence[int] | None = None
) -> None:
    """Replace a parameter by one with other rows, and carry its states over.

    This is for models that are pruned or grow during training: Gaussians, experts, vocabularies. Rows that are carried
    over keep their states bit for bit, as long as the new parameter has the format of the old one. New rows start with
    the initial state. The step count and ages of the parameter are kept.

    Parameters
    ----------
    optimizer
        An optimizer of halfulp.
    old, new
        The parameter in it, and its replacement of the same dtype, device and shape except for the rows (dimension 0).
    rows
        For each row of `new`, the row of `old` that it comes from, or -1 for a new row. By default, the rows of `old`
        come first and the others are new.

    Raises
    ------
    ValueError
        If the parameters are not in the optimizer, are sharded or do not match, or a state mixes rows (SOAP). Nothing
        is changed then.

    Examples
    --------
    >>> import torch, halfulp
    >>> old = torch.nn.Parameter(torch.ones(4, 2))
    >>> optimizer = halfulp.AdamW([old], state="fp32")
    >>> old.grad = torch.ones_like(old)
    >>> optimizer.step()
    >>> new = torch.nn.Parameter(torch.cat([old.detach()[:1], torch.zeros(2, 2)]))
    >>> halfulp.resize_states(optimizer, old, new, rows=[0, -1, -1])
    >>> optimizer.state_tensor(new, "exp_avg")[:, 0].tolist()
    [0.10000000149011612, 0.0, 0.0]
    """
    if old not in optimizer.registry:
        raise ValueError(f"the tensor of shape {tuple(old.shape)} is not a parameter of this optimizer")
    place = optimizer.place(old)
    with place.naming():
        _check_pair(optimizer, old, new)
        index = _sources(rows, old, new)
    group, entries = place.group, optimizer.state.get(old)
    at = next(i for i, p in enumerate(group["params"]) if p is old)
    before = optimizer.states(old) if entries and set(entries) != {"step"} else ()
    with place.naming():
        carried = {state.slot.name: _has_rows(state, old.shape) for state in before}
    kept = optimizer.master(old)
    group["params"][at] = new
    optimizer.state.pop(old, None)
    optimizer._bindings.drop(old)
    optimizer._registry = None
    if not entries:
        return
    made: dict[str, Any] = {"step": entries["step"]}
    optimizer.state[new] = made
    if kept is not None:
        master = replace(kept, shape=new.shape, entries=made)
        made.update(master.initial(new))
        master.carry(kept, index)
    if before:
        for state in optimizer._bindings.states_over(made, new):
            _carry(state, next(s for s in before if s.slot.name == state.slot.name), new, index, carried)


def _carry(state: SlotState, source: SlotState, new: Tensor, index: Tensor, carried: dict[str, bool]) -> None:
    """Fill the state of a new parameter from that of the old one."""
    codes, scale = source.codes, source.scale
    if carried[state.slot.name]:
        first, first_scale = state._initial(new)
        old_rows, is_old = index.clamp_min(0), index >= 0
        same = state.quantizer.spec == source.quantizer.spec
        if same and (len(state.shape) > 1 or not state.quantizer.format.scaled):
            codes = _picked(codes, first, old_rows, is_old)
            by_row = scale is not None and scale.shape[:1] == source.codes.shape[:1]
            scale = _picked(scale, first_scale, old_rows, is_old) if by_row else scale  # type: ignore[arg-type]
        else:
            initial = state.quantizer.dequantize(first, first_scale, state.shape)
            values = _picked(source.read(), initial, old_rows, is_old)
            codes, scale = state.quantizer.with_rounding("nearest").quantize(values.contiguous())
    state.entries[state.slot.name] = codes.clone()
    if scale is not None:
        state.entries[state.scale_key] = scale.clone()
    state.age = source.age


def _picked(source: Tensor, initial: Tensor, rows: Tensor, is_old: Tensor) -> Tensor:
    made = initial.clone()
    made[is_old] = source[rows[is_old]]
    return made


def _check_pair(optimizer: RuleOptimizer, old: Tensor, new: Tensor) -> None:
    if new in optimizer.registry:
        raise ValueError("the new parameter is already in this optimizer")
    check_param(new)
    if is_sharded(old) or is_sharded(new):
        raise ValueError("rows of sharded parameters cannot be moved: resize before sharding the model")
    if old.ndim == 0 or (old.dtype, old.device, old.shape[1:]) != (new.dtype, new.device, new.shape[1:]):
        raise ValueError(
            f"the two parameters may differ only in their rows: {old.dtype} {tuple(old.shape)} on {old.device} cannot "
            f"become {new.dtype} {tuple(new.shape)} on {new.device}"
        )
    if not new.is_leaf:
        raise ValueError("the new parameter is computed from others: wrap it in torch.nn.Parameter")


def _sources(rows: Tensor | Sequence[int] | None, old: Tensor, new: Tensor) -> Tensor:
    """Return the old row of each row of the new parameter, or -1."""
    count = new.shape[0]
    if rows is None:
        if count < old.shape[0]:
            raise ValueError(f"{old.shape[0] - count} rows are removed: name the old rows that remain in rows=")
        index = torch.arange(count, device=new.device)
        return torch.where(index < old.shape[0], index, -1)
    index = torch.as_tensor(rows, device=new.device)
    whole = index.numel() == 0 or not (index.is_floating_point() or index.dtype == torch.bool)
    if index.shape != (count,) or not whole or bool(((index < -1) | (index >= old.shape[0])).any()):
        raise ValueError(
            f"rows must name one of {old.shape[0]} old rows, or -1, for each of {count} rows; got "
            f"{tuple(index.shape)} of {index.dtype}"
        )
    return index.long()
