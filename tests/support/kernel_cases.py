"""The cases on which every kernel is compared with the reference, bit for bit. No backend is imported here.

A :class:`Case` describes storage, shape and values. :func:`make_step` builds the same step any number of times, so that
one copy can run on the reference and another on a kernel. :func:`assert_same_bits` compares everything that a step may
change. Shapes are small, since an interpreter has to process them too.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from halfulp.kernels.binding import Binding, Step, Stored
from halfulp.numbers.formats import FORMATS, FRIENDLY, resolve_name
from halfulp.numbers.quantizer import Quantizer
from halfulp.numbers.rng import lanes, slot_id, stream_keys
from halfulp.numbers.scaling import Scaling
from halfulp.numbers.single import fp32
from halfulp.rules.adam import ADAM
from halfulp.rules.average import DIFFERENCE, EMA
from halfulp.rules.base import Rule
from halfulp.rules.momentum import LION, SGD

TRITON_DEVICE = "cuda" if os.environ.get("TRITON_INTERPRET") != "1" and torch.cuda.is_available() else "cpu"
"""Where the tests of Triton kernels run: on the GPU if there is one, and Triton's interpreter is not asked for."""
RULES: dict[str, Rule] = {"adam": ADAM, "sgd": SGD, "lion": LION, "ema": EMA, "ema_difference": DIFFERENCE}
ADAMW = {
    "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "decoupled_weight_decay": True,
    "bound_update": True,
}  # fmt: skip
MOMENTUM = {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False}
HYPER: dict[str, dict[str, Any]] = {
    "adam": ADAMW,
    "sgd": MOMENTUM,
    "lion": {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.1},
    "ema": {"decay": 0.999},
    "ema_difference": {"decay": 0.999},
}
SHAPE = (3, 200)  # a whole and a short block in every row


@dataclass(frozen=True)
class Case:
    """One comparison: how states are stored, and the values of the step.

    ``data``: ``"normal"``; ``"wide"`` (magnitudes over 20 binades inside a block); ``"zeros"`` (gradient and states);
    ``"specials"`` (NaN, infinity, -0, subnormals and the largest numbers among the gradients); ``"params"`` (the same
    among the parameters); ``"tiny"`` (subnormal gradients); ``"huge"`` (squares near the top of fp32 and beyond).
    """

    rule: str = "adam"
    formats: tuple[str, ...] = ("fp8", "fp8")
    rounding: str | tuple[str, ...] = "stochastic"
    scaling: Scaling | tuple[Scaling, ...] = Scaling()  # noqa: RUF009 - frozen
    param_dtype: torch.dtype = torch.float32
    param_rounding: str = "nearest"
    shape: tuple[int, ...] = SHAPE
    data: str = "normal"
    hyper: tuple[tuple[str, Any], ...] = ()
    age: int = 7
    zero_floor: bool = True
    maximize: bool = False
    first_element: int = 0
    grad_dtype: torch.dtype | None = field(default=None)

    @property
    def id(self) -> str:
        """The name for pytest: the differences from the default case."""
        base = Case()
        parts = [self.rule, "+".join(self.formats)]
        for name in ("rounding", "scaling", "shape", "data", "param_dtype", "param_rounding", "grad_dtype", "hyper"):
            if getattr(self, name) != getattr(base, name):
                parts.append(_text(getattr(self, name)))
        for name in ("age", "zero_floor", "maximize", "first_element"):
            if getattr(self, name) != getattr(base, name):
                parts.append(f"{name}={getattr(self, name)}")
        return "-".join(parts)


def _text(value: Any) -> str:
    if isinstance(value, Scaling):
        return f"{value.kind}_{value.per}{value.block_size if value.per == 'block' else ''}"
    if isinstance(value, tuple):
        return "x".join(_text(v) for v in value)
    return str(value).removeprefix("torch.")


def _pairs() -> list[tuple[str, str]]:
    """Return every short name in both slots, and every format in each slot that can use it."""
    pairs = [(name, name) for name in FRIENDLY]
    for row in FORMATS.values():
        if row.signed:
            pairs.append((row.name, "udynamic8" if row.name == "dynamic8" else "bfloat16"))
        pairs.append(("bfloat16" if row.signed else "float8_e4m3fn", row.name))
    return list(dict.fromkeys(pairs))


