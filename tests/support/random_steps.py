"""Random configurations, each run on two backends step by step, which must have the same bits.

``python -m support.random_steps SEED COUNT`` (in ``tests``) runs some and prints those that differ. A configuration
depends only on its seed, so a report needs just that number.
"""

from __future__ import annotations

import inspect
import logging
import random
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import halfulp
from halfulp.averaging import EMA
from halfulp.numbers.formats import FORMATS, FRIENDLY, Format
from halfulp.optim import OPTIMIZERS

FUSED = (halfulp.Adam, halfulp.AdamW, halfulp.SGD, halfulp.Lion)
"""Drawn as often as all others together."""
SHAPES: tuple[tuple[int, ...], ...] = (
    (), (1,), (3,), (64,), (127,), (257,), (1500,), (2, 3), (1, 1), (1, 129), (5, 1), (3, 200), (9, 700), (17, 130),
    (2, 2049), (40, 64), (3, 5, 7), (2, 8, 16), (3, 4, 3, 3), (2, 1, 3, 2, 5), (0,), (0, 4), (4, 0),
)  # fmt: skip
BLOCKS = (2, 16, 30, 32, 64, 96, 100, 128, 256, 1000, 2048)
RATES = (0.0, 1e-30, 1e-8, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 1e4, 1e10, 1e30)
DECAYS = (0.0, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 1 - 2.0**-24)
SMALL = (0.0, 1e-30, 1e-16, 1e-8, 1e-4, 1.0, 1e10)
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16)
KINDS = (
    "normal", "normal", "normal", "wide", "zero", "sparse", "tiny", "huge", "largest", "special", "equal", "negative",
)  # fmt: skip


def draw_format(r: random.Random, signed: bool) -> Format:
    """Return a format of the library or a made-up one, with negative values if `signed`."""
    kind = r.choice(("library", "library", "float", "float", "codebook"))
    if kind == "library":
        return r.choice([f for f in FORMATS.values() if f.signed or not signed])
    if kind == "codebook":
        bits = r.choice((4, 8))
        low = (1 << bits - 1) - r.randint(0, 1) if signed else 0
        high = (1 << bits) - 1 - low
        spread = r.choice((0.0, 0.3, 2.0)) * r.random()
        top = 2.0 ** r.choice((0, 0, -3, 4))
        levels = [top * ((i + 1) / high) ** (1 + spread) for i in range(high)]
        levels += [0.0, *(-x * r.choice((1.0, 0.9)) for x in levels[:low])]
        levels = sorted(float(torch.tensor(x)) for x in levels)
        if len(set(levels)) == 1 << bits and len(levels) == 1 << bits:
            return Format(f"book{bits}", "codebook", bits, signed, levels=tuple(levels))
    while True:
        bits = r.choice((4, 8))
        exponent = r.randint(1, bits - signed)
        mantissa = bits - signed - exponent
        special = r.choice(("none", "none", "ieee", "fn"))
        bias = r.choice((1, 2, 7, (1 << exponent - 1) - 1, 60, -60))
        try:
            name = f"e{exponent}m{mantissa}b{bias}{special}"
            made = Format(name, "float", bits, signed, exponent, mantissa, bias, special)  # type: ignore[arg-type]
        except ValueError:
            continue
        if made.max > 0:
            return made


