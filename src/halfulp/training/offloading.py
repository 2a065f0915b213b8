"""CPU offload: states, master weights and the step are in host memory, weights and gradients on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from halfulp.engine.checks import check_allocated
from halfulp.engine.master import MASTER
from halfulp.engine.optimizer import RuleOptimizer, evaluated
from halfulp.engine.registry import Registry
from halfulp.engine.sharding import is_wrapper, local, placed_on
from halfulp.engine.states import check_apart, check_memory, version_of
from halfulp.libraries import check_wrappable
from halfulp.numbers.log import log_once

__all__ = ["Copies", "Offload", "offload"]

BUCKET = 64 << 20
"""Bytes of gradients per bucket. The copies of a bucket are awaited together, and its parameters step together."""


class Copies(Protocol):
    """How tensors are copied between host and device."""

    def host(self, like: Tensor) -> Tensor:
        """Allocate host memory for a tensor's values."""
        ...

    def start(self, target: Tensor, source: Tensor) -> Callable[[], None]:
        """Start a copy. Return a function that waits for it."""
        ...

    def finish(self) -> None:
        """Order all copies before the device's next work."""
        ...


class _Direct:
    """Copies within host memory. Each is done when it is started."""

    def host(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, device="cpu")

    def start(self, target: Tensor, source: Tensor) -> Callable[[], None]:
        target.copy_(source)
        return lambda: None

    def finish(self) -> None:
        pass


