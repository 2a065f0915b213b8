"""Adapter of ``torch.optim``, and of any optimizer with the same states as plain tensors of the same names."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache

from torch import Tensor
from torch.optim.optimizer import Optimizer

from halfulp.libraries.base import Entries, Followed, Group, Plain, Skipped, Stored, averages, other_shape
from halfulp.libraries.torch_rules import ADAMAX, RMSPROP
from halfulp.rules.adam import ADAM
from halfulp.rules.base import Rule
from halfulp.rules.momentum import LION, SGD
from halfulp.rules.slots import GRADIENT, SQUARE, Drive, Hyper, StateSlot

__all__ = [
    "ADAM_SLOTS", "LION_SLOT", "NOT_AVERAGES", "SUM", "TorchOptim", "adam_hyper", "beta", "betas_of",
    "plain_format", "started",
]  # fmt: skip

Decay = Callable[[Hyper], float]


def betas_of(group: Group) -> tuple[float, ...]:
    """Return the decays of a group, from ``betas`` or ``beta1``, ``beta2`` ...; empty if it has none."""
    if group.get("betas") is not None:
        return tuple(float(b) for b in group["betas"])
    return tuple(float(group[k]) for k in ("beta1", "beta2", "beta3") if group.get(k) is not None)


def beta(which: int) -> Decay:
    """Return a function that returns decay number `which` of a group."""
    return lambda group: betas_of(group)[which]


def adam_hyper(group: Group, *, decoupled: bool) -> Hyper:
    """Return the hyper-parameters of :data:`~halfulp.rules.adam.ADAM` or Lion, from another library's group."""
    return {
        "lr": float(group["lr"]), "betas": betas_of(group)[:2], "eps": float(group.get("eps", 0.0)),
        "weight_decay": float(group.get("weight_decay") or 0.0), "decoupled_weight_decay": decoupled,
        "amsgrad": bool(group.get("amsgrad", False)), "bound_update": False,
    }  # fmt: skip


def started(decay: Decay) -> Decay:
    """Return a decay that is 0 in the first step, in which the state is set to its drive."""
    return lambda hyper: 0.0 if hyper.get("age") == 1 else decay(hyper)


def _undampened(hyper: Hyper) -> float:  # torch initializes the buffer with the gradient
    return 1.0 if hyper.get("age") == 1 else 1.0 - float(hyper.get("dampening", 0.0))


@cache
def _named(key: str) -> Decay:
    return lambda hyper: float(hyper[key])


def _one(hyper: Hyper) -> float:
    return 1.0


def _adafactor_decay(hyper: Hyper) -> float:
    """Decay of transformers' Adafactor. It grows with the step. Before the first step, that of step 1000 is used."""
    return 1.0 - float(hyper.get("age", 1000)) ** float(hyper["decay_rate"])


ADAM_SLOTS = {
    "exp_avg": StateSlot("exp_avg", True, beta(0), GRADIENT),
    "exp_avg_sq": StateSlot("exp_avg_sq", False, beta(1), SQUARE),
}
LION_SLOT = StateSlot("exp_avg", True, beta(1), GRADIENT)
HEAVY_BALL = StateSlot("momentum_buffer", True, started(_named("momentum")), GRADIENT, gain=_undampened)
MUON_BUFFER = StateSlot("momentum_buffer", True, _named("momentum"), GRADIENT)
SUM = StateSlot("sum", False, _one, SQUARE, gain=_one)
ADAFACTOR_SQ = StateSlot("exp_avg_sq", False, _adafactor_decay, Drive("square", whole_first=True))

FACTORED = "factored: it has no element per weight"
NOT_AVERAGES = {
    "exp_avg_var": "an average of (grad - exp_avg)**2, which has no simple law",
    "acc_delta": "an average of the updates, which has no simple law",
    "mu_product": None,
    "step": None,
    "kahan_comp": None,
    "previous_grad": "a copy, not an average",
    "row_var": FACTORED,
    "col_var": FACTORED,
    "exp_avg_sq_row": FACTORED,
    "exp_avg_sq_col": FACTORED,
    "variance": "Adafactor's decay grows with the step and its drive is clipped",
}
"""States that are not plain averages, and why; ``None`` for entries that are not states."""


def plain_format(tensor: Tensor) -> str:
    """Return the format name of a plain tensor."""
    name = str(tensor.dtype).removeprefix("torch.")
    return "float32" if name == "float64" else name


