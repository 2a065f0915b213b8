"""The fp32 weights behind 16-bit parameters, for evaluation, export and loading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from halfulp.engine.master import MasterState
from halfulp.engine.optimizer import RuleOptimizer
from halfulp.engine.sharding import cut, gathered, is_sharded, local, shard_like
from halfulp.libraries import unwrap

__all__ = ["FP32Weights", "fp32_params", "fp32_state_dict", "fp32_weights", "load_fp32_state_dict"]


def fp32_params(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the fp32 weights behind the parameters of an optimizer, in its order.

    Parameters
    ----------
    optimizer
        One of our optimizers, possibly inside a wrapper.

    Returns
    -------
    list of Tensor
        float32, in the parameters' shapes; DTensors for sharded parameters. Parameters without master weights are
        converted. A tensor may share memory with a float32 parameter or an fp32 master weight.

    Raises
    ------
    TypeError
        If the optimizer belongs to another library.

    Examples
    --------
    >>> import torch, halfulp
    >>> p = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    >>> optimizer = halfulp.SGD([p], lr=1e-3, master_weights="remainder16")
    >>> p.grad = torch.ones_like(p)
    >>> optimizer.step()
    >>> p.detach(), halfulp.fp32_params(optimizer)[0]
    (tensor([1., 1.], dtype=torch.bfloat16), tensor([0.9990, 0.9990]))
    """
    behind = FP32Weights(optimizer)
    return [behind.values(p) for group in behind.optimizer.param_groups for p in group["params"]]


