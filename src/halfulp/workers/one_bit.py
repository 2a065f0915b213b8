"""1-bit Adam: after a warm-up, workers exchange the signs of their momentum and send the error later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from halfulp.averaging.store import AverageStore
from halfulp.engine.optimizer import evaluated
from halfulp.engine.sharding import is_sharded, local_part
from halfulp.optim.base import optimizer
from halfulp.rules.base import Ages, Rule, Scalars, States, ema, sqrt, total
from halfulp.rules.hyper import HyperBase
from halfulp.rules.slots import GRADIENT, SQUARE, Hyper, StateSlot
from halfulp.workers.agreement import agree_on, settings
from halfulp.workers.group import as_peers
from halfulp.workers.message import Layout, MessageOptions

__all__ = ["OneBitAdam", "pack_signs", "unpack_signs"]


def pack_signs(x: Tensor) -> Tensor:
    """Pack signs into bits, eight per byte, 1 for non-negative values.

    Examples
    --------
    >>> pack_signs(torch.tensor([1.0, -2.0, 0.0]))
    tensor([5], dtype=torch.uint8)
    """
    bits = torch.nn.functional.pad((x.flatten() >= 0).to(torch.uint8), (0, -x.numel() % 8)).reshape(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=x.device)).sum(dim=1).to(torch.uint8)


def unpack_signs(packed: Tensor, shape: torch.Size) -> Tensor:
    """Unpack the result of :func:`pack_signs` to signs of the given shape, 1 or -1 in fp32.

    Examples
    --------
    >>> unpack_signs(torch.tensor([5], dtype=torch.uint8), torch.Size([3]))
    tensor([ 1., -1.,  1.])
    """
    bits = (packed.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return bits.flatten()[: shape.numel()].reshape(shape).float() * 2 - 1


def _scale(x: Tensor) -> Tensor:
    """Return the root mean square of a tensor in fp32, the magnitude of the values sent."""
    return (total(x, x) / max(x.numel(), 1)).sqrt().float()


@dataclass(frozen=True)
class OneBitHyper(HyperBase):
    """Hyper-parameters of 1-bit Adam.

    Parameters
    ----------
    lr
        Learning rate.
    betas
        Decays of the first and of the second moment.
    eps
        Added to the root of the second moment.
    weight_decay
        ``weight_decay * param`` is added to the step.
    freeze_step
        Number of warm-up steps, in which gradients are exchanged in full and the second moment is updated.
    """

    lr: float | Tensor = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    freeze_step: int = 100000

    def check(self) -> None:
        """See :class:`~halfulp.rules.hyper.HyperBase`."""
        super().check()
        if not isinstance(self.freeze_step, int) or self.freeze_step < 1:
            raise ValueError(f"freeze_step is a number of warm-up steps, at least 1; got {self.freeze_step}")


def _slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    return (
        StateSlot("exp_avg", signed=True, decay=lambda h: h["betas"][0], drive=GRADIENT),
        StateSlot("exp_avg_sq", signed=False, decay=lambda h: h["betas"][1], drive=SQUARE),
    )


def _scalars(hyper: Hyper, ages: Ages) -> Scalars:
    beta1, beta2 = hyper["betas"]
    return {
        "frozen": float(ages["step"] > hyper["freeze_step"]), "weight1": 1 - beta1, "weight2": 1 - beta2,
        "eps": hyper["eps"], "decay": hyper["weight_decay"], "lr": float(hyper["lr"]),
    }  # fmt: skip


def _update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    exp_avg_sq = states["exp_avg_sq"]
    if c["frozen"] != 0.0:
        exp_avg = grad + 0.0  # the momentum that the workers agreed on
    else:
        exp_avg = ema(states["exp_avg"], grad, c["weight1"])
        exp_avg_sq = ema(exp_avg_sq, grad * grad, c["weight2"])
    step = exp_avg / (sqrt(exp_avg_sq) + c["eps"])
    if c["decay"] != 0.0:
        step = step + param * c["decay"]
    return param - step * c["lr"], {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


ONE_BIT_ADAM = Rule(
    "one_bit_adam", _slots, _scalars, _update, hyper=OneBitHyper, title="OneBitStep",
    summary="Adam without bias correction, whose second moment stands still after a warm-up",
    source="Tang et al., arXiv 2102.02888",
    example=""">>> import torch