class _Streams:
    """Copies between a CUDA device and page-locked host memory, on one stream per direction."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.out, self.back = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def host(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True, device="cpu")

    def start(self, target: Tensor, source: Tensor) -> Callable[[], None]:
        stream = self.back if target.is_cuda else self.out
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
            (target if target.is_cuda else source).record_stream(stream)
            event = torch.cuda.Event()
            event.record(stream)
        return event.synchronize

    def finish(self) -> None:
        for stream in (self.out, self.back):
            torch.cuda.current_stream(self.device).wait_stream(stream)


def offload(optimizer: Optimizer, *, copies: Copies | None = None) -> Offload:
    """Move an optimizer's states and step to the host, while its parameters stay on the device.

    A step copies gradients and weights to the host, steps there (in C, for our optimizers) and copies the weights back.
    Weights with fp32 master weights are copied to the host only after they were set from outside. Large models are
    split into buckets, so that the copies of one overlap the step of another. The bits are those of the same step on
    the CPU without offload. The returned optimizer has the groups of the device parameters: schedulers, gradient
    clipping, accumulation, ``GradScaler`` and checkpoints work as usual. With sharded parameters (FSDP2, tensor
    parallelism), each rank copies and steps its own part.

    Parameters
    ----------
    optimizer
        Any optimizer, new or trained. It must not be used directly afterwards.
    copies
        How tensors are copied. Default: on streams of the CUDA device.

    Raises
    ------
    ValueError
        If a parameter is a tensor subclass that wraps other tensors, such as torchao's float8 weights, or shares memory
        with another one.
    RuntimeError
        If a parameter has no memory.
    TypeError
        If `optimizer` is not an optimizer, or one without hooks, such as Accelerate's.

    Examples
    --------
    >>> import torch, halfulp
    >>> from halfulp.training import offload
    >>> model = torch.nn.Linear(8, 8).bfloat16()
    >>> optimizer = offload(halfulp.AdamW(model.parameters(), lr=1e-3, master_weights="remainder16"))
    >>> model(torch.ones(1, 8).bfloat16()).sum().backward()
    >>> optimizer.step()
    >>> optimizer.host_of[model.weight].device
    device(type='cpu')
    """
    return Offload(optimizer, copies)


class Offload(Optimizer):
    """An optimizer with parameters on a device, and states and step on the host; see :func:`offload`.

    Parameters
    ----------
    optimizer, copies
        As for :func:`offload`.

    Attributes
    ----------
    optimizer
        The optimizer that steps the copies of the parameters on the host.
    host_of
        The host copy of each parameter.

    Examples
    --------
    >>> import torch, halfulp
    >>> p = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = halfulp.training.Offload(torch.optim.SGD([p], lr=0.5))
    >>> p.grad = torch.ones(2)
    >>> optimizer.step()
    >>> p.detach()
    tensor([0.5000, 0.5000])
    """

    def __init__(self, optimizer: Optimizer, copies: Copies | None = None) -> None:
        check_wrappable("offload", optimizer)
        self.optimizer = optimizer
        groups = optimizer.param_groups
        params = [p for group in groups for p in group["params"]]
        _check(params, Registry(groups))
        self._copies = copies or _copies_for(params)
        self.host_of: dict[Tensor, nn.Parameter] = {}
        self._grads: dict[Tensor, Tensor] = {}
        self._versions: dict[Tensor, int] = {}
        self._at: list[int] = []
        mine = [{k: v for k, v in group.items() if k != "params"} | {"params": [*group["params"]]} for group in groups]
        for group in groups:
            group["params"] = [self._moved(p) for p in group["params"]]
        super().__init__(mine, dict(optimizer.defaults))

    def __getstate__(self) -> dict[str, Any]:
        """Return the groups, the host copies and the inner optimizer; not the memory and streams of copies."""
        kept = {name: getattr(self, name) for name in ("defaults", "param_groups", "optimizer")}
        return {**kept, "host_of": list(self.host_of.items())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what ``__getstate__`` returned. The next step copies all weights to the host."""
        self.host_of = dict(state["host_of"])
        self._copies, self._grads, self._at = _copies_for(self.host_of), {}, []
        self._versions = dict.fromkeys(self.host_of, -1)
        super().__setstate__({name: value for name, value in state.items() if name != "host_of"})

    def _moved(self, param: Tensor) -> nn.Parameter:
        """Return the host copy of a parameter, which takes over its states."""
        here = local(param.detach())
        host = nn.Parameter(placed_on("cpu", param, self._copies.host(here)), requires_grad=param.requires_grad)
        self.host_of[param], self._versions[param] = host, version_of(param)
        local(host.detach()).copy_(here)
        states = self.optimizer.state.pop(param, None)
        if states is not None:
            self.optimizer.state[host] = {k: _on_host(v) if isinstance(v, Tensor) else v for k, v in states.items()}
        return host

    @property
    def state(self) -> Any:
        """States, keyed by the parameters on the device."""
        return {p: self.optimizer.state[h] for p, h in self.host_of.items() if h in self.optimizer.state}

    @state.setter
    def state(self, value: Any) -> None:
        """Accept the empty state that torch's constructor sets."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, whose parameters may be on the device."""
        super().add_param_group(param_group)
        if len(self.param_groups) <= len(self.optimizer.param_groups):  # in the constructor
            return
        group = self.param_groups[-1]
        try:
            _check([p for each in self.param_groups for p in each["params"]], Registry(self.param_groups))
            self.optimizer.add_param_group({**group, "params": [self._moved(p) for p in group["params"]]})
        except Exception:
            self.param_groups.pop()
            for p in group["params"]:
                self.host_of.pop(p, None)
                self._versions.pop(p, None)
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every parameter that has a gradient.

        Parameters
        ----------
        closure
            Function that re-evaluates the model and returns the loss, which is returned.
        """
        loss = evaluated(closure)
        self._share_arguments()
        having = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        self._check_hosts(having)
        for host in self.host_of.values():
            host.grad = None
        waits = [self._copied_out(p) for p in having]
        for bucket in self._buckets(having):
            for i in bucket:
                for wait in waits[i]:
                    wait()
                host, given = self.host_of[having[i]], having[i].grad
                assert given is not None
                grad = placed_on("cpu", given, self._grads[having[i]])
                if grad.dtype != host.dtype:
                    host.grad_dtype = grad.dtype
                host.grad = grad
            if isinstance(self.optimizer, RuleOptimizer) and len(bucket) < len(having):
                self.optimizer.step_parameters([self.host_of[having[i]] for i in bucket])
            else:
                self.optimizer.step()
            for i in bucket:
                self._copies.start(local(having[i].detach()), local(self.host_of[having[i]].detach()))
        self._copies.finish()
        for p in having:
            self.host_of[p].grad, self._versions[p] = None, version_of(p)
        return loss

    def _check_hosts(self, params: list[Tensor]) -> None:
        """Raise for parameters that cannot be copied to their host copies, before any is."""
        at = [local(p.detach()).data_ptr() for p in params]
        if at != self._at:
            _check(params, Registry(self.param_groups))
            self._at = at
        for p in params:
            host = self.host_of.get(p)
            if host is None or host.shape != p.shape or host.dtype != p.dtype:
                known = "none" if host is None else f"{host.dtype} of shape {tuple(host.shape)}"
                raise ValueError(
                    f"{Registry(self.param_groups)[p].label} is {p.dtype} of shape {tuple(p.shape)}, its copy on the "
                    f"host {known}: it was replaced or cast since. Build the optimizer from the present parameters, "
                    "and offload it"
                )

    def _copied_out(self, param: Tensor) -> list[Callable[[], None]]:
        """Start copying a gradient, and the weights, which may have been set on the device since the last step."""
        assert param.grad is not None
        waits = [self._copies.start(self._room(param), local(param.grad))]
        if not self._unread(param):
            waits.append(self._weights_out(param))
        return waits

    def _weights_out(self, param: Tensor) -> Callable[[], None]:
        return self._copies.start(local(self.host_of[param].detach()), local(param.detach()))

    def _unread(self, param: Tensor) -> bool:
        """Whether the next step does not read the values of a parameter.

        It reads fp32 master weights in their place, unless the parameter was set since the last step. Writes through
        ``.data`` are not counted, and are noticed only without fp32 master weights.
        """
        if not isinstance(self.optimizer, RuleOptimizer) or version_of(param) != self._versions[param]:
            return False
        master = self.optimizer.state.get(self.host_of[param], {}).get(MASTER)
        return isinstance(master, Tensor) and master.dtype == torch.float32

    def _buckets(self, params: list[Tensor]) -> Iterable[list[int]]:
        """Numbers of the parameters that step together: all, where something looks at all of them."""
        inside = self.optimizer
        hooks = inside._optimizer_step_pre_hooks or inside._optimizer_step_post_hooks
        if not isinstance(inside, RuleOptimizer) or hooks or _sums(inside):
            return [list(range(len(params)))] if params else []
        found: list[list[int]] = [[]]
        size = 0
        for i, p in enumerate(params):
            if size >= BUCKET:
                found.append([])
                size = 0
            found[-1].append(i)
            size += local(p).numel() * p.element_size()
        return [bucket for bucket in found if bucket]

    def _room(self, param: Tensor) -> Tensor:
        """Return host memory for the gradient of a parameter."""
        assert param.grad is not None
        if param.grad.layout != torch.strided:
            raise RuntimeError("offload needs dense gradients, got a sparse one: use sparse=False")
        room, grad = self._grads.get(param), local(param.grad)
        if room is None or room.dtype != grad.dtype or room.shape != grad.shape:
            room = self._grads[param] = self._copies.host(grad)
        return room

    def _share_arguments(self) -> None:
        """Pass the groups' arguments, which schedulers change here, to the optimizer on the host."""
        for mine, theirs in zip(self.param_groups, self.optimizer.param_groups, strict=True):
            theirs.update({k: v for k, v in mine.items() if k not in ("params", "param_names")})

    def state_dict(self) -> dict[str, Any]:
        """Return the state dictionary of the optimizer on the host, which is the same as without offload."""
        self._share_arguments()
        return self.optimizer.state_dict()

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dictionary saved with or without offload."""
        self.optimizer.load_state_dict(state_dict)
        for mine, theirs in zip(self.param_groups, self.optimizer.param_groups, strict=True):
            mine.update({k: v for k, v in theirs.items() if k != "params"})
        log_once(f"{type(self.optimizer).__name__}: states are loaded into host memory")

    def memory(self) -> Any:
        """Return the bytes of the states in host memory; see :meth:`RuleOptimizer.memory`."""
        return self._ours("memory").memory()

    @torch.no_grad()
    def reset_state(
        self, names: Sequence[str] | None = None, params: Iterable[Tensor] | None = None, rows: Any = None
    ) -> None:
        """Reset states as :meth:`RuleOptimizer.reset_state` does. Master weights are reset to the device's weights.

        Parameters
        ----------
        names, rows
            As for :meth:`RuleOptimizer.reset_state`.
        params
            Parameters on the device. Default: all.
        """
        optimizer = self._ours("reset_state")
        chosen = list(self.host_of) if params is None else list(params)
        for wait in [self._weights_out(p) for p in chosen if p in self.host_of]:
            wait()
        optimizer.reset_state(names, [self.host_of.get(p, p) for p in chosen], rows)

    def _ours(self, what: str) -> RuleOptimizer:
        if not isinstance(self.optimizer, RuleOptimizer):
            raise TypeError(f"{what}() exists only for optimizers of halfulp, not for {type(self.optimizer).__name__}")
        return self.optimizer


def _check(params: Sequence[Tensor], places: Registry) -> None:
    """Raise for parameters that cannot be copied, or that a step on their copies would not update as they are."""
    for p in params:
        label = places[p].label
        if is_wrapper(p):
            raise ValueError(f"{label}: offload takes plain and sharded parameters, got a {type(p).__name__}")
        check_allocated(p, label)
        if p.requires_grad:
            check_memory(p, label)
    check_apart((places[p].label, [("", local(p.detach()))]) for p in params if p.requires_grad)


def _copies_for(params: Iterable[Tensor]) -> Copies:
    """Return the way to copy between the host and the device of some parameters."""
    cuda = next((p.device for p in params if p.is_cuda), None)
    return _Direct() if cuda is None else _Streams(cuda)


def _on_host(state: Tensor) -> Tensor:
    """Return a copy of a state in host memory."""
    return placed_on("cpu", state, local(state.detach()).to("cpu", copy=True))


def _sums(optimizer: RuleOptimizer) -> bool:
    return any(rule.measure is not None for group in optimizer.param_groups for rule in optimizer.active_rules(group))
