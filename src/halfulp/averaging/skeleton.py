"""A second model without weights of its own: its modules read an average or the first model's tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from halfulp.averaging.base import WeightAverage
from halfulp.averaging.serve import Served, placeholder, serve, unserve
from halfulp.averaging.source import all_clean_names, unwrapped
from halfulp.engine.sharding import is_sharded
from halfulp.numbers.log import log

__all__ = ["Skeleton"]


class Skeleton:
    """The modules of a model, reading an average of it.

    Averaged weights are decoded when they are read. The others (frozen weights) are the first model's current tensors.
    Buffers are copies. The average of a buffer is written into its copy. A second model of the same form may be given
    as `module` in place of a copy. It drops its averaged weights, and keeps the parameters in `own`.

    Raises
    ------
    ValueError
        If the model is sharded or cannot be copied, or the second one has another form.
    """

    def __init__(self, average: WeightAverage, module: nn.Module | None = None, own: Iterable[str] = ()) -> None:
        model = average.model
        if not isinstance(model, nn.Module):
            raise TypeError(f"a second model can only be made for a module, got {type(model).__name__}")
        if any(is_sharded(p) for p in model.parameters()):
            raise ValueError("the model is sharded, and a second one would not be: use EMA and its swap()")
        if module is model:
            raise ValueError("the second model is the first one: pass another one of the same form, or none")
        self.average, self.own, self._given = average, frozenset(own), module is not None
        self.dtypes: dict[str, torch.dtype] = {}
        """Dtype to which each average is decoded, by name."""
        self._theirs: dict[str, Tensor] = {}
        self._put: dict[str, Tensor] = {}
        """The values written into averaged buffers. If a buffer differs from them, the user has changed it."""
        self._seen: dict[str, Tensor] | None = None
        self._look()
        if module is None:
            self._build()
        else:
            self._take_over(module)
        self.give_buffers()

    def _look(self) -> None:
        model = self.average.model
        assert isinstance(model, nn.Module)
        self._seen = self.average.source.tensors()
        self._theirs = {self.average.source.names[n]: p for n, p in model.named_parameters()}

    def _build(self) -> None:
        """Copy the modules without weights and without wrappers for compilation or distributed training."""
        model = self.average.model
        assert isinstance(model, nn.Module)
        memo: dict[int, Any] = {}
        names: dict[int, str] = {}
        for name, param in self._theirs.items():
            if name not in self.own:
                memo[id(param)] = mine = placeholder(param)
                names[id(mine)] = name
        for module in model.modules():
            for value in vars(module).values():  # weight_norm's product is not a leaf and is recomputed in each forward
                if isinstance(value, Tensor) and not value.is_leaf:
                    memo[id(value)] = value.detach().clone()
        try:
            for module in reversed([*model.modules()]):
                if unwrapped(module) is not module:
                    memo[id(module)] = copy.deepcopy(unwrapped(module), memo)
            self.module = copy.deepcopy(unwrapped(model), memo)
        except Exception as error:
            raise ValueError(
                f"the model cannot be copied ({error}). Pass a second one of the same form: module= of Teacher, "
                "ema_model= of EMAPytorch"
            ) from error
        self._connect(names)

    def _take_over(self, module: nn.Module) -> None:
        names = all_clean_names(module)
        mine = {names[n]: p for n, p in module.named_parameters()}
        other = sorted(
            n for n in {*mine, *self._theirs} if n not in mine or n not in self._theirs
            or mine[n].shape != self._theirs[n].shape
        )  # fmt: skip
        if other:
            raise ValueError(f"the second model does not have the form of the first; they differ in {other}")
        self.module = module
        self._connect({id(p): name for name, p in mine.items() if name not in self.own})

    def _connect(self, names: dict[int, str]) -> None:
        for param in self.module.parameters():
            if id(param) in names:
                self.dtypes[names[id(param)]] = param.dtype
            else:
                param.requires_grad_(False)
        self._clean = all_clean_names(self.module)
        self._serve(names)

    def _serve(self, names: dict[int, str]) -> None:
        self._served = serve(self.module, names, self._read)
        self._hooks = [m.register_load_state_dict_pre_hook(_Loads(self)) for m, _ in self._served]

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Yield clean names and buffers of the second model."""
        return ((self._clean[name], buffer) for name, buffer in self.module.named_buffers())

    def _read(self, name: str) -> Any:
        if name not in self.average.store:
            return self._theirs[name]
        return nn.Parameter(self.average.value(name).to(self.dtypes[name]), requires_grad=False)

    # ---------------------------------------------------------------- following the model

    def follow(self) -> None:
        """Look up the first model's current tensors. Copy its modules again if the set of parameters has changed."""
        if self.average.source.tensors() is self._seen:
            return
        before = set(self._theirs)
        self._look()
        if set(self._theirs) == before:
            return
        changed = sorted(before ^ set(self._theirs))
        if self._given:
            raise ValueError(f"the model has other parameters than the second model that was passed: {changed}")
        log.warning("the model has other parameters than before (%s): its second model is copied again", changed)
        old, training = dict(self.buffers()), self.module.training
        self._build()
        self.module.train(training)
        with torch.no_grad():
            for name, buffer in self.buffers():
                if name in old and old[name].shape == buffer.shape:
                    buffer.copy_(old[name])

    @torch.no_grad()
    def copy_buffers(self, model: nn.Module) -> None:
        """Copy the buffers of a model that are not averaged."""
        names = self.average.source.names if model is self.average.model else all_clean_names(model)
        theirs = {names[n]: buffer for n, buffer in model.named_buffers()}
        for name, mine in self.buffers():
            if name in theirs and name not in self.average.store:
                mine.copy_(theirs[name])

    @torch.no_grad()
    def take_buffers(self) -> None:
        """Write buffers that the user changed (``update_bn``) into their averages. Call this before an update."""
        for name, buffer in self.buffers():
            if name in self._put and not torch.equal(buffer, self._put[name]):
                self.average.store.set(name, buffer)

    @torch.no_grad()
    def give_buffers(self) -> None:
        """Copy the averages of buffers into the second model. Call this after an update."""
        self._put = {}
        for name, buffer in self.buffers():
            if name in self.average.store:
                buffer.copy_(self.average.value(name))
                self._put[name] = buffer.clone()

    # ---------------------------------------------------------------- copies

    def __getstate__(self) -> dict[str, Any]:
        plain = [(module, module._parameters) for module, _ in self._served]
        names: dict[str, str] = {}
        for path, module in self.module.named_modules():
            if isinstance(module._parameters, Served):
                names.update({f"{path}.{key}" if path else key: n for key, n in module._parameters.names.items()})
        for module, served in plain:
            module.__dict__["_parameters"] = dict(dict.items(served))
        try:
            module = copy.deepcopy(self.module)
        finally:
            unserve(plain)
        return {
            **self.__dict__,
            "module": module,
            "_served": [],
            "_hooks": [],
            "_theirs": {},
            "_seen": None,
            "_names": names,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        names = state.pop("_names")
        self.__dict__.update(state)
        by_id = {id(self.module.get_parameter(path)): name for path, name in names.items()}
        self._serve(by_id)
        self._look()


class _Loads:
    """Hook that stores the weights loaded into a module of the second model in the average, rounded to nearest."""

    def __init__(self, skeleton: Skeleton) -> None:
        self.skeleton = skeleton

    def __call__(self, module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
        average = self.skeleton.average
        for key, name in getattr(module._parameters, "names", {}).items():
            value = state_dict.get(prefix + key)
            if not isinstance(value, Tensor) or name not in average.store or not average.store.fits(name, value):
                continue  # the module reports what is missing or does not fit
            if not torch.equal(value, average.value(name).to(value)):
                average.store.set(name, value)

    def __deepcopy__(self, memo: Any) -> Any:
        return _loads_nothing  # copied modules have their own weights

    def __reduce__(self) -> Any:
        return getattr, (_loads_nothing, "__call__")


def _loads_nothing(*_: Any) -> None:
    """Load hook of modules with their own weights. It does nothing."""