def fp32_state_dict(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return ``model.state_dict()`` with the fp32 weights behind its parameters, for export.

    Parameters
    ----------
    model
        The model. Its floating-point parameters become float32, and its buffers are unchanged.
    optimizer
        One of our optimizers, possibly inside a wrapper.

    Raises
    ------
    TypeError
        If the optimizer belongs to another library.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(2, 2).bfloat16()
    >>> optimizer = halfulp.AdamW(model.parameters(), master_weights="remainder16")
    >>> halfulp.fp32_state_dict(model, optimizer)["weight"].dtype
    torch.float32
    """
    behind, values = FP32Weights(optimizer), model.state_dict(keep_vars=True)
    for name, x in values.items():
        if isinstance(x, nn.Parameter) and x.is_floating_point():
            values[name] = behind.values(x)
        elif isinstance(x, Tensor):
            values[name] = x.detach()
    return values


@torch.no_grad()
def load_fp32_state_dict(
    model: nn.Module, optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any], strict: bool = True
) -> Any:
    """Load fp32 weights into a 16-bit model and its master weights. With 16 bits of remainder the result is exact.

    Parameters
    ----------
    model
        As for ``model.load_state_dict``.
    optimizer
        One of our optimizers over the model's parameters, with ``master_weights``; possibly inside a wrapper.
    state_dict
        Weights by the model's names: whole tensors, or DTensors placed like the parameters.
    strict
        As for ``model.load_state_dict``, whose result is returned.

    Raises
    ------
    TypeError
        If the optimizer belongs to another library.
    ValueError
        If no parameter has master weights, so that the weights would only be rounded.

    Examples
    --------
    >>> import torch, halfulp
    >>> exact = torch.nn.Linear(2, 2).state_dict()
    >>> model = torch.nn.Linear(2, 2).bfloat16()
    >>> optimizer = halfulp.AdamW(model.parameters(), master_weights="remainder16")
    >>> halfulp.load_fp32_state_dict(model, optimizer, exact)
    <All keys matched successfully>
    >>> torch.equal(halfulp.fp32_params(optimizer)[0], exact["weight"])
    True
    """
    behind = FP32Weights(optimizer)
    params = [(name, p, behind.host(p)) for name, p in model.state_dict(keep_vars=True).items()]
    kept = [(name, p, host) for name, p, host in params if behind.may_have_master(host)]
    if not kept:
        raise ValueError(
            "no parameter of the model has master weights in this optimizer: build it with "
            "master_weights='remainder16', or use model.load_state_dict, which rounds"
        )
    result = model.load_state_dict(state_dict, strict=strict)
    for name, p, host in kept:
        if name in state_dict:
            master = _made(behind.optimizer, host)
            master.write_(host, _part(host, state_dict[name].to(host.device, torch.float32), master.sharded))
            if host is not p:
                p.copy_(host)
    return result


@contextmanager
def fp32_weights(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[nn.Module]:
    """Replace the model's 16-bit parameters by their fp32 weights within the block, for evaluation.

    The parameter objects stay the same and only their values change. Afterwards the values are restored. Changes made
    inside the block are lost, and the optimizer must not step.

    Parameters
    ----------
    model
        The model. It must not be sharded.
    optimizer
        One of our optimizers, possibly inside a wrapper.

    Raises
    ------
    TypeError
        If the optimizer belongs to another library.
    ValueError
        If parameters are sharded. Load :func:`fp32_state_dict` into an fp32 model instead.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(2, 2).bfloat16()
    >>> optimizer = halfulp.AdamW(model.parameters(), master_weights="remainder16")
    >>> with halfulp.fp32_weights(model, optimizer):
    ...     print(model(torch.ones(1, 2)).dtype)
    torch.float32
    """
    behind = FP32Weights(optimizer)
    params = [p for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)]
    if any(is_sharded(p) for p in params):
        raise ValueError("fp32_weights takes models that are not sharded: use fp32_state_dict(model, optimizer)")
    kept = [(p, p.data, p.grad) for p in params]
    wide = [behind.values(p).to(p.device) for p in params]

    def refuse(*_: Any) -> None:
        raise RuntimeError("a step within fp32_weights would be lost: end the with block first")

    hook = behind.optimizer.register_step_pre_hook(refuse)
    try:
        for p, values in zip(params, wide, strict=True):
            p.grad, p.data = None, values
        yield model
    finally:
        hook.remove()
        for p, values, grad in kept:
            p.grad, p.data = None, values
            p.grad = grad


class FP32Weights:
    """The fp32 weights behind the parameters of an optimizer, asked for one by one.

    Parameters
    ----------
    optimizer
        One of halfulp, possibly offloaded or inside a wrapper.
    """

    def __init__(self, optimizer: Any) -> None:
        inside = unwrap(optimizer)
        if not isinstance(inside, RuleOptimizer):
            raise TypeError(f"fp32 weights are those of an optimizer of halfulp, got {type(inside).__name__}")
        self.optimizer = inside
        self._registry, self._host_of = inside.registry, getattr(optimizer, "host_of", {})

    def host(self, param: Tensor) -> Tensor:
        """Return the host copy of a parameter under :func:`halfulp.training.offload`, or the parameter itself."""
        found: Tensor = self._host_of.get(param, param)
        return found

    def may_have_master(self, host: Tensor) -> bool:
        """Whether the optimizer keeps master weights for a parameter once it has stepped it."""
        if host not in self._registry or host.dtype == torch.float32:
            return False
        return bool(self.optimizer.place(host).group["master_weights"])

    def of(self, param: Tensor) -> Tensor | None:
        """Return the fp32 weights of a parameter; ``None`` if it has no master weights here, or no step yet."""
        host = self.host(param)
        master = self.optimizer.master(host) if host in self._registry and host.dtype != torch.float32 else None
        if master is None:
            return None
        values = master.read(host)
        if master.sharded:
            return shard_like(host, values)
        return cut(host, values) if is_sharded(host) else values

    def values(self, param: Tensor) -> Tensor:
        """Return the fp32 weights of a parameter, sharded like it: its own values if it has no master weights."""
        found = self.of(param)
        return self.host(param).detach().float() if found is None else found


def _made(optimizer: RuleOptimizer, param: Tensor) -> MasterState:
    """Return the master weights of a parameter. They are created if it has not been stepped yet."""
    found = optimizer.master(param)
    if found is None:
        entries = optimizer.state[param]
        place = optimizer.place(param)
        rule = optimizer.active_rule(place.group, param)
        found = MasterState.of(param, place.group["master_weights"], entries, rule, place.label)
        assert found is not None
        entries.setdefault("step", 0)
        entries.update(found.initial(param))
    return found


def _part(param: Tensor, values: Tensor, sharded: bool) -> Tensor:
    """Return this rank's part of a parameter's values, or all of them if its master weights are whole."""
    if not sharded:
        return gathered(values)
    return local(values if is_sharded(values) else cut(param, values))
