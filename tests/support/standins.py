"""Stand-ins for trainers that the extra ``dev`` does not install: their names, arguments, and effects on an optimizer.

:func:`install` puts them into ``sys.modules`` in place of missing packages. They behave like timm 1.0.31, torchtune
0.6.1, sd-scripts and axolotl 0.19 as of 2026, torchtitan 0.3.0 and deepspeed 0.19.8. ``CONTRIBUTING.md`` says how to
run the examples with the packages themselves.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import re
import sys
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn


def install(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Install stand-ins for missing packages, and return their names."""
    missing = [name for name in MODULES if importlib.util.find_spec(name.partition(".")[0]) is None]
    for name in missing:
        module = ModuleType(name)
        vars(module).update(MODULES[name])
        module.__path__ = []  # so that submodules are found
        module.__spec__ = ModuleSpec(name, None, is_package=True)  # for code that checks whether the package exists
        monkeypatch.setitem(sys.modules, name, module)
    return missing


# ---------------------------------------------------------------- timm


@dataclass(frozen=True)
class OptimInfo:
    """A registered optimizer."""

    name: str
    opt_class: Any
    has_eps: bool = True
    has_momentum: bool = False
    has_betas: bool = False
    defaults: dict[str, Any] | None = None


class _Registry(dict[str, OptimInfo]):
    def register(self, info: OptimInfo) -> None:
        self[info.name.lower()] = info


REGISTRY = _Registry()


def create_optimizer_v2(model: nn.Module, opt: str, lr: float, weight_decay: float = 0.0, **kwargs: Any) -> Any:
    """Return two groups, vectors and biases without decay first. What precedes an underscore is not the name."""
    info = REGISTRY[opt.lower().split("_")[-1]]
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    plain = [p for n, p in named if p.ndim <= 1 or n.endswith(".bias")]
    decayed = [p for n, p in named if not (p.ndim <= 1 or n.endswith(".bias"))]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]
    return info.opt_class(groups, lr=lr, **{**(info.defaults or {}), **kwargs})


# ---------------------------------------------------------------- torchtune


def _namespace(tree: Any) -> Any:
    return SimpleNamespace(**tree) if isinstance(tree, dict) else tree


