"""Steps of every rule of the library that is a program, as listed in :mod:`support.rules`."""

from __future__ import annotations

import torch

from halfulp.engine.sums import combine
from halfulp.kernels.binding import Binding, Step, Stored
from halfulp.numbers.formats import FORMATS, resolve_name
from halfulp.numbers.quantizer import Quantizer
from halfulp.numbers.rng import lanes, slot_id, stream_keys
from halfulp.numbers.scaling import Scaling
from support.kernel_cases import specials
from support.rules import VARIANTS, Variant

__all__ = ["PROGRAMS", "make_program_step"]

NO_PROGRAM = (
    "SMMF", "Muon", "SOAP", "Conda", "MicroAdam", "SubsetNorm", "SubspaceMomentum", "FRUGAL",
)  # fmt: skip
"""Optimizers whose rule runs in torch operations."""
PROGRAMS = [v for v in VARIANTS if v.name not in NO_PROGRAM]


def make_program_step(
    variant: Variant, form: str, rounding: str, shape: tuple[int, ...] = (3, 200), age: int = 7, odd: bool = False
) -> Step:
    """Return a step of a rule. Equal arguments give equal bits in new tensors. `odd` adds special gradients."""
    size, generator = torch.Size(shape), torch.Generator().manual_seed(age)
    count = size.numel()
    param, grad = torch.randn(count, generator=generator), torch.randn(count, generator=generator) * 0.1
    if odd:
        special = specials(count)
        grad = torch.where(special != 1.0, special, grad)
    states = []
    for slot in variant.slots:
        of = torch.Size(slot.shape(shape) or ())
        x = torch.randn(of.numel(), generator=generator) * 0.03
        name = "fp32" if slot.exact else form
        quantizer = Quantizer(FORMATS[resolve_name(name, signed=slot.signed)], Scaling(), rounding)  # type: ignore[arg-type]
        codes, scale = quantizer.with_rounding("nearest").quantize((x if slot.signed else x.abs()).reshape(of))
        states.append(Stored(slot, quantizer, of, codes, scale))
    grad, param = grad.reshape(size), param.reshape(size)
    binding = Binding(variant.rule, param if variant.rule.has_param else None, tuple(states))
    key0, key1 = stream_keys(2026, 5, slot_id("optimizer"), age).tolist()
    lane = lanes(tuple(s.slot.name for s in states))
    keys = [(key0, key1, lane[name]) for name in binding.names]
    counts = torch.zeros(len(states), 2, dtype=torch.int64)
    inputs = (grad, param)[: len(variant.rule.inputs)]
    return Step(binding, inputs, variant.scalars(age), keys, counts=counts)


def combined(step: Step) -> list[Step]:
    """Return the step with the results of its measurement, if the rule has one."""
    rule = step.binding.rule
    return [step] if rule.measure is None else combine(rule, [step])
