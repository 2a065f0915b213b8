"""Averages under the names, arguments and checkpoints of torch's ``AveragedModel``; the base of all drop-ins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from halfulp.averaging.decay import Uniform
from halfulp.averaging.ema import EMA
from halfulp.averaging.skeleton import Skeleton
from halfulp.averaging.source import clean_name

__all__ = ["AveragedModel", "SecondModel", "under"]


def under(prefix: str, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): x for name, x in state_dict.items() if name.startswith(prefix)}


class SecondModel(nn.Module):
    """Base class of drop-ins for classes that keep a second model: a module around one whose weights are an average.

    Subclasses set :attr:`ema` and register the second model under the original's name for it (:attr:`second`).
    """

    second = "module"
    ema: EMA
    _skeleton: Skeleton

    def _begin(self, ema: EMA, skeleton: Skeleton) -> None:
        self.ema, self._skeleton = ema, skeleton
        self._modules[self.second] = skeleton.module

    def _average(self, move: Callable[[], None]) -> None:
        """Update the average, then the second model."""
        self._skeleton.take_buffers()
        move()
        self._skeleton.follow()
        self._modules[self.second] = self._skeleton.module
        self._skeleton.give_buffers()

    def follow(self, optimizer: Any) -> None:
        """Average the fp32 weights behind 16-bit parameters: :meth:`~halfulp.averaging.EMA.follow`."""
        self.ema.follow(optimizer)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Handle ``to()`` and related methods: averages move to the device, and weights are decoded to the dtype."""
        super()._apply(fn, recurse)
        for name, dtype in self._skeleton.dtypes.items():
            if name in self.ema.store:
                sample = fn(torch.empty(0, dtype=dtype, device=self.ema.store.state_of(name).codes.device))
                self._skeleton.dtypes[name] = sample.dtype
                self.ema.to(sample.device)
        return self

    def _take(self, values: Mapping[str, Tensor]) -> None:
        """Start from the given averages."""
        named = {clean_name(n): t for n, t in values.items()}
        missing = sorted(set(self.ema.store) - set(named))
        if missing:
            raise ValueError(f"the state_dict lacks {missing}")
        wrong = [n for n in self.ema.store if not self.ema.store.fits(n, named[n])]
        if wrong:
            raise ValueError(f"the state_dict has other shapes than the model for {wrong}")
        self.ema.store.copy_from({n: named[n] for n in self.ema.store})

    @torch.no_grad()
    def _take_buffers(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Restore the second model's buffers as they were saved."""
        self._skeleton.give_buffers()
        for name, buffer in self._skeleton.module.named_buffers():
            if f"{prefix}{name}" in state_dict:
                buffer.copy_(state_dict[f"{prefix}{name}"])  # update_bn wrote what differs from the average

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the original's keys, decoded, plus the stored averages under ``halfulp``, bit for bit."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        state[f"{kwargs.get('prefix', '')}halfulp"] = self.ema.state_dict()
        return state

    def _load(self, state_dict: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load our own state or the original's. It must hold every average."""
        self._load(state_dict)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Any, strict: bool, missing: Any,
        unexpected: Any, errors: list[str],
    ) -> None:  # fmt: skip
        try:  # part of a larger module
            self._load(under(prefix, state_dict))
        except ValueError as error:
            errors.append(f"{prefix}: {error}")

    def __getstate__(self) -> dict[str, Any]:
        modules = {n: m for n, m in self._modules.items() if n != self.second}
        return {**self.__dict__, "_modules": modules}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        order = ("online_model", self.second)
        self._modules[self.second] = self._skeleton.module
        self._modules = {n: self._modules[n] for n in order if n in self._modules}


class AveragedModel(SecondModel):
    """``torch.optim.swa_utils.AveragedModel`` with averages in any format.

    It has the same arguments, methods and state_dict keys, plus ``state``, ``rounding``, ``seed`` and the options of
    :class:`~halfulp.averaging.ema.EMA`. ``module`` is a second model whose weights are decoded whenever they are read,
    so ``module.state_dict()``, ``module(x)`` and ``copy.deepcopy(module)`` have the averages. It has its own buffers,
    so that ``update_bn`` works. Frozen weights are shared with the model.

    ``avg_fn`` and ``multi_avg_fn`` must be linear, like torch's own, because the decay is inferred from them.

    Parameters
    ----------
    model
        A module.
    device
        Device of the averages. Default: the model's.
    avg_fn, multi_avg_fn
        As in torch, at most one of them. Default: the uniform mean.
    use_buffers
        Average floating-point buffers too, in fp32. Other buffers are copied from the model in each update.
    options
        Options of :class:`~halfulp.averaging.ema.EMA`.

    Examples
    --------
    >>> import torch
    >>> from torch.optim.swa_utils import get_ema_multi_avg_fn
    >>> from halfulp.averaging import AveragedModel
    >>> model = torch.nn.Linear(64, 64)
    >>> averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999), state="8bit")
    >>> averaged.update_parameters(model)
    >>> averaged(torch.ones(1, 64)).shape
    torch.Size([1, 64])
    """

    n_averaged: Tensor
    """Number of updates so far."""

    def __init__(
        self,
        model: nn.Module,
        device: Any = None,
        avg_fn: Callable[[Any, Any, Any], Any] | None = None,
        multi_avg_fn: Callable[[Any, Any, Any], None] | None = None,
        use_buffers: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if avg_fn is not None and multi_avg_fn is not None:
            raise ValueError("give avg_fn or multi_avg_fn, not both")
        self.avg_fn, self.multi_avg_fn, self.use_buffers = avg_fn, multi_avg_fn, use_buffers
        ema = EMA(model, self._decay, buffers="average" if use_buffers else "live", **options)
        self._begin(ema, Skeleton(ema))
        self.register_buffer("n_averaged", torch.tensor(0, dtype=torch.long, device=device))
        if device is not None:
            self.to(device)

    def _decay(self, n: int) -> float:
        """Return the decay of update `n`. The first update copies, as in torch."""
        if n == 1:
            return 0.0
        if self.avg_fn is None and self.multi_avg_fn is None:
            return Uniform()(n)
        ends = []
        for average, live in ((0.0, 1.0), (1.0, 0.0)):
            a, x = torch.tensor([[average], [live]], dtype=torch.float64, device="cpu")
            if self.multi_avg_fn is not None:
                self.multi_avg_fn([a], [x], n - 1)
                ends.append(float(a))
            elif self.avg_fn is not None:
                ends.append(float(self.avg_fn(a, x, n - 1)))
        if abs(sum(ends) - 1.0) > 1e-9:
            raise ValueError("the averaging function is not a weighted mean of average and live weight")
        return ends[1]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the second model's forward, with the averaged weights."""
        return self._skeleton.module(*args, **kwargs)

    def update_parameters(self, model: nn.Module) -> None:
        """Update the average with the weights of a model."""
        self.ema.updates = int(self.n_averaged)
        self._average(lambda: self.ema.update(model))
        self.n_averaged.fill_(self.ema.updates)
        self._skeleton.copy_buffers(model)

    def _load(self, state_dict: Mapping[str, Any]) -> None:
        if "n_averaged" not in state_dict and "halfulp" not in state_dict:
            raise ValueError(
                "the state_dict is neither halfulp's nor that of torch.optim.swa_utils.AveragedModel: "
                "it lacks 'n_averaged'"
            )
        if "halfulp" in state_dict:
            self.ema.load_state_dict(state_dict["halfulp"])
        else:
            self._take(under("module.", state_dict))
            self.ema.step = self.ema.updates = int(state_dict["n_averaged"])
        self._take_buffers(state_dict, "module.")
        self.n_averaged.fill_(self.ema.updates)
