"""Small models, optimizers on them, and all bits of both, shared by many test modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import halfulp

STATES = ("fp32", "bf16", "fp8", "fp4", "int8")
"""A short format name of every kind."""
CLASSES = {
    "AdamW": (halfulp.AdamW, {}), "Adam": (halfulp.Adam, {"weight_decay": 0.1}),
    "SGD": (halfulp.SGD, {"momentum": 0.9, "nesterov": True}), "Lion": (halfulp.Lion, {}),
}  # fmt: skip
each_optimizer = pytest.mark.parametrize("name", CLASSES)


def build(name: str, params: Any, **more: Any) -> Any:
    make, arguments = CLASSES[name]
    return make(params, **{"lr": 1e-2, "min_size": 0, "block_size": 16, **arguments, **more})


def model(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 5)).to(dtype)


def set_grads(params: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def run(optimizer: Any, steps: int, first: int = 0) -> None:
    for t in range(first, first + steps):
        set_grads([p for g in optimizer.param_groups for p in g["params"]], t)
        optimizer.step()


def everything(optimizer: Any) -> list[Any]:
    """Return all bits: parameters, states, ages."""
    found: list[Any] = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            found.append(p.detach().clone())
            found += [v.clone() if isinstance(v, Tensor) else v for _, v in sorted(optimizer.state.get(p, {}).items())]
    return found


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Assert that two values, or containers of them, have the same types and values."""
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where
        assert type(a) is type(b), where


def weights_and_states(model: torch.nn.Module, o: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return a copy of all weights by name, and of all states, as ``name/state``."""
    found = {}
    for name, p in model.named_parameters():
        found[name] = p.detach().clone()
        for key, value in o.state.get(p, {}).items():
            found[f"{name}/{key}"] = torch.as_tensor(value).clone()
    return found


def stored_bytes(o: torch.optim.Optimizer) -> int:
    """Return the bytes of the memory behind all state tensors."""
    tensors = [v for entries in o.state.values() for v in entries.values() if torch.is_tensor(v)]
    return sum(t.untyped_storage().nbytes() for t in tensors)
