"""Optimizers of torch, and any that keep the same states under the same names as plain tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from halfulp.libraries.base import AUXILIARY, Group, Law, Plain, Skipped, Stored, WeightStep
from halfulp.libraries.weights import adam_update, lion_update, number, rmsprop_update, sgd_update

__all__ = ["NOT_AVERAGES", "TorchOptim", "beta", "betas_of", "plain_format"]

Optimizer = torch.optim.Optimizer


def betas_of(group: Group) -> tuple[float, ...] | None:
    """The decays of a group: ``betas``, or ``beta1``, ``beta2`` ...; ``None`` without."""
    if "betas" in group:
        return tuple(number(b) for b in group["betas"])
    if "beta1" in group:
        return tuple(number(group[k]) for k in ("beta1", "beta2", "beta3") if group.get(k) is not None)
    return None


def beta(which: int) -> Callable[[Group], float]:
    """A function that gives the decay number `which` of a group."""

    def decay(group: Group) -> float:
        betas = betas_of(group)
        if betas is None or len(betas) <= which:
            raise KeyError("betas")
        return betas[which]

    return decay


def averaging(drive: str, decay: Callable[[Group], float]) -> Law:
    """Law of an EMA whose gain is ``1 - beta``."""

    def coefficients(group: Group, age: int) -> tuple[float, float]:
        value = decay(group)
        return value, 1.0 - value

    return Law(drive, coefficients, decay)


def _momentum(group: Group, age: int) -> tuple[float, float]:
    if age == 1:  # torch starts the buffer with the gradient itself, undampened
        return 0.0, 1.0
    return number(group["momentum"]), 1.0 - number(group.get("dampening", 0.0))


def _sum(group: Group, age: int) -> tuple[float, float]:
    return 1.0, 1.0


GRAD = averaging("grad", beta(0))
GRAD_SQ = averaging("grad_sq", beta(1))
HEAVY_BALL = Law("grad", _momentum, lambda g: number(g["momentum"]))
MAXIMUM = Law("grad_max", lambda g, age: (beta(1)(g), number(g["eps"])))
SUM = Law("grad_sq", _sum)

NOT_AVERAGES = {
    "max_exp_avg_sq": AUXILIARY,
    "exp_avg_var": "an average of (grad - exp_avg)**2, which has no simple law",
    "acc_delta": "an average of the updates, which has no simple law",
    "mu_product": None,
    "step": None,
    "kahan_comp": None,
    "previous_grad": "a copy, not an average",
    "row_var": "factored: it has no element per weight",
    "col_var": "factored: it has no element per weight",
    "variance": "Adafactor's decay grows with the step and its drive is clipped",
}
"""States known not to follow a simple law: how they are read, or why not; ``None`` for what is no state at all."""


def law_of(optimizer: Optimizer, group: Group, key: str) -> Law | None:
    """Law of a state by its key and the group's hyper-parameters; ``None`` where none fits."""
    has_betas = betas_of(group) is not None
    if key in ("exp_avg", "exp_avg_sq", "exp_inf") and has_betas:
        if key == "exp_avg" and type(optimizer).__name__ == "Lion":
            return averaging("grad", beta(1))
        return {"exp_avg": GRAD, "exp_avg_sq": GRAD_SQ, "exp_inf": MAXIMUM}[key]
    if key == "momentum_buffer" and "momentum" in group:
        if "alpha" in group:  # RMSprop: a sum of updates, needed for the weights
            return AUXILIARY
        if "ns_steps" in group:  # Muon
            return averaging("grad", lambda g: number(g["momentum"]))
        return HEAVY_BALL
    if key in ("square_avg", "grad_avg"):
        where = "alpha" if "alpha" in group else "rho"
        if where in group:
            return averaging("grad_sq" if key == "square_avg" else "grad", lambda g: number(g[where]))
    if key == "sum" and "lr_decay" in group:
        return SUM
    return None


def plain_format(tensor: Tensor) -> str:
    """Name of the format of a plain tensor."""
    name = str(tensor.dtype).removeprefix("torch.")
    return "float32" if name == "float64" else name


class TorchOptim:
    """The adapter of ``torch.optim``: the last one asked, since it takes any plain tensor of a known name."""

    name = "torch.optim"
    counts_resets = False
    rounding = "nearest"

    def recognises(self, optimizer: Optimizer, entries: Mapping[Any, Any]) -> bool:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        return True

    def law(self, optimizer: Optimizer, group: Group, key: str) -> Law | None:
        """Law of the state under a key; ``None`` where none fits."""
        return law_of(optimizer, group, key)

    def stored(
        self, optimizer: Optimizer, group: Group, param: Tensor, entries: Mapping[Any, Any]
    ) -> list[Stored | Skipped]:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        found: list[Stored | Skipped] = []
        for key, tensor in entries.items():
            if not isinstance(tensor, Tensor) or not isinstance(key, str) or tensor.ndim == 0:
                continue
            known = NOT_AVERAGES.get(key, "")
            if known is None:
                continue
            law = known if isinstance(known, Law) else self.law(optimizer, group, key)
            if isinstance(known, str) and known and law is None:
                found.append(Skipped(key, known))
            elif law is None:
                found.append(Skipped(key, f"{type(optimizer).__name__} gives it no law that is known here"))
            elif tensor.shape != param.shape:
                found.append(Skipped(key, f"of shape {tuple(tensor.shape)}, the parameter {tuple(param.shape)}"))
            elif not tensor.is_floating_point():
                found.append(Skipped(key, f"stored as {tensor.dtype}, which nothing says how to decode"))
            else:
                found.append(Stored(key, law, Plain(plain_format(tensor), self.rounding), (tensor,), entries, key))
        return found

    def age(self, group: Group, entries: Mapping[Any, Any], slot: str) -> int | None:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        step = entries.get("step", group.get("step"))
        return int(step) if isinstance(step, (int, float, Tensor)) else None

    def l2(self, optimizer: Optimizer, group: Group) -> float:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        decay = number(group.get("weight_decay") or 0.0)
        return 0.0 if decay == 0.0 or self.decoupled(optimizer, group) else decay

    def decoupled(self, optimizer: Optimizer, group: Group) -> bool:
        """Whether weight decay leaves the gradient alone."""
        for key in ("decoupled_weight_decay", "weight_decouple", "decouple_wd"):
            if key in group:
                return bool(group[key])
        return type(optimizer).__name__ in ("AdamW", "Lion", "NAdamW", "Muon", "Adafactor")

    def weight_update(self, optimizer: Optimizer, group: Group, step: WeightStep) -> Tensor | str:
        """See :class:`~halfulp.libraries.base.Adapter`; from the states as stored, which is what torch uses."""
        kind, betas, decoupled = type(optimizer).__name__, betas_of(group), self.decoupled(optimizer, group)
        if kind in ("Adam", "AdamW") and betas is not None:
            second = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
            return adam_update(group, step, step.after, betas[:2], decoupled=decoupled, second=second)  # type: ignore[arg-type]
        if kind == "SGD":
            return sgd_update(group, step, step.after)
        if kind == "Lion" and betas is not None:
            return lion_update(group, step, betas[:2], decoupled=decoupled)  # type: ignore[arg-type]
        if kind == "RMSprop":
            return rmsprop_update(group, step, step.after)
        return f"the update of {kind} is not computed here"