def draw_hyper(r: random.Random, make: Any) -> dict[str, Any]:
    """Return some of an optimizer's own hyper-parameters, including extreme values."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(make).parameters.items():
        default = parameter.default
        if name in ("params", "options") or parameter.kind is parameter.KEYWORD_ONLY or r.random() < 0.4:
            continue
        if name == "lr":
            found[name] = r.choice(RATES)
        elif name == "betas":
            found[name] = tuple(r.choice(DECAYS) for _ in default)
        elif name in ("momentum", "dampening", "growth", "max_momentum"):
            found[name] = r.choice(DECAYS)
        elif name in ("eps", "weight_decay", "tolerance"):
            found[name] = r.choice((*SMALL, 0.1, 1e5))
        elif isinstance(default, bool):
            found[name] = r.random() < 0.5
        elif isinstance(default, int):
            found[name] = r.choice((1, 2, 3, default))
        elif isinstance(default, float):
            found[name] = default * r.choice((0.0, 0.5, 1.0, 1.0, 2.0))
    return found


@dataclass(frozen=True)
class Configuration:
    """Everything about a run except the backend."""

    seed: int
    make: Any
    options: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    kinds: tuple[str, ...]
    """The kinds of the gradients of each step."""
    strided: tuple[bool, ...]
    threads: int

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {getattr(self.make, '__name__', self.make)}({self.options}), shapes {self.shapes} "
            f"{self.dtypes}, gradients {self.kinds}, strided {self.strided}, {self.threads} threads"
        )


def draw(seed: int) -> Configuration:
    """Return the configuration of a seed."""
    r = random.Random(seed)
    count = r.randint(1, 4)
    shapes = tuple(r.choice(SHAPES) for _ in range(count))
    dtypes = tuple(r.choice(DTYPES) for _ in range(count))
    kinds = tuple(r.choice(KINDS) for _ in range(r.randint(2, 6)))
    strided, threads = tuple(r.random() < 0.3 for _ in range(count)), r.choice((1, 1, 2, 3))
    options: dict[str, Any] = {
        "rounding": r.choice(("stochastic", "nearest")), "scale": r.choice(("pow2", "pow2", "fp32")),
        "block_size": r.choice(BLOCKS), "min_size": 0, "seed": r.choice((0, 7, 2**63 - 1)),
    }  # fmt: skip
    if r.random() < 0.1:
        options |= {"decay": r.choice(DECAYS), "difference": r.random() < 0.5, "state": draw_format(r, True)}
        return Configuration(seed, EMA, options, shapes, dtypes, kinds, strided, threads)
    make = r.choice(FUSED) if r.random() < 0.5 else r.choice(list(OPTIMIZERS))
    slots = make([torch.nn.Parameter(torch.zeros(8, 8))], state="fp32")
    slots.param_groups[0]["params"][0].grad = torch.ones(8, 8)
    slots.step()
    if r.random() < 0.4:
        options["state"] = r.choice(list(FRIENDLY))
    else:
        states = slots.states(slots.param_groups[0]["params"][0])
        options["state"] = {s.slot.name: draw_format(r, s.slot.signed) for s in states}
    options |= {"zero_floor": r.random() < 0.8, "maximize": r.random() < 0.2, "bound_update": r.random() < 0.8}
    options |= {"reset": r.choice((None, None, 1, 2, 3)), "param_rounding": r.choice(("nearest", "stochastic"))}
    if r.random() < 0.15:
        options["transforms"] = [r.choice((halfulp.clip_coordinates(0.1), halfulp.clip_global(1.0)))]
    return Configuration(seed, make, options | draw_hyper(r, make), shapes, dtypes, kinds, strided, threads)


def values(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return a gradient of some kind."""
    x = torch.randn(shape, generator=generator)
    u = torch.rand(shape, generator=generator)
    if kind == "wide":
        x = x * torch.exp2(60 * u - 30)
    elif kind == "zero":
        x = x * 0.0  # zeros of either sign
    elif kind == "sparse":
        x = torch.where(u < 0.9, 0.0, x)
    elif kind == "tiny":
        x = x * torch.exp2(-120 - 30 * u)
    elif kind == "huge":
        x = x * torch.exp2(60 * u + 62)
    elif kind == "largest":
        x = x.sign() * torch.finfo(torch.float32).max * torch.exp2(-torch.floor(4 * u))
    elif kind == "special":
        special = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45, -1e-39, 3.4e38, 65520.0])
        picked = special[(torch.rand(shape, generator=generator) * len(special)).long()]
        x = torch.where(u < 0.01, picked, x)
    elif kind == "equal":
        x = torch.full(shape, 0.37)
    elif kind == "negative":
        x = -x.abs() * torch.exp2(20 * u)
    return x


def lay_out(x: Tensor, strided: bool) -> Tensor:
    """Return the same values, with other strides if `strided`."""
    return x.transpose(0, -1).contiguous().transpose(0, -1) if strided and x.dim() > 1 else x


