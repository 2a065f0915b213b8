"""Recorded steps without a GPU: a stand-in for the graph keeps the launches and repeats them in a replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import halfulp
from halfulp.engine import optimizer as engine
from support.marks import INTERPRETED

pytestmark = INTERPRETED


class Graph:
    """Keeps launches while it records."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from halfulp.kernels.triton_launch import Batch

        self.launches: list[Any] = []
        self.recording = False
        launch = Batch.launch

        def launched(batch: Batch) -> None:
            if self.recording:
                self.launches += batch.launches
            else:
                launch(batch)

        monkeypatch.setattr(Batch, "launch", launched)
        monkeypatch.setattr(engine, "capturing", lambda: self.recording)

    def replay(self) -> None:
        for launch in self.launches:
            launch.start()


SHAPES = [(3, 130), (64,), (0,)]


def make(cls: Any = halfulp.AdamW, shapes: Any = SHAPES, **options: Any) -> tuple[list[Tensor], Any]:
    torch.manual_seed(0)
    params = [torch.randn(shape).requires_grad_() for shape in shapes]
    arguments = {"backend": "triton", "capturable": True, "min_size": 8, "weight_decay": 0.1, **options}
    return params, cls(params, lr=1e-2, **arguments)


def set_gradients(params: list[Tensor], step: int) -> None:
    """Other values in the same tensors, as a graph's backward pass writes them."""
    generator = torch.Generator().manual_seed(step)
    for p in params:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        p.grad.copy_(torch.randn(p.shape, generator=generator))


def record(graph: Graph, optimizer: Any) -> None:
    graph.recording = True
    try:
        optimizer.step()
    finally:
        graph.recording = False


def counted(optimizer: Any, param: Tensor) -> dict[str, int]:
    return {k: v for k, v in optimizer.state[param].items() if isinstance(v, int)}


@pytest.mark.parametrize(
    ("cls", "shapes", "skipped"), [(halfulp.AdamW, SHAPES, 128), (halfulp.Adafactor, [(2, 9)], 18)]
)
def test_replays_have_the_bits_of_steps(cls: Any, shapes: Any, skipped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph(monkeypatch)
    (params, optimizer), (expected, plain) = make(cls, shapes, reset=4), make(cls, shapes, reset=4)
    for step in range(6):
        set_gradients(expected, step)
        expected[0].grad[0, 0] = float("inf") if step == 4 else 1.0
        plain.param_groups[0]["lr"] = 1e-2 / (1 + step)
        plain.step()
    for step in range(6):
        set_gradients(params, step)
        params[0].grad[0, 0] = float("inf") if step == 4 else 1.0
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        if step < 2:
            optimizer.step()
            continue
        if step == 2:
            record(graph, optimizer)
        optimizer.advance()
        graph.replay()
    assert len(graph.launches) == min(len(shapes), 2)  # aligned rows and others
    for p, q in zip(params, expected, strict=True):
        assert torch.equal(p, q)
        for name, value in plain.state[q].items():
            same = optimizer.state[p][name]
            assert torch.equal(same, value) if isinstance(value, Tensor) else same == value, name
    assert optimizer.skipped == plain.skipped == {0: skipped}
    assert list(optimizer.reset_log) == list(plain.reset_log) != []


def test_a_gradient_put_in_place_of_the_recorded_one_is_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, (params, optimizer) = Graph(monkeypatch), make()
    for step in range(2):
        set_gradients(params, step)
        optimizer.step()
    recorded = params[0].grad
    record(graph, optimizer)
    optimizer.zero_grad()
    optimizer.advance()
    assert params[0].grad is recorded


def columns_first(params: list[Tensor]) -> None:
    params[0].grad = torch.randn(130, 3).t()


REFUSED: dict[str, tuple[dict[str, Any], int, Callable[[list[Tensor]], None]]] = {
    "build the optimizer with capturable=True": ({"capturable": False}, 1, len),
    "nonfinite='raise' reads gradients on the host": ({"nonfinite": "raise"}, 1, len),
    "run a few ordinary steps before": ({}, 0, len),
    "contiguous gradients of the same dtypes": ({}, 1, columns_first),
    "computes sums on the host": ({"transforms": [halfulp.clip_global(1.0)]}, 1, len),
}


@pytest.mark.parametrize("match", REFUSED)
def test_what_cannot_be_recorded(match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, steps, change = REFUSED[match]
    graph, (params, optimizer) = Graph(monkeypatch), make(**options)
    set_gradients(params, 0)
    for _ in range(steps):
        optimizer.step()
    change(params)
    before = counted(optimizer, params[0])
    with pytest.raises(RuntimeError, match=match):
        record(graph, optimizer)
    assert counted(optimizer, params[0]) == before
    with pytest.raises(RuntimeError, match="none was recorded"):
        optimizer.advance()


def test_what_was_recorded_for_another_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, (params, optimizer) = Graph(monkeypatch), make()
    for step in range(2):
        set_gradients(params, step)
        optimizer.step()
    record(graph, optimizer)
    optimizer.param_groups[0]["decoupled_weight_decay"] = False
    with pytest.raises(RuntimeError, match="chooses another branch of the rule"):
        optimizer.advance()
