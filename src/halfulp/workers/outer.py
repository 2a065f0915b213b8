"""Methods with an outer optimizer: workers start from a center, which is stepped along their mean change.

The rules are declared like those of the library, so their states may have any format, and :class:`halfulp.StallMonitor`
can watch them (``halfulp.StallMonitor(optimizer.outer)``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from halfulp.optim import SGD
from halfulp.optim.base import optimizer
from halfulp.rules.base import Ages, Rule, Scalars, States, ema, sqrt
from halfulp.rules.hyper import HyperBase
from halfulp.rules.slots import GRADIENT, SQUARE, Hyper, StateSlot
from halfulp.workers.graphs import draws
from halfulp.workers.meeting import meeting
from halfulp.workers.method import Method, Seen

__all__ = ["DiLoCo", "FedAdagrad", "FedAdam", "FedAvg", "FedYogi", "SlowMo"]

Params = Sequence[tuple[str, Tensor]]
MOMENT = StateSlot("exp_avg", signed=True, decay=lambda h: h["betas"][0], drive=GRADIENT)


def _sgd(params: Params, lr: float, momentum: float, states: dict[str, Any]) -> torch.optim.Optimizer:
    return SGD(params, lr=lr, momentum=momentum, nesterov=momentum > 0, **states)


# ---------------------------------------------------------------- DiLoCo


@dataclass(frozen=True)
class DiLoCoHyper(HyperBase):
    """Hyper-parameters of DiLoCo.

    Parameters
    ----------
    lr, momentum
        Arguments of the outer optimizer, SGD with Nesterov momentum.
    outer
        Another outer optimizer, as a function that builds it from parameters: ``lambda params: halfulp.AdamW(params,
        lr=1e-2, state="4bit")``. `lr`, `momentum` and `state` are then ignored.
    """

    lr: float = 0.7
    momentum: float = 0.9
    outer: Callable[[Params], torch.optim.Optimizer] | None = None


def _diloco(params: Params, hyper: DiLoCoHyper, states: dict[str, Any]) -> torch.optim.Optimizer:
    return _sgd(params, hyper.lr, hyper.momentum, states) if hyper.outer is None else hyper.outer(params)


DiLoCo = meeting(Method(
    title="DiLoCo", hyper=DiLoCoHyper, centre="outer", outer=_diloco, every=500,
    summary="an outer optimizer takes the workers' mean change as its gradient",
    source="Douillard et al., arXiv 2311.08105",
    example='every=500, message="8bit", state="8bit"',
    notes="With ``lr=1, momentum=0`` it is :class:`LocalSGD`.",
))  # fmt: skip

# ---------------------------------------------------------------- SlowMo


@dataclass(frozen=True)
class SlowMoHyper(HyperBase):
    """Hyper-parameters of SlowMo.

    Parameters
    ----------
    lr
        Slow learning rate, a factor of the fast one.
    momentum
        Decay of the slow momentum.
    """

    lr: float = 1.0
    momentum: float = 0.5


@dataclass(frozen=True)
class SlowStepHyper(SlowMoHyper):
    """Hyper-parameters of the outer step of SlowMo.

    Parameters
    ----------
    fast_lr
        The learning rate of the workers.
    """

    fast_lr: float = 1.0


def _slow_slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    decay = StateSlot("momentum_buffer", signed=True, decay=lambda h: h["momentum"], drive=GRADIENT, gain=lambda h: 1.0)
    return (decay,)


def _slow_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    fast = float(hyper["fast_lr"])
    inverse = 1.0 / fast if fast > 0 else 0.0
    return {"momentum": hyper["momentum"], "inverse": inverse, "step": float(hyper["lr"]) * fast}


def _slow_update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    buffer = states["momentum_buffer"] * c["momentum"] + grad * c["inverse"]
    return param - buffer * c["step"], {"momentum_buffer": buffer}


SLOW_STEP = Rule(
    "slow_momentum", _slow_slots, _slow_scalars, _slow_update, hyper=SlowStepHyper, title="SlowStep",
    summary="momentum over the mean change of workers, in units of their learning rate",
    example=""">>> import torch
>>> optimizer = SlowStep([torch.nn.Parameter(torch.ones(4))], momentum=0.5, fast_lr=0.1)""",
)  # fmt: skip
SlowStep = optimizer(SLOW_STEP)


def _slowmo(params: Params, hyper: SlowMoHyper, states: dict[str, Any]) -> torch.optim.Optimizer:
    return SlowStep(params, lr=hyper.lr, momentum=hyper.momentum, **states)


SlowMo = meeting(Method(
    title="SlowMo", hyper=SlowMoHyper, centre="outer", outer=_slowmo, every=12,
    summary="local SGD with momentum over the meetings", source="Wang et al., arXiv 1910.00643",
    example='message="8bit", state="8bit"',
    notes="``u <- momentum u + (x0 - mean) / fast_lr; x <- x0 - lr fast_lr u``, where `fast_lr` is the current "
    "learning rate of the inner optimizer's first group. The states of that optimizer are kept.",
))  # fmt: skip

# ---------------------------------------------------------------- federated


@dataclass(frozen=True)
class FedAvgHyper(HyperBase):
    """Hyper-parameters of FedAvg.

    Parameters
    ----------
    lr
        Learning rate of the server. With 1, the center becomes the clients' mean.
    participation
        Share of the workers that are drawn as clients of a round, at least one. ``optimizer.takes_part`` says whether
        this worker is one.
    """

    lr: float = 1.0
    participation: float = 1.0

    above_zero = ("participation",)
    at_most: ClassVar[dict[str, float]] = {"participation": 1}


@dataclass(frozen=True)
class ServerHyper(HyperBase):
    """Hyper-parameters of the server's step.

    Parameters
    ----------
    lr
        Learning rate of the server.
    betas
        Decays of the server's first and second moment. FedAdagrad does not use the second.
    tau
        Added to the root of the second moment, which starts at ``tau ** 2``.
    """

    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    tau: float = 1e-3

    def check(self) -> None:
        """See :class:`~halfulp.rules.hyper.HyperBase`."""
        super().check()
        if not self.tau > 0.0:
            raise ValueError(f"tau is above 0, since the second moment may be 0; got {self.tau}")


@dataclass(frozen=True)
class FedHyper(ServerHyper, FedAvgHyper):
    """Hyper-parameters of federated optimizers: those of the server's step, and who takes part."""


