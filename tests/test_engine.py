"""The engine's support for rules that are not elementwise: slots of other shapes, exact slots, whole-model sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import halfulp
from halfulp.engine.optimizer import RuleOptimizer
from halfulp.rules.base import Ages, Rule, Scalars, States, norm, total
from halfulp.rules.slots import Hyper, StateSlot


def _slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    return (
        StateSlot("row", signed=False, shape=lambda s: s[:-1] if len(s) > 1 else None),
        StateSlot("vector", signed=False, shape=lambda s: s if len(s) == 1 else None),
        StateSlot("start", signed=True, init=lambda p: p),
        StateSlot("count", signed=False, shape=lambda s: (), exact=True),
        StateSlot("peak", signed=False, rounding="nearest"),
    )


def _scalars(hyper: Hyper, ages: Ages) -> Scalars:
    return {"lr": float(hyper["lr"]), "step": float(ages["step"]), "age": float(ages["start"])}


def _update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    new = dict(states)
    name = "row" if "row" in states else "vector"
    new[name] = states[name] + (grad.square().sum(-1) if name == "row" else grad.square())
    new["count"] = states["count"] + 1
    new["peak"] = torch.maximum(states["peak"], grad.abs())
    return param - grad * (c["lr"] * c.get("share", 1.0)), new


def _measure(param: Tensor, grad: Tensor, states: States, c: Scalars) -> dict[str, Tensor]:
    return {"sum": total(grad * grad)}


PLAIN = Rule("plain", _slots, _scalars, _update, elementwise=False)
CLIPPED = Rule(
    "clipped", _slots, _scalars, _update, False, _measure, lambda sums, c: {"share": min(1.0, sums["sum"] ** -0.5)}
)


def _exchange(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    """Two states change places, and the weight takes the first. All three are read where states are stored."""
    return states["a"].view_as(grad), {"a": states["b"], "b": states["a"]}


class Plain(RuleOptimizer):
    rule = PLAIN

    def __init__(self, params: Any, lr: float = 1.0, **options: Any) -> None:
        super().__init__(params, {"lr": lr}, **options)


class Clipped(Plain):
    rule = CLIPPED


class Exchange(Plain):
    rule = Rule(
        "exchange", lambda hyper: (StateSlot("a", True, init=lambda p: p), StateSlot("b", True, init=lambda p: p + 1)),
        lambda hyper, ages: {}, _exchange, elementwise=False,
    )  # fmt: skip


def _params() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in ((8, 16), (8,))]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    return params


def test_slots_have_their_own_shapes_and_exact_ones_stay_fp32() -> None:
    params = _params()
    optimizer = Plain(params, state="8bit", min_size=0)
    optimizer.step()
    matrix, vector = ({s.slot.name: s for s in optimizer.states(p)} for p in params)
    assert set(matrix) == {"row", "start", "count", "peak"}
    assert set(vector) == {"vector", "start", "count", "peak"}
    assert matrix["row"].shape == (8,)
    assert matrix["count"].quantizer.spec == "float32"
    assert float(matrix["count"].read()) == 1.0
    assert matrix["row"].quantizer.rounding == "stochastic"
    assert matrix["peak"].quantizer.rounding == "nearest"
    rows = {(r.parameter, r.slot): r.shape for r in optimizer.memory().rows}
    assert rows[("parameter 0", "row")] == (8,)
    assert ("parameter 1", "row") not in rows


def test_initial_values_come_back_with_a_reset() -> None:
    params = _params()
    optimizer = Plain(params, state="fp32")
    start = params[0].detach().clone()
    optimizer.step()
    assert torch.equal(optimizer.state_tensor(params[0], "start"), start)
    optimizer.reset_state(names=("start",))
    assert torch.equal(optimizer.state_tensor(params[0], "start"), params[0].detach())
    assert float(optimizer.state_tensor(params[0], "count")) == 1.0


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_rule_may_return_its_states_in_other_places(backend: str) -> None:
    params = _params()
    a, b = params[0].detach().clone(), params[0].detach() + 1
    optimizer = Exchange(params, state="fp32", backend=backend)
    for _ in range(3):
        optimizer.step()
        assert torch.equal(params[0].detach(), a)
        a, b = b, a
        assert torch.equal(optimizer.state_tensor(params[0], "a"), a)
        assert torch.equal(optimizer.state_tensor(params[0], "b"), b)


def _of_matrices(param: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that only matrices of four columns and more have; others raise, as they would in a user's function."""
    if param[1] < 4:
        raise ValueError(f"no state beside a parameter of shape {param}")
    return (param[1], 1)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("elementwise", [True, False])
def test_a_state_may_belong_to_some_shapes_alone(elementwise: bool, backend: str) -> None:
    class OfMatrices(Plain):
        rule = Rule(
            "of_matrices", lambda hyper: (StateSlot("odd", True, shape=_of_matrices),), lambda hyper, ages: {},
            lambda param, grad, states, c: (param - grad, {"odd": states["odd"] + 1}), elementwise=elementwise,
        )  # fmt: skip

    p = _params()[0]
    wanted = p.detach() - p.grad  # type: ignore[operator]
    optimizer = OfMatrices([p], state="fp32", backend=backend)
    optimizer.step()
    assert torch.equal(p.detach(), wanted)
    assert torch.equal(optimizer.state_tensor(p, "odd"), torch.ones(16, 1))


def test_a_sum_over_the_whole_model_reaches_every_parameter() -> None:
    params = _params()
    before = [p.detach().clone() for p in params]
    Clipped(params, state="fp32").step()
    moved = torch.cat([(b - p.detach()).flatten() for b, p in zip(before, params, strict=True)])
    assert float(moved.norm()) == pytest.approx(1.0, rel=1e-5)


def test_a_value_that_is_not_finite_leaves_the_whole_tensor() -> None:
    params = _params()
    params[0].grad[0, 0] = torch.nan  # type: ignore[index]
    before = [p.detach().clone() for p in params]
    optimizer = Plain(params, state="fp32")
    optimizer.step()
    assert torch.equal(params[0].detach(), before[0])
    assert not torch.equal(params[1].detach(), before[1])
    assert optimizer.skipped == {0: 128}


def test_checkpoints_hold_slots_of_every_shape() -> None:
    params = _params()
    optimizer = Plain(params, state="8bit", min_size=0)
    optimizer.step()
    copy = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = Plain(copy, state="8bit", min_size=0)
    other.load_state_dict(optimizer.state_dict())
    for p, q in zip(params, copy, strict=True):
        q.grad = p.grad
    optimizer.step()
    other.step()
    for p, q in zip(params, copy, strict=True):
        assert torch.equal(p, q)
        for a, b in zip(optimizer.states(p), other.states(q), strict=True):
            assert torch.equal(a.codes, b.codes)
            assert a.age == b.age == 2


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_sums_have_the_same_bits_for_any_number_of_threads(threads: int) -> None:
    x = torch.randn(3_000_001, generator=torch.Generator().manual_seed(0))
    old = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = total(x), norm(x)
        torch.set_num_threads(threads)
        assert (total(x), norm(x)) == expected
    finally:
        torch.set_num_threads(old)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("name", ["AdamW", "Muon"])
def test_a_graph_from_before_a_step_is_refused(name: str, backend: str | None) -> None:
    """Autograd learns of steps in kernels: a second backward pass would mix the weights of two steps."""
    layers = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64))
    optimizer = getattr(halfulp, name)(layers.named_parameters(), lr=1e-2, backend=backend)
    loss = layers(torch.ones(2, 64)).square().mean()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
