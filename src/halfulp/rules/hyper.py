"""The hyper-parameters of a rule: names, defaults and checks, which also give an optimizer's signature."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Self

__all__ = ["HyperBase", "HyperParameters", "as_number", "check_switch", "decay_factors", "is_rate"]

COUNTS = ("no", "one", "two", "three", "four", "five")


def as_number(name: str, value: Any) -> float:
    """Return a hyper-parameter, an int, a float or a tensor of one element, as a float.

    Raise ``ValueError`` for anything else: ``None``, a tensor of several elements, or text (YAML reads ``1e-3`` as
    text).
    """
    try:
        if not isinstance(value, (str, bytes, bool)):
            return float(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    hint = " (YAML reads 1e-3 as text, 1.0e-3 as a number)" if isinstance(value, str) else ""
    raise ValueError(f"{name} must be a number or a tensor of one element, got {value!r}{hint}")


def check_switch(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless an argument is ``True`` or ``False``, since the text ``"false"`` counts as true."""
    if not isinstance(value, bool) and not (isinstance(value, int) and value in (0, 1)):
        raise ValueError(f"{name} is True or False, got {value!r}")


def is_rate(lr: Any) -> bool:
    """Whether a value is a valid learning rate: a finite number that is not negative, or a tensor of one."""
    if isinstance(lr, Tensor):
        lr = lr.item() if lr.numel() == 1 else None
    return isinstance(lr, (float, int)) and not isinstance(lr, bool) and 0.0 <= lr < math.inf


def decay_factors(hyper: Mapping[str, Any]) -> tuple[float, float]:
    """Return the factor of the parameter for decoupled, and its factor in the gradient for coupled weight decay."""
    decay, decoupled = hyper["weight_decay"], hyper["decoupled_weight_decay"]
    return (1 - float(hyper["lr"]) * decay, 0.0) if decoupled else (1.0, decay)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Tensor)) and not isinstance(value, bool)


@dataclass(frozen=True)
class HyperBase:
    """The base of the hyper-parameters of every rule, which are dataclass fields with defaults.

    The fields are the arguments of the optimizer, in order. Fields with ``kw_only=True`` are keyword-only. Fields with
    ``init=False`` are not arguments, but its groups have them. Numbers must not be negative. The numbers of fields
    named in :attr:`below_one` must be in [0, 1), those in :attr:`at_least_one` not below 1, those in
    :attr:`above_zero` not 0, and those in :attr:`at_most` not above a limit. Fields in :attr:`choices` have one of some
    values. Fields named in :attr:`free` are not checked. A rule extends :meth:`check` for anything else.
    """

    below_one: ClassVar[tuple[str, ...]] = ("betas", "momentum")
    at_least_one: ClassVar[tuple[str, ...]] = ()
    above_zero: ClassVar[tuple[str, ...]] = ()
    at_most: ClassVar[Mapping[str, float]] = {}
    choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    free: ClassVar[tuple[str, ...]] = ()

    def check(self) -> None:
        """Raise ``ValueError`` for invalid values."""
        for field in fields(self):
            if field.name not in self.free:
                _check(field.name, getattr(self, field.name), field.default, field.name in self.below_one)
        for name in self.at_least_one:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in self.above_zero:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name, most in self.at_most.items():
            if not getattr(self, name) <= most:
                raise ValueError(f"{name} must be at most {most:.6g}, got {getattr(self, name)}")
        for name, allowed in self.choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {getattr(self, name)!r}")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of all hyper-parameters, in order."""
        return tuple(f.name for f in fields(cls))

    @classmethod
    def of(cls, group: Any) -> Self:
        """Return the hyper-parameters of a parameter group."""
        return cls(**{f.name: group[f.name] for f in fields(cls) if f.init})


def _check(name: str, given: Any, default: Any, below_one: bool) -> None:
    """Raise ``ValueError`` unless a value has the form of its default and its numbers are in range."""
    upper = 1.0 if below_one else math.inf
    if isinstance(default, tuple):
        allowed = "numbers in [0, 1)" if below_one else "numbers that are finite and not negative"
        right = isinstance(given, (tuple, list)) and len(given) == len(default)
        if not right or not all(0.0 <= as_number(f"each of {name}", value) < upper for value in given):
            raise ValueError(f"{name} must be {COUNTS[len(default)]} {allowed}, got {given!r}")
    elif isinstance(default, bool):
        check_switch(name, given)
    elif not isinstance(default, (str, NoneType)) or _is_number(given):
        allowed = "be in [0, 1), got" if below_one else "be finite and not negative; got"
        if not 0.0 <= as_number(name, given) < upper:
            raise ValueError(f"{name} must {allowed} {given}")


@dataclass(frozen=True)
class HyperParameters(HyperBase):
    """The hyper-parameters that most rules have. A rule adds its own as fields. See :class:`HyperBase`.

    Parameters
    ----------
    lr
        Learning rate, a float or a tensor of one element.
    weight_decay, decoupled_weight_decay
        Decoupled weight decay shrinks parameters by ``lr * weight_decay`` per step. Coupled weight decay adds
        ``weight_decay * param`` to the gradient.
    """

    lr: float | Tensor = 1e-3
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = True