def clients(hyper: FedAvgHyper, seed: int, number: int, workers: int) -> tuple[int, ...]:
    """Return the workers drawn for a round, the same on every worker."""
    count = max(1, round(hyper.participation * workers))
    return tuple(sorted(draws(seed, "clients", number, workers).argsort()[:count].tolist()))


def _by_samples(hyper: FedAvgHyper, seen: Seen) -> Tensor:
    row = torch.zeros(len(seen.circle), dtype=torch.float64, device="cpu")
    drawn = list(clients(hyper, seen.seed, seen.meeting, len(seen.circle)))
    row[drawn] = seen.samples[drawn]
    if not float(row.sum()) > 0:
        raise ValueError(f"no client of round {seen.meeting} has samples: optimizer.report(samples=...) gave {row}")
    return row / row.sum()


def _fed_slots(second: StateSlot) -> Callable[[Hyper], tuple[StateSlot, ...]]:
    def slots(hyper: Hyper) -> tuple[StateSlot, ...]:
        tau = hyper["tau"]
        return MOMENT, replace(second, init=lambda param: torch.full_like(param, tau * tau))

    return slots


def _fed_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    beta1, beta2 = hyper["betas"]
    return {"weight1": 1 - beta1, "weight2": 1 - beta2, "tau": hyper["tau"], "lr": float(hyper["lr"])}


def _fed_update(name: str, second: Callable[[Tensor, Tensor, Scalars], Tensor]) -> Callable[..., tuple[Tensor, States]]:
    def update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
        exp_avg = ema(states["exp_avg"], grad, c["weight1"])
        squares = second(states[name], grad * grad, c)
        return param - exp_avg * c["lr"] / (sqrt(squares) + c["tau"]), {"exp_avg": exp_avg, name: squares}

    return update


def _fed_rule(title: str, slot: StateSlot, second: Callable[[Tensor, Tensor, Scalars], Tensor]) -> Rule:
    return Rule(
        title.lower(), _fed_slots(slot), _fed_scalars, _fed_update(slot.name, second), hyper=ServerHyper, title=title,
        summary="the server's step", source="Reddi et al., arXiv 2003.00295",
        example=f""">>> import torch
>>> optimizer = {title}([torch.nn.Parameter(torch.ones(4))], lr=0.1)""",
    )  # fmt: skip


SQUARES = StateSlot("exp_avg_sq", signed=False, decay=lambda h: h["betas"][1], drive=SQUARE)
AdagradServer = optimizer(
    _fed_rule("AdagradServer", StateSlot("sum", signed=False, decay=lambda h: 1.0), lambda v, square, c: v + square)
)
AdamServer = optimizer(_fed_rule("AdamServer", SQUARES, lambda v, square, c: ema(v, square, c["weight2"])))
YogiServer = optimizer(
    _fed_rule(
        "YogiServer",
        replace(SQUARES, drive=None),
        lambda v, square, c: v - square * torch.sign(v - square) * c["weight2"],
    )
)


def _federated(title: str, server: Any, summary: str) -> Method:
    def outer(params: Params, hyper: FedHyper, states: dict[str, Any]) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = server(params, lr=hyper.lr, betas=hyper.betas, tau=hyper.tau, **states)
        return made

    return Method(
        title=title, hyper=FedHyper, mix=_by_samples, clients=clients, centre="outer", outer=outer, every=10,
        summary=summary, source="Reddi et al., arXiv 2003.00295", example='message="8bit", state="8bit"',
        notes="Clients are weighted by their ``optimizer.report(samples=...)``, or without a report by their steps. "
        "There is no bias correction.",
    )  # fmt: skip


FedAvg = meeting(Method(
    title="FedAvg", hyper=FedAvgHyper, mix=_by_samples, clients=clients, centre="outer", every=10,
    outer=lambda params, hyper, states: _sgd(params, hyper.lr, 0.0, states),
    summary="the center becomes the mean of the sampled clients, weighted by their numbers of samples",
    source="McMahan et al., arXiv 1602.05629", example='participation=0.5, message="8bit"',
    notes="Clients are weighted by their ``optimizer.report(samples=...)``, or without a report by their steps.",
))  # fmt: skip
FedAdagrad = meeting(_federated("FedAdagrad", AdagradServer, "Adagrad over the clients' mean change"))
FedAdam = meeting(_federated("FedAdam", AdamServer, "Adam over the clients' mean change"))
FedYogi = meeting(_federated("FedYogi", YogiServer, "Yogi over the clients' mean change"))
