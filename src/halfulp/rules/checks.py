"""Checks of what a rule's functions return. Errors name the rule, what it returned and what it must return."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor

from halfulp.numbers.log import warn_once
from halfulp.numbers.single import all_fp32
from halfulp.rules.slots import Hyper, StateSlot

if TYPE_CHECKING:
    from halfulp.rules.base import Rule

__all__ = ["as_scalars", "check_decay", "check_result", "check_slots", "check_untouched", "tell_negative", "versions"]

RESERVED = ("_age", "_scale")
"""The endings of the other entries of a slot in the optimizer's state."""


def check_slots(name: str, slots: Any) -> tuple[StateSlot, ...]:
    """Return the slots that a rule declares.

    Raise ``TypeError`` unless they are a sequence of :class:`~halfulp.rules.slots.StateSlot`, and ``ValueError`` if two
    slots share a key of the optimizer's state.
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
    """Return the scalars of a rule, rounded to fp32. Raise ``TypeError`` unless they are a dictionary of numbers."""
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


def check_decay(rules: Sequence[Rule], hyper: Hyper) -> None:
    """Raise ``ValueError`` if a group has weight decay, but none of its rules reads it."""
    if not hyper.get("weight_decay") or not rules:
        return
    for rule in rules:
        seen = _Reads(hyper)
        rule.scalars(seen, {"step": 1, **{slot.name: 1 for slot in rule.slots(seen)}})
        if "weight_decay" in seen.read:
            return
    raise ValueError(
        f"weight_decay={hyper['weight_decay']} would have no effect: the scalars of the rule {rules[0].name!r} do not "
        "read it. Add weight decay with halfulp.rules.transforms.with_weight_decay(rule)"
    )


class _Reads(dict[str, Any]):
    """Hyper-parameters that remember which of them were read."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)


def tell_negative(rule: Rule, slots: Iterable[StateSlot], scalars: Mapping[str, float], ndim: int) -> None:
    """Warn if an elementwise rule makes an unsigned state negative, which its storage would clip to zero.

    A rule is examined once, on random values, with states of zero and with positive ones.
    """
    if rule in _EXAMINED or not rule.elementwise:
        return
    slots = list(slots)
    unsigned = [slot.name for slot in slots if not slot.signed]
    if not unsigned:
        return
    _EXAMINED.add(rule)
    generator = torch.Generator().manual_seed(0)
    shape = (64,) if ndim < 2 else (8, 8, *[1] * (ndim - 2))
    for size in (0.0, 1.0):
        new: Mapping[str, Tensor] = {}
        with suppress(Exception):  # functions of the rule that fail on these values are left to its own step
            param, *inputs = (
                torch.randn(shape, generator=generator, device="cpu") for _ in range(1 + len(rule.inputs))
            )
            sizes = {slot.name: slot.shape(shape) or shape for slot in slots}
            states = {k: torch.randn(n, generator=generator, device="cpu").abs() * size for k, n in sizes.items()}
            new = rule.apply(param, inputs, states, dict(scalars))[1]
        for name in unsigned:
            if name in new and bool((new[name] < 0).any()):
                warn_once(
                    f"the rule {rule.name!r} returns negative values of {name}, which it declares with signed=False: "
                    "they are stored as zero"
                )


_EXAMINED: WeakSet[Rule] = WeakSet()


def versions(tensors: Iterable[Tensor]) -> list[int]:
    """Return how often each tensor was changed in place, as autograd counts it."""
    return [0 if x.is_inference() else x._version for x in tensors]


def check_untouched(name: str, given: Mapping[str, Tensor], before: Sequence[int]) -> None:
    """Raise ``TypeError`` if an update has changed one of its arguments in place since :func:`versions`."""
    for key, now, then in zip(given, versions(given.values()), before, strict=True):
        if now != then:
            raise TypeError(
                f"the update of the rule {name!r} changes its argument {key} in place: compute new tensors instead, "
                "since a skipped step keeps the old values"
            )


def check_result(
    name: str, param: Tensor | None, states: Mapping[str, torch.Size], result: Any, dtype: torch.dtype
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Return the parameter (if the rule has one) and the states of these shapes that an update returned.

    Raise ``TypeError`` if it has another form, or a tensor has another shape or neither is fp32 nor has the dtype of
    the arguments.
    """
    names = ", ".join(states) or "none"
    form = f"the states alone ({names})" if param is None else f"(new param, new states), with the states {names}"
    moved, new = None, result
    if param is not None:
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"the update of the rule {name!r} returns {form}; got {_said(result)}")
        moved, new = result
        _check_tensor(name, "param", param.shape, moved, dtype)
    if not isinstance(new, Mapping):
        raise TypeError(f"the update of the rule {name!r} returns {form} in a dictionary; got {_said(new)}")
    if set(new) != set(states):
        raise TypeError(f"the update of the rule {name!r} returns {form}; got {', '.join(map(str, new)) or 'none'}")
    for key, shape in states.items():
        _check_tensor(name, key, shape, new[key], dtype)
    return moved, dict(new)


def _check_tensor(name: str, key: str, shape: torch.Size, value: Any, dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor) or value.shape != shape or value.dtype not in (torch.float32, dtype):
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
