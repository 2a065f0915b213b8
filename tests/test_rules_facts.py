"""Facts that distinguish the optimizers: step sizes, counterexamples, invariances, sums; in fp32 unless stated."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import halfulp
from halfulp.rules.adam import ADAM, AdamHyper, max_ratio
from halfulp.rules.adopt import ADOPT, ADOPTHyper
from halfulp.rules.base import Rule
from halfulp.rules.hyper import HyperBase

START = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
CURVATURE = torch.tensor([[1.0, 0.1], [0.01, 2.0]])


def one_step(name: str, param: Tensor, grad: Tensor, **arguments: Any) -> Tensor:
    """What one step takes off a parameter."""
    p = torch.nn.Parameter(param.clone())
    optimizer = getattr(halfulp, name)([p], **{"state": "fp32", "weight_decay": 0.0, **arguments})
    p.grad = grad.clone()
    optimizer.step()
    return param - p.detach()


# ---------------------------------------------------------------- sizes of steps


@pytest.mark.parametrize(
    ("name", "size"),
    [("Adam", 1.0), ("AdaBelief", 1 / 0.9), ("AdaMomentum", 10.0), ("AdaMod", 1e-4), ("ADOPT", 0.0),
     ("DiffGrad", 1 / (1 + math.exp(-1))), ("EXAdam", 11 * 1.999 / math.sqrt(1.9)), ("AdEMAMix", 1 + 5 * 1e-4),
     ("AMAdamW", 1 / (1 + 0.1 * 0.11))],
)  # fmt: skip
def test_first_step_for_a_gradient_of_one_in_learning_rates(name: str, size: float) -> None:
    found = one_step(name, torch.zeros(4), torch.ones(4), lr=1e-3) / 1e-3
    assert found.tolist() == pytest.approx([size] * 4, rel=6e-4, abs=1e-9)


@pytest.mark.parametrize("gradient", [1.0, -1.0, 0.008, 27.0])
def test_madgrads_first_step_follows_the_cube_root(gradient: float) -> None:
    """``(1 - momentum) * lr**(2/3) * |g|**(1/3)``, along the gradient."""
    found = one_step("MADGRAD", torch.zeros(2), torch.full((2,), gradient), lr=0.01, eps=0.0)
    expected = 0.1 * 0.01 ** (2 / 3) * math.copysign(abs(gradient) ** (1 / 3), gradient)
    assert found.tolist() == pytest.approx([expected] * 2, rel=1e-5)


def test_a_constant_gradient_moves_adam_by_its_rate_each_step() -> None:
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = halfulp.Adam([p], lr=1e-3, eps=0.0, state="fp32")
    gradient = torch.tensor([1e-6, -3.0, 1e6])
    for step in range(1, 50):
        p.grad = gradient.clone()
        optimizer.step()
        assert p.tolist() == pytest.approx((-1e-3 * step * gradient.sign()).tolist(), rel=1e-5)


@pytest.mark.parametrize("state", ["fp32", "bf16", "fp8", "4bit"])
def test_without_gradient_adamw_only_decays(state: str) -> None:
    """``x * (1 - lr * decay)**t``, to the bit, in any format."""
    p = torch.nn.Parameter(torch.randn(8, 64))
    expected = p.detach().clone()
    optimizer = halfulp.AdamW([p], lr=0.1, weight_decay=0.3, state=state, min_size=0)
    keep = torch.tensor(1 - 0.1 * 0.3)
    for _ in range(20):
        p.grad = torch.zeros(8, 64)
        optimizer.step()
        expected = expected * keep
    assert torch.equal(p.detach(), expected)


def test_a_constant_gradient_makes_adabelief_faster_until_its_floor() -> None:
    """No surprise: the second moment falls towards eps / (1 - beta2), and the step grows to its root."""
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = halfulp.AdaBelief([p], lr=1e-3, betas=(0.5, 0.9), eps=1e-10, state="fp32")
    steps = []
    for _ in range(400):
        before = p.detach().clone()
        p.grad = torch.ones(2)
        optimizer.step()
        steps.append(float((before - p.detach())[0]))
    assert sorted(set(steps[1:100])) == steps[1:100]  # each larger than the one before
    assert steps[-1] / 1e-3 == pytest.approx((1e-10 / 0.1) ** -0.5, rel=0.02)


def test_equal_gradients_halve_diffgrad() -> None:
    p, q = torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.zeros(4))
    ours, adam = halfulp.DiffGrad([p], lr=1e-3, state="fp32"), halfulp.Adam([q], lr=1e-3, state="fp32")
    for _ in range(3):
        before = p.detach().clone(), q.detach().clone()
        p.grad, q.grad = torch.full((4,), 0.7), torch.full((4,), 0.7)
        ours.step()
        adam.step()
    torch.testing.assert_close(p.detach() - before[0], (q.detach() - before[1]) / 2, rtol=1e-4, atol=0)


def test_lars_and_lamb_steps_have_the_norm_of_the_weights() -> None:
    for scale in (1e-3, 1.0, 1e3):
        lamb = one_step("LAMB", START, CURVATURE * START * scale, lr=0.1, eps=0.0)
        assert float(lamb.norm()) == pytest.approx(0.1 * float(START.norm()), rel=1e-5)
        lars = one_step("LARS", START, CURVATURE * START * scale, lr=100.0)
        assert float(lars.norm()) == pytest.approx(100 * 1e-3 * float(START.norm()), rel=1e-5)
    limited = one_step("LAMB", START, START, lr=0.1, max_norm=2.0)
    assert float(limited.norm()) == pytest.approx(0.2, rel=1e-5)


def test_gravity_shrinks_large_gradients() -> None:
    """Alone in its tensor, g becomes g / (1 + g**4): largest, 0.56988, at g = 3**-0.25."""

    def shrunk(g: float) -> float:
        return float(one_step("Gravity", torch.zeros(1), torch.tensor([g]), lr=1.0, alpha=0.0)[0]) / (1 - 1.9 / 3)

    peak = 3**-0.25
    assert shrunk(peak) == pytest.approx(0.56988, abs=1e-5)
    assert max(shrunk(peak * f) for f in (0.9, 0.98, 1.02, 1.1)) < shrunk(peak)


# ---------------------------------------------------------------- invariance to the scale of gradients

INVARIANT: dict[str, dict[str, Any]] = {
    "Adam": {"eps": 0.0}, "AdaBelief": {"eps": 0.0}, "AdEMAMix": {"eps": 0.0}, "ADOPT": {"eps": 0.0}, "Lion": {},
    "SPAM": {"eps": 0.0}, "SMMF": {"eps": 0.0}, "Adafactor": {"eps": 0.0}, "CAME": {"eps": (0.0, 1e-16)},
    "SubsetNorm": {"eps": 0.0}, "SubspaceMomentum": {"eps": 0.0, "rank": 2}, "FRUGAL": {"eps": 0.0},
    "LAMB": {"eps": 0.0}, "Muon": {}, "Conda": {"eps": 0.0}, "SWATS": {"eps": 0.0},
    "MicroAdam": {"eps": 0.0, "density": 0.25}, "BAdam": {"eps": 0.0},
}  # fmt: skip


@pytest.mark.parametrize("state", ["fp32", "fp8", "8bit"])
@pytest.mark.parametrize("name", INVARIANT)
def test_scaled_gradients_make_the_same_steps(name: str, state: str) -> None:
    """By a power of two, to the bit: in fp32, and with states whose scales are powers of two."""
    ends = []
    for scale in (1.0, 2.0**6):
        generator = torch.Generator().manual_seed(4)
        p = torch.nn.Parameter(torch.randn(8, 64, generator=generator))
        arguments = {"lr": 0.01, "weight_decay": 0.0, "state": state, "min_size": 0, **INVARIANT[name]}
        optimizer = getattr(halfulp, name)([p], **arguments)
        for _ in range(12):
            p.grad = torch.randn(8, 64, generator=generator) * scale
            optimizer.step()
        ends.append(p.detach())
    assert torch.isfinite(ends[0]).all()
    assert torch.equal(*ends)


# ---------------------------------------------------------------- counterexamples


def drive(
    rule: Rule, hyper: HyperBase, gradient: Callable[[int], Tensor], rate: Callable[[int], float], steps: int,
    start: int = 0,
) -> Tensor:  # fmt: skip
    """Weights in [-1, 1] after a rule's steps, one problem an element; the mean over the last tenth of the steps.

    The engine is left out (half of the time of a step this small); ages begin at `start`.
    """
    x = torch.zeros_like(gradient(1))
    states = {s.name: torch.zeros_like(x) for s in rule.slots(vars(hyper))}
    tail = torch.zeros_like(x)
    for t in range(1, steps + 1):
        group = {**vars(hyper), "lr": rate(t), "bound_update": False}
        c = rule.scalars(group, dict.fromkeys((*states, "step"), t + start))
        x, states = rule.update(x, gradient(t), states, c)
        x = x.clamp(-1.0, 1.0)
        if t > 0.9 * steps:
            tail += x
    return tail / (steps - int(0.9 * steps))


def test_amsgrad_converges_where_adam_does_not() -> None:
    """Reddi et al., 1904.09237, section 3: f_t(x) = 3x every third step, else -x, on [-1, 1]; the minimum is -1."""
    three, minus = torch.tensor([3.0]), torch.tensor([-1.0])
    ends = {}
    for amsgrad in (False, True):
        hyper = AdamHyper(betas=(0.0, 0.1), amsgrad=amsgrad)
        ends[amsgrad] = drive(ADAM, hyper, lambda t: three if t % 3 == 1 else minus, lambda t: 0.1 / t**0.5, 30_000)
    assert float(ends[False]) > 0.99
    assert float(ends[True]) < -0.99


def rare_gradients(k: int, seed: int = 0) -> Callable[[int], Tensor]:
    """``k**2`` with probability 1/k, else ``-k``: of mean 1, so that the minimum on [-1, 1] is at -1."""
    generator = torch.Generator().manual_seed(seed)
    return lambda t: torch.where(torch.rand(64, generator=generator) < 1 / k, float(k * k), -float(k))


@pytest.mark.parametrize("beta2", [0.1, 0.9])
def test_adopt_converges_for_a_beta2_where_adam_does_not(beta2: float) -> None:
    """Taniguchi et al., 2411.02853, figure 1, k = 10; ADOPT from an age where its clip no longer binds (see below)."""

    def rate(t: int) -> float:
        return 0.05 / math.sqrt(1 + 0.01 * t)

    adam = drive(ADAM, AdamHyper(betas=(0.9, beta2)), rare_gradients(10), rate, 8000)
    adopt = drive(ADOPT, ADOPTHyper(betas=(0.9, beta2)), rare_gradients(10), rate, 8000, start=20_000)
    free = drive(ADOPT, ADOPTHyper(betas=(0.9, beta2), clip=False), rare_gradients(10), rate, 8000)
    assert float(adam.mean()) > 0.7
    assert float(adopt.mean()) < -0.7
    assert float(free.mean()) < -0.7


def clipped_drive(k: int, limit: float) -> float:
    """Mean of ``clip(g_t / |g_(t-1)|, limit)`` for the gradients above: what ADOPT averages at beta2 = 0."""
    p = 1 / k
    large = p * min(1.0, limit) + (1 - p) * min(float(k), limit)
    small = p * min(1 / k, limit) + (1 - p) * min(1.0, limit)
    return p * large - (1 - p) * small


@pytest.mark.parametrize(("k", "age", "sign"), [(10, 100, -1), (10, 10_001, 1), (50, 100_000, -1), (50, 6_250_001, 1)])
def test_adopts_clip_is_a_trap_until_step_k_to_the_fourth(k: int, age: int, sign: int) -> None:
    """The clip at (t - 1)**(1/4) cuts the rare large gradient, which leaves ADOPT going the wrong way for as long."""
    generator = torch.Generator().manual_seed(1)
    rare = torch.rand(2, 4_000_000, generator=generator) < 1 / k
    before, grad = torch.where(rare, float(k * k), -float(k))
    hyper = {**vars(ADOPTHyper(betas=(0.0, 0.0), lr=1.0)), "bound_update": False}
    c = ADOPT.scalars(hyper, {"exp_avg": age, "exp_avg_sq": age, "step": age})
    states = {"exp_avg": torch.zeros_like(grad), "exp_avg_sq": before * before}
    moved, _ = ADOPT.update(torch.zeros_like(grad), grad, states, c)
    found, expected = -moved.double().mean().item(), clipped_drive(k, (age - 1) ** 0.25)
    assert found == pytest.approx(expected, abs=0.02)
    assert math.copysign(1, expected) == sign
    assert math.copysign(1, found) == sign


@pytest.mark.parametrize(
    ("lr", "size", "phase", "radius"),
    [(0.1, 0.8, 0.141 * math.pi, 0.962), (0.01, 0.9, math.pi / 8, 0.9995), (0.1, 0.9, 0.0, 1.198),
     (0.1, 0.9, math.pi / 8, 1.053), (0.1, 0.0, 0.0, 1.005)],
)  # fmt: skip
def test_complex_momentum_solves_the_game_that_heavy_ball_diverges_on(
    lr: float, size: float, phase: float, radius: float
) -> None:
    """min over x, max over y of x * y, both at once: growth a step is the spectral radius of the update's map."""
    beta = cmath.rect(size, phase)
    z, momentum, theory = 1.0 + 0.0j, [0.0j, 0.0j], []  # by hand: x and y are the parts of z
    p = torch.nn.Parameter(torch.tensor([1.0, 0.0]))
    optimizer = halfulp.ComplexMomentum([p], lr=lr, momentum=size, phase=phase, state="fp32")
    steps, sizes = (3000 if radius == 0.9995 else 150), []
    for _ in range(steps):
        p.grad = torch.stack([p.detach()[1], -p.detach()[0]])
        optimizer.step()
        momentum = [beta * m - g for m, g in zip(momentum, (z.imag, -z.real), strict=True)]
        z = complex(z.real + lr * momentum[0].real, z.imag + lr * momentum[1].real)
        sizes.append(math.log(float(p.detach().norm())))
        theory.append(math.log(abs(z)))
    assert sizes[50] == pytest.approx(theory[50], abs=1e-3)
    half = steps // 2
    assert math.exp((sizes[-1] - sizes[half]) / (steps - 1 - half)) == pytest.approx(radius, abs=2e-3)


