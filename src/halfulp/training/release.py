"""Gradient release: each parameter is stepped as soon as its gradient is ready, and the gradient is freed."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import MethodType
from typing import Any, Literal, TypeVar
from weakref import ref

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction

from halfulp.engine.optimizer import RuleOptimizer
from halfulp.engine.sharding import is_sharded
from halfulp.libraries import unwrap
from halfulp.numbers.log import warn_once

__all__ = ["GradientRelease", "release_gradients"]

T = TypeVar("T")
HOLDER = "_halfulp_release"
"""The attribute of a parameter that holds its gradient release."""


def release_gradients(
    optimizer: torch.optim.Optimizer,
    *,
    accumulate: int = 1,
    max_norm: float | None = None,
    clip: Literal["previous", "two passes"] = "previous",
) -> GradientRelease:
    """Step each parameter during the backward pass, so that few gradients exist at a time.

    The bits are those of an ordinary ``step()`` after the backward pass. Hooks of ``step()`` run once per step.
    ``optimizer.step()`` may still be called. It does the remaining work, usually none.

    Some gradients are not final until the backward pass ends. They are then kept until that point, with a warning. This
    happens under :class:`~torch.nn.parallel.DistributedDataParallel` (all-reduce), with re-entrant checkpointing
    (further contributions), and if hooks of ``step()`` may read all gradients (:class:`~halfulp.StallMonitor`).

    Parameters
    ----------
    optimizer
        One of our optimizers, possibly inside a wrapper.
    accumulate
        Backward passes per step. Gradients are freed in the last one.
    max_norm
        Clip gradients to this norm over all parameters.
    clip
        ``"previous"`` clips by the gradient norm of the previous step; the first step is not clipped. ``"two passes"``
        clips exactly, like ``clip_grad_norm_``: each first backward pass measures the norm and frees its gradients, and
        the second one of the same loss (``retain_graph=True`` in the first) makes the step.

    Returns
    -------
    GradientRelease
        Call its ``remove()`` to end the gradient release.

    Raises
    ------
    ValueError
        If the rule needs sums over the whole model, parameters are of FSDP1, gradients are released already, or
        arguments do not go together.

    Examples
    --------
    >>> import torch, halfulp
    >>> from halfulp.training import release_gradients
    >>> model = torch.nn.Linear(8, 8)
    >>> release = release_gradients(halfulp.AdamW(model.parameters(), lr=1e-3))
    >>> model(torch.ones(1, 8)).sum().backward()
    >>> model.weight.grad is None
    True
    >>> release.remove()
    """
    inside = unwrap(optimizer)
    if not isinstance(inside, RuleOptimizer):
        raise ValueError(f"gradients can be released only for optimizers of halfulp, got {type(inside).__name__}")
    if accumulate < 1 or (max_norm is not None and not max_norm > 0.0):
        raise ValueError(f"accumulate must be at least 1 and max_norm positive, got {accumulate} and {max_norm}")
    if clip not in ("previous", "two passes"):
        raise ValueError(f"clip must be 'previous' or 'two passes', got {clip!r}")
    if clip == "two passes" and (max_norm is None or accumulate > 1):
        raise ValueError(
            "clip='two passes' needs max_norm, and cannot be combined with accumulate: both passes are of one loss"
        )
    return GradientRelease(inside, accumulate, max_norm, clip == "two passes")


class GradientRelease:
    """Gradient release of an optimizer, created by :func:`release_gradients`.

    Parameters
    ----------
    optimizer, accumulate, max_norm
        As for :func:`release_gradients`.
    two_passes
        Whether every other backward pass measures the norm.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(8, 8)
    >>> release = halfulp.training.release_gradients(halfulp.AdamW(model.parameters()), max_norm=1.0)
    >>> model(torch.ones(1, 8)).sum().backward()
    >>> round(float(release.norm), 3)
    8.485
    """

    def __init__(self, optimizer: RuleOptimizer, accumulate: int, max_norm: float | None, two_passes: bool) -> None:
        self.optimizer, self.accumulate, self.max_norm, self.two_passes = optimizer, accumulate, max_norm, two_passes
        self.passes = 0
        """Number of finished backward passes."""
        self.norm: Tensor | None = None
        """Gradient norm of the last step before clipping, if `max_norm` is given."""
        self._handles: dict[Tensor, Any] = {}
        self._norms: dict[Tensor, Tensor] = {}
        self._stepped: set[Tensor] = set()
        self._nested: dict[int, bool] = {}
        self._reentrant = False
        self._replicated: bool | None = None
        self._scalers_checked = False
        self._before_called = False
        for group in optimizer.param_groups:
            self._check(group)
        for group in optimizer.param_groups:
            self._watch(group)
        self._add_group, self._step = optimizer.add_param_group, optimizer.step
        optimizer.add_param_group = self._added  # type: ignore[method-assign]

        def asked(_: RuleOptimizer, closure: Callable[[], Any] | None = None) -> None:
            self._asked(closure)

        optimizer.step = MethodType(asked, optimizer)  # type: ignore[method-assign]  # a method: schedulers wrap it

    def remove(self) -> None:
        """End the gradient release: gradients are kept again, and ``step()`` makes the steps."""
        for param, handle in self._handles.items():
            handle.remove()
            vars(param).pop(HOLDER, None)
        self._handles.clear()
        for name in ("add_param_group", "step"):
            self.optimizer.__dict__.pop(name, None)
        if getattr(self._step, "__func__", None) is not type(self.optimizer).step:  # wrapped by a scheduler
            self.optimizer.step = self._step  # type: ignore[method-assign]

    def __reduce__(self) -> Any:
        return type(None), ()  # a copied or saved parameter has no hooks, and no release

    # ---------------------------------------------------------------- what is watched

    def _check(self, group: dict[str, Any]) -> None:
        needing = [r.name for r in self.optimizer.active_rules(group) if r.measure is not None and not r.per_tensor]
        if needing:
            raise ValueError(f"{needing} need sums over the whole model: their steps cannot be taken one by one")
        for param in group["params"]:
            if type(param).__name__ == "FlatParameter":
                raise ValueError("gradients of FSDP1's flat parameters are not final in their hooks: use fully_shard")
            if getattr(param, HOLDER, None) not in (None, self):
                raise ValueError("the gradients are released already: remove() that release first")

    def _watch(self, group: dict[str, Any]) -> None:
        for param in group["params"]:
            if param in self._handles:
                continue
            frozen = not param.requires_grad
            if frozen:  # it may be unfrozen later, and hooks need a tensor that takes gradients
                param.requires_grad_(True)
            self._handles[param] = param.register_post_accumulate_grad_hook(_weakly(self))
            setattr(param, HOLDER, self)
            if frozen:
                param.requires_grad_(False)

    def _added(self, param_group: dict[str, Any]) -> None:
        self._add_group(param_group)
        added = self.optimizer.param_groups[-1]
        try:
            self._check(added)
        except ValueError:
            self.optimizer.param_groups.pop()
            raise
        self._watch(added)

    def _asked(self, closure: Callable[[], Any] | None) -> None:
        """Handle a call of ``optimizer.step()``: step the gradients that no hook has seen."""
        if closure is not None:
            raise ValueError("a closure runs its own backward passes: call step() without one, or remove() the release")
        if not self._measuring() and self.passes % self.accumulate == 0 and self._left():
            self._finish()

    # ---------------------------------------------------------------- a backward pass

    def _measuring(self) -> bool:
        return self.two_passes and self.passes % 2 == 0

    def _stepping(self) -> bool:
        """Whether the present pass makes the step."""
        return not self._measuring() and (self.passes + 1) % self.accumulate == 0

    def _deferred(self) -> bool:
        """Whether gradients may change or be read after their hooks."""
        if self._replicated is None:
            self._replicated = self._under_ddp()
        reason = None
        if self._replicated:
            reason = "DistributedDataParallel averages them at its end"
        elif self._reentrant:
            reason = "re-entrant checkpointing may add to them (use_reentrant=False does not)"
        elif any(getattr(hook, "reads_gradients", True) for hook in self._hooks()):
            reason = "hooks of step() may look at them"
        if reason is not None:
            warn_once(f"gradients are kept until the end of each backward pass: {reason}")
        return reason is not None

    def _hooks(self) -> list[Any]:
        optimizer = self.optimizer
        return [*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()]

    def _under_ddp(self) -> bool:
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return False
        models = _living(torch.nn.parallel.DistributedDataParallel)
        return any(p in self._handles for m in models for p in m.parameters())

    @torch.no_grad()
    def _ready(self, param: Tensor) -> None:
        """Handle a gradient that is ready."""
        task = torch._C._current_graph_task_id()
        if task not in self._nested:
            outer = _checkpoint_around()
            self._nested[task] = outer is not None
            if outer is None:
                self._begin(task)
            else:
                self._reentrant = True
                _after(outer, self._end)
        if self._nested[task] or self._deferred() or not (self._stepping() or self._measuring()):
            if param in self._stepped:
                raise RuntimeError(
                    f"{self.optimizer.place(param).label} got a second gradient in a backward pass, after its step: "
                    "it is shared with a part under re-entrant checkpointing. Use use_reentrant=False there"
                )
            return
        self._take(param)

    def _begin(self, task: int) -> None:
        if not self._scalers_checked:
            _check_scalers()
            self._scalers_checked = True
        self._nested = {task: False}
        self._stepped.clear()
        self._before_called = False
        _callback(self._end)

    def _take(self, param: Tensor) -> None:
        """Use a final gradient and free it."""
        self._clip(param)
        if not self._measuring():
            self._call_before()
            self.optimizer.step_parameters([param])
            self._stepped.add(param)
        param.grad = None

    def _clip(self, param: Tensor) -> None:
        """Note the norm of a gradient, and clip it in a pass that makes a step."""
        assert param.grad is not None
        if self.max_norm is not None:
            self._norms[param] = torch.linalg.vector_norm(param.grad)
            if self.norm is not None and not self._measuring():
                param.grad.mul_(torch.clamp(self.max_norm / (self.norm + 1e-6), max=1.0))

    def _end(self) -> None:
        """Handle the end of the outermost backward pass. DDP's own callback runs first."""
        if self._nested:
            self._nested = {}
            if self._replicated:
                _callback(self._end_after)
            else:
                self._end_after()

    @torch.no_grad()
    def _end_after(self) -> None:
        if self._stepping() or self._measuring():
            self._finish()
        self.passes += 1

    def _left(self) -> list[Tensor]:
        params = [p for group in self.optimizer.param_groups for p in self.optimizer.active_params(group)]
        return [p for p in params if p.grad is not None]

    @torch.no_grad()
    def _finish(self) -> None:
        """Step the gradients that no hook has taken, then run the hooks of ``step()``."""
        left = self._left()
        if self._measuring():
            for param in left:
                self._take(param)
            self.norm = self._total()
            return
        if left:
            for param in left:
                self._clip(param)
            self._call_before()
            self.optimizer.step_parameters(left)
        if self._before_called:
            for hook in self.optimizer._optimizer_step_post_hooks.values():
                hook(self.optimizer, (), {})
        for param in left:
            param.grad = None
        self._before_called = False
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # what schedulers look at
        total = self._total()
        if not self.two_passes:
            self.norm = total

    def _call_before(self) -> None:
        if not self._before_called:
            self._before_called = True
            for hook in self.optimizer._optimizer_step_pre_hooks.values():
                hook(self.optimizer, (), {})

    def _total(self) -> Tensor | None:
        """Return the norm over all parameters, summed in their order like ``clip_grad_norm_``."""
        params = [p for group in self.optimizer.param_groups for p in group["params"] if p in self._norms]
        norms = [self._norms[p] for p in params]
        self._norms.clear()
        if not norms:
            return self.norm
        whole = [n.full_tensor() if is_sharded(n) else n for n in norms]  # type: ignore[attr-defined]
        return torch.linalg.vector_norm(torch.stack([n.to(whole[0].device) for n in whole]))