class TorchOptim:
    """The adapter of ``torch.optim``. It is asked last, since it accepts any plain tensor with a known name."""

    name = "torch.optim"
    counts_resets = False

    def recognises(self, optimizer: Optimizer, entries: Entries) -> bool:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        return True

    def slot(self, optimizer: Optimizer, group: Group, key: str) -> StateSlot | None:
        """Return the plain average under a key for the group's hyper-parameters, or ``None``."""
        betas = len(betas_of(group))
        if "clip_threshold" in group and "decay_rate" in group:  # transformers' Adafactor; its exp_avg is of updates
            return ADAFACTOR_SQ if key == "exp_avg_sq" else None
        if key in ADAM_SLOTS and betas >= 2:
            return LION_SLOT if type(optimizer).__name__ == "Lion" else ADAM_SLOTS[key]
        if key == "momentum_buffer" and "momentum" in group and "alpha" not in group:  # RMSprop's is of updates
            return MUON_BUFFER if "ns_steps" in group else HEAVY_BALL
        where = "alpha" if "alpha" in group else "rho"
        if key in ("square_avg", "grad_avg") and where in group:
            drive = SQUARE if key == "square_avg" else GRADIENT
            return StateSlot(key, not drive.nonnegative, _named(where), drive)
        return SUM if key == "sum" and "lr_decay" in group else None

    def rule(self, optimizer: Optimizer, group: Group) -> tuple[Rule, Hyper] | str:
        """Return the optimizer's complete rule and its hyper-parameters, or the reason why there is none."""
        kind, decoupled = type(optimizer).__name__, self.decoupled(optimizer, group)
        if len(betas_of(group)) >= 2:
            hyper = adam_hyper(group, decoupled=decoupled)
            if kind in ("Adam", "AdamW"):
                return ADAM, hyper
            if kind == "Lion" and decoupled:
                return LION, hyper
            if kind == "Adamax":
                return ADAMAX, hyper
        if kind == "SGD":
            return SGD, {**{k: float(group.get(k, 0.0)) for k in ("lr", "momentum", "dampening", "weight_decay")},
                         "nesterov": bool(group.get("nesterov"))}  # fmt: skip
        if kind == "RMSprop":
            return RMSPROP, group
        return f"the update of {kind} is not computed here"

    def stored(self, optimizer: Optimizer, group: Group, param: Tensor, entries: Entries) -> list[Stored | Skipped]:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        found: list[Stored | Skipped] = []
        whole = self.rule(optimizer, group)
        names = {} if isinstance(whole, str) else {s.name for s in whole[0].slots(whole[1])}
        for key, tensor in entries.items():
            if not isinstance(tensor, Tensor) or not isinstance(key, str) or tensor.ndim == 0:
                continue
            why = NOT_AVERAGES.get(key, "")
            if why is None:
                continue
            if (encoded := self.encoded(key, entries)) is not None:
                found += encoded
            elif key not in names and self.slot(optimizer, group, key) is None:
                found.append(Skipped(key, why or f"{type(optimizer).__name__} gives it no law that is known here"))
            elif tensor.shape != param.shape:
                found.append(other_shape(key, tensor, param))
            elif not tensor.is_floating_point():
                found.append(Skipped(key, f"stored as {tensor.dtype}, which nothing says how to decode"))
            else:
                found.append(Stored(key, Plain(plain_format(tensor)), (tensor,), entries, key))
        return found

    def encoded(self, key: str, entries: Entries) -> list[Stored | Skipped] | None:
        """Return the state of a key that is encoded in the library's own way, if any; ``None`` for a plain tensor."""
        return None

    def follows(self, optimizer: Optimizer, group: Group, param: Tensor, slots: Collection[str]) -> Followed:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        whole = self.rule(optimizer, group)
        if not isinstance(whole, str):
            rule, hyper = whole
            absent = [s.name for s in rule.slots(hyper) if s.name not in slots]
            if not absent:
                return Followed(rule, lambda group, param: self._hyper(optimizer, group))
            whole = f"the update needs {', '.join(absent)}, which is not watched"
        plain = (self.slot(optimizer, group, name) for name in slots)
        kept = tuple(slot for slot in plain if slot is not None)
        return Followed(averages(kept), lambda group, param: {**group, "l2": self._l2(optimizer, group)}, whole)

    def _hyper(self, optimizer: Optimizer, group: Group) -> Hyper:
        whole = self.rule(optimizer, group)
        assert not isinstance(whole, str)
        return whole[1]

    def age(self, group: Group, entries: Entries, slot: str) -> int | None:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        step = entries.get("step", group.get("step"))
        return int(step) if isinstance(step, (int, float, Tensor)) else None

    def _l2(self, optimizer: Optimizer, group: Group) -> float:
        """Return the weight decay that is added to the gradient."""
        return 0.0 if self.decoupled(optimizer, group) else float(group.get("weight_decay") or 0.0)

    def decoupled(self, optimizer: Optimizer, group: Group) -> bool:
        """Whether weight decay is decoupled from the gradient."""
        for key in ("decoupled_weight_decay", "weight_decouple", "decouple_wd"):
            if key in group:
                return bool(group[key])
        return type(optimizer).__name__ in ("AdamW", "Lion", "NAdamW", "Muon", "Adafactor")
