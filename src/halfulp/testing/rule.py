"""Checks of a rule's declaration and of its update function alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from halfulp.optim import HyperOptimizer
from halfulp.rules.base import Rule
from halfulp.rules.checks import as_scalars
from halfulp.testing.subject import Skip, Subject, network, params, require, run, same

__all__ = ["declaration", "elementwise", "pure_update"]


def declaration(subject: Subject) -> None:
    """Arguments are group keys in the order of the signature, defaults are valid, and unknown arguments are refused."""
    cls = subject.cls
    made = cls(list(network().named_parameters()), **subject.arguments)
    if issubclass(cls, HyperOptimizer):
        names = cls.hyper.names()
        require(set(names) <= set(made.param_groups[0]), f"{names} are not all keys of a group")
        positional = list(inspect.signature(cls.hyper).parameters)
        taken = list(inspect.signature(cls).parameters)
        if cls.__init__ is HyperOptimizer.__init__:
            require(taken[: len(positional) + 1] == ["params", *positional], f"the signature is {taken}")
        cls.hyper().check()
    require(cls.__name__ in repr(made), f"repr() is {made!r}")
    try:
        cls(list(network().named_parameters()), **subject.arguments, not_an_argument=1)
    except TypeError:
        return
    raise AssertionError("an argument that does not exist is taken without an error")


def _pieces(subject: Subject) -> Iterator[tuple[Rule, Any, dict[str, Tensor]]]:
    """Yield each rule with its optimizer, a matrix, and the states after three steps."""
    for rule in dict.fromkeys(subject.rules):
        made = subject.make(network(), state="fp32")
        run(made, 3)
        for p in params(made):
            group = made.place(p).group
            if made.active_rule(group, p).name == rule.name and p in made.state and p.ndim == 2:
                yield rule, (made, p), {s.slot.name: s.read() for s in made.states(p)}
                break


def _scalars(rule: Rule, made: Any, p: Tensor, grad: Tensor, states: dict[str, Tensor]) -> dict[str, float]:
    ages = {"step": 4, **dict.fromkeys(states, 4)}
    c = as_scalars(rule.name, rule.scalars({**made.place(p).group, "bound_update": False}, ages))
    if rule.measure is not None and rule.combine is not None:
        sums = rule.measure(p.detach().clone(), grad.clone(), {k: v.clone() for k, v in states.items()}, c)
        c = {**c, **as_scalars(rule.name, rule.combine({name: float(value) for name, value in sums.items()}, c))}
    return c


def pure_update(subject: Subject) -> None:
    """The update does not change its arguments, and returns every state with the same shape and dtype."""
    for rule, (made, p), states in _pieces(subject):
        grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(9))
        given = [p.detach().clone(), grad, *states.values()]
        before = [x.clone() for x in given]
        c = _scalars(rule, made, p, grad, states)
        new, updated = rule.update(given[0], grad, dict(states), dict(c))
        same(before, given, f"the rule {rule.name!r} changed what it was given")
        require(set(updated) == set(states), f"states {sorted(states)} went in, {sorted(updated)} came out")
        for name, x, y in (("param", p, new), *((name, states[name], updated[name]) for name in states)):
            kept = isinstance(y, Tensor) and x.shape == y.shape and y.dtype == torch.float32
            found = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else repr(y)
            require(kept, f"{name} comes back as {found}, not as float32 {tuple(x.shape)}")


def elementwise(subject: Subject) -> None:
    """An elementwise rule gives some rows the same bits without the others."""
    checked = False
    for rule, (made, p), states in _pieces(subject):
        if not rule.shardable or any(s.shape != p.shape for s in states.values()):
            continue
        checked = True
        grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(9))
        c = _scalars(rule, made, p, grad, states)
        whole, together = rule.update(p.detach().clone(), grad, dict(states), c)
        part, alone = rule.update(p.detach()[:7], grad[:7], {k: v[:7] for k, v in states.items()}, c)
        same([whole[:7], *(together[k][:7] for k in states)], [part, *(alone[k] for k in states)], "seven rows alone")
    if not checked:
        raise Skip("the rule is not elementwise")
