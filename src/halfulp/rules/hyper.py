"""Hyper-parameters of a rule: names, defaults and checks in one place, from which an optimizer's signature follows."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Self

__all__ = ["HyperBase", "HyperParameters", "as_number", "check_switch", "is_rate"]

COUNTS = ("no", "one", "two", "three", "four", "five")


def as_number(name: str, value: Any) -> float:
    """A hyper-parameter as a float.

    Parameters
    ----------
    name
        For the message.
    value
        An int, a float or a tensor of one element.

    Raises
    ------
    ValueError
        For anything else: ``None``, a tensor of several elements, and text, as YAML reads ``1e-3``.
    """
    try:
        if not isinstance(value, (str, bytes, bool)):
            return float(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    hint = " (YAML reads 1e-3 as text, 1.0e-3 as a number)" if isinstance(value, str) else ""
    raise ValueError(f"{name} must be a number or a tensor of one element, got {value!r}{hint}")


def check_switch(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless an argument is ``True`` or ``False`` (the text ``"false"`` counts as true)."""
    if not isinstance(value, bool) and not (isinstance(value, int) and value in (0, 1)):
        raise ValueError(f"{name} is True or False, got {value!r}")


def is_rate(lr: Any) -> bool:
    """Whether a value works as a learning rate: a finite number, not negative, or a tensor of one."""
    if isinstance(lr, Tensor):
        lr = lr.item() if lr.numel() == 1 else None
    return isinstance(lr, (float, int)) and not isinstance(lr, bool) and 0.0 <= lr < math.inf


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Tensor)) and not isinstance(value, bool)


@dataclass(frozen=True)
class HyperBase:
    """Base of the hyper-parameters of every rule, which are dataclass fields with their defaults.

    Fields are arguments of the optimizer, in their order; those with ``kw_only=True`` by name alone, those with
    ``init=False`` not at all, though its groups have them. Numbers must not be negative; those named in
    :attr:`below_one` (or the numbers of a tuple so named) lie in [0, 1); those in :attr:`free` are left alone. A rule
    extends :meth:`check` for anything else.
    """

    below_one: ClassVar[tuple[str, ...]] = ("betas", "momentum")
    free: ClassVar[tuple[str, ...]] = ()

    def check(self) -> None:
        """Raise ``ValueError`` for values that cannot work."""
        for field in fields(self):
            if field.name not in self.free:
                _check(field.name, getattr(self, field.name), field.default, field.name in self.below_one)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all hyper-parameters, in order."""
        return tuple(f.name for f in fields(cls))

    @classmethod
    def of(cls, group: Any) -> Self:
        """From the keys of a parameter group."""
        return cls(**{f.name: group[f.name] for f in fields(cls) if f.init})


def _check(name: str, given: Any, default: Any, below_one: bool) -> None:
    """``ValueError`` unless a value has the form of the default, and numbers in it are in their range."""
    upper = 1.0 if below_one else math.inf
    if isinstance(default, tuple):
        allowed = "numbers in [0, 1)" if below_one else "numbers that are not negative, and finite"
        right = isinstance(given, (tuple, list)) and len(given) == len(default)
        if not right or not all(0.0 <= as_number(f"each of {name}", value) < upper for value in given):
            raise ValueError(f"{name} are {COUNTS[len(default)]} {allowed}, got {given!r}")
    elif isinstance(default, bool):
        check_switch(name, given)
    elif not isinstance(default, (str, NoneType)) or _is_number(given):
        allowed = "be in [0, 1), got" if below_one else "not be negative, and finite; got"
        if not 0.0 <= as_number(name, given) < upper:
            raise ValueError(f"{name} must {allowed} {given}")


@dataclass(frozen=True)
class HyperParameters(HyperBase):
    """Hyper-parameters that most rules have; a rule's own follow as fields. See :class:`HyperBase`.

    Parameters
    ----------
    lr
        Learning rate; a float or a tensor of one element.
    weight_decay, decoupled_weight_decay
        Decoupled: parameters shrink by ``lr * weight_decay`` a step. Coupled: ``weight_decay * param`` is added to the
        gradient.
    """

    lr: float | Tensor = 1e-3
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = True
