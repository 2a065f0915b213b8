"""Checks of what a rule's functions return. Errors name the rule, what it returned and what it must return."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from halfulp.numbers.single import all_fp32
from halfulp.rules.slots import StateSlot

__all__ = ["as_scalars", "check_result", "check_slots"]

RESERVED = ("_age", "_scale")
"""The endings of the other entries of a slot in the optimizer's state."""


def check_slots(name: str, slots: Any) -> tuple[StateSlot, ...]:
    """Return the slots that a rule declares.

    Raises
    ------
    TypeError
        If they are anything but a sequence of :class:`~halfulp.rules.slots.StateSlot`.
    ValueError
        If two slots share a key of the optimizer's state.
    """
    if not isinstance(slots, Sequence) or not all(isinstance(slot, StateSlot) for slot in slots):
        raise TypeError(f"the slots of the rule {name!r} are a tuple of StateSlot, such as (slot,); got {slots!r}")
    taken = {"step"}
    for slot in slots:
        keys = {slot.name, *(slot.name + ending for ending in RESERVED)}
        if keys & taken:
            raise ValueError(
                f"the rule {name!r} has a slot {slot.name!r}, but the optimizer's state has an entry "
                f"{sorted(keys & taken)[0]!r} already; rename the slot"
            )
        taken |= keys
    return tuple(slots)


def as_scalars(name: str, scalars: Any) -> dict[str, float]:
    """Return the scalars of a rule, rounded to fp32.

    Raises
    ------
    TypeError
        If they are anything but a dictionary of numbers.
    """
    if not isinstance(scalars, Mapping):
        raise TypeError(f"the scalars of the rule {name!r} are a dictionary of numbers by name, got {scalars!r}")
    try:
        return all_fp32(scalars)
    except (struct.error, TypeError, ValueError, RuntimeError):
        for key, value in scalars.items():
            try:
                all_fp32({key: value})
            except (struct.error, TypeError, ValueError, RuntimeError) as error:
                raise TypeError(f"the scalar {key!r} of the rule {name!r} is a number, got {value!r}") from error
        raise


def check_result(name: str, param: Tensor | None, states: Mapping[str, torch.Size], result: Any) -> Any:
    """Return what an update returned for a parameter (if the rule has one) and states of these shapes.

    Raises
    ------
    TypeError
        If it has another form, or a tensor has another shape or is not a float tensor.
    """
    names = ", ".join(states) or "none"
    form = f"the states alone ({names})" if param is None else f"(new param, new states), with the states {names}"
    new = result
    if param is not None:
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"the update of the rule {name!r} returns {form}; got {_said(result)}")
        _check_tensor(name, "param", param.shape, result[0])
        new = result[1]
    if not isinstance(new, Mapping):
        raise TypeError(f"the update of the rule {name!r} returns {form} in a dictionary; got {_said(new)}")
    if set(new) != set(states):
        raise TypeError(f"the update of the rule {name!r} returns {form}; got {', '.join(map(str, new)) or 'none'}")
    for key, shape in states.items():
        _check_tensor(name, key, shape, new[key])
    return result


def _check_tensor(name: str, key: str, shape: torch.Size, value: Any) -> None:
    if not isinstance(value, Tensor) or value.shape != shape or value.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"the update of the rule {name!r} returns {key} as a float32 tensor of shape {tuple(shape)}; got "
            f"{_said(value)}"
        )


def _said(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}".replace("torch.", "")
    if isinstance(value, Iterable) and not isinstance(value, str):
        return f"a {type(value).__name__} of {', '.join(type(part).__name__ for part in value) or 'nothing'}"
    return repr(value)
