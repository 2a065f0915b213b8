"""Stand-ins for trainers that the tests do not install: their names, arguments, and effects on an optimizer.

:func:`install` puts them into ``sys.modules`` in place of missing packages. They are written from the packages'
documented interfaces, as of 2026.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)


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


# ---------------------------------------------------------------- TRL and sentence-transformers: Trainers


class SFTTrainer(transformers.Trainer):
    """Passes the factory on to the Trainer."""

    def __init__(self, model: Any, args: Any = None, *, optimizer_cls_and_kwargs: Any = None, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, optimizer_cls_and_kwargs=optimizer_cls_and_kwargs, **kwargs)


class SentenceTransformerTrainer(transformers.Trainer):
    """Has its own loss, and passes (optimizer, scheduler) on to the Trainer."""

    def __init__(
        self, model: Any, args: Any = None, train_dataset: Any = None, *, loss: Any, optimizers: Any = (None, None)
    ) -> None:
        super().__init__(model=model, args=args, train_dataset=train_dataset, optimizers=optimizers)
        self.loss = loss

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return self.loss(model, inputs)


class SentenceModel(nn.Module):
    """Word embeddings and a layer on top."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Embedding(64, 64), nn.Linear(64, 64), nn.LayerNorm(64))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        found: torch.Tensor = self.layers(x)
        return found


def similar(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return a loss that pulls the words of a sentence together."""
    words = model(inputs["x"])
    return (words - words.mean(1, keepdim=True)).square().mean()


# ---------------------------------------------------------------- PEFT


@dataclass
class LoraConfig:
    """The rank, and the names of the layers that get an adapter."""

    r: int
    target_modules: list[str]


class _Adapter(nn.Module):
    def __init__(self, base: nn.Linear, r: int) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, r, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(r, base.out_features, bias=False)})
        nn.init.zeros_(self.lora_B["default"].weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def get_peft_model(model: nn.Module, config: LoraConfig) -> nn.Module:
    """Freeze the model, and add an adapter to each named layer."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        parent, _, leaf = name.rpartition(".")
        if leaf in config.target_modules:
            setattr(model.get_submodule(parent), leaf, _Adapter(module, config.r))  # type: ignore[arg-type]
    return model


def create_loraplus_optimizer(
    model: nn.Module, optimizer_cls: Any, *, lr: float, loraplus_lr_ratio: float, **kwargs: Any
) -> Any:
    """Return four groups, some of them empty: A, embeddings, B, and B without decay."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    b = {n: p for n, p in trained.items() if "lora_B" in n or p.ndim == 1}
    groups = [
        {"params": [p for n, p in trained.items() if n not in b], "weight_decay": 0.0, "lr": lr},
        {"params": [], "weight_decay": 0.0, "lr": 1e-6},
        {"params": list(b.values()), "weight_decay": 0.0, "lr": lr * loraplus_lr_ratio},
        {"params": [], "weight_decay": 0.0, "lr": lr * loraplus_lr_ratio},
    ]
    return optimizer_cls(groups, lr=lr, **kwargs)


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
    """Return two groups, vectors and biases without decay first."""
    info = REGISTRY[opt.lower()]
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


class OptimizersContainer(torch.optim.Optimizer):
    """One optimizer per part of a model, saved flat by parameter name."""

    def __init__(self, model_parts: list[nn.Module], optimizer_cls: Any, optimizer_kwargs: dict[str, Any]) -> None:
        self.model_parts = model_parts
        trained = [[p for p in part.parameters() if p.requires_grad] for part in model_parts]
        self.optimizers = [optimizer_cls(params, **optimizer_kwargs) for params in trained]
        torch.optim.Optimizer.__init__(self, [p for params in trained for p in params], dict(optimizer_kwargs))

    def step(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        for optimizer in self.optimizers:
            optimizer.step(*args, **kwargs)

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(*args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        options, found = StateDictOptions(flatten_optimizer_state_dict=True), dict[str, Any]()
        for part, optimizer in zip(self.model_parts, self.optimizers, strict=True):
            found.update(get_optimizer_state_dict(part, optimizer, options=options))
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        options = StateDictOptions(flatten_optimizer_state_dict=True)
        for part, optimizer in zip(self.model_parts, self.optimizers, strict=True):
            set_optimizer_state_dict(part, optimizer, state_dict, options=options)


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
    "trl": {"SFTConfig": transformers.TrainingArguments, "SFTTrainer": SFTTrainer},
    "peft": {"LoraConfig": LoraConfig, "get_peft_model": get_peft_model},
    "peft.optimizers": {"create_loraplus_optimizer": create_loraplus_optimizer},
    "sentence_transformers": {
        "SentenceTransformerTrainer": SentenceTransformerTrainer,
        "SentenceTransformerTrainingArguments": transformers.TrainingArguments,
    },
    "timm": {},
    "timm.optim": {"OptimInfo": OptimInfo, "create_optimizer_v2": create_optimizer_v2},
    "timm.optim._optim_factory": {"default_registry": REGISTRY},
    "torchtune": {"config": SimpleNamespace(instantiate=instantiate)},
    "omegaconf": {"OmegaConf": SimpleNamespace(create=_namespace)},
    "library": {"train_util": SimpleNamespace(get_optimizer=get_optimizer)},
    "axolotl": {},
    "axolotl.integrations": {},
    "axolotl.integrations.base": {"BasePlugin": BasePlugin, "PluginManager": PluginManager},
    "torchtitan": {},
    "torchtitan.components": {},
    "torchtitan.components.optimizer": {"OptimizersContainer": OptimizersContainer},
    "deepspeed": {"initialize": initialize},
}
"""The stand-ins, by the name of the module."""