def _weakly(release: GradientRelease) -> Callable[[Tensor], None]:
    """Return a hook that does not keep the release alive; the attribute :data:`HOLDER` of the parameter does.

    torch keeps these hooks where Python's garbage collector does not look, so that one that led back to its parameter
    would keep model and optimizer in memory for good.
    """
    known = ref(release)

    def ready(param: Tensor) -> None:
        found = known()
        if found is not None:
            found._ready(param)

    return ready


def _living(kind: type[T]) -> list[T]:
    """Return all objects of a class. Others are not touched: a weak proxy may have lost its object."""
    return [o for o in gc.get_objects() if issubclass(type(o), kind)]


def _check_scalers() -> None:
    """Raise ``RuntimeError`` if a ``GradScaler`` has scaled a loss and was never updated: this is its first pass."""
    for scaler in _living(torch.amp.GradScaler):
        scale, tracker = scaler._scale, scaler._growth_tracker
        if scale is None or tracker is None:
            continue
        if float(scale) == scaler._init_scale and int(tracker) == scaler._init_growth_tracker:
            raise RuntimeError(
                "released gradients are stepped in the backward pass, before a GradScaler could unscale them: train in "
                "bfloat16 without a scaler, or remove() the release. Nothing was changed. If the scaler is of another "
                "model, release the gradients after its first update()"
            )


def _callback(function: Callable[[], None]) -> None:
    """Call a function at the end of the present backward pass."""
    torch.autograd.Variable._execution_engine.queue_callback(function)


def _checkpoint_around() -> Any:
    """Return the node of the outermost re-entrant checkpoint whose backward pass this is, or ``None``."""
    found, frame = None, sys._getframe()
    while frame is not None:
        if frame.f_code is CheckpointFunction.backward.__code__:
            found = frame.f_locals["ctx"]
        frame = frame.f_back  # type: ignore[assignment]
    return found


def _after(node: Any, function: Callable[[], None]) -> None:
    """Call a function at the end of the backward pass that contains a node, through the nodes that follow it."""
    for following, _ in node.next_functions:
        if following is not None:
            following.register_prehook(lambda *_: _callback(function))
