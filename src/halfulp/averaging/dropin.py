"""Averages under the names, arguments and checkpoints of other libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from halfulp.averaging.base import clean_name
from halfulp.averaging.decay import Uniform
from halfulp.averaging.ema import EMA
from halfulp.averaging.shards import local_part
from halfulp.numbers.log import log_once

__all__ = ["AveragedModel", "EMAPytorch"]


class _Called:
    """What both have in common: an average that is called like a model."""

    ema: EMA

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward with the averaged weights in it."""
        with torch.no_grad(), self.ema.swap():
            return self.module(*args, **kwargs)

    @property
    def module(self) -> nn.Module:
        """The live model (there is no second one): enter ``ema.swap()`` to see the averaged weights in it."""
        assert isinstance(self.ema.model, nn.Module)
        return self.ema.model

    def _averages(self) -> dict[str, Tensor]:
        """Every entry of the model's state_dict, averages where there are some."""
        state = self.ema.averaged_state_dict()
        return {n: t for n, t in state.items() if isinstance(t, Tensor)}

    def _take(self, values: Mapping[str, Tensor]) -> None:
        """Start from given averages."""
        named = {clean_name(n): t for n, t in values.items()}
        missing = sorted(set(self.ema.live) - set(named))
        if missing:
            raise ValueError(f"the state_dict lacks {missing}")
        live = self.ema.live
        self.ema.store.copy_from({n: named[n].to(live[n].device) for n in live})


class AveragedModel(_Called):
    """``torch.optim.swa_utils.AveragedModel`` with averages in any format.

    Same arguments, ``update_parameters``, ``n_averaged``, call and state_dict keys; ``state``, ``rounding``, ``seed``
    and the options of :class:`~halfulp.averaging.ema.EMA` come on top. There is no second model: :attr:`module` is the
    live one. ``avg_fn`` and ``multi_avg_fn`` must be linear, as torch's own are: the decay is read off them.

    Parameters
    ----------
    model
        A module.
    device
        Ignored, which is logged once: averages lie where the model does.
    avg_fn, multi_avg_fn
        As torch has them; one of them, or the uniform mean without.
    use_buffers
        Average floating-point buffers too, in fp32.
    options
        Of :class:`~halfulp.averaging.ema.EMA`.

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

    def __init__(
        self,
        model: nn.Module,
        device: Any = None,
        avg_fn: Callable[[Any, Any, Any], Any] | None = None,
        multi_avg_fn: Callable[[Any, Any, Any], None] | None = None,
        use_buffers: bool = False,
        **options: Any,
    ) -> None:
        if device is not None:
            log_once(f"halfulp.averaging.AveragedModel keeps averages where the model is; device={device} is ignored")
        if avg_fn is not None and multi_avg_fn is not None:
            raise ValueError("give avg_fn or multi_avg_fn, not both")
        self._avg_fn, self._multi_avg_fn = avg_fn, multi_avg_fn
        buffers: Any = "average" if use_buffers else "live"
        self.ema = EMA(model, self._decay, buffers=buffers, **options)

    def _decay(self, n: int) -> float:
        """Decay of the `n`-th update; the first copies, as torch's does."""
        if n == 1:
            return 0.0
        if self._avg_fn is None and self._multi_avg_fn is None:
            return Uniform()(n)
        ends = []
        for average, live in ((0.0, 1.0), (1.0, 0.0)):
            a, x = torch.tensor([average], dtype=torch.float64), torch.tensor([live], dtype=torch.float64)
            if self._multi_avg_fn is not None:
                self._multi_avg_fn([a], [x], n - 1)
                ends.append(float(a))
            elif self._avg_fn is not None:
                ends.append(float(self._avg_fn(a, x, n - 1)))
        if abs(sum(ends) - 1.0) > 1e-9:
            raise ValueError("the averaging function is not a weighted mean of average and live weight")
        return ends[1]

    @property
    def n_averaged(self) -> Tensor:
        """Updates so far."""
        return torch.tensor(self.ema.updates)

    def update_parameters(self, model: nn.Module) -> None:
        """Average the weights of a model in."""
        self.ema.update(model)

    def parameters(self) -> Iterable[Tensor]:
        """Averages, decoded."""
        return self.ema.parameters()

    def state_dict(self) -> dict[str, Any]:
        """Torch's keys (``n_averaged``, ``module.*``), decoded, and under ``halfulp`` what is stored, bit for bit."""
        state: dict[str, Any] = {"n_averaged": self.n_averaged}
        state.update({f"module.{n}": t for n, t in self._averages().items()})
        state["halfulp"] = self.ema.state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load our own or torch's."""
        if "halfulp" in state_dict:
            self.ema.load_state_dict(state_dict["halfulp"])
            return
        if "n_averaged" not in state_dict:
            raise ValueError("neither of halfulp nor of torch.optim.swa_utils.AveragedModel: it lacks 'n_averaged'")
        self._take({n.removeprefix("module."): t for n, t in state_dict.items() if n.startswith("module.")})
        self.ema.step = self.ema.updates = int(state_dict["n_averaged"])


