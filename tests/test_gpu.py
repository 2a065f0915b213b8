"""Tests that need a GPU: no synchronization in a step, streams, several devices, CUDA graphs."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

import halfulp

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1",
    reason="no GPU, or Triton's interpreter (TRITON_INTERPRET=0 leaves it)",
)
SHAPES = [(64, 130), (33,), (256, 256)]


def make(device: str, cls: Any = halfulp.AdamW, **options: Any) -> tuple[list[Tensor], Any]:
    torch.manual_seed(0)
    params = [torch.randn(shape).to(device).requires_grad_() for shape in SHAPES]
    return params, cls(params, lr=1e-2, min_size=0, **options)


def set_gradients(params: list[Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in params:
        values = torch.randn(p.shape, generator=generator)
        values.view(-1)[0] = float("inf") if step == 3 else 1e-40
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        p.grad.copy_(values)


def reference(steps: int, cls: Any) -> tuple[list[Tensor], Any]:
    params, optimizer = make("cpu", cls, backend="reference")
    for step in range(steps):
        set_gradients(params, step)
        optimizer.step()
    return params, optimizer


def assert_same_as_reference(params: list[Tensor], optimizer: Any, steps: int) -> None:
    expected, plain = reference(steps, type(optimizer))
    for p, q in zip(params, expected, strict=True):
        assert torch.equal(p.cpu(), q)
        for name, value in plain.state[q].items():
            if isinstance(value, Tensor):
                assert torch.equal(optimizer.state[p][name].cpu(), value), name
    assert optimizer.skipped == plain.skipped


@pytest.mark.parametrize("cls", [halfulp.AdamW, halfulp.CAME, halfulp.AdamP])
def test_a_step_waits_for_nothing(cls: Any) -> None:
    params, optimizer = make("cuda", cls, backend="triton")
    for step in range(6):
        set_gradients(params, step)
        if step >= 2:  # compiled, with all tables made
            torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert_same_as_reference(params, optimizer, 6)


def test_streams() -> None:
    params, optimizer = make("cuda", backend="triton")
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    last = torch.cuda.current_stream()
    for step in range(6):
        stream = streams[step % 2]
        stream.wait_stream(last)
        with torch.cuda.stream(stream):
            set_gradients(params, step)
            optimizer.step()
        last = stream
    torch.cuda.synchronize()
    assert_same_as_reference(params, optimizer, 6)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_several_devices() -> None:
    """Parameters on two devices step in one optimizer, and optimizers on each do not meet."""
    params, optimizer = make("cpu")
    spread = [p.detach().to(f"cuda:{i % 2}").requires_grad_() for i, p in enumerate(params)]
    optimizer = halfulp.AdamW(spread, lr=1e-2, min_size=0, backend="triton")
    alone, second = make("cuda:1", backend="triton")
    for step in range(6):
        set_gradients(spread, step)
        set_gradients(alone, step)
        optimizer.step()
        second.step()
    assert_same_as_reference(spread, optimizer, 6)
    assert_same_as_reference(alone, second, 6)


@pytest.mark.parametrize("cls", [halfulp.AdamW, halfulp.CAME, halfulp.AdamP])
def test_graph(cls: Any) -> None:
    params, optimizer = make("cuda", cls, backend="triton", capturable=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for step in range(2):
            set_gradients(params, step)
            optimizer.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for step in range(2, 6):
        set_gradients(params, step)
        optimizer.advance()
        graph.replay()
    torch.cuda.synchronize()
    assert_same_as_reference(params, optimizer, 6)