FORMAT_PAIRS = _pairs()
MAIN_PAIRS = [("fp32", "fp32"), ("bf16", "bf16"), ("fp8", "8bit"), ("fp4", "4bit"), ("int8", "int8"), ("int4", "int4")]
SCALINGS = [
    Scaling("fp32"),
    Scaling("pow2", "row"),
    Scaling("fp32", "tensor"),
    Scaling("pow2", "block", 32),
    Scaling("pow2", "block", 2),
    (Scaling("pow2", "block", 64), Scaling("fp32", "block", 96)),
    (Scaling("pow2", "block", 128), Scaling("fp32", "row")),
]
SHAPES: list[tuple[int, ...]] = [
    (), (0,), (1,), (7,), (127,), (128,), (129,), (0, 5), (5, 0), (1, 1), (1, 7), (7, 1), (5, 3), (9, 127), (4, 128),
    (2, 129), (1, 1000), (3, 5, 3, 3), (2, 2049), (70, 256),
]  # fmt: skip
DATA = ["wide", "zeros", "specials", "params", "tiny", "huge"]
PARAMS = [
    (torch.bfloat16, "nearest"), (torch.bfloat16, "stochastic"), (torch.float16, "nearest"),
    (torch.float16, "stochastic"),
]  # fmt: skip


def _formats(pair: tuple[str, ...], rule: str) -> tuple[str, ...]:
    return pair if rule == "adam" else pair[:1]


def _all() -> list[Case]:
    base = Case()
    cases = [
        replace(base, formats=pair, rounding=rounding, scaling=Scaling(kind))
        for pair in FORMAT_PAIRS
        for rounding in ("nearest", "stochastic")
        for kind in ("pow2", "fp32")
    ]
    for pair in MAIN_PAIRS:
        for rounding in ("nearest", "stochastic"):
            of_pair = replace(base, formats=pair, rounding=rounding)
            cases += [replace(of_pair, scaling=s) for s in SCALINGS]
            cases += [replace(of_pair, data=d) for d in DATA]
            cases += [replace(of_pair, data=d, scaling=Scaling("fp32")) for d in ("specials", "tiny", "huge")]
            cases += [replace(of_pair, param_dtype=d, param_rounding=r) for d, r in PARAMS]
            cases += [replace(of_pair, rule=r, formats=_formats(pair, r)) for r in ("sgd", "lion")]
        cases += [replace(base, formats=pair, shape=s) for s in SHAPES]
        cases += [replace(base, formats=pair, shape=(2, 2049), data="specials", scaling=s) for s in SCALINGS[1:3]]
    cases += [
        replace(base, rounding=("nearest", "stochastic")),
        replace(base, rounding=("stochastic", "nearest"), formats=("fp4", "bf16")),
        replace(base, rounding="nearest", zero_floor=False, data="wide"),
        replace(base, rounding="nearest", zero_floor=False, data="wide", formats=("fp4", "fp4")),
        replace(base, maximize=True),
        replace(base, age=1),
        replace(base, age=1, formats=("fp4", "fp4")),
        replace(base, first_element=(1 << 32) - 300),
        replace(base, first_element=(1 << 40) + 17, formats=("fp4", "int8")),
        replace(base, data="specials", param_dtype=torch.bfloat16, param_rounding="stochastic"),
        replace(base, data="params", param_dtype=torch.bfloat16, param_rounding="stochastic"),
        replace(base, data="params", param_dtype=torch.float16, param_rounding="stochastic"),
        replace(base, grad_dtype=torch.bfloat16),
        replace(base, hyper=(("decoupled_weight_decay", False),)),
        replace(base, hyper=(("decoupled_weight_decay", False),), data="params"),
        replace(base, hyper=(("bound_update", False), ("eps", 0.0)), data="zeros"),
        replace(base, hyper=(("betas", (0.0, 0.0)),)),
        replace(base, rule="sgd", formats=(), hyper=(("momentum", 0.0), ("weight_decay", 0.1))),
        replace(base, rule="sgd", formats=(), hyper=(("momentum", 0.0),), data="specials"),
        replace(base, rule="sgd", formats=("fp8",), hyper=(("nesterov", True), ("weight_decay", 0.01))),
        replace(base, rule="sgd", formats=("bf16",), hyper=(("dampening", 0.5),)),
        replace(base, rule="sgd", formats=("bf16",), hyper=(("dampening", 0.5),), age=1),
        replace(base, rule="sgd", formats=("fp4",), data="specials", hyper=(("nesterov", True),)),
        replace(base, rule="lion", formats=("fp8",), data="specials"),
        replace(base, rule="lion", formats=("int4",), data="zeros"),
        replace(base, rule="lion", formats=("fp8",), param_dtype=torch.bfloat16, param_rounding="stochastic"),
    ]
    return list(dict.fromkeys(cases))


