"""Adapter of optimi: debiased moments with a step-dependent decay, and Kahan-compensated 16-bit weights."""

from __future__ import annotations

from collections.abc import Callable

from torch.optim.optimizer import Optimizer

from halfulp.libraries.base import COMPENSATED, Entries, Group, no_theory
from halfulp.libraries.torch_optim import ADAM_SLOTS, LION_SLOT, TorchOptim
from halfulp.rules.base import Rule
from halfulp.rules.slots import GRADIENT, Drive, Hyper, StateSlot

__all__ = ["Optimi", "debiased"]


def debiased(name: str, decay: Callable[[Hyper], float], drive: Drive) -> StateSlot:
    """Return a bias-corrected average: ``beta_t = beta * (1 - beta**(t-1)) / (1 - beta**t)``."""

    def now(hyper: Hyper) -> float:
        b, age = decay(hyper), hyper.get("age")
        return b if age is None else b * (1 - b ** (age - 1)) / (1 - b**age)

    return StateSlot(name, not drive.nonnegative, now, drive, stalls_as=no_theory)


DEBIASED = {
    name: debiased(name, slot.decay, slot.drive) for name, slot in ADAM_SLOTS.items() if isinstance(slot.drive, Drive)
}
SGD_AVERAGE = StateSlot(
    "exp_avg", True, lambda h: float(h["momentum"]), GRADIENT,
    gain=lambda h: 1.0 - float(h["momentum"]) if h.get("dampening") else 1.0,
)  # fmt: skip


class Optimi(TorchOptim):
    """The adapter of ``torch-optimi``."""

    name = "optimi"

    def recognises(self, optimizer: Optimizer, entries: Entries) -> bool:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        group = optimizer.param_groups[0]
        return "kahan_sum" in group and ("beta1" in group or "momentum" in group)

    def slot(self, optimizer: Optimizer, group: Group, key: str) -> StateSlot | None:
        """Return the plain average under a key, or ``None``."""
        kind = type(optimizer).__name__
        if kind in ("Adam", "AdamW", "StableAdamW", "RAdam"):
            return DEBIASED.get(key)
        return {"Lion": LION_SLOT, "SGD": SGD_AVERAGE}.get(kind) if key == "exp_avg" else None

    def rule(self, optimizer: Optimizer, group: Group) -> tuple[Rule, Hyper] | str:
        """Return the reason: no complete rule of optimi is implemented."""
        if group.get("kahan_sum"):
            return COMPENSATED
        return f"the update of optimi's {type(optimizer).__name__} is not computed here"

    def decoupled(self, optimizer: Optimizer, group: Group) -> bool:
        """Whether weight decay is decoupled from the gradient."""
        return bool(group.get("decouple_wd") or group.get("decouple_lr") or type(optimizer).__name__ == "Lion")
