"""Every optimizer in every format and rounding: it trains, resumes with the same bits, and takes the memory it says.

Driven by ``halfulp.optim.OPTIMIZERS``: an optimizer without a row in SETTINGS fails. The task is real text (a module of
the standard library), byte by byte: a two-byte context, an embedding and a hidden layer of 32.
"""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import halfulp
from halfulp.engine import RuleOptimizer
from halfulp.optim import OPTIMIZERS

STATES = ("fp32", "bf16", "fp8", "fp4", "int8")
CELLS = [("fp32", "nearest")] + [(s, r) for s in STATES[1:] for r in ("nearest", "stochastic")]
STEPS = 30
UNTRAINED = math.log(128)

SETTINGS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.5, "momentum": 0.9}, "Adam": {"lr": 1e-2}, "AdamW": {"lr": 1e-2}, "Lion": {"lr": 3e-3},
    "AdaBelief": {"lr": 1e-2}, "AdaBound": {"lr": 1e-2}, "AdaMod": {"lr": 1e-2, "betas": (0.9, 0.99, 0.9)},
    "AdaMomentum": {"lr": 3e-3}, "DiffGrad": {"lr": 2e-2}, "EXAdam": {"lr": 3e-3}, "AdEMAMix": {"lr": 1e-2},
    "ADOPT": {"lr": 1e-2}, "SPAM": {"lr": 1e-2}, "AdamP": {"lr": 1e-2}, "LAMB": {"lr": 3e-2},
    "LARS": {"lr": 0.3, "trust_coefficient": 0.1},
    "Adafactor": {"lr": 5e-2}, "AdaLomo": {"lr": 5e-2}, "CAME": {"lr": 3e-3}, "SMMF": {"lr": 1e-2},
    "SOAP": {"lr": 1e-2}, "Conda": {"lr": 1e-2}, "SubsetNorm": {"lr": 3e-2}, "FRUGAL": {"lr": 5e-3},
    "Muon": {"lr": 5e-2}, "AMSGD": {"lr": 5.0}, "AMAdamW": {"lr": 1e-2}, "MADGRAD": {"lr": 2e-2},
    "Gravity": {"lr": 5.0, "alpha": 0.0}, "ComplexMomentum": {"lr": 0.5}, "CoRe": {"lr": 3e-3},
    "SWATS": {"lr": 1e-2}, "SubspaceMomentum": {"lr": 3e-2, "rank": 8}, "MicroAdam": {"lr": 1e-2, "density": 0.1},
    "BAdam": {"lr": 2e-2, "period": 8},
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from more, and the last bits of matrix products may follow their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@lru_cache(maxsize=1)
def text() -> tuple[Tensor, Tensor]:
    data = torch.tensor([min(b, 127) for b in inspect.getsource(argparse).encode()[:20_000]])
    return torch.stack([data[:-2], data[1:-1]], 1), data[2:]


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(128, 16), nn.Flatten(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 128))


def optimizer(name: str, model: nn.Module, state: Any, rounding: str) -> Any:
    return getattr(halfulp, name)(
        model.named_parameters(), state=state, rounding=rounding, min_size=256, block_size=32, **SETTINGS[name]
    )


def train(model: nn.Module, o: Any, first: int, steps: int) -> list[float]:
    inputs, targets = text()
    losses = []
    for step in range(first, first + steps):
        index = torch.randint(len(targets), (128,), generator=torch.Generator().manual_seed(step))
        o.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[index]), targets[index])
        loss.backward()
        o.step()
        losses.append(float(loss.detach()))
    return losses


def stored_bytes(o: torch.optim.Optimizer) -> int:
    """Bytes of the memory behind all tensors of state."""
    tensors = [v for entries in o.state.values() for v in entries.values() if torch.is_tensor(v)]
    return sum(t.untyped_storage().nbytes() for t in tensors)


