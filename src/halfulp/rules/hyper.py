"""Hyper-parameters of a rule: names, defaults and checks in one place, from which an optimizer's signature follows."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, ClassVar

from torch import Tensor

__all__ = ["HyperParameters", "as_number", "is_rate"]


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


def is_rate(lr: Any) -> bool:
    """Whether a value works as a learning rate: a finite number, not negative, or a tensor of one."""
    if isinstance(lr, Tensor):
        lr = lr.item() if lr.numel() == 1 else None
    return isinstance(lr, (float, int)) and not isinstance(lr, bool) and 0.0 <= lr < math.inf


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Tensor)) and not isinstance(value, bool)


@dataclass(frozen=True)
class HyperParameters:
    """Base of the hyper-parameters of every rule; a rule's own follow as fields with their defaults.

    Numbers must not be negative; those named in :attr:`below_one` (or the numbers of a tuple so named) lie in [0, 1);
    those in :attr:`free` are left alone. Anything else a rule extends :meth:`check` for.

    Parameters
    ----------
    lr
        Learning rate.
    weight_decay, decoupled_weight_decay
        Decoupled: parameters shrink by ``lr * weight_decay`` a step. Coupled: ``weight_decay * param`` is added to the
        gradient.
    """

    lr: float | Tensor = 1e-3
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = True

    below_one: ClassVar[tuple[str, ...]] = ("betas", "momentum")
    free: ClassVar[tuple[str, ...]] = ()

    def check(self) -> None:
        """Raise ``ValueError`` for values that cannot work."""
        for field in fields(self):
            if field.name in self.free:
                continue
            given, default = getattr(self, field.name), field.default
            values = given if isinstance(default, tuple) else (given,)
            if isinstance(default, tuple) and (not isinstance(given, (tuple, list)) or len(given) != len(default)):
                raise ValueError(f"{field.name} are {len(default)} numbers, got {given}")
            upper = 1.0 if field.name in self.below_one else math.inf
            number = not isinstance(default, (bool, str, NoneType))
            for value in values:
                if (number or _is_number(value)) and not 0.0 <= as_number(field.name, value) < upper:
                    allowed = "in [0, 1)" if upper == 1.0 else "finite and not negative"
                    raise ValueError(f"{field.name} must be {allowed}, got {given}")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all hyper-parameters, in order."""
        return tuple(f.name for f in fields(cls))

    @classmethod
    def of(cls, group: Any) -> HyperParameters:
        """From the keys of a parameter group."""
        return cls(**{name: group[name] for name in cls.names()})