def instantiate(config: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Call what ``_component_`` names, with the other keys as arguments."""
    path, _, name = config["_component_"].rpartition(".")
    options = {k: v for k, v in config.items() if k != "_component_"}
    return getattr(importlib.import_module(path), name)(*args, **{**options, **kwargs})


# ---------------------------------------------------------------- kohya


def add_optimizer_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options about the optimizer."""
    parser.add_argument("--optimizer_type", default="")
    parser.add_argument("--learning_rate", type=float, default=2.0e-6)
    parser.add_argument("--optimizer_args", nargs="*")


def get_optimizer(args: Any, trainable_params: list[Any]) -> tuple[str, str, Any]:
    """Return ``module.Class`` with arguments that are Python literals."""
    options = {}
    for argument in args.optimizer_args or []:
        key, value = argument.split("=")
        options[key] = ast.literal_eval(value)
    *module, name = args.optimizer_type.split(".")
    optimizer_class = getattr(importlib.import_module(".".join(module)), name)
    optimizer = optimizer_class(trainable_params, lr=args.learning_rate, **options)
    said = ",".join(f"{k}={v}" for k, v in options.items())
    return f"{optimizer_class.__module__}.{optimizer_class.__name__}", said, optimizer


# ---------------------------------------------------------------- Axolotl


class BasePlugin:
    """The methods of a plugin; here, creating an optimizer."""

    def create_optimizer(self, cfg: Any, trainer: Any) -> Any:
        return None


class PluginManager:
    """All plugins. The first that creates an optimizer wins."""

    _instance: Any = None

    def __init__(self) -> None:
        self.plugins: dict[str, BasePlugin] = {}
        self.cfg: Any = SimpleNamespace()

    @classmethod
    def get_instance(cls) -> PluginManager:
        cls._instance = cls._instance or cls()
        return cls._instance  # type: ignore[no-any-return]

    def create_optimizer(self, trainer: Any) -> Any:
        made = (plugin.create_optimizer(self.cfg, trainer) for plugin in self.plugins.values())
        return next((optimizer for optimizer in made if optimizer is not None), None)


# ---------------------------------------------------------------- torchtitan


@dataclass(kw_only=True)
class ParamGroupConfig:
    """The optimizer of the parameters whose names match."""

    pattern: str
    optimizer_name: str
    optimizer_kwargs: dict[str, Any]


class OptimizersContainer(torch.optim.Optimizer):
    """One optimizer per part of a model and name of an optimizer, saved flat by parameter name."""

    @dataclass(kw_only=True, slots=True)
    class Config:
        """The groups, and the implementation of torch's optimizers."""

        _owner: ClassVar[Any] = None
        param_groups: list[ParamGroupConfig] = field(default_factory=list)
        implementation: str = "fused"

        def build(self, *, model_parts: list[nn.Module]) -> Any:
            return self._owner(self, model_parts=model_parts)

    def __init_subclass__(cls) -> None:
        cls.Config._owner = cls

    @staticmethod
    def _resolve_optimizer_factory(name: str) -> Any:
        return {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[name]

    def __init__(self, config: Config, *, model_parts: list[nn.Module]) -> None:
        self.optimizers = []
        how = {"fused": config.implementation == "fused", "foreach": config.implementation == "foreach"}
        for part in model_parts:
            left = {n: p for n, p in part.named_parameters() if p.requires_grad}
            groups: dict[str, list[dict[str, Any]]] = {}
            for given in config.param_groups:
                names = [n for n in left if re.search(given.pattern, n)]
                group = {"params": [left.pop(n) for n in names], "param_names": names, **how, **given.optimizer_kwargs}
                groups.setdefault(given.optimizer_name, []).append(group)
            self.optimizers += [self._resolve_optimizer_factory(name)(found) for name, found in groups.items()]
        torch.optim.Optimizer.__init__(
            self, [p for o in self.optimizers for g in o.param_groups for p in g["params"]], {}
        )

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        flat = {}
        for optimizer in self.optimizers:
            _begin(optimizer)
            saved = optimizer.state_dict()
            for group in saved["param_groups"]:
                for number, name in zip(group["params"], group["param_names"], strict=True):
                    flat.update({f"state.{name}.{k}": v for k, v in saved["state"].get(number, {}).items()})
                    keys = group.keys() - {"params", "param_names"}
                    flat.update({f"param_groups.{name}.{k}": group[k] for k in keys})
        return flat

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer in self.optimizers:
            _begin(optimizer)
            state: dict[int, Any] = {}
            groups = []
            for group in optimizer.param_groups:
                first, names = len(state), group["param_names"]
                for name, param in zip(names, group["params"], strict=True):
                    state[len(state)] = {k: state_dict[f"state.{name}.{k}"] for k in optimizer.state[param]}
                keys = group.keys() - {"params", "param_names"}
                values = {k: state_dict[f"param_groups.{names[0]}.{k}"] for k in keys}
                groups.append({"params": list(range(first, len(state))), **values})
            optimizer.load_state_dict({"state": state, "param_groups": groups})


def _begin(optimizer: torch.optim.Optimizer) -> None:
    """Make the states exist: a step with zero gradients and a learning rate of zero."""
    if optimizer.state:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for param in group["params"]:
            param.grad = torch.zeros_like(param)
    optimizer.step()
    for group, lr in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = lr
    optimizer.zero_grad()


# ---------------------------------------------------------------- DeepSpeed


class _Engine(nn.Module):
    """ZeRO 1 on one rank: each group becomes one fp32 vector, which the client optimizer steps."""

    def __init__(self, model: nn.Module, optimizer: Any) -> None:
        super().__init__()
        self.module, self.optimizer = model, optimizer
        self.groups = [list(group["params"]) for group in optimizer.param_groups]
        for group, params in zip(optimizer.param_groups, self.groups, strict=True):
            flat = torch.cat([p.detach().float().reshape(-1) for p in params]).requires_grad_()
            group["params"] = [flat]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        flats = [group["params"][0] for group in self.optimizer.param_groups]
        for flat, params in zip(flats, self.groups, strict=True):
            flat.grad = torch.cat([p.grad.float().reshape(-1) for p in params])
        self.optimizer.step()
        for flat, params in zip(flats, self.groups, strict=True):
            for p, new in zip(params, flat.detach().split([p.numel() for p in params]), strict=True):
                p.data.copy_(new.reshape(p.shape))
                p.grad = None


def initialize(model: nn.Module, optimizer: Any, config: dict[str, Any]) -> tuple[Any, Any, None, None]:
    """Refuse optimizers that DeepSpeed does not know, unless the settings allow them."""
    if config.get("zero_optimization", {}).get("stage") and not config.get("zero_allow_untested_optimizer"):
        raise AssertionError(
            'You are using an untested ZeRO Optimizer. Please add "zero_allow_untested_optimizer": true'
        )
    engine = _Engine(model, optimizer)
    return engine, optimizer, None, None


MODULES: dict[str, dict[str, Any]] = {
    "timm": {},
    "timm.optim": {"OptimInfo": OptimInfo, "create_optimizer_v2": create_optimizer_v2},
    "timm.optim._optim_factory": {"default_registry": REGISTRY},
    "torchtune": {"config": SimpleNamespace(instantiate=instantiate)},
    "omegaconf": {"OmegaConf": SimpleNamespace(create=_namespace)},
    "library": {},
    "library.train_util": {"get_optimizer": get_optimizer, "add_optimizer_arguments": add_optimizer_arguments},
    "axolotl": {},
    "axolotl.integrations": {},
    "axolotl.integrations.base": {"BasePlugin": BasePlugin, "PluginManager": PluginManager},
    "torchtitan": {},
    "torchtitan.components": {},
    "torchtitan.components.optimizer": {
        "OptimizersContainer": OptimizersContainer,
        "ParamGroupConfig": ParamGroupConfig,
    },
    "deepspeed": {"initialize": initialize},
}
"""The stand-ins, by the name of the module."""
