"""Every optimizer against an independent twin: torch.optim over 1000 steps, and an exact scalar model bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import halfulp
from halfulp.numbers.formats import get_format
from halfulp.numbers.rng import LANES
from support.oracle import Stored, adam_step, f32, lion_step, random_word, sgd_step

SHAPE = (6, 40)
STEPS = 1000


def gradients(steps: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> torch.Tensor:
    """Gradients whose scale drifts over two decades, some coordinates small, some rare."""
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(steps, *shape, generator=generator)
    g *= torch.exp(torch.randn(shape, generator=generator))
    g *= 10 ** torch.linspace(0.5, -1.5, steps).reshape(-1, *[1] * len(shape))
    g[:, :, ::7] *= (torch.rand(g[:, :, ::7].shape, generator=generator) < 0.05).float()
    return g


def start(shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def train(make: Callable[[list[torch.Tensor]], Any], g: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, Any]:
    p = torch.nn.Parameter(start(tuple(g.shape[1:])).to(dtype))
    optimizer = make([p])
    for grad in g:
        p.grad = grad.to(dtype)
        optimizer.step()
    return p.detach(), optimizer


TWINS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "adam": (halfulp.Adam, torch.optim.Adam, {"lr": 1e-2}),
    "adam-l2": (halfulp.Adam, torch.optim.Adam, {"lr": 1e-2, "weight_decay": 0.1}),
    "adam-maximize": (halfulp.Adam, torch.optim.Adam, {"lr": 1e-2, "maximize": True, "betas": (0.8, 0.95)}),
    "adamw": (halfulp.AdamW, torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    "adamw-maximize": (halfulp.AdamW, torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1, "maximize": True}),
    "adamw-eps": (halfulp.AdamW, torch.optim.AdamW, {"lr": 1e-2, "eps": 1e-3, "betas": (0.95, 0.99)}),
    "adamw-no-momentum": (halfulp.AdamW, torch.optim.AdamW, {"lr": 1e-2, "betas": (0.0, 0.999)}),
    "sgd": (halfulp.SGD, torch.optim.SGD, {"lr": 1e-2}),
    "sgd-l2": (halfulp.SGD, torch.optim.SGD, {"lr": 1e-2, "weight_decay": 0.1}),
    "sgd-momentum": (halfulp.SGD, torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9}),
    "sgd-nesterov": (halfulp.SGD, torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
    "sgd-dampening": (halfulp.SGD, torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "dampening": 0.3}),
    "sgd-all": (
        halfulp.SGD, torch.optim.SGD,
        {"lr": 1e-2, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TWINS)
def test_fp32_states_follow_torch(name: str) -> None:
    """After 1000 steps as close to torch in double precision as torch's own fp32, within 32 units in the last place.

    Both accumulate rounding errors of the parameter over 1000 steps. The bound: the largest error of any coordinate is
    at most twice that of torch in fp32, or 32 units (of the parameter's magnitude, at least 1) where torch is lucky.
    The same holds for the states, in units of their magnitude, at least its mean.
    """
    ours_class, torch_class, arguments = TWINS[name]
    g = gradients(STEPS)
    ours, optimizer = train(lambda p: ours_class(p, state="fp32", **arguments), g, torch.float32)
    theirs, peer = train(lambda p: torch_class(p, **arguments), g, torch.float32)
    exact, twin = train(lambda p: torch_class(p, **arguments), g, torch.float64)
    unit = 2.0**-23 * exact.abs().clamp_min(1)
    error, torch_error = ((x.double() - exact).abs() / unit for x in (ours, theirs))
    assert float(error.max()) <= max(2 * float(torch_error.max()), 32)
    assert float(error.mean()) <= max(2 * float(torch_error.mean()), 4)
    param, single, double = (o.param_groups[0]["params"][0] for o in (optimizer, peer, twin))
    for slot in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
        if slot in optimizer.state[param]:
            expected = twin.state[double][slot]
            unit = 2.0**-23 * expected.abs().clamp_min(float(expected.abs().mean()))
            found = (optimizer.state_tensor(param, slot), peer.state[single][slot])
            error, torch_error = ((x.double() - expected).abs() / unit for x in found)
            assert float(error.max()) <= max(2 * float(torch_error.max()), 32)
            assert float(error.mean()) <= max(2 * float(torch_error.mean()), 4)


def numpy_lion(g: np.ndarray, h: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lion from the listing in arXiv 2302.06675, in the precision of `g`; also where rounding may decide a sign."""
    dtype = g.dtype.type
    keep = dtype(1 - h["lr"] * h["weight_decay"])  # one number, as in the authors' code and in torch's AdamW
    lr, (beta1, beta2) = dtype(h["lr"]), map(dtype, h["betas"])
    p, m, close = start().numpy().astype(dtype), np.zeros(SHAPE, dtype), np.zeros(SHAPE, dtype=bool)
    for grad in -g if h["maximize"] else g:
        c = beta1 * m + (1 - beta1) * grad
        close |= (np.abs(c) < 1e-6 * (np.abs(m) + np.abs(grad))) & (c != 0)
        p = p * keep - lr * np.sign(c)
        m = beta2 * m + (1 - beta2) * grad
    return p, m, close


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("maximize", [False, True])
def test_lion_follows_its_definition(weight_decay: float, maximize: bool) -> None:
    """As close to a double-precision Lion as one in fp32 numpy, by the measure of the test above."""
    h = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": weight_decay, "maximize": maximize}
    g = gradients(STEPS)
    expected, moment, close = numpy_lion(g.double().numpy(), h)
    single = numpy_lion(g.numpy(), h)[0]
    ours, optimizer = train(lambda q: halfulp.Lion(q, state="fp32", **h), g, torch.float32)
    assert close.mean() < 0.02
    unit = 2.0**-23 * np.maximum(np.abs(expected), 1)
    results = [x.astype(np.float64) for x in (ours.numpy(), single)]
    error, their_error = (np.abs(x - expected)[~close] / unit[~close] for x in results)
    assert error.max() <= max(2 * their_error.max(), 32)
    assert error.mean() <= max(2 * their_error.mean(), 4)
    stored = optimizer.state_tensor(optimizer.param_groups[0]["params"][0], "exp_avg").numpy()
    assert np.abs(stored - moment).max() < 1e-5 * np.abs(moment).max()


# ---------------------------------------------------------------- one step, bit for bit

FORMATS = ["fp32", "bf16", "fp16", "fp8", "fp4", "int8", "int4", "8bit", "4bit", "float8_e5m2"]
BLOCK, SEED = 8, 2**40 + 7
SMALL = (3, 21)


def exact(values: torch.Tensor) -> list[Fraction]:
    return [Fraction(v) for v in values.flatten().tolist()]


def scalars(rule: str, t: int, h: dict[str, Any]) -> dict[str, Fraction]:
    """Numbers of step t as the bit contract defines them: Python floats, each rounded once to fp32."""
    lr = h["lr"]
    if rule == "adam":
        b1, b2 = h["betas"]
        ratio = b1 * b1 / b2
        largest = (1 - b1) / (1 - b2) ** 0.5 * sum(ratio**k for k in range(t)) ** 0.5
        numbers = {
            "keep": 1 - lr * h["weight_decay"], "l2": 0.0, "weight1": 1 - b1, "beta2": b2, "weight2": 1 - b2,
            "inv_sqrt_correction2": 1 / (1 - b2**t) ** 0.5, "eps": 1e-8,
            "bound": largest * (1 - b2**t) ** 0.5 * (1 + 1e-6), "step_size": lr / (1 - b1**t),
        }  # fmt: skip
    elif rule == "sgd":
        numbers = {
            "l2": h["weight_decay"], "momentum": 0.0 if t == 1 else h["momentum"],
            "gain": 1.0 if t == 1 else 1.0 - h["dampening"], "nesterov": h["momentum"] if h["nesterov"] else 0.0,
            "lr": lr,
        }  # fmt: skip
    else:
        b1, b2 = h["betas"]
        numbers = {"keep": 1 - lr * h["weight_decay"], "weight1": 1 - b1, "weight2": 1 - b2, "lr": lr}
    return {k: f32(Fraction(v)) for k, v in numbers.items()}


RULES: dict[str, tuple[Any, list[str], list[bool], Any, dict[str, Any]]] = {
    "adam": (
        halfulp.AdamW, ["exp_avg", "exp_avg_sq"], [True, False], adam_step,
        {"lr": 1e-2, "betas": (0.9, 0.999), "weight_decay": 0.1},
    ),
    "sgd": (
        halfulp.SGD, ["momentum_buffer"], [True], sgd_step,
        {"lr": 1e-2, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.1, "nesterov": True},
    ),
    "lion": (
        halfulp.Lion, ["exp_avg"], [True], lion_step, {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("state", FORMATS)
@pytest.mark.parametrize("rule", RULES)
def test_each_step_is_the_exact_model(rule: str, state: str, rounding: str) -> None:
    """Four steps: parameters, codes and scales equal those of fractions and integers, bit for bit."""
    make, names, signed, step, hyper = RULES[rule]
    g = gradients(4, SMALL)
    first, second = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(start(SMALL))
    optimizer = make(
        [first, second], state=state, rounding=rounding, block_size=BLOCK, min_size=0, seed=SEED, **hyper
    )  # fmt: skip
    rows, cols = SMALL
    model_p = exact(second.detach())
    formats = [get_format(state, signed=s) for s in signed]
    wide = [get_format("fp32")] * len(names)
    models = [
        [Stored(f, BLOCK, [], [], rounding, not s) for _ in range(rows)] for f, s in zip(formats, signed, strict=True)
    ]
    values = [[Fraction(0)] * (rows * cols) for _ in names]
    assert all(f in formats for f in wide) == (state == "fp32")
    for t in range(1, 5):
        first.grad, second.grad = torch.zeros(2), g[t - 1]
        optimizer.step()
        c = scalars(rule, t, hyper)
        if state == "fp32" and rule == "adam":
            c["bound"] = Fraction(10) ** 60
        grads = exact(g[t - 1])
        results = [step(model_p[i], grads[i], *(v[i] for v in values), c) for i in range(rows * cols)]
        model_p = [r[0] for r in results]
        for k, name in enumerate(names):
            new = [r[k + 1] for r in results]
            if state == "fp32":
                values[k] = new
            else:
                values[k] = store(models[k], new, cols, k, t)
            assert exact(optimizer.state_tensor(second, name)) == values[k], (name, t)
            if state != "fp32":
                assert codes_of(optimizer, second, name) == [x for row in models[k] for x in row.codes], (name, t)
        assert exact(second.detach()) == model_p, t


def store(rows: list[Stored], new: list[Fraction], cols: int, place: int, t: int) -> list[Fraction]:
    """Write new values row by row with the random words of this step, and read them back."""
    back, lane = [], LANES[1 + place]
    for r, row in enumerate(rows):
        row.write(
            new[r * cols : (r + 1) * cols], lambda i, r=r: random_word(SEED, 1, "optimizer", t, r * cols + i, lane)
        )
        back += row.read()
    return back


def codes_of(optimizer: Any, param: torch.Tensor, name: str) -> list[int]:
    codes = optimizer.state[param][name]
    if codes.dtype != torch.uint8:
        return [c & 0xFFFF for c in codes.view(torch.int16).flatten().tolist()]
    cols = param[0].numel()
    if codes.shape == param.shape:
        return codes.flatten().tolist()
    return [x for row in codes.tolist() for x in [c for b in row for c in (b & 15, b >> 4)][:cols]]