# ---------------------------------------------------------------- directions


def test_adamp_takes_no_step_along_scale_invariant_weights() -> None:
    """A loss of the direction alone has gradients at right angles to the weights; a projected step has too."""
    torch.manual_seed(0)
    target, norms = torch.nn.functional.normalize(torch.randn(4, 64), dim=1), {}
    for name in ("Adam", "AdamP"):
        torch.manual_seed(1)
        p = torch.nn.Parameter(torch.randn(4, 64))
        start = p.detach().norm()
        optimizer = getattr(halfulp, name)([p], lr=0.02, state="fp32")
        for _ in range(50):
            before = p.detach().clone()
            optimizer.zero_grad()
            (-(torch.nn.functional.normalize(p, dim=1) * target).sum()).backward()
            optimizer.step()
            if name == "AdamP":
                step = p.detach() - before
                cosine = torch.nn.functional.cosine_similarity(step, before, dim=1)
                assert cosine.abs().max() < 1e-5
        norms[name] = float(p.detach().norm() / start)
    assert 1.0 < norms["AdamP"] < norms["Adam"]


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (8, 4, 3, 3)])
def test_muon_steps_are_nearly_orthogonal(shape: tuple[int, ...]) -> None:
    """Singular values between 0.7 and 1.2, whatever those of the gradient; sized as AdamW's, 0.2 a weight."""
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    grad = grad * torch.logspace(0, -1, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    step = one_step("Muon", torch.zeros(shape), grad, lr=1.0).reshape(shape[0], -1)
    values = torch.linalg.svdvals(step) / (0.2 * math.sqrt(max(step.shape)))
    assert float(values.min()) > 0.68
    assert float(values.max()) < 1.21


def test_swats_switches_where_adams_steps_are_sgds() -> None:
    """Steps along the gradient, p = -c g, have the rate c in each step: SGD takes over after the second, at c."""
    p = torch.nn.Parameter(torch.zeros(6))
    optimizer = halfulp.SWATS([p], lr=1e-3, state="fp32")
    sign = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0])
    for step in range(1, 7):
        before = p.detach().clone()
        p.grad = sign * 4.0
        optimizer.step()
        moved, rate = before - p.detach(), float(optimizer.state_tensor(p, "sgd_rate"))
        if step <= 2:
            torch.testing.assert_close(moved, 1e-3 * sign, rtol=1e-5, atol=0)
        else:  # the momentum restarts
            torch.testing.assert_close(moved, 1e-3 / 4 * (1 - 0.9 ** (step - 2)) * sign * 4, rtol=1e-4, atol=0)
        assert rate * 1e-3 == pytest.approx(0.0 if step < 2 else 1e-3 / 4, rel=1e-5)


