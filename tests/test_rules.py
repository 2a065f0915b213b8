"""Rules in fp32 against independent oracles: golden runs, torch.optim, and facts that separate them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import halfulp

CURVATURE = torch.tensor([[1.0, 0.1], [0.01, 2.0]])
START = torch.tensor([[1.0, -2.0], [3.0, 0.5]])


def run(make: Any, steps: int, **arguments: Any) -> list[list[float]]:
    """Weights after each step on 0.5 * sum(CURVATURE * W**2)."""
    p = torch.nn.Parameter(START.clone())
    optimizer = make([p], state="fp32", **arguments)
    found = []
    for _ in range(steps):
        p.grad = CURVATURE * p.detach()
        optimizer.step()
        found.append(p.detach().flatten().tolist())
    return found


GOLDEN: list[tuple[str, dict[str, Any], list[float], list[float]]] = [
    ("Adam", {"amsgrad": True}, [0.9, -1.9, 2.9, 0.4], [0.507964, -1.502956, 2.50178, 0.027814]),
    ("AdamW", {"weight_decay": 0.1}, [0.89, -1.88, 2.87, 0.395], [0.469953, -1.415567, 2.365279, 0.01533]),
    ("AdaBelief", {}, [0.888889, -1.888889, 2.888889, 0.388889], [0.404493, -1.393014, 2.39049, -0.049146]),
    ("AdaMod", {"betas": (0.9, 0.99, 0.9999)}, [0.99999, -1.99999, 2.99999, 0.49999],
     [0.999735, -1.999735, 2.999735, 0.499735]),
    ("AdaBound", {}, [0.9, -1.9, 2.900001, 0.4], [0.507964, -1.502956, 2.501783, 0.027815]),
    ("DiffGrad", {}, [0.926894, -1.945017, 2.949251, 0.426894], [0.723113, -1.745165, 2.749605, 0.221111]),
    ("CAME", {}, [-0.556348, -1.700211, 2.951522, -1.056348], [-0.312619, -0.211994, 2.647148, 0.947999]),
    ("Lion", {"lr": 0.01}, [0.99, -1.99, 2.99, 0.49], [0.95, -1.95, 2.95, 0.45]),
    ("AdEMAMix", {"alpha": 5.0, "weight_decay": 0.0}, [0.89995, -1.89995, 2.89995, 0.39995],
     [0.507233, -1.502211, 2.501033, 0.027159]),
    ("ADOPT", {}, [1.0, -2.0, 3.0, 0.5], [0.910886, -1.9102, 2.90997, 0.412249]),
    ("Conda", {}, [0.85881, -1.991908, 2.991908, 0.35881], [0.316048, -1.953444, 2.958399, -0.123684]),
    ("SPAM", {}, [0.900003, -1.900016, 2.900105, 0.400003], [0.507974, -1.503008, 2.502127, 0.027824]),
    ("MADGRAD", {"lr": 0.01}, [0.995358, -1.997285, 2.998558, 0.495358], [0.948194, -1.969619, 2.983846, 0.448405]),
    ("EXAdam", {}, [-0.595242, -0.40494, 1.413094, -1.095242], [-0.014621, 0.128728, 0.055032, 0.043031]),
    ("LARS", {}, [0.999736, -1.999947, 2.999992, 0.499736], [0.996526, -1.999305, 2.999896, 0.496528]),
    ("AMSGD", {}, [0.9, -1.98, 2.997, 0.4], [0.519499, -1.900394, 2.985006, 0.038548]),
    ("AMAdamW", {"weight_decay": 0.0}, [0.901088, -1.90022, 2.900033, 0.401088],
     [0.515631, -1.504798, 2.502188, 0.034348]),
    ("AdamP", {}, [0.9, -1.9, 2.9, 0.4], [0.507964, -1.502956, 2.50178, 0.027814]),
    ("AdamW", {"weight_decay": 0.1, "transforms": [halfulp.adagc()]}, [0.89, -1.88, 2.87, 0.395],
     [0.462378, -1.410918, 2.361541, 0.002834]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments", "first", "fifth"), GOLDEN, ids=[f"{i}-{g[0]}" for i, g in enumerate(GOLDEN)]
)
def test_golden_runs(name: str, arguments: dict[str, Any], first: list[float], fifth: list[float]) -> None:
    """Float64 runs of published implementations (FP32 here: six digits, up to the rounding of five steps)."""
    found = run(getattr(halfulp, name), 5, **{"lr": 0.1, **arguments})
    assert found[0] == pytest.approx(first, abs=2e-6)
    assert found[4] == pytest.approx(fifth, abs=3e-6)


def pair(ours: Any, theirs: Any, steps: int = 60, shape: tuple[int, ...] = (6, 9)) -> float:
    """Largest difference of the weights after random gradients."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(shape, generator=generator)
    a, b = torch.nn.Parameter(w.clone()), torch.nn.Parameter(w.clone())
    first, second = ours([a]), theirs([b])
    for _ in range(steps):
        g = torch.randn(shape, generator=generator)
        a.grad, b.grad = g.clone(), g.clone()
        first.step()
        second.step()
    return float((a - b).detach().abs().max())


