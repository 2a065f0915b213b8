"""The optimizers: one class for each rule in :mod:`halfulp.rules` that declares one."""

import importlib
import pkgutil

import halfulp.rules as rules
from halfulp.optim.badam import BAdam
from halfulp.optim.base import HyperOptimizer, optimizer
from halfulp.optim.muon import Muon
from halfulp.rules.base import Rule

_modules = [importlib.import_module(f"{rules.__name__}.{found.name}") for found in pkgutil.iter_modules(rules.__path__)]
_declared = {rule for module in _modules for rule in vars(module).values() if isinstance(rule, Rule) and rule.title}
_written = {written.rule: written for written in (BAdam, Muon)}
"""Optimizer classes with methods of their own."""

OPTIMIZERS = tuple(
    _written[rule] if rule in _written else optimizer(rule) for rule in sorted(_declared, key=lambda rule: rule.title)
)
"""Every optimizer. The tests run over this list."""

globals().update({made.__name__: made for made in OPTIMIZERS})

__all__ = ["OPTIMIZERS", "HyperOptimizer", "optimizer", *(made.__name__ for made in OPTIMIZERS)]