# ---------------------------------------------------------------- sums and factors


def test_adafactor_is_exact_on_squares_of_rank_one() -> None:
    """The first step of a gradient u v' is the sign, at the rate of the weights; and states are rows and columns."""
    generator = torch.Generator().manual_seed(0)
    grad = torch.outer(torch.randn(8, generator=generator), torch.randn(12, generator=generator))
    weights = torch.randn(8, 12, generator=generator)
    step = one_step("Adafactor", weights, grad, lr=0.01)
    rate = 0.01 * float(weights.pow(2).mean().sqrt())
    torch.testing.assert_close(step, grad.sign() * rate, rtol=1e-4, atol=1e-7)
    p = torch.nn.Parameter(weights)
    assert halfulp.Adafactor([p], state="fp32").memory().total == 4 * (8 + 12)
    assert halfulp.CAME([p], state="fp32").memory().total == 4 * (8 * 12 + 2 * (8 + 12))


def test_adafactors_decay_passes_that_of_adam_where_predicted() -> None:
    """``1 - t**-0.8`` reaches beta at t = (1 - beta)**-1.25: 0.999 at step 5623."""
    from halfulp.rules.factored import ADAFACTOR, AdafactorHyper

    def decay(t: int) -> float:
        return float(ADAFACTOR.scalars(vars(AdafactorHyper()), {"step": t, "exp_avg_sq_row": t})["decay"])

    assert decay(5623) < 0.999 < decay(5624)
    assert decay(1) == 0.0


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