class EMAPytorch(_Called):
    """``ema_pytorch.EMA`` with averages in any format: same arguments, ``update``, call and checkpoint keys.

    There is no second model; :attr:`ema_model` is the live one with averages where ``swap`` puts them. Arguments that
    concern the second model are refused.

    Parameters
    ----------
    model
        A module.
    ema_model
        Only ``None``.
    param_or_buffer_names_no_ema
        Names that are not averaged.
    beta
        Largest decay.
    update_after_step, update_every
        Steps until the first update, and from one to the next.
    inv_gamma, power, min_value
        Of the warm-up of the decay: see :class:`~halfulp.averaging.decay.Warmup`.
    include_online_model
        Ignored.
    options
        Of :class:`~halfulp.averaging.ema.EMA`.

    Examples
    --------
    >>> import torch
    >>> from halfulp.averaging import EMAPytorch
    >>> ema = EMAPytorch(torch.nn.Linear(64, 64), beta=0.999, update_after_step=0, update_every=1, state="8bit")
    >>> ema.update()
    >>> ema(torch.ones(1, 64)).shape
    torch.Size([1, 64])
    """

    def __init__(
        self,
        model: nn.Module,
        ema_model: None = None,
        param_or_buffer_names_no_ema: Iterable[str] = (),
        beta: float = 0.9999,
        update_after_step: int = 100,
        update_every: int = 10,
        inv_gamma: float = 1.0,
        power: float = 2 / 3,
        min_value: float = 0.0,
        include_online_model: bool = True,
        **options: Any,
    ) -> None:
        if ema_model is not None:
            raise ValueError("ema_model=: there is no second model here; leave it out")
        self.beta, self.inv_gamma, self.power, self.min_value = beta, inv_gamma, power, min_value
        self.update_after_step, self.update_every = update_after_step, update_every
        self.include_online_model = include_online_model
        self.initted = False
        ignore = tuple(param_or_buffer_names_no_ema)
        self.ema = EMA(model, lambda n: self.get_current_decay(), buffers="average", ignore=ignore, **options)
        self._calls = 0

    @property
    def ema_model(self) -> nn.Module:
        """The live model, see :attr:`module`."""
        return self.module

    @property
    def step(self) -> Tensor:
        """Calls of :meth:`update`."""
        return torch.tensor(self._calls)

    def get_current_decay(self) -> float:
        """Decay of an update now, as ema-pytorch computes it."""
        epoch = max(self._calls - self.update_after_step - 1, 0)
        if epoch == 0:
            return 0.0
        return min(max(1 - (1 + epoch / self.inv_gamma) ** -self.power, self.min_value), self.beta)

    def update(self) -> None:
        """Count a step, and move the average if it is due."""
        step, self._calls = self._calls, self._calls + 1
        if not self.initted:
            self.copy_params_from_model_to_ema()
            self.initted = True
            return
        if step % self.update_every:
            return
        if step <= self.update_after_step:
            self.copy_params_from_model_to_ema()
            return
        self.ema.update()

    def copy_params_from_model_to_ema(self) -> None:
        """Start again from the live weights."""
        self.ema.store.copy_from(self.ema.live)

    def copy_params_from_ema_to_model(self) -> None:
        """The live weights become the average."""
        self.ema.copy_to()

    def state_dict(self) -> dict[str, Any]:
        """ema-pytorch's keys (``initted``, ``step``, ``ema_model.*`` ...), and under ``halfulp`` what is stored."""
        state: dict[str, Any] = {"initted": torch.tensor(self.initted), "step": self.step}
        state.update({f"ema_model.{n}": t for n, t in self._averages().items()})
        if self.include_online_model:
            state.update({f"online_model.{n}": t for n, t in self.module.state_dict().items()})
        state["halfulp"] = self.ema.state_dict()
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load our own or ema-pytorch's."""
        if not {"initted", "step"} <= set(state_dict):
            raise ValueError("neither of halfulp nor of ema-pytorch: it lacks 'initted' and 'step'")
        if "halfulp" in state_dict:
            self.ema.load_state_dict(state_dict["halfulp"])
        else:
            prefix = "ema_model."
            self._take({n.removeprefix(prefix): t for n, t in state_dict.items() if n.startswith(prefix)})
        if self.include_online_model:
            mine = self.module.state_dict()
            for name, tensor in state_dict.items():
                if name.startswith("online_model.") and name.removeprefix("online_model.") in mine:
                    local_part(mine[name.removeprefix("online_model.")]).tensor.copy_(tensor)
        self.initted, self._calls = bool(state_dict["initted"]), int(state_dict["step"])
