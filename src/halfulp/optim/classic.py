"""Adam, AdamW, SGD and Lion, with the arguments of torch.optim."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from halfulp.engine.optimizer import RuleOptimizer
from halfulp.engine.options import TorchOptions
from halfulp.optim.described import described
from halfulp.rules.adam import ADAM, AMSGRAD
from halfulp.rules.base import Rule
from halfulp.rules.hyper import as_number
from halfulp.rules.momentum import LION
from halfulp.rules.momentum import SGD as SGD_RULE

__all__ = ["SGD", "Adam", "AdamW", "Lion"]


def _check_betas(group: dict[str, Any]) -> None:
    betas = group["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"betas are two numbers in [0, 1), got {betas!r}")
    if not all(0.0 <= as_number("each of betas", b) < 1.0 for b in betas):
        raise ValueError(f"betas are two numbers in [0, 1), got {betas}")


def _check_range(group: dict[str, Any], *names: str) -> None:
    for name in names:
        if not 0.0 <= as_number(name, group[name]) < math.inf:
            raise ValueError(f"{name} must not be negative, and finite; got {group[name]}")


@described
class Adam(RuleOptimizer):
    """Adam with states in any format; arguments as ``torch.optim.Adam``, and :class:`~halfulp.engine.options.Options`.

    Kingma & Ba, arXiv 1412.6980. With ``state="fp32"`` it follows ``torch.optim.Adam`` to a few units in the last place
    a step (each operation here rounds separately, see ``docs/bit-contract.md``).

    Parameters
    ----------
    lr
        Learning rate; a float or a tensor of one element.
    betas
        Decays of the first and of the second moment.
    eps
        Added to the root of the second moment, bias-corrected.
    weight_decay
        ``weight_decay * param`` is added to the gradient.
    amsgrad
        Divide by the largest second moment so far.
    decoupled_weight_decay
        Shrink parameters by ``lr * weight_decay`` a step instead, as :class:`AdamW`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.Adam(model.parameters(), lr=1e-3, state="fp8")
    >>> model(torch.ones(1, 64)).sum().backward(); optimizer.step()
    >>> optimizer.state_tensor(model.weight, "exp_avg").shape
    torch.Size([64, 64])
    """

    rule = ADAM

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        decoupled_weight_decay: bool = False,
        **options: Unpack[TorchOptions],
    ) -> None:
        hyper = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "decoupled_weight_decay": decoupled_weight_decay,
        }  # fmt: skip
        super().__init__(params, hyper, **options)

    def rules(self, group: dict[str, Any]) -> tuple[Rule, ...]:
        """AMSGrad's in groups with ``amsgrad=True``."""
        return (AMSGRAD if group["amsgrad"] else ADAM,)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        _check_betas(group)
        _check_range(group, "eps", "weight_decay")


@described
class AdamW(Adam):
    """AdamW (decoupled weight decay) with states in any format; arguments as ``torch.optim.AdamW``.

    Loshchilov & Hutter, arXiv 1711.05101.

    Parameters
    ----------
    weight_decay
        Parameters shrink by ``lr * weight_decay`` a step.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.AdamW(model.parameters(), lr=3e-4, state={"exp_avg": "fp8", "exp_avg_sq": "bf16"})
    >>> print(optimizer.memory().by_storage)
    {'float8_e4m3fn:pow2:block128': 4160, 'bfloat16': 8192, 'float32': 512}
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        **options: Unpack[TorchOptions],
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, decoupled_weight_decay=True, **options)


@described
class SGD(RuleOptimizer):
    """SGD with momentum, Nesterov, dampening and weight decay, its buffer in any format; as ``torch.optim.SGD``.

    Parameters
    ----------
    lr
        Learning rate; a float or a tensor of one element.
    momentum
        Decay of the buffer; 0: there is none.
    dampening
        Of the gradient that goes into the buffer, but for the first.
    weight_decay
        ``weight_decay * param`` is added to the gradient.
    nesterov
        Step along gradient plus `momentum` times buffer.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, state="bf16")
    """

    rule = SGD_RULE

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        **options: Unpack[TorchOptions],
    ) -> None:
        hyper = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov,
        }  # fmt: skip
        super().__init__(params, hyper, **options)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        _check_range(group, "momentum", "weight_decay")
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")


@described
class Lion(RuleOptimizer):
    """Lion with its momentum in any format; decoupled weight decay.

    Chen et al., arXiv 2302.06675.

    Parameters
    ----------
    lr
        Learning rate; a float or a tensor of one element.
    betas
        Weight of the buffer in the step, whose sign is taken, and its decay.
    weight_decay
        Parameters shrink by ``lr * weight_decay`` a step.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.Lion(model.parameters(), lr=1e-4, weight_decay=0.1, state="fp8")
    """

    rule = LION

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **options: Unpack[TorchOptions],
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay}, **options)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        _check_betas(group)
        _check_range(group, "weight_decay")
