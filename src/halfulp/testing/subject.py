"""The optimizer under test, and what every check needs: a small model, steps, bits, and comparisons."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from halfulp.engine.optimizer import RuleOptimizer
from halfulp.rules.base import Rule

__all__ = ["FAMILIES", "RATE", "Skip", "Subject", "bits", "network", "params", "require", "run", "same", "thread_count"]

FAMILIES = ("fp32", "bf16", "8bit", "fp8", "int8", "4bit", "fp4")
"""One format of each family, for ``state=``."""
RATE = 2.0**-7
"""A learning rate that fp32 holds exactly."""


class Skip(Exception):
    """The reason why a convention cannot be checked."""


@dataclass
class Subject:
    """The optimizer under test."""

    cls: type[RuleOptimizer]
    arguments: dict[str, Any]
    made_here: bool
    losses: dict[tuple[str, str], float] = field(default_factory=dict)

    def make(self, params: Any, **more: Any) -> Any:
        """Return an optimizer of named parameters that quantizes small tensors too."""
        params = list(params.named_parameters() if isinstance(params, nn.Module) else params)
        return self.cls(params, **{"min_size": 0, "block_size": 16, "lr": RATE, **self.arguments, **more})

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Every rule that a parameter may have."""
        made = self.make(network())
        return tuple(made.active_rules(made.param_groups[0]))

    @property
    def elementwise(self) -> bool:
        """Whether elements of a parameter are independent of each other and of the rest of the model."""
        return all(rule.shardable for rule in self.rules)

    @property
    def coupled(self) -> bool:
        """Whether parameters depend on each other."""
        return any(rule.measure is not None and not rule.per_tensor for rule in self.rules) or self.takes_turns

    @property
    def takes_turns(self) -> bool:
        """Whether some parameters are inactive in a step."""
        made = self.make(network())
        return any(len(made.active_params(g)) < len(g["params"]) for g in made.param_groups)


def require(condition: bool, seen: str) -> None:
    """Raise ``AssertionError`` with what was seen unless a condition holds."""
    if not condition:
        raise AssertionError(seen)


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Return a network of two layers with weights from a seed."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 5))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 3)
    return model.to(dtype)


def params(made: Any) -> list[Tensor]:
    """Return the parameters of an optimizer, in order."""
    return [p for group in made.param_groups for p in group["params"]]


def run(made: Any, steps: int, first: int = 0, sign: float = 1.0) -> None:
    """Do steps with gradients that depend only on the number of the step."""
    for t in range(first, first + steps):
        generator = torch.Generator().manual_seed(t)
        for p in params(made):
            grad = sign * torch.randn(p.shape, generator=generator)
            p.grad = grad.to(p.dtype) if p.requires_grad else None
        made.step()


def bits(made: Any) -> list[Any]:
    """Return parameters, states, step counts and ages."""
    found: list[Any] = []
    for p in params(made):
        found.append(p.detach().clone())
        entries = made.state.get(p, {})
        found += [v.clone() if isinstance(v, Tensor) else v for _, v in sorted(entries.items())]
    return found


def same(a: list[Any], b: list[Any], what: str) -> None:
    """Raise ``AssertionError`` unless two lists of :func:`bits` are equal."""
    require(len(a) == len(b), f"{what}: {len(a)} tensors and numbers against {len(b)}")
    for x, y in zip(a, b, strict=True):
        if isinstance(x, Tensor):
            require(x.dtype == y.dtype and x.shape == y.shape, f"{what}: {x.dtype} {x.shape}, {y.dtype} {y.shape}")
            apart = int((x.contiguous().reshape(-1).view(torch.uint8) != y.reshape(-1).view(torch.uint8)).sum())
            require(apart == 0, f"{what}: {apart} of {x.nbytes} bytes of a {x.dtype} tensor differ")
        else:
            require(x == y and type(x) is type(y), f"{what}: {x!r} against {y!r}")


@contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Set the number of threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
