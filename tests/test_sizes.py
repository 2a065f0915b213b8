"""Sizes that overflow 32 bits: steps, ages and element indices; also many tensors and many steps.

``HALFULP_SOAK=1`` does a hundred times as many steps, and steps of 100 000 tensors. ``HALFULP_HUGE=1`` steps a tensor
of more than 2^31 elements, which needs 14 GB.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import halfulp
from halfulp.engine.registry import Registry
from support.random_steps import difference

SOAK = "HALFULP_SOAK" in os.environ


def one(backend: str | None, name: str, state: str) -> tuple[Any, torch.nn.Parameter]:
    p = torch.nn.Parameter(torch.linspace(-1, 1, 300).reshape(3, 100).bfloat16())
    arguments = {"momentum": 0.9} if name == "SGD" else {}
    optimizer = getattr(halfulp, name)(
        [p], state=state, min_size=0, block_size=32, param_rounding="stochastic", backend=backend, **arguments
    )
    return optimizer, p


def step(optimizer: Any, p: torch.nn.Parameter, seed: int) -> None:
    p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)).to(p.dtype)
    optimizer.step()


@pytest.mark.parametrize("age", [2**24, 2**31 - 2, 2**32 - 2, 2**40])
@pytest.mark.parametrize("state", ["8bit", "int8", "fp32"])
@pytest.mark.parametrize("name", ["AdamW", "SGD", "Lion", "ADOPT", "AdEMAMix"])
def test_steps_and_ages_beyond_32_bits(name: str, state: str, age: int) -> None:
    """They count on, with the reference's bits, through a checkpoint too; random words differ from those of step 1."""
    runs = []
    for backend in (None, "reference"):
        optimizer, p = one(backend, name, state)
        step(optimizer, p, 0)
        saved = optimizer.state_dict()
        for key in saved["state"][0]:
            if key == "step" or key.endswith("_age"):
                saved["state"][0][key] = age
        held = io.BytesIO()
        torch.save(saved, held)
        held.seek(0)
        optimizer.load_state_dict(torch.load(held, weights_only=True))
        for t in range(1, 5):
            step(optimizer, p, t)
        assert optimizer.state[p]["step"] == age + 4
        runs.append({"param": p.detach(), **optimizer.state[p]})
    assert difference(*runs) is None


def resident() -> int:
    """Bytes of memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_does_not_grow_with_steps() -> None:
    """Resets, skipped gradients and logs included."""
    p = torch.nn.Parameter(torch.zeros(64, 64))
    optimizer = halfulp.AdamW([p], state="8bit", min_size=0, reset=50)
    p.grad = torch.ones_like(p)
    for t in range(300):
        p.grad[0, 0] = float("nan") if t % 7 == 0 else 1.0
        optimizer.step()
    before = resident()
    for t in range(100_000 if SOAK else 1500):
        p.grad[0, 0] = float("nan") if t % 7 == 0 else 1.0
        optimizer.step()
    assert resident() - before < 2**21


def test_many_tiny_tensors() -> None:
    """Each keeps its own states, and a second step makes no more memory than it gives back."""
    params = [torch.nn.Parameter(torch.full((4,), float(i % 7))) for i in range(100_000 if SOAK else 2000)]
    optimizer = halfulp.AdamW(params, lr=0.1, weight_decay=0.0, state="8bit", rounding="nearest", min_size=0)
    for _ in range(2):
        for p in params:
            p.grad = torch.ones(4)
        optimizer.step()
    assert all(torch.equal(p, params[i % 7]) for i, p in enumerate(params))
    assert float(params[0].detach()[0]) == pytest.approx(-0.2, abs=1e-3)


def test_no_call_looks_at_all_parameters_for_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first step of 100 000 tensors takes hours. Counted: how often all are compared with what they were."""
    looks = 0
    look = Registry.describes

    def counted(registry: Registry, groups: Any) -> bool:
        nonlocal looks
        looks += 1
        return look(registry, groups)

    params = [torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16)) for _ in range(60)]
    optimizer = halfulp.AdamW(params, state="8bit", min_size=0, master_weights="remainder16", reset=2)
    monkeypatch.setattr(Registry, "describes", counted)
    saved = optimizer.state_dict()
    for name, call in {
        "steps": lambda: [step_all(optimizer, params) for _ in range(3)],
        "state_dict": lambda: saved.update(optimizer.state_dict()),
        "load_state_dict": lambda: optimizer.load_state_dict(saved),
        "memory": optimizer.memory,
        "reset_state": optimizer.reset_state,
        "fp32_params": lambda: halfulp.fp32_params(optimizer),
        "repr": lambda: repr(optimizer),
        "convert": lambda: halfulp.convert_state_dict(saved, to=optimizer),
    }.items():
        looks = 0
        call()
        assert looks < 25, f"{name} looked {looks} times at all parameters"


def step_all(optimizer: Any, params: list[torch.nn.Parameter]) -> None:
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()


@pytest.mark.skipif("HALFULP_HUGE" not in os.environ, reason="takes 14 GB: HALFULP_HUGE=1")
@pytest.mark.parametrize("state", ["8bit", "4bit"])
def test_more_than_2_to_the_31_elements(state: str) -> None:
    """The last rows have the bits that they have in a tensor of their own, and so have their states."""
    rows, tail = 2**21 + 512, 1024
    options = {"lr": 0.1, "state": state, "rounding": "nearest", "param_rounding": "nearest"}
    p = torch.nn.Parameter(torch.zeros(rows, 1024, dtype=torch.bfloat16))
    p.grad = torch.full_like(p, 0.5)
    end = torch.randn(tail, 1024, generator=torch.Generator().manual_seed(0)).bfloat16()
    p.grad[-tail:] = end
    alone = torch.nn.Parameter(torch.zeros(tail, 1024, dtype=torch.bfloat16))
    alone.grad = end.clone()
    optimizers = [halfulp.AdamW([x], **options) for x in (p, alone)]
    for optimizer in optimizers:
        optimizer.step()
    assert torch.equal(p.detach()[-tail:], alone.detach())
    large, small = optimizers[0].state[p], optimizers[1].state[alone]
    for key in ("exp_avg", "exp_avg_scale", "exp_avg_sq", "exp_avg_sq_scale"):
        assert torch.equal(large[key][-tail:], small[key]), key