def assert_same_entries(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Codes, scales, steps and ages of a parameter, bit for bit."""
    assert one.keys() == two.keys()
    for key, value in one.items():
        if torch.is_tensor(value):
            assert value.dtype == two[key].dtype, key
            same = [x.contiguous().reshape(-1).view(torch.uint8) for x in (value, two[key])]
            assert torch.equal(*same), key
        else:
            assert value == two[key], key


def cell(name: str, state: str, rounding: str) -> float:
    """Mean loss of the last five steps, after a resume in the middle that must not change a bit."""
    model = build()
    o = optimizer(name, model, state, rounding)
    train(model, o, 0, STEPS - 5)
    other = build()
    other.load_state_dict(model.state_dict())
    resumed = optimizer(name, other, state, rounding)
    resumed.load_state_dict(o.state_dict())
    losses = train(model, o, STEPS - 5, 5)
    assert train(other, resumed, STEPS - 5, 5) == losses
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        assert_same_entries(o.state[p], resumed.state[q])
    assert stored_bytes(o) == o.memory().total
    return sum(losses) / 5


LOSS = {
    "ADOPT": 2.8, "AMAdamW": 2.6, "AMSGD": 2.41, "AdEMAMix": 2.61, "AdaBelief": 2.54, "AdaBound": 2.62,
    "AdaLomo": 2.54, "AdaMod": 2.67, "AdaMomentum": 2.88, "Adafactor": 2.54, "Adam": 2.61, "AdamP": 2.61,
    "AdamW": 2.62, "CAME": 2.21, "CoRe": 2.62, "ComplexMomentum": 2.8, "Conda": 2.52, "DiffGrad": 2.61,
    "EXAdam": 2.39, "FRUGAL": 2.87, "Gravity": 2.33, "LAMB": 2.7, "LARS": 2.47, "Lion": 3.16, "MADGRAD": 2.65,
    "Muon": 2.28, "SGD": 2.43, "SMMF": 2.94, "SOAP": 3.13, "SPAM": 2.61, "SubsetNorm": 2.81,
    "SWATS": 2.62, "SubspaceMomentum": 2.66, "MicroAdam": 2.83, "BAdam": 2.78,
}  # fmt: skip
"""Mean loss of steps 26 to 30 with fp32 states, rounded; every cell must come within MARGIN of it."""

MARGIN = {"fp32": 0.03, "bf16": 0.05, "fp8": 0.08, "int8": 0.05, "fp4": 0.4}
UNBOUNDED = "4 bits round the second moment to zero beside a first that is not; no bound of exact arithmetic known"
HOLES = {(name, "fp4", "stochastic"): UNBOUNDED for name in ("AMAdamW", "Conda", "CoRe", "SOAP")}
"""Cells that do not train, and why. The tests fail if one of them begins to."""
BLAMED = {"AMAdamW": {"exp_avg_sq"}, "CoRe": {"exp_avg_sq"}, "Conda": {"exp_avg_sq"}, "SOAP": {"exp_avg_sq", "exp_avg"}}
"""Slots that make the hole (SOAP's rotation also spreads the errors of its first moment over all coordinates)."""


def test_every_optimizer_has_its_row() -> None:
    names = {c.__name__ for c in OPTIMIZERS}
    assert set(SETTINGS) == set(LOSS) == names
    assert all(loss < UNTRAINED - 0.9 for loss in LOSS.values())
    public = {getattr(halfulp, n) for n in halfulp.__all__}
    assert {c for c in public if inspect.isclass(c) and hasattr(c, "rule")} == set(OPTIMIZERS)
    defined = {c for c in subclasses(RuleOptimizer) if c.__module__.startswith("halfulp.optim")}
    assert {c for c in defined if hasattr(c, "rule")} == set(OPTIMIZERS)
    assert {c.__name__ for c in defined} <= set(halfulp.optim.__all__)


def subclasses(cls: type) -> set[type]:
    return {s for child in cls.__subclasses__() for s in (child, *subclasses(child))}


@pytest.mark.parametrize(("state", "rounding"), CELLS)
@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_trains_and_resumes(name: str, state: str, rounding: str) -> None:
    loss, wanted = cell(name, state, rounding), LOSS[name] + MARGIN[state]
    if (name, state, rounding) in HOLES:
        assert not loss < wanted, "no longer a hole: take it out"
    else:
        assert loss < wanted


@pytest.mark.parametrize(("name", "state", "rounding"), HOLES)
def test_the_slots_to_blame_make_the_hole(name: str, state: str, rounding: str) -> None:
    """With these in bfloat16 and every other slot as it was, the cell trains."""
    model = build()
    o = optimizer(name, model, state, rounding)
    slots = {s.name for s in o.group_slots(o.param_groups[0])}
    assert slots > BLAMED[name]
    formats: Any = {slot: "bf16" if slot in BLAMED[name] else state for slot in slots}
    losses = train(model, optimizer(name, model, formats, rounding), 0, STEPS)
    assert sum(losses[-5:]) / 5 < LOSS[name] + MARGIN[state]