def test_subset_norm_steps_shrink_by_the_root_of_the_subset() -> None:
    grad = torch.randn(16, 400, generator=torch.Generator().manual_seed(0))
    sizes = {name: float(one_step(name, torch.zeros(16, 400), grad, lr=1.0).norm()) for name in ("Adam", "SubsetNorm")}
    assert sizes["Adam"] / sizes["SubsetNorm"] == pytest.approx(400**0.5, rel=1e-3)


def test_what_microadam_keeps_and_feeds_back_adds_up_to_the_gradients() -> None:
    p = torch.nn.Parameter(torch.zeros(3, 3000))
    optimizer = halfulp.MicroAdam([p], lr=0.0, density=0.02, window=20, state="fp32")
    generator, total = torch.Generator().manual_seed(0), torch.zeros(3, 3000)
    for _ in range(15):
        p.grad = torch.randn(3, 3000, generator=generator)
        total += p.grad
        optimizer.step()
    from halfulp.rules.micro_adam import _unpack

    kept, window = torch.zeros(3, 4096), optimizer.state_tensor(p, "window")
    index = optimizer.state_tensor(p, "window_index")
    for row in range(15):
        where = _unpack(index[row], window.shape[1]).reshape(3, -1)
        kept.scatter_add_(1, where, window[row].reshape(3, -1))
    kept = kept.reshape(-1)[:9000].reshape(3, 3000)
    torch.testing.assert_close(kept + optimizer.state_tensor(p, "error"), total, rtol=1e-5, atol=1e-5)
    assert int((window != 0).sum()) == 15 * 3 * math.ceil(0.02 * 4096)


