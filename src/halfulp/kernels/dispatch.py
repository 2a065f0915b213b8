"""Which backend does which parameter."""

from __future__ import annotations

import importlib
import math
from functools import cache
from types import ModuleType

from halfulp.kernels.work import Work
from halfulp.numbers.log import log_once
from halfulp.rules.base import Rule, all_fp32

__all__ = ["BACKENDS", "check_backend", "combine", "step"]

BACKENDS = ("cpu", "triton", "reference")
"""Names of the modules beside this one, fastest first; the reference last, since it does everything."""
DEVICES = {"cpu": "cpu", "triton": "cuda"}
"""Type of device that a backend is for. Tensors elsewhere come to it only if it is asked for by name."""


def check_backend(name: str | None) -> None:
    """``ValueError`` for a backend that does not exist."""
    if name is not None and name not in BACKENDS:
        raise ValueError(f"backend is None or one of {', '.join(BACKENDS)}; got {name!r}")


@cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(f"halfulp.kernels.{name}")


def step(rule: Rule, works: list[Work], backend: str | None) -> None:
    """Do the step of every parameter, each on the first backend that supports it, or on the one asked for."""
    left = works
    for name in BACKENDS if backend is None else (backend,):
        device = DEVICES.get(name) if backend is None else None
        if device is not None and all(w.param.device.type != device for w in left):
            continue
        module = _module(name)
        mine, others = [], []
        for work in left:
            if device is not None and work.param.device.type != device:
                others.append(work)
                continue
            reason = module.supports(rule, work)
            if reason is None:
                mine.append(work)
                continue
            if backend is not None:
                raise RuntimeError(f"backend {name!r} cannot do this step: {reason}")
            runs = module.status().startswith("available")  # all there, but not for this tensor
            log_once(f"kernel {name!r} not used: {reason}", level=20 if runs else 30)
            others.append(work)
        if mine:
            module.step(rule, mine)
        left = others
        if not left:
            return


def combine(rule: Rule, works: list[Work]) -> list[Work]:
    """Sum up what the rule measures over all parameters, in their order, and give each the scalars that follow.

    A rule that measures ``per_tensor`` gets the sums of each parameter alone. Returned are the works that can be done:
    no step follows from a sum that is NaN or infinite, and its works are marked as skipped as a whole.
    """
    assert rule.measure is not None
    assert rule.combine is not None
    sums: dict[str, float] = {}
    measured: list[dict[str, float]] = []
    for work in works:
        grad = -work.grad.float() if work.maximize else work.grad.float()
        parts = rule.measure(work.param.float(), grad, work.read(), work.scalars)
        measured.append({name: float(value) for name, value in parts.items()})
        for name, value in measured[-1].items():
            sums[name] = sums.get(name, 0.0) + value
    able = []
    for work, own in zip(works, measured, strict=True):
        found = own if rule.per_tensor else sums
        if not all(map(math.isfinite, found.values())):
            work.skipped = work.param.numel()
            continue
        work.scalars = {**work.scalars, **all_fp32(rule.combine(found, work.scalars))}
        able.append(work)
    return able