TORCH: dict[str, tuple[Any, Any, float]] = {
    "amsgrad": (
        lambda p: halfulp.AdamW(p, lr=1e-2, amsgrad=True, state="fp32"),
        lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True), 2e-6,
    ),
    "adafactor": (
        lambda p: halfulp.Adafactor(p, state="fp32"),
        lambda p: torch.optim.Adafactor(p), 2e-6,
    ),
    "muon": (  # torch iterates in bfloat16
        lambda p: halfulp.Muon(p, lr=1e-2, adjust_lr_fn="original", state="fp32"),
        lambda p: torch.optim.Muon(p, lr=1e-2), 1.5e-2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TORCH)
def test_fp32_states_follow_torch(name: str) -> None:
    ours, theirs, tolerance = TORCH[name]
    assert pair(ours, theirs) < tolerance


# ---------------------------------------------------------------- identities


SAME: dict[str, tuple[Any, Any]] = {
    "ademamix alpha=0": (
        lambda p: halfulp.AdEMAMix(p, lr=1e-2, alpha=0.0, weight_decay=0.1, state="fp32"),
        lambda p: halfulp.AdamW(p, lr=1e-2, weight_decay=0.1, state="fp32"),
    ),
    "spam without spikes or resets": (
        lambda p: halfulp.SPAM(p, lr=1e-2, eps=0.0, threshold=0.0, period=0, state="fp32"),
        lambda p: halfulp.Adam(p, lr=1e-2, eps=0.0, state="fp32"),
    ),
    "frugal density=1": (
        lambda p: halfulp.FRUGAL(p, lr=1e-2, density=1.0, weight_decay=0.1, period=10**6, state="fp32"),
        lambda p: halfulp.AdamW(p, lr=1e-2, weight_decay=0.1, state="fp32"),
    ),
    "clipping nothing": (
        lambda p: halfulp.Adam(p, lr=1e-2, state="fp32", transforms=[halfulp.clip_coordinates(0.0)]),
        lambda p: halfulp.Adam(p, lr=1e-2, state="fp32"),
    ),
    "complex momentum phase=0": (
        lambda p: halfulp.ComplexMomentum(p, lr=1e-2, momentum=0.9, phase=0.0, state="fp32"),
        lambda p: halfulp.SGD(p, lr=1e-2, momentum=0.9, state="fp32"),
    ),
    "adalomo": (
        lambda p: halfulp.AdaLomo(p, lr=1e-3, state="fp32"),
        lambda p: halfulp.Adafactor(p, lr=1e-3, relative_step=False, state="fp32"),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_identities(name: str) -> None:
    """Where a rule contains another; the same arithmetic in another order, so not to the last bit."""
    assert pair(*SAME[name]) < 2e-6


def test_global_clipping_is_torchs() -> None:
    def clipped(params: list[torch.nn.Parameter]) -> Any:
        optimizer = halfulp.SGD(params, lr=0.1, state="fp32")
        optimizer.register_step_pre_hook(lambda o, a, k: torch.nn.utils.clip_grad_norm_(params, 1.0) and None)
        return optimizer

    assert pair(lambda p: halfulp.SGD(p, lr=0.1, state="fp32", transforms=[halfulp.clip_global(1.0)]), clipped) < 1e-5


def test_first_steps() -> None:
    """Sizes of the first step for a gradient of 1, in learning rates."""
    expected = {
        "AdaBelief": 1 / 0.9, "AdaMomentum": 10.0, "AdaMod": 1e-4, "DiffGrad": 1 / (1 + math.exp(-1)),
        "EXAdam": 11 * 1.999 / math.sqrt(1.9), "AdEMAMix": 1 + 5 * 1e-4, "ADOPT": 0.0, "Adam": 1.0,
    }  # fmt: skip
    for name, size in expected.items():
        p = torch.nn.Parameter(torch.zeros(4))
        optimizer = getattr(halfulp, name)([p], lr=1e-3, state="fp32")
        p.grad = torch.ones(4)
        optimizer.step()
        assert -p.detach()[0].item() / 1e-3 == pytest.approx(size, rel=6e-4, abs=1e-9), name


def test_amsgrad_converges_where_adam_does_not() -> None:
    """Reddi et al.: f_t(x) = 3x every third step, else -x, on [-1, 1]; the minimum is at -1."""
    ends = {}
    for amsgrad in (False, True):
        x = torch.nn.Parameter(torch.zeros(1))
        optimizer = halfulp.Adam([x], lr=0.1, betas=(0.0, 0.1), state="fp32", amsgrad=amsgrad)
        for t in range(1, 3001):
            optimizer.param_groups[0]["lr"] = 0.5 / math.sqrt(t)
            x.grad = torch.tensor([3.0 if t % 3 == 1 else -1.0])
            optimizer.step()
            x.data.clamp_(-1.0, 1.0)
        ends[amsgrad] = x.item()
    assert ends[False] > 0.9
    assert ends[True] < -0.9


def test_lamb_steps_have_the_norm_of_the_weights() -> None:
    for scale in (1e-3, 1.0, 1e3):
        p = torch.nn.Parameter(START.clone())
        optimizer = halfulp.LAMB([p], lr=0.1, eps=0.0, state="fp32")
        p.grad = CURVATURE * START * scale
        optimizer.step()
        assert float((p.detach() - START).norm()) == pytest.approx(0.1 * float(START.norm()), rel=1e-5)


def test_spikes_are_cut_to_seventy_roots() -> None:
    p = torch.nn.Parameter(torch.zeros(4))
    optimizer = halfulp.SPAM([p], lr=0.0, state="fp32")
    for _ in range(30):
        p.grad = torch.ones(4)
        optimizer.step()
    before = optimizer.state_tensor(p, "exp_avg_sq").clone()
    p.grad = torch.full((4,), 1e6)
    optimizer.step()
    expected = 0.999 * before + 0.001 * 5000 * before
    assert torch.allclose(optimizer.state_tensor(p, "exp_avg_sq"), expected, rtol=1e-5)


def test_adaptive_memory_stays_in_its_bounds() -> None:
    p = torch.nn.Parameter(START.clone())
    optimizer = halfulp.AMSGD([p], lr=0.1, state="fp32")
    decays = []
    for _ in range(5):
        p.grad = CURVATURE * p.detach()
        optimizer.step()
        decays.append(optimizer.coefficients(p)["momentum_buffer"][0])
    momentum = [d * 1.1 - 0.1 for d in decays[1:]]
    assert momentum == pytest.approx([0.9, 0.9, 0.9, 0.813555], abs=2e-6)


def test_smmf_keeps_sums_and_rank_one() -> None:
    from halfulp.rules.factored import _compress, _pack_signs, _unpack_signs

    x = torch.rand(5, 7)
    row, col = _compress(x)
    back = row.unsqueeze(1) * col
    assert torch.allclose(back.sum(0), x.sum(0))
    assert torch.allclose(back.sum(1), x.sum(1))
    one = torch.outer(torch.rand(5), torch.rand(7))
    row, col = _compress(one)
    assert torch.allclose(row.unsqueeze(1) * col, one)
    signed = torch.randn(61)
    assert torch.equal(_unpack_signs(_pack_signs(signed), 61), torch.where(signed < 0, -1.0, 1.0))


def test_hyper_parameters_are_checked_and_shown() -> None:
    import inspect

    names = list(inspect.signature(halfulp.AdEMAMix).parameters)
    assert names[:2] == ["params", "lr"]
    assert {"alpha", "warmup", "state", "transforms"} <= set(names)
    p = [torch.nn.Parameter(torch.zeros(2))]
    with pytest.raises(ValueError, match="betas must be in"):
        halfulp.AdaBelief(p, betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="betas are 3 numbers"):
        halfulp.CAME(p, betas=(0.9, 0.99))
    with pytest.raises(TypeError, match="Did you mean 'alpha'"):
        halfulp.AdEMAMix(p, alhpa=2.0)
    with pytest.raises(ValueError, match="a list of functions"):
        halfulp.Adam(p, transforms=[1.0])
    with pytest.raises(ValueError, match="sums over the model"):
        halfulp.AMSGD(p, transforms=[halfulp.clip_global(1.0)])