>>> optimizer = OneBitStep(torch.nn.Linear(64, 64).parameters(), lr=1e-3, freeze_step=1000, state="8bit")""",
)  # fmt: skip
OneBitStep: Any = optimizer(ONE_BIT_ADAM)


class OneBitAdam(OneBitStep):
    """1-bit Adam: after a warm-up, workers exchange one bit per element at every step.

    Tang et al., arXiv 2102.02888. In the warm-up, gradients are averaged in full, as in Adam without bias correction.
    Then the second moment is frozen. Each worker sends ``b = momentum + e`` as its signs times ``|b| / sqrt(n)``, where
    `e` is the accumulated compression error. Every worker compresses the mean of these in the same way, with its own
    error feedback, so nothing is sent back.

    Parameters
    ----------
    params
        As for ``torch.optim``. They must be plain tensors.
    group
        The workers, as for the other methods. Default: all ranks.
    timeout
        Seconds that an exchange may take.
    errors
        Format of the compression errors, this worker's and those of the mean.
    arguments, options
        Hyper-parameters, and the options of every optimizer of the library.

    Examples
    --------
    >>> import torch
    >>> from halfulp.workers import Alone, OneBitAdam  # Alone: this process is the only worker
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = OneBitAdam(model.parameters(), lr=1e-3, freeze_step=1000, state="8bit", group=Alone())
    """

    def __init__(
        self, params: Any, *arguments: Any, group: Any = None, timeout: float | None = None, errors: Any = "fp32",
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(params, *arguments, **options)
        self._check_one_warm_up()
        self._peers = as_peers(group, timeout)
        self.steps = self.sent_bytes = 0
        every = [p for group in self.param_groups for p in group["params"]]
        self._named = {str(i): p for i, p in enumerate(every) if p.requires_grad}
        if any(is_sharded(p) for p in self._named.values()):
            raise ValueError("1-bit Adam needs whole parameters, since each magnitude is that of a whole tensor")
        zeros = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self._named.items()}
        kept = replace(self.storage, keep_fp32=())
        seed = self.param_groups[0]["seed"]
        self.left_out = {
            what: AverageStore(zeros, state=errors, storage=kept, seed=seed, label=f"error/{what}")
            for what in ("own", "mean")
        }
        """Compression errors of this worker's messages and of the compressed mean."""
        parts = {name: local_part(p) for name, p in self._named.items()}
        self._full = Layout(parts, 0, MessageOptions("fp32"))
        self._agreed = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Exchange gradients or signs, make a step, and return the loss of the closure.

        Raises
        ------
        ValueError
            On every worker, if one has other parameters, settings or steps. Nothing is changed then.
        FloatingPointError
            On every worker, if the gradients of one are not finite. Nothing is changed then.
        WorkerLostError
            If a worker does not take part.
        """
        loss = evaluated(closure)
        self._check()
        frozen = self.steps >= self.param_groups[0]["freeze_step"]
        before = {name: p.grad for name, p in self._named.items()}
        own = {n: (torch.zeros_like(p) if p.grad is None else p.grad).float() for n, p in self._named.items()}
        agreed, errors = self._signs(own) if frozen else (self._mean(own), {})
        try:
            for name, p in self._named.items():
                p.grad = agreed[name].to(p.dtype)
            super().step()
        finally:
            for name, p in self._named.items():
                p.grad = before[name]
        for what, left in errors.items():
            self.left_out[what].write(left, self.steps)
        self.steps += any(self.state[p]["step"] for p in self._named.values())  # not by a dry run
        return loss

    def _check_one_warm_up(self) -> None:
        if len(found := {group["freeze_step"] for group in self.param_groups}) > 1:
            raise ValueError(
                f"freeze_step is one for all groups, since all parameters are exchanged alike; got {sorted(found)}"
            )

    def _check(self) -> None:
        """Check the groups, and before the first step that all workers fit together."""
        self._check_one_warm_up()
        trained = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        if [id(p) for p in trained] != [id(p) for p in self._named.values()]:
            raise ValueError(
                "1-bit Adam steps the parameters that it was built with; some were added, removed, replaced, frozen or "
                "unfrozen since: build another one"
            )
        if not self._agreed:
            values = {"steps": self.steps, "sent": self._full.spec, "errors": self.left_out["own"].quantizer.spec}
            agree_on(f"{type(self).__name__} {settings(values, None, self)}", self._peers, self._full.device)
            self._agreed = True

    def _finite(self, sent: list[list[Tensor]]) -> None:
        """Raise ``FloatingPointError`` unless all that each worker sent is finite."""
        wrong = [w for w, values in enumerate(sent) if not all(bool(torch.isfinite(x).all()) for x in values)]
        if wrong:
            raise FloatingPointError(
                f"gradients of workers {wrong} are not finite at step {self.steps + 1}; nothing was changed"
            )

    def _mean(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        message = self._full.encode(own, torch.zeros(0, device="cpu"), self._peers.rank, self.steps)
        received = self._peers.exchange(message, None)
        self.sent_bytes += len(message) * (len(received) - 1)
        decoded = [{name: self._full.decode(other, name) for name in own} for other in received]
        self._finite([list(values.values()) for values in decoded])
        found = {name: torch.zeros_like(x) for name, x in own.items()}
        for values in decoded:
            for name, x in values.items():
                found[name] = found[name] + x * (1.0 / len(decoded))
        return found

    def _signs(self, own: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Return the momentum that the workers agree on, and the compression errors."""
        errors: dict[str, dict[str, Tensor]] = {what: {} for what in self.left_out}
        packed: list[Tensor] = []
        for name, grad in own.items():
            param = self._named[name]
            beta = self.place(param).group["betas"][0]
            b = ema(self.state_tensor(param, "exp_avg"), grad, 1 - beta) + self.left_out["own"].read(name)
            scale, signs = _scale(b), pack_signs(b)
            errors["own"][name] = b - unpack_signs(signs, b.shape) * scale
            packed += [scale.reshape(1).view(torch.uint8), signs]
        received = self._peers.exchange(torch.cat(packed), None)
        self.sent_bytes += len(received[0]) * (len(received) - 1)
        scales, signs_at, at = {}, {}, 0
        for name, grad in own.items():
            scales[name] = torch.cat([other[at : at + 4].clone().view(torch.float32) for other in received])
            signs_at[name] = slice(at + 4, at + 4 + (grad.numel() + 7) // 8)
            at = signs_at[name].stop
        self._finite([[scale[worker] for scale in scales.values()] for worker in range(len(received))])
        found = {}
        for name, grad in own.items():
            mixed = self.left_out["mean"].read(name)
            for other, scale in zip(received, scales[name], strict=True):
                mixed = mixed + unpack_signs(other[signs_at[name]], grad.shape) * scale * (1.0 / len(received))
            found[name] = unpack_signs(pack_signs(mixed), mixed.shape) * _scale(mixed)
            errors["mean"][name] = mixed - found[name]
        return found, errors

    def state_dict(self) -> dict[str, Any]:
        """Return the usual state dictionary, plus the compression errors under ``"one_bit"``."""
        errors = {what: store.state_dict() for what, store in self.left_out.items()}
        return {**super().state_dict(), "one_bit": {"steps": self.steps, "rank": self._peers.rank, **errors}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the result of :meth:`state_dict` on the same worker.

        Raises
        ------
        ValueError
            If the checkpoint belongs to another worker or optimizer.
        """
        saved = state_dict.get("one_bit")
        if saved is None or saved["rank"] != self._peers.rank:
            found = "no 1-bit Adam" if saved is None else f"worker {saved['rank']}"
            raise ValueError(f"the checkpoint is of {found}, this is worker {self._peers.rank}: load its own")
        checked = {what: store.validate(saved[what]) for what, store in self.left_out.items()}
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "one_bit"})
        for what, store in self.left_out.items():
            store.load(checked[what])
        self.steps, self._agreed = saved["steps"], False
