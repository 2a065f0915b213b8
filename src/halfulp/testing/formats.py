"""Training in every format, and the same bits for every kernel and number of threads."""

from __future__ import annotations

import inspect
import math

import torch
from torch import nn

from halfulp.kernels import backends
from halfulp.testing.subject import FAMILIES, Skip, Subject, bits, network, require, run, same, thread_count

__all__ = ["same_bits", "threads", "trains"]

LOWER = {"4bit": 0.5, "fp4": 0.5}
"""The fraction of fp32's progress on the toy problem that a format may lose; 0.2 for formats not listed."""
RATES = (1.0, 0.1, 10.0, 100.0, 1000.0)
"""The multiples of the learning rate that the toy problem is tried with."""
STEPS = 40


def trains(subject: Subject) -> None:
    """Every format learns a toy problem, rounded to nearest and stochastically.

    The learning rate is the best of several in fp32. A low-precision format may lose part of fp32's progress.
    """
    given = subject.arguments.get("lr")
    if given is None:
        given = inspect.signature(subject.cls).parameters["lr"].default
    found = {rate: _toy(subject, "fp32", "nearest", float(given) * rate) for rate in RATES}
    best = min(found, key=lambda rate: found[rate] if math.isfinite(found[rate]) else math.inf)
    shown = ", ".join(f"{loss:.3g} at lr={float(given) * rate:.3g}" for rate, loss in found.items())
    require(found[best] < 0.5, f"the loss is not halved in {STEPS} steps (1 at the start): {shown}")
    for state in FAMILIES:
        for rounding in ("nearest", "stochastic"):
            loss = _toy(subject, state, rounding, float(given) * best)
            subject.losses[state, rounding] = loss
            allowed = found[best] + LOWER.get(state, 0.2) * (1 - found[best])
            said = f"with state={state!r}, rounding={rounding!r} the loss ends at {loss:.3g}, in fp32 at"
            require(loss <= allowed, f"{said} {found[best]:.3g}; {allowed:.3g} is allowed (1 at the start)")


def _toy(subject: Subject, state: str, rounding: str, lr: float) -> float:
    """Return the final loss over the initial loss of a network that learns the outputs of another."""
    generator = torch.Generator().manual_seed(0)
    x, teacher, model = torch.randn(64, 12, generator=generator), network(5), network(3)
    target = teacher(x).detach()
    made = subject.make(model, state=state, rounding=rounding, lr=lr)
    start = loss = 0.0
    for step in range(STEPS + 1):
        made.zero_grad()
        error = (model(x) - target).square().mean()
        error.backward()
        loss = float(error.detach())
        start = start or loss
        if step < STEPS:
            made.step()
    return loss / start


def same_bits(subject: Subject) -> None:
    """The C kernels give the same bits as the reference in every format and rounding, and with 16-bit parameters."""
    said = backends()["cpu"]
    if not said.startswith("available"):
        raise Skip(said)
    kinds = ((torch.float32, "nearest"), (torch.bfloat16, "stochastic"), (torch.float16, "nearest"))
    for number, state in enumerate(FAMILIES):
        for rounding, (dtype, how) in zip(("nearest", "stochastic"), (kinds[number % 3], kinds[1]), strict=True):
            options = {"state": state, "rounding": rounding, "param_rounding": how}
            found = []
            for backend in ("reference", "cpu"):
                made = subject.make(network(dtype=dtype), backend=backend, **options)
                run(made, 3)
                found.append(bits(made))
            same(found[0], found[1], f"the C kernels against the reference with {options} and {dtype} parameters")


def threads(subject: Subject) -> None:
    """The bits do not depend on the number of threads."""
    if not subject.elementwise:
        raise Skip("matrix products and norms of torch may depend on the number of threads")
    found = []
    for count in (1, 3):
        with thread_count(count):
            generator = torch.Generator().manual_seed(0)
            weight = nn.Parameter(torch.randn(96, 1000, generator=generator))
            made = subject.make([("weight", weight)], state="8bit")
            run(made, 3)
            found.append(bits(made))
    same(found[0], found[1], "one thread against three")