CASES = _all()
"""Every case once."""


def _averages() -> list[Case]:
    base = Case(rule="ema", formats=("8bit",))
    cases = [
        replace(base, formats=(name,), rounding=rounding)
        for name in (*FRIENDLY, "linear8", "float8_e3m4")
        for rounding in ("nearest", "stochastic")
    ]
    cases += [replace(base, scaling=s) for s in SCALINGS if isinstance(s, Scaling)]
    cases += [replace(base, shape=s) for s in SHAPES]
    cases += [replace(base, data=d) for d in DATA]
    cases += [replace(base, param_dtype=d) for d in (torch.bfloat16, torch.float16)]
    cases += [replace(base, first_element=(1 << 32) - 300), replace(base, data="specials", formats=("fp4",))]
    return [replace(case, rule=rule) for case in cases for rule in ("ema", "ema_difference")]


AVERAGES = _averages()
"""Updates of weight averages. Backends without a kernel for them use the reference."""


def specials(count: int) -> Tensor:
    """Return values of every kind in fp32, far enough apart that some tiles have none."""
    values = torch.ones(count)
    kinds = [float("nan"), float("inf"), -float("inf"), -0.0, 1e-45, -1e-39, 3.4e38, -3.4e38, 1e-38, 1e19, 65520.0]
    for i, value in enumerate(kinds):
        values[(i * 53 + 11) % max(count, 1) :: 977] = value
    return values


