"""Construction of an optimizer's class from the declaration of its rule."""

from __future__ import annotations

import inspect
import sys
from dataclasses import fields
from typing import Any, ClassVar

from torch import Tensor

from halfulp.engine.optimizer import RuleOptimizer
from halfulp.engine.options import GROUP_DEFAULTS, TorchOptions
from halfulp.engine.storage import StorageOptions
from halfulp.optim.described import described
from halfulp.rules.base import Rule
from halfulp.rules.hyper import HyperBase
from halfulp.rules.parts import MatrixHyper, Split, in_parts, tell_ambiguous

__all__ = ["HyperOptimizer", "optimizer"]

DEFAULTS: dict[str, Any] = {
    **GROUP_DEFAULTS, **{f.name: f.default for f in fields(StorageOptions)}, "nonfinite": "skip", "backend": None,
    "transforms": (), "foreach": None, "fused": None, "capturable": False, "differentiable": False,
}  # fmt: skip
"""The defaults of the arguments that every optimizer takes."""


class HyperOptimizer(RuleOptimizer):
    """Base class of optimizers. Signature, defaults, checks and docstring come from the class's ``rule``.

    A subclass may define its own ``hyper``, which then gives its arguments. Without a docstring, it gets that of its
    rule.

    Parameters
    ----------
    params
        Parameters, as for ``torch.optim``.
    args, options
        The fields of :attr:`hyper`, by position or name, and :class:`~halfulp.engine.options.TorchOptions`.

    Examples
    --------
    >>> import torch, halfulp
    >>> from halfulp.rules.adam import ADAM
    >>> class Mine(halfulp.HyperOptimizer):  # see docs/own-optimizer.md
    ...     rule = ADAM
    >>> optimizer = Mine(torch.nn.Linear(64, 64).parameters(), lr=1e-3, state="fp8")
    """

    hyper: ClassVar[type[HyperBase]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__
        if hasattr(cls, "rule") and not own.keys().isdisjoint(("rule", "hyper")):
            if not isinstance(cls.rule, Rule):
                raise TypeError(f"rule of {cls.__name__} is a Rule, got {cls.rule!r}")
            if "hyper" not in own and cls.rule.hyper is not None:
                cls.hyper = cls.rule.hyper
            if not hasattr(cls, "hyper"):
                raise TypeError(f"the rule {cls.rule.name!r} declares no hyper-parameters: Rule(..., hyper=...)")
            _check_hyper(cls.rule.name, cls.hyper)
            cls.__signature__ = _signature(cls.hyper)  # type: ignore[attr-defined]
            described(cls)
        elif "__init__" in own:  # a subclass of an optimizer, with arguments of its own
            cls.__signature__ = _without_self(own["__init__"])  # type: ignore[attr-defined]

    def __init__(self, params: Any, *args: Any, **options: Any) -> None:
        if not hasattr(self, "hyper"):
            raise TypeError(f"{type(self).__name__} has no rule: set rule = Rule(...) in its class")
        given = [f for f in fields(self.hyper) if f.init]
        positional = [f.name for f in given if not f.kw_only]
        name = type(self).__name__
        if len(args) > len(positional):
            raise TypeError(f"{name} takes at most {len(positional)} hyper-parameters by position, got {len(args)}")
        arguments = dict(zip(positional, args, strict=False))
        twice = sorted(set(arguments) & set(options))
        if twice:
            raise TypeError(f"{name} got {twice[0]!r} by position and by name")
        fixed = [f for f in fields(self.hyper) if not f.init and f.name in options]
        if fixed:
            raise TypeError(f"{name} got unknown arguments [{fixed[0].name!r}]: it is {fixed[0].default} here")
        arguments.update({f.name: options.pop(f.name) for f in given if f.name in options})
        values = self.hyper(**arguments)
        super().__init__(params, {name: getattr(values, name) for name in self.hyper.names()}, **options)

    def rules(self, group: dict[str, Any]) -> tuple[Rule, ...]:
        """Return :attr:`rule`, applied to each matrix of a parameter if the group has a ``split``."""
        split = group.get("split") if issubclass(self.hyper, MatrixHyper) else None
        return (self.rule if split is None else in_parts(self.rule, Split.of(split)),)

    def rule_for(self, group: dict[str, Any], param: Tensor) -> Rule:
        """Return the rule of one parameter, and warn if the parameter may be several matrices."""
        if issubclass(self.hyper, MatrixHyper) and group["split"] is None:
            place = self.place(param)
            tell_ambiguous(self.rule.title, place.name, place.label, tuple(param.shape))
        return super().rule_for(group, param)

    def _check_group(self, group: dict[str, Any]) -> None:
        self.hyper.of(group).check()
        super()._check_group(group)
        if group.get("split") is not None and issubclass(self.hyper, MatrixHyper):
            for param in group["params"]:
                if param.ndim > 1:
                    Split.of(group["split"]).shapes(tuple(param.shape))


def optimizer(rule: Rule) -> type[HyperOptimizer]:
    """Make the optimizer class that a rule declares.

    Parameters
    ----------
    rule
        The rule, with at least ``hyper`` and ``title``. For an optimizer with methods of its own, subclass
        :class:`HyperOptimizer` and set ``rule``.

    Returns
    -------
    type
        A subclass of :class:`HyperOptimizer`, named by the rule's ``title`` in the calling module. Assign it to that
        name, so that its instances can be pickled.

    Raises
    ------
    TypeError
        If the rule has no hyper-parameters or no title.

    Examples
    --------
    >>> import torch, halfulp
    >>> from dataclasses import replace
    >>> from halfulp.rules.adam import ADAM
    >>> Mine = halfulp.optimizer(replace(ADAM, title="Mine"))  # see docs/own-optimizer.md for a rule of one's own
    >>> optimizer = Mine(torch.nn.Linear(64, 64).parameters(), lr=1e-3, state="fp8")
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"optimizer() takes a Rule, got {rule!r}")
    if not rule.title.isidentifier():
        raise TypeError(
            f"the rule {rule.name!r} has the title {rule.title!r}, which is not a valid class name: set title=..."
        )
    body = {"rule": rule, "__module__": sys._getframe(1).f_globals.get("__name__", "__main__")}
    return type(rule.title, (HyperOptimizer,), body)


def _check_hyper(name: str, hyper: Any) -> None:
    """Raise ``TypeError`` unless a rule's hyper-parameters can be the arguments of an optimizer."""
    if not isinstance(hyper, type) or not issubclass(hyper, HyperBase):
        raise TypeError(f"hyper of the rule {name!r} is a subclass of HyperParameters or HyperBase, got {hyper!r}")
    bare = sorted(set(inspect.get_annotations(hyper)) - {f.name for f in fields(hyper)} - set(dir(HyperBase)))
    if bare:
        raise TypeError(f"{hyper.__name__} has no field {bare[0]!r}: decorate it with @dataclass(frozen=True)")
    if "lr" not in hyper.names():
        raise TypeError(
            f"{hyper.__name__} has no field 'lr', which every optimizer takes; derive it from HyperParameters"
        )
    taken = sorted(set(hyper.names()) & {*DEFAULTS, "params"})
    if taken:
        raise TypeError(f"{hyper.__name__} has a field {taken[0]!r}, but every optimizer takes it; rename the field")


def _signature(hyper: type[HyperBase]) -> inspect.Signature:
    kind = inspect.Parameter
    own = inspect.signature(hyper).parameters.values()
    options = [
        kind(name, kind.KEYWORD_ONLY, default=DEFAULTS[name], annotation=annotation)
        for name, annotation in _annotations(TorchOptions).items()
    ]
    return inspect.Signature([kind("params", kind.POSITIONAL_OR_KEYWORD, annotation="Any"), *own, *options])


def _annotations(options: Any) -> dict[str, Any]:
    """Return the annotations of a ``TypedDict`` as written, inherited ones first."""
    return {name: ref.__forward_arg__ for name, ref in options.__annotations__.items()}


def _without_self(function: Any) -> inspect.Signature:
    signature = inspect.signature(function)
    return signature.replace(parameters=list(signature.parameters.values())[1:])
