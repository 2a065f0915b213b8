"""Checkpoints written earlier load now and continue with the same bits.

``python tests/test_old_checkpoints.py`` writes ``tests/data/checkpoints.pt``. The stored file was written by the commit
named in it. Formats, rounding and ``param_rounding`` are all explicit, so that defaults do not matter.
The weights after the checkpoint of Adafactor were computed anew when its rule reordered operations. They moved by one
unit in the last place.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import halfulp

FILE = Path(__file__).parent / "data" / "checkpoints.pt"
SHAPES = [(6, 192), (200,), (3, 5)]
OPTIONS = {"min_size": 64, "rounding": "stochastic", "param_rounding": "nearest", "seed": 7}
CASES: dict[str, tuple[str, dict[str, Any], torch.dtype]] = {
    "AdamW 8bit": ("AdamW", {"lr": 1e-2, "state": "8bit", "weight_decay": 0.1}, torch.float32),
    "AdamW 4bit, 16-bit weights": ("AdamW", {"lr": 1e-2, "state": "4bit"}, torch.bfloat16),
    "SGD bf16": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "state": "bf16"}, torch.float32),
    "Lion fp8": ("Lion", {"lr": 1e-3, "state": "fp8", "weight_decay": 0.1}, torch.float32),
    "Adafactor 8bit": ("Adafactor", {"lr": 1e-2, "state": "8bit"}, torch.float32),
    "SOAP 8bit": ("SOAP", {"lr": 1e-3, "state": "8bit"}, torch.float32),
}


def start(name: str) -> tuple[list[torch.nn.Parameter], Any]:
    cls, options, dtype = CASES[name]
    generator = torch.Generator().manual_seed(1)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in SHAPES]
    named = [(f"layer{i}", p) for i, p in enumerate(params)]
    return params, getattr(halfulp, cls)(named, **{**OPTIONS, **options})


def step(params: list[torch.nn.Parameter], optimizer: Any, number: int) -> None:
    generator = torch.Generator().manual_seed(100 + number)
    for p in params:
        p.grad = (torch.randn(p.shape, generator=generator) * 0.1).to(p.dtype)
    optimizer.step()


def write() -> None:
    kept: dict[str, Any] = {"commit": subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()}
    for name in CASES:
        params, optimizer = start(name)
        for number in range(4):
            step(params, optimizer, number)
        before = [p.detach().clone() for p in params]
        saved = {"params": before, "optimizer": optimizer.state_dict()}
        saved["optimizer"] = {**saved["optimizer"], "state": _cloned(saved["optimizer"]["state"])}
        for number in range(4, 7):
            step(params, optimizer, number)
        kept[name] = {**saved, "after": [p.detach().clone() for p in params]}
    torch.save(kept, FILE)


def _cloned(entries: Any) -> Any:
    if isinstance(entries, dict):
        return {k: _cloned(v) for k, v in entries.items()}
    return entries.clone() if isinstance(entries, torch.Tensor) else entries


@pytest.fixture
def two_threads() -> Iterator[None]:
    """As the file was written: last bits of matrix products (SOAP) may follow the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", CASES)
def test_they_load_and_continue_with_the_same_bits(name: str) -> None:
    kept = torch.load(FILE, weights_only=True)[name]
    params, optimizer = start(name)
    with torch.no_grad():
        for p, saved in zip(params, kept["params"], strict=True):
            p.copy_(saved)
    optimizer.load_state_dict(kept["optimizer"])
    loaded = optimizer.state_dict()["state"]
    for number, entries in kept["optimizer"]["state"].items():
        assert all(torch.equal(loaded[number][k], x) for k, x in entries.items() if isinstance(x, torch.Tensor))
    for number in range(4, 7):
        step(params, optimizer, number)
    for p, after in zip(params, kept["after"], strict=True):
        if name.startswith("SOAP"):  # its matrix products depend on the machine and the number of threads
            torch.testing.assert_close(p, after, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(p, after)


if __name__ == "__main__":
    write()


def test_a_checkpoint_of_the_transform_master_weights_goes_on() -> None:
    """fp32 master weights were a state of the rule; the file was written by the commit named in it."""
    kept = torch.load(FILE.with_name("master_weights.pt"), weights_only=True)
    params = [torch.nn.Parameter(p.clone()) for p in kept["params"]]
    named = [(f"layer{i}", p) for i, p in enumerate(params)]
    optimizer = halfulp.AdamW(named, lr=1e-2, state="8bit", master_weights="fp32", **OPTIONS)
    optimizer.load_state_dict(kept["optimizer"])
    for number in range(4, 7):
        step(params, optimizer, number)
    assert all(map(torch.equal, params, kept["after"]))