def values_of(case: Case, seed: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the parameter, gradient and fp32 states of a case."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr((case.shape, case.data)).encode()) + seed)
    count = int(torch.Size(case.shape).numel())

    def draw() -> Tensor:
        return torch.randn(count, generator=generator)

    param, grad, first, second = draw(), draw() * 0.1, draw() * 0.03, draw().square() * 0.01
    if case.data == "wide":
        spread = torch.exp2(20 * torch.rand(count, generator=generator) - 10)
        grad, first, second = grad * spread, first * spread, second * spread * spread
    elif case.data == "zeros":
        grad, first, second = (x * 0.0 for x in (grad, first, second))
    elif case.data == "specials" and count:
        special = specials(count)
        grad = torch.where(special != 1.0, special, grad)
    elif case.data == "params" and count:
        special = specials(count)
        param = torch.where(special != 1.0, special, param)
    elif case.data == "tiny":
        grad, first, second = grad * 1e-40, first * 1e-40, second * 1e-40
    elif case.data == "huge":
        grad, first, second = grad * 1e20, first * 1e20, second * 1e38
    return param, grad, [first, second]


def quantizers_of(case: Case) -> tuple[Quantizer, ...]:
    """Return one quantizer per slot."""
    slots = RULES[case.rule].slots({**HYPER[case.rule], **dict(case.hyper)})
    rounding = (case.rounding,) * len(slots) if isinstance(case.rounding, str) else case.rounding
    scaling = (case.scaling,) * len(slots) if isinstance(case.scaling, Scaling) else case.scaling
    return tuple(
        Quantizer(
            FORMATS[resolve_name(name, signed=slot.signed)],
            scale,
            how,  # type: ignore[arg-type]
            zero_floor=case.zero_floor and not slot.signed,
        )
        for slot, name, how, scale in zip(slots, case.formats, rounding, scaling, strict=False)
    )


def make_step(case: Case, seed: int = 0, device: str = "cpu") -> Step:
    """Return a step of this case. Equal arguments give equal bits in new tensors."""
    rule, hyper = RULES[case.rule], {**HYPER[case.rule], **dict(case.hyper)}
    slots, quantizers = rule.slots(hyper), quantizers_of(case)
    flat_param, flat_grad, flat_states = values_of(case, seed)
    shape = torch.Size(case.shape)
    states = []
    for slot, quantizer, values in zip(slots, quantizers, flat_states, strict=False):
        codes, scale = quantizer.with_rounding("nearest").quantize(values.reshape(shape))
        stored = Stored(slot, quantizer, shape, codes.to(device), None if scale is None else scale.to(device))
        states.append(stored)
    param = flat_param.reshape(shape).to(device, case.param_dtype)
    grad = flat_grad.reshape(shape).to(device, case.grad_dtype or case.param_dtype)
    binding = Binding(rule, param if rule.has_param else None, tuple(states), case.first_element)
    inputs = (grad, param)[: len(rule.inputs)]
    step = Step(binding, inputs, {}, [], case.param_rounding, case.maximize)  # type: ignore[arg-type]
    set_step(case, step, case.age)
    return step


def set_step(case: Case, step: Step, number: int) -> None:
    """Set the scalars and random streams of a step, with every state at that age."""
    hyper = {**HYPER[case.rule], **dict(case.hyper)}
    ages = {"step": number, **{s.slot.name: number for s in step.binding.states}}
    step.scalars = {k: fp32(v) for k, v in step.binding.rule.scalars(hyper, ages).items()}
    key0, key1 = stream_keys(2026, 5, slot_id("optimizer"), number).tolist()
    lane = lanes(tuple(s.slot.name for s in step.binding.states))
    step.keys = [(key0, key1, lane[name]) for name in step.binding.names]
    step.skipped = torch.zeros((), dtype=torch.int64, device=step.binding.device)


def next_grad(case: Case, step: Step, seed: int) -> None:
    """Set another gradient, from another seed, for a further step."""
    grad = values_of(case, seed)[1].reshape(case.shape)
    step.inputs = (grad.to(step.binding.device, step.inputs[0].dtype), *step.inputs[1:])


def bound_anew(step: Step, **changes: Any) -> Step:
    """Return the step with a binding of other tensors or another position."""
    return replace(step, binding=replace(step.binding, **changes))


def on_device(step: Step, device: str) -> Step:
    """Return a copy of a step on a device."""
    binding = step.binding
    states = tuple(
        replace(s, codes=s.codes.to(device), scale=None if s.scale is None else s.scale.to(device))
        for s in binding.states
    )
    moved = bound_anew(step, param=None if binding.param is None else binding.param.to(device), states=states)
    return replace(moved, inputs=tuple(x.to(device) for x in step.inputs), skipped=step.skipped.to(device))


def results(step: Step) -> dict[str, Tensor]:
    """Return everything that a step may change, by name."""
    found = {} if step.binding.param is None else {"param": step.binding.param}
    for state in step.binding.states:
        found[state.slot.name] = state.codes
        if state.scale is not None:
            found[f"{state.slot.name}_scale"] = state.scale
    return found


def assert_same_bits(step: Step, expected: Step) -> None:
    """Assert that all results have equal bits, except the payload of NaN parameters, where torch's casts differ."""
    skipped, wanted = int(step.skipped), int(expected.skipped)
    assert skipped == wanted, f"skipped {skipped} elements, the reference {wanted}"
    for (name, got), want in zip(results(step).items(), results(expected).values(), strict=True):
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        same = _bits(got) == _bits(want)
        if name == "param":
            same |= got.isnan() & want.isnan()
        if not bool(same.all()):
            at = tuple(int(i) for i in torch.nonzero(~same)[0])
            raise AssertionError(
                f"{name}: {int((~same).sum())} of {same.numel()} differ, first at {at}: {got[at]} instead of {want[at]}"
            )


def _bits(x: Tensor) -> Tensor:
    if x.dtype == torch.uint8:
        return x
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16)