def test_microadams_moments_forget_at_the_window() -> None:
    """A gradient of one step, then none: it moves the weights for as many steps as the window is long."""
    p = torch.nn.Parameter(torch.zeros(10))
    optimizer = halfulp.MicroAdam([p], lr=1e-3, density=1.0, window=4, state="fp32")
    moved = []
    for step in range(7):
        before = p.detach().clone()
        p.grad = torch.ones(10) if step == 0 else torch.zeros(10)
        optimizer.step()
        moved.append(bool((p.detach() != before).all()))
    assert moved == [True] * 4 + [False] * 3


# ---------------------------------------------------------------- clipping and memory


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


def test_spam_restarts_at_a_hundredth_of_its_rate() -> None:
    """Its bias correction does not start again: the first ratio is 0.1 / sqrt(0.001), the warm-up's factor 0.01."""
    p = torch.nn.Parameter(torch.zeros(4))
    optimizer = halfulp.SPAM([p], lr=1e-3, eps=0.0, threshold=0.0, period=400, state="fp32")
    for _ in range(400):
        before = p.detach().clone()
        p.grad = torch.ones(4)
        optimizer.step()
    correction = (1 - 0.999**400) ** 0.5
    assert (before - p.detach()).tolist() == pytest.approx([1e-5 * 3.1623 * correction] * 4, rel=1e-3)


