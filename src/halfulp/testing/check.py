"""The list of conventions, and the function that checks an optimizer against it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from halfulp.engine.optimizer import RuleOptimizer
from halfulp.numbers.show import count_of
from halfulp.optim import optimizer
from halfulp.rules.base import Rule
from halfulp.testing import conventions, formats, rule
from halfulp.testing.subject import Skip, Subject

__all__ = ["CONVENTIONS", "CheckReport", "ConventionError", "check_optimizer"]


class ConventionError(AssertionError):
    """A convention that does not hold.

    Parameters
    ----------
    name
        The class name of the optimizer.
    convention
        The key of the convention in :data:`CONVENTIONS`.
    seen
        What was found instead.

    Examples
    --------
    >>> str(ConventionError("Mine", "maximize", "the bits differ"))
    "Mine breaks the convention 'maximize': the bits differ"
    """

    def __init__(self, name: str, convention: str, seen: str) -> None:
        super().__init__(f"{name} breaks the convention {convention!r}: {seen}")
        self.convention = convention


@dataclass(frozen=True)
class CheckReport:
    """The result of :func:`check_optimizer`.

    Parameters
    ----------
    name
        The class name of the optimizer.
    passed
        The conventions that hold, in the order of checking.
    skipped
        The conventions that were not checked, and why.
    losses
        The final loss of the toy problem in each format and rounding, relative to the loss at the start.

    Examples
    --------
    >>> print(CheckReport("Mine", ("closure",), {"pickle": "it is not in a module"}, {}))
    Mine: 1 convention holds; not checked: pickle (it is not in a module)
    """

    name: str
    passed: tuple[str, ...]
    skipped: dict[str, str]
    losses: dict[tuple[str, str], float]

    def __str__(self) -> str:
        missing = ", ".join(f"{name} ({why})" for name, why in self.skipped.items())
        held = f"{count_of(len(self.passed), 'convention')} {'holds' if len(self.passed) == 1 else 'hold'}"
        return f"{self.name}: {held}{f'; not checked: {missing}' if missing else ''}"


CONVENTIONS: dict[str, Callable[[Subject], None]] = {
    check.__name__: check
    for check in (
        rule.declaration, rule.pure_update, rule.elementwise, conventions.closure, conventions.gradients,
        conventions.maximize, conventions.lr_tensor, conventions.schedulers, conventions.grad_scaler,
        conventions.inference_mode, conventions.no_gradient, conventions.late_parameters, conventions.groups,
        conventions.never_stepped, conventions.resume, conventions.deepcopy, conventions.pickled, conventions.memory,
        formats.trains, formats.same_bits, formats.threads,
    )
}  # fmt: skip
"""The checks by name. The docstring of each says what must hold."""


def check_optimizer(
    optimizer_or_rule: type[RuleOptimizer] | Rule,
    *,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    **arguments: Any,
) -> CheckReport:
    """Check an optimizer against the conventions of torch.optim and of this library.

    Parameters
    ----------
    optimizer_or_rule
        The optimizer class, or a rule to make one from.
    only, skip
        Names of conventions, keys of :data:`CONVENTIONS`: check only these, or leave these out.
    arguments
        Arguments of the optimizer that differ from its defaults.

    Returns
    -------
    CheckReport
        The conventions that hold, those that could not be checked, and the losses of the toy problem.

    Raises
    ------
    ConventionError
        If a convention does not hold. The first such convention is reported with what was seen.
    TypeError
        If it is given anything but an optimizer class of this library or a rule.
    ValueError
        If a name is not a convention.

    Examples
    --------
    >>> import halfulp
    >>> print(halfulp.testing.check_optimizer(halfulp.Lion, only=["closure", "maximize"]))
    Lion: 2 conventions hold
    """
    is_class = isinstance(optimizer_or_rule, type) and issubclass(optimizer_or_rule, RuleOptimizer)
    if not is_class and not isinstance(optimizer_or_rule, Rule):
        raise TypeError(f"a Rule or a class made from one is checked, such as halfulp.AdamW; got {optimizer_or_rule!r}")
    only, skip = ((names,) if isinstance(names, str) else names for names in (only, skip))
    unknown = sorted({*only, *skip} - set(CONVENTIONS))
    if unknown:
        raise ValueError(f"no conventions: {unknown}; there are {sorted(CONVENTIONS)}")
    made_here = isinstance(optimizer_or_rule, Rule)
    cls = optimizer(optimizer_or_rule) if isinstance(optimizer_or_rule, Rule) else optimizer_or_rule
    subject, passed, skipped = Subject(cls, arguments, made_here), [], dict[str, str]()
    for name, check in CONVENTIONS.items():
        if name in skip or (only and name not in only):
            continue
        try:
            check(subject)
            passed.append(name)
        except Skip as why:
            skipped[name] = str(why)
        except Exception as error:
            seen = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise ConventionError(cls.__name__, name, seen) from error
    return CheckReport(cls.__name__, tuple(passed), skipped, subject.losses)
