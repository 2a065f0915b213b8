"""Averages under the name, arguments and files of diffusers' ``EMAModel``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from halfulp.averaging.exact import Exact, follow
from halfulp.averaging.source import check_followed, is_frozen
from halfulp.averaging.store import AverageStore
from halfulp.checkpoint.files import read_file, write_file
from halfulp.engine.loading import count
from halfulp.engine.memory import MemoryReport
from halfulp.engine.sharding import local_part
from halfulp.engine.storage import StorageOptions
from halfulp.numbers.log import log_once, warn_once
from halfulp.numbers.quantizer import Quantizer

__all__ = ["EMAModel"]

FILE = "halfulp_ema.safetensors"
"""File beside the averaged model that holds the stored averages, bit for bit."""


class EMAModel:
    """``diffusers.training_utils.EMAModel`` with averages in any format: the same arguments, methods and files.

    It holds no model. Parameters are passed in, always the same ones in the same order. Frozen parameters are not
    stored: their average is their value.

    Differences: ``shadow_params`` is a list of copies that is decoded at each read, and assigning a list stores it.
    ``foreach`` has no effect. :meth:`to` accepts no dtype. A different number of parameters raises an error.

    Parameters
    ----------
    parameters
        The model's parameters, or a module, which sets ``use_ema_warmup`` as in diffusers.
    decay, min_decay
        Largest and smallest decay.
    update_after_step
        Number of steps during which the average is a copy of the weights.
    use_ema_warmup, inv_gamma, power
        Warm-up ``1 - (1 + step / inv_gamma) ** -power``. Without it, the decay is ``(1 + step) / (10 + step)``.
    foreach
        No effect.
    model_cls, model_config
        Used by :meth:`save_pretrained`.
    state, rounding, seed, backend, options
        Storage options, as for :class:`~halfulp.averaging.ema.EMA`. ``device`` moves the averages. ``max_value`` and
        ``min_value`` are old names of ``decay`` and ``min_decay``.

    Examples
    --------
    >>> import torch
    >>> from halfulp.averaging import EMAModel
    >>> model = torch.nn.Linear(64, 64)
    >>> ema = EMAModel(model.parameters(), decay=0.999, state="8bit")
    >>> ema.step(model.parameters())                 # after the optimizer's step
    >>> ema.store(model.parameters()); ema.copy_to(model.parameters())
    >>> ema.restore(model.parameters())
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | nn.Module,
        decay: float = 0.9999,
        min_decay: float = 0.0,
        update_after_step: int = 0,
        use_ema_warmup: bool = False,
        inv_gamma: float = 1.0,
        power: float = 2 / 3,
        foreach: bool = False,
        model_cls: Any = None,
        model_config: Any = None,
        *,
        state: Any = "8bit",
        rounding: str = "stochastic",
        seed: int = 0,
        backend: str | None = None,
        **options: Any,
    ) -> None:
        use_ema_warmup = use_ema_warmup or isinstance(parameters, nn.Module)
        device = options.pop("device", None)
        decay, min_decay = options.pop("max_value", None) or decay, options.pop("min_value", None) or min_decay
        self._check({"decay": decay, "min_decay": min_decay, "inv_gamma": inv_gamma, "power": power})
        self.decay, self.min_decay, self.update_after_step = decay, min_decay, update_after_step
        self.use_ema_warmup, self.inv_gamma, self.power = use_ema_warmup, inv_gamma, power
        self.foreach, self.model_cls, self.model_config = foreach, model_cls, model_config
        self._optimizers: list[Any] = []
        self.optimization_step = 0
        self.cur_decay_value: float | None = None
        """Decay of the last step."""
        self.temp_stored_params: list[Tensor] | None = None
        """The weights that :meth:`store` keeps."""
        listed = self._listed(parameters)
        if not listed:
            raise ValueError("there is nothing to average: no parameters were given")
        self._frozen: dict[int, Tensor] = {}
        """Parameters that are not stored, by position."""
        self._number = len(listed)
        self.averages = AverageStore(
            self._sorted(listed), state=state, rounding=rounding, seed=seed, backend=backend,
            storage=StorageOptions(**options),
        )  # fmt: skip
        self._renumber()
        if device is not None:
            self.to(device)

    # ---------------------------------------------------------------- which parameters

    def _listed(self, parameters: Iterable[Tensor] | nn.Module) -> list[Tensor]:
        return list(parameters.parameters() if isinstance(parameters, nn.Module) else parameters)

    def _given(self, parameters: Iterable[Tensor] | nn.Module) -> list[Tensor]:
        listed = self._listed(parameters)
        if len(listed) != self._number:
            raise ValueError(f"{len(listed)} parameters were given; the average has {self._number}")
        return listed

    def _sorted(self, listed: list[Tensor]) -> dict[str, Tensor]:
        """Return the trained parameters by position, and note the frozen ones."""
        self._frozen = {i: p for i, p in enumerate(listed) if is_frozen(p)}
        trained = {str(i): p for i, p in enumerate(listed) if i not in self._frozen}
        for name, tensor in trained.items():
            check_followed(f"parameter {name}", tensor)
        return trained

    def _renumber(self) -> None:
        self.averages.number({name: int(name) for name in self.averages})

    @property
    def shadow_params(self) -> list[Tensor]:
        """Averages, decoded to fp32. Frozen parameters are returned as they are."""
        return [
            self._frozen[i].detach() if i in self._frozen else self.averages.read(str(i)) for i in range(self._number)
        ]

    @shadow_params.setter
    def shadow_params(self, values: list[Tensor]) -> None:
        if not isinstance(values, list) or not all(isinstance(v, Tensor) for v in values):
            raise ValueError("shadow_params is a list of tensors")
        given = self._given(values)
        wrong = [n for n in self.averages if not self.averages.fits(n, given[int(n)])]
        if wrong:
            raise ValueError(f"shadow_params have other shapes than the parameters {', '.join(wrong)}")
        for name in self.averages:
            self.averages.set(name, given[int(name)])

    # ---------------------------------------------------------------- steps

    def get_decay(self, optimization_step: int) -> float:
        """Return the decay of a step, computed as in diffusers."""
        step = max(0, optimization_step - self.update_after_step - 1)
        if step <= 0:
            return 0.0
        value = 1 - (1 + step / self.inv_gamma) ** -self.power if self.use_ema_warmup else (1 + step) / (10 + step)
        return max(min(value, self.decay), self.min_decay)

    def follow(self, optimizer: Any) -> None:
        """Average the fp32 weights behind 16-bit parameters: :meth:`~halfulp.averaging.EMA.follow`."""
        follow(self._optimizers, optimizer)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_optimizers": []}

    @torch.no_grad()
    def step(self, parameters: Iterable[Tensor] | nn.Module) -> None:
        """Update the averages. Those of newly frozen parameters are dropped, and those of unfrozen ones begin."""
        listed = self._given(parameters)
        trained = self._sorted(listed)
        resized = [n for n in trained if n in self.averages and not self.averages.fits(n, trained[n])]
        if resized:
            warn_once(f"step {self.optimization_step}: parameters {resized} changed shape; their averages restart")
        self.averages.remove([n for n in self.averages if n not in trained or n in resized])
        self.averages.add({n: p for n, p in trained.items() if n not in self.averages})
        self._renumber()
        self.optimization_step += 1
        decay = self.cur_decay_value = self.get_decay(self.optimization_step)
        live = Exact(trained, self._optimizers) if self._optimizers else trained
        if not trained:
            warn_once("every parameter is frozen: EMAModel averages nothing")
        elif decay == 0.0:
            self.averages.write(live, self.optimization_step)
        else:
            self.averages.update(live, decay, self.optimization_step)

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[Tensor] | nn.Module) -> None:
        """Copy the averages into parameters."""
        torch.clear_autocast_cache()
        for i, param in enumerate(self._given(parameters)):
            average = self.averages.read(str(i)) if i not in self._frozen else local_part(self._frozen[i]).tensor
            local_part(param).tensor.copy_(average)

    def store(self, parameters: Iterable[Tensor] | nn.Module) -> None:
        """Keep a copy of the parameters in host memory for :meth:`restore`."""
        self.temp_stored_params = [local_part(p).tensor.to("cpu", copy=True) for p in self._given(parameters)]

    @torch.no_grad()
    def restore(self, parameters: Iterable[Tensor] | nn.Module) -> None:
        """Restore the parameters that :meth:`store` kept."""
        if self.temp_stored_params is None:
            raise RuntimeError("there are no weights to restore: call store() before copy_to()")
        torch.clear_autocast_cache()
        for kept, param in zip(self.temp_stored_params, self._given(parameters), strict=True):
            local_part(param).tensor.copy_(kept)
        self.temp_stored_params = None

    def to(self, device: Any = None, dtype: Any = None, non_blocking: bool = False) -> None:
        """Move the averages to a device."""
        if dtype is not None:
            warn_once(f"EMAModel.to: dtype={dtype} is ignored; state= says how averages are stored")
        if device is not None:
            self.averages.to(torch.device(device))

    def pin_memory(self) -> None:
        """Log that averages are never pinned, since they are small."""
        log_once("EMAModel.pin_memory does nothing: averages are not pinned")

    def memory(self) -> MemoryReport:
        """Return the bytes of the averages by format, and what is kept in fp32."""
        return self.averages.memory()

    # ---------------------------------------------------------------- checkpoints

    @staticmethod
    def _check(values: Mapping[str, Any]) -> None:
        for key in ("decay", "min_decay", "inv_gamma", "power"):
            value = values[key]
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{key} is a number, got {value!r}")
        if not 0.0 <= values["decay"] <= 1.0 or not 0.0 <= values["min_decay"] <= 1.0:
            raise ValueError(f"decays lie between 0 and 1, got {values['decay']} and {values['min_decay']}")

    def _settings(self) -> dict[str, Any]:
        keys = ("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power")
        return {key: getattr(self, key) for key in keys}

    def _stored(self) -> dict[str, Any]:
        store = self.averages
        return {"storage": store.quantizer.spec, "seed": store.seed, "averages": store.state_dict()}

    def state_dict(self) -> dict[str, Any]:
        """Return the keys of diffusers with decoded averages, plus the stored averages under ``halfulp``."""
        return {**self._settings(), "shadow_params": self.shadow_params, "halfulp": self._stored()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load our own state or that of diffusers. Missing settings keep their values.

        Averages in the formats of this object load bit for bit. Others are rounded to nearest.
        """
        settings = {**self._settings(), **{k: state_dict[k] for k in self._settings() if k in state_dict}}
        self._check(settings)
        for key in ("optimization_step", "update_after_step"):
            settings[key] = count("EMAModel", key, settings[key])
        if not isinstance(settings["use_ema_warmup"], bool):
            raise ValueError(f"use_ema_warmup is True or False, got {settings['use_ema_warmup']!r}")
        stored, values = state_dict.get("halfulp"), state_dict.get("shadow_params")
        formats = "" if stored is None else f"{stored['storage']}; here {self.averages.quantizer.spec}"
        if stored is not None and self._stores(stored):
            checked = self.averages.validate(stored["averages"])
            seed = count("EMAModel", "seed", stored["seed"])
            self.averages.load(checked)
            self.averages.seed = seed
        elif stored is not None and values is None:
            raise ValueError(
                f"the averages of the state_dict ({formats}) do not fit this EMAModel, and it has no shadow_params, "
                "which would be rounded"
            )
        elif values is not None:
            if stored is not None:
                warn_once(f"EMAModel: the averages were saved in other formats ({formats}): rounded")
            self.shadow_params = list(values)
        for key, value in settings.items():
            setattr(self, key, value)

    def _stores(self, stored: Mapping[str, Any]) -> bool:
        """Return whether saved averages are stored like these, so that they load bit for bit."""
        own, saved = self.averages.state_dict(), stored["averages"]
        return stored["storage"] == self.averages.quantizer.spec and {
            name: _dtypes(entries) for name, entries in own.items()
        } == {name: _dtypes(entries) for name, entries in saved.items()}  # fmt: skip

    def save_pretrained(self, path: Any) -> None:
        """Save a model with the averages in it, as diffusers does, with the stored averages beside it."""
        if self.model_cls is None or self.model_config is None:
            raise ValueError("save_pretrained needs model_cls= and model_config= of the constructor")
        model = self.model_cls.from_config(self.model_config)
        model.register_to_config(**self._settings())
        self.copy_to(model.parameters())
        model.save_pretrained(path)
        write_file(self._stored(), Path(path) / FILE)

    @classmethod
    def from_pretrained(cls, path: Any, model_cls: Any, foreach: bool = False, **options: Any) -> EMAModel:
        """Load the result of :meth:`save_pretrained`, or of diffusers.

        Without `options`, averages keep the formats of the files: fp32 for those of diffusers.
        """
        _, settings = model_cls.from_config(path, return_unused_kwargs=True)
        model = model_cls.from_pretrained(path)
        stored = read_file(Path(path) / FILE) if (Path(path) / FILE).exists() else None
        for i, param in enumerate(model.parameters()):
            param.requires_grad_(stored is None or str(i) in stored["averages"])  # frozen ones are not stored
        if not options:
            options = {"state": "fp32"} if stored is None else _options(stored)
        ema = cls(model.parameters(), model_cls=model_cls, model_config=model.config, foreach=foreach, **options)
        ema.load_state_dict({**settings, "shadow_params": list(model.parameters()), "halfulp": stored})
        return ema


def _dtypes(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.dtype for key, value in entries.items() if isinstance(value, Tensor)}


def _options(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the storage options of saved averages."""
    whole = [n for n, entries in stored["averages"].items() if torch.float32 in _dtypes(entries).values()]
    quantizer = Quantizer.from_spec(stored["storage"]).with_rounding("stochastic")
    return {"state": quantizer, "min_size": 0, "keep_fp32": whole}
