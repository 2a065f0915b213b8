"""The tensors of a model that an average follows, by name. They are looked up again when the model changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from halfulp.engine.checks import PARAM_DTYPES
from halfulp.engine.sharding import is_wrapper

__all__ = [
    "Model", "Source", "all_clean_names", "check_followed", "clean_name", "is_frozen", "shipped_names", "unwrapped",
]  # fmt: skip

Model = nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]
WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")
WRAPPING = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
}
"""Classes that wrap another module, and the attribute that holds it."""


def clean_name(name: str) -> str:
    """Return a parameter's name without the parts that DistributedDataParallel, torch.compile and FSDP insert."""
    for wrapper in WRAPPERS:
        name = name.replace(f".{wrapper}", ".")
        while name.startswith(wrapper):
            name = name.removeprefix(wrapper)
    return name


def clean_names(names: Iterable[str]) -> dict[str, str]:
    """Return the clean name of each name. Names that would collide keep what distinguishes them."""
    names = list(names)
    found = {name: clean_name(name) for name in names}
    times = Counter(found.values())
    if len(times) == len(names):
        return found
    shared = 0  # a wrapper around the whole model is no part of a name; one of the model's own attributes is
    while any(all(name[shared:].startswith(w) for name in names) for w in WRAPPERS):
        shared = names[0].index(".", shared) + 1
    return {name: clean if times[clean] == 1 else name[shared:] for name, clean in found.items()}


def all_clean_names(model: nn.Module) -> dict[str, str]:
    """Return the clean name of every parameter and buffer of a module."""
    return clean_names(dict.fromkeys([n for n, _ in [*model.named_parameters(), *model.named_buffers()]]))


def is_frozen(tensor: Tensor) -> bool:
    """Whether a tensor is a parameter with ``requires_grad=False``. Buffers and plain tensors are not."""
    return isinstance(tensor, nn.Parameter) and not tensor.requires_grad


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside wrappers for distributed training and compilation."""
    while (child := WRAPPING.get(type(model).__name__)) is not None and isinstance(getattr(model, child), nn.Module):
        model = getattr(model, child)
    return model


def shipped_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Map ``state_dict`` keys to those of the model inside its wrappers."""
    inserted = []
    for path, module in model.named_modules(remove_duplicate=False):
        child = WRAPPING.get(type(module).__name__)
        if child is not None:
            start = f"{path}." if path else ""
            inserted.append((f"{start}{child}.", start))
    found = {}
    for name in names:
        key = name
        for full, start in reversed(inserted):  # innermost wrapper first
            if key.startswith(full):
                key = start + key.removeprefix(full)
        found[name] = key
    return found


def check_followed(name: str, tensor: Tensor) -> None:
    """Raise ``ValueError`` for a tensor that cannot be averaged."""
    if is_lazy(tensor):
        problem = "is not initialized yet: run a forward of the model first"
    elif tensor.is_meta:
        problem = "is on the meta device, without values: build the average when the weights are loaded"
    elif tensor.layout != torch.strided:
        problem = f"has the layout {tensor.layout}; averages are of dense tensors"
    elif is_wrapper(tensor):
        problem = f"is a {type(tensor).__name__}, whose memory is not its values: freeze it, or ignore= it"
    else:
        return
    raise ValueError(f"{name} cannot be averaged: it {problem}")


def as_mapping(model: Model) -> nn.Module | Mapping[str, Tensor]:
    """Return a module unchanged, and named tensors as a mapping."""
    if isinstance(model, (nn.Module, Mapping)):
        return model
    try:
        return dict(model)
    except (TypeError, ValueError):
        raise TypeError(
            "an average is of a module or of named tensors (a mapping, or pairs as model.named_parameters()); "
            f"got {type(model).__name__}"
        ) from None


class Source:
    """The floating-point parameters of a model, and optionally its buffers, by clean name, without ignored ones.

    :meth:`tensors` looks them up at each call, so that replaced ones are found.
    """

    def __init__(self, model: Model, buffers: bool, ignore: frozenset[str]) -> None:
        self.model, self.buffers, self.ignore = as_mapping(model), buffers, ignore
        self._seen: list[tuple[Mapping[str, Any], list[Any]]] = []
        self._tensors: dict[str, Tensor] = {}
        self.buffer_names: frozenset[str] = frozenset()
        """Names of the buffers among :meth:`tensors`."""
        self.names: dict[str, str] = {}
        """Clean name of each name in the model. Tied tensors have the first one."""
        self.left_out: dict[str, str] = {}
        """Names that cannot be averaged, and why."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the candidates by name. The dictionary is the same object until the model's tensors change."""
        if not self._seen or any(
            len(now) != len(then) or any(map(is_not, now.values(), then)) for now, then in self._seen
        ):
            self._look()
        return self._tensors

    def _look(self) -> None:
        if isinstance(self.model, nn.Module):
            places: list[Mapping[str, Any]] = []
            for module in self.model.modules():
                places += [module._parameters, module._modules]
                if self.buffers:
                    places.append(module._buffers)
            parameters: dict[str, Tensor] = {**dict(self.model.named_parameters())}
            buffers: dict[str, Tensor] = dict(self.model.named_buffers())
        else:
            places, parameters, buffers = [self.model], dict(self.model.items()), {}
        self._seen = [(place, list(place.values())) for place in places]
        names = clean_names([*parameters, *(n for n in buffers if n not in parameters)])
        self.buffer_names = frozenset(names[n] for n in buffers)
        self.names = names
        self._tensors, self.left_out = {}, {}
        for raw, tensor in [*parameters.items(), *(buffers.items() if self.buffers else ())]:
            name = names[raw]
            if name in self.ignore:
                self.left_out[name] = "ignored"
            elif tensor.dtype in PARAM_DTYPES:
                self._tensors[name] = tensor
            elif tensor.is_floating_point() or tensor.is_complex():
                self.left_out[name] = str(tensor.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": [], "_tensors": {}}
