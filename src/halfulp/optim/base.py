"""How an optimizer follows from a rule and its hyper-parameters."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from halfulp.engine.optimizer import RuleOptimizer
from halfulp.engine.options import Options
from halfulp.optim.described import described
from halfulp.rules.hyper import HyperParameters

__all__ = ["HyperOptimizer"]


class HyperOptimizer(RuleOptimizer):
    """Base of an optimizer given by ``rule`` and ``hyper``; signature, defaults and checks come from the latter.

    Parameters
    ----------
    params
        As for ``torch.optim``.
    args, options
        The fields of :attr:`hyper`, by position or name, and :class:`~halfulp.engine.options.Options`.

    Examples
    --------
    >>> import torch, halfulp
    >>> from halfulp.rules.adopt import ADOPT, ADOPTHyper
    >>> class Mine(halfulp.HyperOptimizer):  # see docs/own-optimizer.md
    ...     rule, hyper = ADOPT, ADOPTHyper
    >>> optimizer = Mine(torch.nn.Linear(64, 64).parameters(), lr=1e-3, state="fp8")
    """

    hyper: ClassVar[type[HyperParameters]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "hyper" in cls.__dict__:
            cls.__signature__ = _signature(cls.hyper)  # type: ignore[attr-defined]
            described(cls, cls.hyper)

    def __init__(self, params: Any, *args: Any, **options: Any) -> None:
        names = self.hyper.names()
        if len(args) > len(names):
            raise TypeError(f"{type(self).__name__} takes at most {len(names)} hyper-parameters, got {len(args)}")
        given = dict(zip(names, args, strict=False))
        twice = sorted(set(given) & set(options))
        if twice:
            raise TypeError(f"{type(self).__name__} got {twice[0]!r} by position and by name")
        given.update({k: options.pop(k) for k in names if k in options})
        values = self.hyper(**given)
        super().__init__(params, {name: getattr(values, name) for name in names}, **options)

    def _check_group(self, group: dict[str, Any]) -> None:
        self.hyper.of(group).check()
        super()._check_group(group)


def _signature(hyper: type[HyperParameters]) -> inspect.Signature:
    kind = inspect.Parameter
    own = [p.replace(kind=kind.POSITIONAL_OR_KEYWORD) for p in inspect.signature(hyper).parameters.values()]
    options = [kind(name, kind.KEYWORD_ONLY, default=..., annotation=a) for name, a in Options.__annotations__.items()]
    return inspect.Signature([kind("params", kind.POSITIONAL_OR_KEYWORD), *own, *options])