def test_adaptive_memory_follows_its_closed_form() -> None:
    p = torch.nn.Parameter(START.clone())
    optimizer = halfulp.AMSGD([p], lr=0.1, state="fp32")
    momentum, direction = [], None
    for _ in range(5):
        grad = CURVATURE * p.detach()
        if direction is not None:
            ratio = float(grad.pow(2).sum() / (direction - grad).pow(2).sum())
            expected = min(max(ratio, 0.1 / 1.1), 1.0 / 1.1)
        p.grad = grad
        optimizer.step()
        decay = optimizer.coefficients(p)["momentum_buffer"][0]
        if direction is not None:
            assert decay == pytest.approx(expected, rel=1e-5)
            momentum.append(decay * 1.1 - 0.1)
        direction = optimizer.state_tensor(p, "momentum_buffer").clone()
    assert momentum == pytest.approx([0.9, 0.9, 0.9, 0.813555], abs=2e-6)


def test_ademamix_without_its_slow_part_has_a_finite_bound() -> None:
    optimizer = halfulp.AdEMAMix([torch.nn.Parameter(torch.zeros(4))], alpha=0.0, warmup=3)
    group = {**optimizer.param_groups[0], "bound_update": True}
    rule = optimizer.active_rules(group)[0]
    for age in (1, 5):
        ages = {"step": age, **{slot.name: age for slot in rule.slots(group)}}
        assert 0.0 < rule.scalars(group, ages)["bound"] < math.inf


@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.999), (0.9, 0.81), (0.95, 0.85), (0.5, 0.9), (0.0, 0.99)])
@pytest.mark.parametrize("age", [1, 2, 10, 100])
def test_the_bound_of_adams_update_is_the_largest_there_is(beta1: float, beta2: float, age: int) -> None:
    """Gradients that fall by ``beta1 / beta2`` a step, backwards, reach it; no others go beyond."""
    past = torch.arange(age, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    grads = torch.cat([
        (beta1 / beta2) ** past.unsqueeze(0), torch.randn(200, age, generator=generator, dtype=torch.float64)
    ])  # fmt: skip
    m = (1 - beta1) * (beta1**past * grads).sum(dim=1) / (1 - beta1**age)
    v = (1 - beta2) * (beta2**past * grads.square()).sum(dim=1) / (1 - beta2**age)
    ratios = (m / v.sqrt()).abs()
    assert max_ratio(beta1, beta2, age) == pytest.approx(float(ratios[0]), rel=1e-9)
    assert float(ratios.max()) <= max_ratio(beta1, beta2, age) * (1 + 1e-9)


def test_bounds_of_adams_update_at_its_ends() -> None:
    assert max_ratio(0.9, 0.999, 10**6) == pytest.approx(7.27, abs=0.005)
    assert max_ratio(0.9, 0.5, 10**4) == math.inf  # recent gradients may outgrow the second moment
    assert [max_ratio(beta1, 0.0, age) for beta1, age in ((0.9, 1), (0.9, 2), (0.0, 2))] == [1.0, math.inf, 1.0]
