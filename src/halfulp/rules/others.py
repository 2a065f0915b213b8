"""Rules that fit no other module: Gravity, complex momentum, CoRe."""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from halfulp.rules.adam import max_ratio, moments
from halfulp.rules.base import Ages, Rule, Scalars, States, clamp, largest, sqrt
from halfulp.rules.hyper import HyperParameters
from halfulp.rules.slots import GRADIENT, SQUARE, Hyper, Shape, StateSlot
from halfulp.rules.transforms import with_weight_decay

__all__ = ["COMPLEX_MOMENTUM", "CORE", "GRAVITY", "CoReHyper", "ComplexMomentumHyper", "GravityHyper"]


# ---------------------------------------------------------------- Gravity


@dataclass(frozen=True)
class GravityHyper(HyperParameters):
    """Hyper-parameters of Gravity.

    Parameters
    ----------
    momentum
        Limit of the velocity's decay, which is ``(momentum * t + 1) / (t + 2)`` in step t.
    alpha
        Velocities start at random, with standard deviation ``alpha / lr``.
    init_seed
        Seed of the initial velocities.
    """

    lr: float | Tensor = 0.1
    momentum: float = 0.9
    alpha: float = 0.01
    init_seed: int = 0


def _gravity_slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    lr, seed = float(hyper["lr"]), hyper["init_seed"]
    deviation = hyper["alpha"] / lr if lr else 0.0

    def start(param: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(param.shape, generator=generator, dtype=torch.float32, device="cpu")
        return (drawn * deviation).to(param.device)

    return (
        StateSlot("velocity", True, lambda h: h.get("decay", h["momentum"]), drive=GRADIENT, alike=True, init=start),
    )


def _gravity_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    t = ages["velocity"]
    return {"lr": float(hyper["lr"]), "decay": (hyper["momentum"] * t + 1) / (t + 2)}


def _gravity_measure(param: Tensor, grad: Tensor, states: States, c: Scalars) -> dict[str, Tensor]:
    return {"largest": largest(grad)}


def _gravity(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    pull = grad * c["largest"]
    drive = grad / (pull * pull + 1)
    velocity = states["velocity"] * c["decay"] + drive * (1 - c["decay"])
    return param - velocity * c["lr"], {"velocity": velocity}


GRAVITY = with_weight_decay(
    Rule(
        "gravity", _gravity_slots, _gravity_scalars, _gravity, measure=_gravity_measure,
        combine=lambda sums, c: dict(sums), per_tensor=True, title="Gravity", hyper=GravityHyper,
        summary="momentum on gradients that are damped where they are large",
        source="Bahrami & Zadeh, arXiv 2101.09192",
    )
)  # fmt: skip


# ---------------------------------------------------------------- complex momentum


@dataclass(frozen=True)
class ComplexMomentumHyper(HyperParameters):
    """Hyper-parameters of complex momentum.

    Parameters
    ----------
    momentum
        Modulus of the coefficient.
    phase
        Phase of the coefficient, in [0, pi]: 0 is heavy-ball, pi is negative momentum.
    """

    lr: float | Tensor = 1e-2
    momentum: float = 0.9
    phase: float = math.pi / 8

    at_most: ClassVar[dict[str, float]] = {"phase": math.pi}


def _complex_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    size, phase = hyper["momentum"], hyper["phase"]
    return {"lr": float(hyper["lr"]), "real": size * math.cos(phase), "imag": size * math.sin(phase)}


def _complex(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    real, imag = states["momentum_real"], states["momentum_imag"]
    new_real = real * c["real"] - imag * c["imag"] - grad
    new_imag = real * c["imag"] + imag * c["real"]
    return param + new_real * c["lr"], {"momentum_real": new_real, "momentum_imag": new_imag}


def _complex_slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    def decay(h: Hyper) -> float:
        return float(h["momentum"])

    def part(name: str, which: int) -> StateSlot:
        def stalls_as(h: Hyper, shape: Shape, age: int) -> tuple[float, float]:
            return _correlations(h["momentum"], h["phase"])[which], age

        return StateSlot(name, True, decay, GRADIENT, alike=True, stalls_as=stalls_as)

    return part("momentum_real", 0), part("momentum_imag", 1)


def _correlations(size: float, phase: float) -> tuple[float, float]:
    """Return the correlations of successive values of the real and imaginary part, as decays of such averages."""
    turn = cmath.rect(size, phase)
    power, turned = 1 / (1 - size * size), 1 / (1 - turn * turn)  # E |z|**2 and E z**2 in the long run
    real, imag, cross = (power + turned.real) / 2, (power - turned.real) / 2, turned.imag / 2
    share = cross * turn.imag
    return turn.real - share / real, turn.real + share / imag if imag else turn.real


COMPLEX_MOMENTUM = with_weight_decay(
    Rule(
        "complex_momentum", _complex_slots, _complex_scalars, _complex, title="ComplexMomentum",
        hyper=ComplexMomentumHyper, summary="a complex momentum coefficient, for games",
        source="Lorraine et al., arXiv 2102.08431", notes="Phase 0 is heavy-ball, and pi is negative momentum.",
    )
)  # fmt: skip


# ---------------------------------------------------------------- CoRe


@dataclass(frozen=True)
class CoReHyper(HyperParameters):
    """Hyper-parameters of CoRe.

    Parameters
    ----------
    lr
        Initial step size of every weight.
    weight_decay
        Weight decay, relative to each weight's own step. `decoupled_weight_decay` must be true.
    betas
        Initial and final decay of the first moment, number of steps between them, and decay of the second moment.
    steps, etas
        Smallest and largest step size, and the factors after a change of sign and without one.
    eps
        Added to the root of the bias-corrected second moment.
    """

    weight_decay: float = 0.1
    betas: tuple[float, float, float, float] = (0.7375, 0.8125, 250.0, 0.99)
    steps: tuple[float, float] = (1e-6, 1e-2)
    etas: tuple[float, float] = (0.7375, 1.2)
    eps: float = 1e-8

    below_one = ()
    choices: ClassVar[dict[str, tuple[bool, ...]]] = {"decoupled_weight_decay": (True,)}

    def check(self) -> None:
        """See :class:`~halfulp.rules.hyper.HyperParameters`."""
        super().check()
        if not all(b < 1 for b in (*self.betas[:2], self.betas[3])) or self.betas[2] == 0:
            raise ValueError(f"betas are two decays, a number of steps and a decay, got {self.betas}")


def _core_beta(hyper: Hyper, step: float) -> float:
    start, end, length, _ = hyper["betas"]
    return float(end + (start - end) * math.exp(-(((step - 1) / length) ** 2)))


def _core_slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    first = float(hyper["lr"])
    return (
        StateSlot("exp_avg", True, lambda h: h.get("beta1", h["betas"][1]), drive=GRADIENT),
        StateSlot("exp_avg_sq", False, lambda h: h["betas"][3], drive=SQUARE),
        StateSlot("step_size", False, init=lambda p: torch.full_like(p, first)),
    )


def _core_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    age = ages["exp_avg"]
    beta1, beta2 = _core_beta(hyper, age), hyper["betas"][3]
    (low, high), (down, up) = hyper["steps"], hyper["etas"]
    bound = math.inf
    if hyper["bound_update"]:  # Adam's bound, with the worst of all decays so far in each place
        least, most = sorted(hyper["betas"][:2])
        largest = max_ratio(most, beta2, max(age, ages["exp_avg_sq"])) * (1 - most**age) / (1 - most)
        bound = largest * (1 - least) / (1 - beta1**age) * (1 + 1e-6)
    return {
        "first": float(age == 1), "beta1": beta1, "weight1": 1 - beta1, "beta2": beta2, "weight2": 1 - beta2,
        "correction1": 1 - beta1**age, "inv_sqrt_correction2": (1 - beta2 ** ages["exp_avg_sq"]) ** -0.5,
        "eps": hyper["eps"], "low": low, "high": high, "down": down, "up": up, "weight_decay": hyper["weight_decay"],
        "bound": bound,
    }  # fmt: skip


def _core(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    exp_avg, exp_avg_sq = moments(grad, states, c)
    agree = torch.sign(exp_avg) * torch.sign(states["exp_avg"])
    size = states["step_size"]
    if not c["first"]:
        grown, shrunk = torch.clamp(size * c["up"], max=c["high"]), torch.clamp(size * c["down"], min=c["low"])
        size = torch.where(agree > 0, grown, torch.where(agree < 0, shrunk, size))
    direction = exp_avg / c["correction1"] / (sqrt(exp_avg_sq) * c["inv_sqrt_correction2"] + c["eps"])
    step = clamp(direction, c["bound"]) * size
    param = param * (1 - step.abs() * c["weight_decay"]) - step
    return param, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "step_size": size}


CORE = Rule(
    "core", _core_slots, _core_scalars, _core, title="CoRe", hyper=CoReHyper,
    summary="Rprop's step sizes on Adam's direction", source="Eckhoff & Reiher, arXiv 2307.15663",
    notes="The weight freezing of the paper is left out.", example='lr=1e-3, state="bf16"',
)  # fmt: skip