class Run:
    """A configuration on one backend."""

    def __init__(self, c: Configuration, backend: str | None) -> None:
        self.c, self.generator = c, torch.Generator().manual_seed(c.seed)
        self.params = []
        for shape, dtype, strided in zip(c.shapes, c.dtypes, c.strided, strict=True):
            start = values(("normal", "wide")[c.seed % 2], shape, self.generator).to(dtype)
            self.params.append(torch.nn.Parameter(lay_out(start, strided and c.seed % 3 == 0)))
        if c.make is EMA:
            self.model = torch.nn.ParameterList(self.params)
            self.made: Any = EMA(self.model, **c.options, backend=backend)
        else:
            self.made = c.make(self.params, **c.options, backend=backend)

    def step(self, kind: str) -> None:
        """Do one more step with gradients (or, for an average, weights) of some kind."""
        for p, strided in zip(self.params, self.c.strided, strict=True):
            x = values(kind, tuple(p.shape), self.generator).to(p.dtype)
            if self.c.make is EMA and self.c.options["difference"] and p is self.params[0]:
                self.made.before_step()
            if self.c.make is EMA:
                p.data.copy_(p.data + x)
            else:
                p.grad = lay_out(x, strided)
        if self.c.make is EMA:
            self.made.update()
        else:
            self.made.step()

    def everything(self) -> dict[str, Any]:
        """Return everything that a step may change, by name."""
        if self.c.make is EMA:
            return dict(flat(self.made.state_dict()))
        found: dict[str, Any] = {"skipped": dict(self.made.skipped)}
        for i, p in enumerate(self.params):
            found[f"param{i}"] = p.detach()
            found.update((f"param{i}/{k}", v) for k, v in flat(self.made.state[p]))
        return found


def flat(tree: Any, name: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of nested dictionaries, with the keys to them."""
    if isinstance(tree, dict):
        return [leaf for k, v in tree.items() for leaf in flat(v, f"{name}/{k}")]
    return [(name, tree)]


def difference(a: dict[str, Any], b: dict[str, Any]) -> str | None:
    """Return the first difference between two runs. All NaNs count as equal."""
    if set(a) != set(b):
        return f"entries {sorted(set(a) ^ set(b))}"
    for name, x in a.items():
        y = b[name]
        if not isinstance(x, Tensor):
            if x != y:
                return f"{name}: {x!r} instead of {y!r}"
            continue
        if x.dtype != y.dtype or x.shape != y.shape:
            return f"{name}: {x.dtype} {tuple(x.shape)} instead of {y.dtype} {tuple(y.shape)}"
        same = bits(x) == bits(y)
        if x.is_floating_point():
            same |= x.isnan() & y.isnan()
        if not bool(same.all()):
            at = tuple(int(i) for i in torch.nonzero(~same)[0])
            return f"{name}: {int((~same).sum())} of {same.numel()} differ, first at {at}: {x[at]} instead of {y[at]}"
    return None


def bits(x: Tensor) -> Tensor:
    """Return the bit pattern of a tensor."""
    if not x.is_floating_point():
        return x
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def compare(c: Configuration, backend: str | None = None) -> str | None:
    """Return the difference between a backend (by default the fastest) and the reference, or ``None``.

    Raises
    ------
    ValueError
        If the library refuses the configuration, on both backends.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(c.threads)
    try:
        got = Run(c, backend)
        expected = Run(c, "reference")
        for step, kind in enumerate(c.kinds):
            said = []
            for run in (got, expected):
                try:
                    run.step(kind)
                    said.append("")
                except (ArithmeticError, RuntimeError) as error:  # on both or on none: scalars beyond Python's floats
                    said.append(type(error).__name__)
            if said[0] != said[1]:
                return f"step {step}: {said[0] or 'done'} instead of {said[1] or 'done'}"
            found = difference(got.everything(), expected.everything())
            if found is not None:
                return f"step {step}: {found}"
            if said[0]:
                break
    finally:
        torch.set_num_threads(before)
    return None


@dataclass
class Tally:
    """How many configurations agreed, how many the library refused, and what differed."""

    agreed: int = 0
    refused: int = 0
    differed: list[str] = field(default_factory=list)


def search(first: int, count: int, backend: str | None = None) -> Tally:
    """Compare the configurations of some seeds."""
    tally = Tally()
    for seed in range(first, first + count):
        try:
            c = draw(seed)
            found = compare(c, backend)
        except ValueError:
            tally.refused += 1
            continue
        if found is None:
            tally.agreed += 1
        else:
            tally.differed.append(f"{c}: {found}")
    return tally


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    start, total, agreed, refused = int(sys.argv[1]), int(sys.argv[2]), 0, 0
    for seed in range(start, start + total, 50):
        part = search(seed, min(50, start + total - seed))
        agreed, refused = agreed + part.agreed, refused + part.refused
        print(*part.differed, f"{agreed} have agreed, {refused} were refused", sep="\n", flush=True)
