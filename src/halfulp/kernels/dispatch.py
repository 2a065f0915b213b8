"""The choice of the backend for each parameter."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType
from typing import Any

from halfulp.kernels.binding import Step
from halfulp.numbers.log import log_once, warn_once
from halfulp.rules.base import Rule

__all__ = ["BACKENDS", "check_backend", "measure", "record", "refresh", "step"]

BACKENDS = ("cpu", "triton", "reference")
"""The names of the backend modules, fastest first. The reference is last, since it supports everything."""
DEVICES = {"cpu": "cpu", "triton": "cuda"}
"""The device type of each backend. Tensors on other devices use it only if it is chosen by name."""


def check_backend(name: str | None) -> None:
    """Raise ``ValueError`` for an unknown backend."""
    if name is not None and name not in BACKENDS:
        raise ValueError(f"backend is None or one of {', '.join(BACKENDS)}; got {name!r}")


@cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(f"halfulp.kernels.{name}")


def step(rule: Rule, steps: list[Step], backend: str | None) -> None:
    """Do the step of every binding, each on the first backend that supports it, or on the given one."""
    left = steps
    for name in BACKENDS if backend is None else (backend,):
        device = DEVICES.get(name) if backend is None else None
        if device is not None and all(s.binding.device.type != device for s in left):
            continue
        module = _module(name)
        mine, others = [], []
        for one in left:
            if device is not None and one.binding.device.type != device:
                others.append(one)
                continue
            reason = module.supports(rule, one)
            if reason is None:
                mine.append(one)
                continue
            if backend is not None:
                raise RuntimeError(f"backend {name!r} cannot do this step: {reason}")
            runs = module.status().startswith("available")  # it runs here, but not for this tensor
            (log_once if runs else warn_once)(f"kernel {name!r} not used: {reason}")
            others.append(one)
        if mine:
            module.step(rule, mine)
        left = others
        if not left:
            return


def measure(rule: Rule, steps: list[Step], backend: str | None) -> list[dict[str, float]]:
    """Return what a rule measures of each binding: the sums of :attr:`Rule.measure` by name, equal on every backend."""
    found: list[dict[str, float] | None] = [None] * len(steps)
    if backend == "triton" or (backend is None and any(s.binding.device.type == DEVICES["triton"] for s in steps)):
        found = _module("triton").measure(rule, steps)
    elif backend in (None, "cpu"):
        found = _module("cpu_sums").measure(rule, steps)
    left = iter(_module("reference").measure(rule, [s for s, sums in zip(steps, found, strict=True) if sums is None]))
    return [next(left) if sums is None else sums for sums in found]


def record(rule: Rule, steps: list[Step]) -> Any:
    """Launch the kernels of steps while a CUDA graph is being recorded. Return what :func:`refresh` needs.

    Only the Triton backend supports this, and only for launches that it has done before, so that nothing is allocated,
    uploaded or compiled.
    """
    return _module("triton").record(rule, steps)


def refresh(rule: Rule, steps: list[Step], recorded: Any) -> None:
    """Update the tables that recorded kernels read, without doing the steps."""
    _module("triton").refresh(rule, steps, recorded)
