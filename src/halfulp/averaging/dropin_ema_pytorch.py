"""Averages under the names, arguments and checkpoints of ema-pytorch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from halfulp.averaging.decay import as_decay
from halfulp.averaging.dropin import SecondModel, under
from halfulp.averaging.ema import EMA
from halfulp.averaging.skeleton import Skeleton
from halfulp.averaging.source import clean_name
from halfulp.engine.sharding import local_part
from halfulp.libraries import hooked

__all__ = ["EMAPytorch"]


class EMAPytorch(SecondModel):
    """``ema_pytorch.EMA`` (0.8.3) with averages in any format: the same arguments, methods and checkpoint keys.

    ``ema_model`` is a second model whose weights are decoded whenever they are read. ``use_foreach`` and
    ``coerce_dtype`` have no effect: averages are always updated in one pass, from weights of any dtype. The attributes
    ``inplace_copy`` and ``inplace_lerp`` are missing. Models that are not an ``nn.Module`` (pytrees) raise an error.

    Parameters
    ----------
    model
        A module.
    ema_model
        A second module of the same form, or a function that makes one. Its weights become the averages and are then
        dropped. Default: a copy of the model.
    beta
        Largest decay.
    update_after_step, update_every
        Steps before the first update, and steps between updates.
    inv_gamma, power, min_value
        Warm-up of the decay: see :class:`~halfulp.averaging.decay.Warmup`.
    param_or_buffer_names_no_ema
        Names that are copied in each update.
    ignore_names, ignore_startswith_names
        Names, and name prefixes, that no update changes in the second model.
    include_online_model
        Whether the model is part of the state_dict.
    allow_different_devices, move_ema_to_online_device
        Whether averages may be on another device than the model, and whether they move to the model's.
    use_foreach, coerce_dtype
        No effect.
    update_model_with_ema_every, update_model_with_ema_beta
        Steps after which the model takes over the average (Switch EMA), and the share of its own value that it keeps.
    forward_method_names
        Methods of the second model that are available here.
    lazy_init_ema
        Whether to create the second model in the first update.
    options
        Options of :class:`~halfulp.averaging.ema.EMA`: ``state``, ``rounding``, ``seed``, ``frozen`` ...

    Examples
    --------
    >>> import torch
    >>> from halfulp.averaging import EMAPytorch
    >>> ema = EMAPytorch(torch.nn.Linear(64, 64), beta=0.999, update_after_step=0, update_every=1, state="8bit")
    >>> ema.update()
    >>> ema(torch.ones(1, 64)).shape
    torch.Size([1, 64])
    """

    second = "ema_model"
    ema_model: Any
    """The second model."""
    initted: Tensor
    step: Tensor

    def __init__(
        self,
        model: nn.Module,
        ema_model: nn.Module | Callable[[], nn.Module] | None = None,
        beta: float = 0.9999,
        update_after_step: int = 100,
        update_every: int = 10,
        inv_gamma: float = 1.0,
        power: float = 2 / 3,
        min_value: float = 0.0,
        param_or_buffer_names_no_ema: Collection[str] = (),
        ignore_names: Collection[str] = (),
        ignore_startswith_names: Collection[str] = (),
        include_online_model: bool = True,
        allow_different_devices: bool = False,
        use_foreach: bool = False,
        update_model_with_ema_every: int | None = None,
        update_model_with_ema_beta: float = 0.0,
        forward_method_names: tuple[str, ...] = (),
        move_ema_to_online_device: bool = False,
        coerce_dtype: bool = False,
        lazy_init_ema: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"EMAPytorch averages a module, got {type(model).__name__}: EMA takes tensors, too")
        if lazy_init_ema and ema_model is not None:
            raise ValueError("lazy_init_ema makes the second model itself: leave out ema_model=")
        self.beta, self.inv_gamma, self.power, self.min_value = beta, inv_gamma, power, min_value
        self.update_after_step, self.update_every = update_after_step, update_every
        self.param_or_buffer_names_no_ema, self.ignore_names = param_or_buffer_names_no_ema, ignore_names
        self.ignore_startswith_names, self.forward_method_names = ignore_startswith_names, forward_method_names
        self.allow_different_devices, self.use_foreach = allow_different_devices, use_foreach
        self.move_ema_to_online_device, self.coerce_dtype = move_ema_to_online_device, coerce_dtype
        self.update_model_with_ema_every = update_model_with_ema_every
        self.update_model_with_ema_beta = update_model_with_ema_beta
        self.include_online_model, self.is_frozen, self._options = include_online_model, beta == 1.0, options
        if include_online_model:
            self.online_model: Any = model
        else:
            self.online_model = [model]  # as in the original, not part of the module tree
        self._modules["ema_model"] = None
        self.register_buffer("initted", torch.tensor(False, device="cpu"))
        self.register_buffer("step", torch.tensor(0, device="cpu"))
        if not lazy_init_ema:
            self.init_ema(ema_model)

    def init_ema(self, ema_model: nn.Module | Callable[[], nn.Module] | None = None) -> None:
        """Create the second model, or take one over."""
        if ema_model is not None and not isinstance(ema_model, nn.Module):
            ema_model = ema_model()
        names = set(_by_name(self.model))
        self._copied = names & set(self.param_or_buffer_names_no_ema)
        kept = {n for n in names if n in self.ignore_names or n.startswith(tuple(self.ignore_startswith_names))}
        self._copied -= kept
        own = self._copied | kept
        ema = EMA(self.model, 0.0, buffers="average", ignore=own, **self._options)
        if ema_model is not None:
            start = {n: t.detach().clone() for n, t in _by_name(ema_model).items() if n in ema.store}
        self._begin(ema, Skeleton(ema, ema_model, own))
        if ema_model is not None:
            ema.store.copy_from(start)
        for name in self.forward_method_names:
            setattr(self, name, getattr(self.ema_model, name))
        tensors = ema.source.tensors()
        self.parameter_names = {n for n in tensors if n not in ema.source.buffer_names} | own
        self.buffer_names = {n for n in tensors if n in ema.source.buffer_names}

    def add_to_optimizer_post_step_hook(self, optimizer: torch.optim.Optimizer) -> Any:
        """Update after every step of an optimizer."""
        return hooked(optimizer).register_step_post_hook(lambda *_: self.update())

    @property
    def model(self) -> nn.Module:
        """The model that the average follows."""
        model: nn.Module = self.online_model if self.include_online_model else self.online_model[0]
        return model

    def eval(self) -> Any:
        """Set the second model's evaluation mode and return that model, as the original does."""
        return self.ema_model.eval()

    @torch.no_grad()
    def forward_eval(self, *args: Any, **kwargs: Any) -> Any:
        """Run the second model's forward without gradients."""
        return self.ema_model(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the second model's forward, with the averaged weights."""
        return self.ema_model(*args, **kwargs)

    def restore_ema_model_device(self) -> None:
        """Move the averages to the device of this module's counters."""
        self.ema.to(self.initted.device)
        self.ema_model.to(self.initted.device)

    def get_params_iter(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield names and averaged parameters of either model."""
        return ((n, p) for n, p in model.named_parameters() if clean_name(n) in self.parameter_names)

    def get_buffers_iter(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield names and averaged buffers of either model."""
        return ((n, b) for n, b in model.named_buffers() if clean_name(n) in self.buffer_names)

    def get_current_decay(self) -> float:
        """Return the current decay, computed as in ema-pytorch."""
        epoch = max(int(self.step) - self.update_after_step - 1, 0)
        if epoch == 0:
            return 0.0
        return min(max(1 - (1 + epoch / self.inv_gamma) ** -self.power, self.min_value), self.beta)

    def update(self) -> None:
        """Count a step, and update the average if it is due."""
        step = int(self.step)
        self.step += 1
        if not bool(self.initted):
            if self.ema_model is None:
                self.init_ema()
            self.copy_params_from_model_to_ema()
            self.initted.fill_(True)
            return
        due = step % self.update_every == 0
        if due and step <= self.update_after_step:
            self.copy_params_from_model_to_ema()
            return
        if due:
            self.update_moving_average(self.ema_model, self.model)
        if self.update_model_with_ema_every is not None and step % self.update_model_with_ema_every == 0:
            self.update_model_with_ema()

    @torch.no_grad()
    def update_moving_average(
        self, ma_model: nn.Module, current_model: nn.Module, current_decay: float | None = None
    ) -> None:
        """Move one of the two models towards the other."""
        if self.is_frozen:
            return
        decay = self.get_current_decay() if current_decay is None else current_decay
        if ma_model is not self.ema_model:
            theirs = _by_name(ma_model)
            for name in self.ema.live:
                tensor = local_part(theirs[name]).tensor
                tensor.lerp_(self.ema.value(name).to(tensor), 1.0 - decay)
            return
        if self.move_ema_to_online_device:
            self.ema.to(next(current_model.parameters()).device)
        self.ema.decay = as_decay(decay)
        self._average(lambda: self.ema.update(None if current_model is self.model else current_model))
        self._copy_own(self._copied)

    def update_model_with_ema(self, decay: float | None = None) -> None:
        """Replace the model's weights by the average, or by a mean of both."""
        decay = self.update_model_with_ema_beta if decay is None else decay
        if decay == 0.0:
            self.copy_params_from_ema_to_model()
        else:
            self.update_moving_average(self.model, self.ema_model, decay)

    @torch.no_grad()
    def copy_params_from_model_to_ema(self) -> None:
        """Restart the average from the model's weights."""
        self._average(lambda: self.ema.store.copy_from(self.ema._follow()))
        self._copy_own(self._skeleton.own)

    @torch.no_grad()
    def _copy_own(self, names: Collection[str]) -> None:
        """Copy parameters and buffers that are not averaged. To look at them decodes those that are."""
        if not names:
            return
        theirs = _by_name(self.model)
        for name, tensor in _by_name(self.ema_model).items():
            if name in names and tensor.is_floating_point():
                tensor.data.copy_(theirs[name])

    @torch.no_grad()
    def copy_params_from_ema_to_model(self) -> None:
        """Replace the model's weights by the average."""
        self.ema.copy_to()

    def _load(self, state_dict: Mapping[str, Any]) -> None:
        if not {"initted", "step"} <= set(state_dict):
            raise ValueError(
                "the state_dict is neither halfulp's nor that of ema-pytorch: it lacks 'initted' and 'step'"
            )
        if self.ema_model is None:
            self.init_ema()
        if "halfulp" in state_dict:
            self.ema.load_state_dict(state_dict["halfulp"])
        else:
            self._take(under("ema_model.", state_dict))
        self._take_buffers(state_dict, "ema_model.")
        with torch.no_grad():
            for name, tensor in self.ema_model.named_parameters() if self._skeleton.own else ():
                if clean_name(name) in self._skeleton.own and f"ema_model.{name}" in state_dict:
                    tensor.copy_(state_dict[f"ema_model.{name}"])
        online = under("online_model.", state_dict)
        if self.include_online_model and online:
            self.model.load_state_dict(online)
        self.initted.fill_(bool(state_dict["initted"]))
        self.step.fill_(int(state_dict["step"]))


def _by_name(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model by clean name."""
    return {clean_name(n): t for n, t in [*model.named_parameters(), *model.named_buffers()]}
