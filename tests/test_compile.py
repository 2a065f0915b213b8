"""Training steps under ``torch.compile``: the optimizer is an operator in the graph, with the usual bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import halfulp
from support.optimizers import assert_same, everything, model, set_grads

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own warnings, which change between versions


def make(**options: Any) -> tuple[nn.Module, Any]:
    net = model()
    groups = [{"params": [net[0].weight]}, {"params": [net[0].bias, *net[2].parameters()], "lr": 1e-3}]
    return net, halfulp.AdamW(groups, lr=1e-2, state="fp8", min_size=0, weight_decay=0.1, **options)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_step_is_one_graph_without_a_break(backend: str) -> None:
    torch._dynamo.reset()
    (net, optimizer), (expected, plain) = make(reset=2), make(reset=2)

    def step() -> None:
        optimizer.step()

    compiled = torch.compile(step, backend=backend, fullgraph=True)
    for number in range(4):
        set_grads(net.parameters(), number)
        set_grads(expected.parameters(), number)
        compiled()
        plain.step()
    assert_same(everything(optimizer), everything(plain))
    assert list(optimizer.reset_log) == list(plain.reset_log) != []


def test_a_whole_training_step_breaks_only_where_torch_does() -> None:
    """torch itself leaves the graph at ``backward``; the optimizer is in the graph after it."""
    torch._dynamo.reset()
    net, optimizer = make()
    data = torch.randn(8, 12)

    def train() -> None:
        net(data).square().mean().backward()
        optimizer.step()

    found = torch._dynamo.explain(train)()
    assert [str(op) for ops in found.ops_per_graph for op in ops if "halfulp" in str(op)]
    assert found.graph_break_count <= 1, found.break_reasons
