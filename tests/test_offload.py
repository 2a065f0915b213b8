"""Offload: a step on the host has the bits of the same step without it. Gradients accumulate in fp32."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from operator import is_
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import halfulp
from halfulp.training import main_grads, offload
from support.copies import Late
from support.optimizers import model

CASES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw-remainder16": lambda params: halfulp.AdamW(params, lr=1e-2, min_size=0, master_weights="remainder16"),
    "lion-4bit": lambda params: halfulp.Lion(params, lr=1e-3, state="4bit", min_size=0),
    "muon": lambda params: halfulp.Muon(params, lr=1e-2, min_size=0, master_weights="fp32"),
    "clip_global": lambda params: halfulp.AdamW(params, lr=1e-2, transforms=[halfulp.clip_global(0.1)]),
    "torch": lambda params: torch.optim.AdamW(params, lr=1e-2),
}


def make(case: str, away: bool, copies: Any = None) -> tuple[nn.Sequential, Any, Any, Any]:
    net = model(dtype=torch.bfloat16)
    optimizer = CASES[case](net.named_parameters())
    if away:
        optimizer = offload(optimizer, copies=copies)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    return net, optimizer, schedule, torch.amp.GradScaler("cpu", init_scale=8.0)


def train(net: nn.Sequential, optimizer: Any, schedule: Any, scaler: Any, steps: int, first: int = 0) -> None:
    """With accumulation, a gradient scaler, clipping and a schedule; one step has a gradient that is infinite."""
    for step in range(first, first + steps):
        for part in range(2):
            x = torch.randn(8, 12, generator=torch.Generator().manual_seed(2 * step + part)).bfloat16()
            scaler.scale(net(x).float().square().mean()).backward()
        if step == 2:
            net[0].weight.grad[0, 0] = float("inf")
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        optimizer.zero_grad()


def assert_same(a: nn.Module, one: Any, b: nn.Module, other: Any) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)
    states = [o.state_dict()["state"] for o in (one, other)]
    assert states[0].keys() == states[1].keys()
    for mine, wanted in zip(states[0].values(), states[1].values(), strict=True):
        assert mine.keys() == wanted.keys()
        assert all(torch.equal(v, wanted[k]) if isinstance(v, Tensor) else v == wanted[k] for k, v in mine.items())


@pytest.mark.parametrize("late", [False, True], ids=["direct", "late"])
@pytest.mark.parametrize("bucket", [1, 1 << 30], ids=["each", "all"])
@pytest.mark.parametrize("case", CASES)
def test_training_has_the_bits_of_training_without(
    case: str, bucket: int, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a checkpoint in both directions too."""
    monkeypatch.setattr("halfulp.training.offloading.BUCKET", bucket)
    here, away = make(case, False), make(case, True, Late() if late else None)
    for one in (here, away):
        train(*one, steps=4)
    assert_same(here[0], here[1], away[0], away[1])
    saved = copy.deepcopy(away[1].state_dict())
    again = make(case, True, Late() if late else None)
    for old, new in ((away, again),):
        new[0].load_state_dict(old[0].state_dict())
        new[1].load_state_dict(saved)
        new[2].load_state_dict(old[2].state_dict())
        new[3].load_state_dict(old[3].state_dict())
    for one in (here, again):
        train(*one, steps=3, first=4)
    assert_same(here[0], here[1], again[0], again[1])


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda both: pickle.loads(pickle.dumps(both)),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "in lookahead"])
@pytest.mark.parametrize("case", CASES)
def test_copies_go_on_with_the_same_bits(case: str, wrapped: bool, how: str) -> None:
    """Also where weights were set on the device just before, and the copy leaves the original alone."""
    net = model(dtype=torch.bfloat16)
    optimizer: Any = offload(CASES[case](net.named_parameters()))
    optimizer = halfulp.Lookahead(optimizer, k=2) if wrapped else optimizer
    batches = torch.randn(6, 8, 12, generator=torch.Generator().manual_seed(0)).bfloat16()

    def steps(net: nn.Module, optimizer: Any, first: int, last: int) -> None:
        for x in batches[first:last]:
            optimizer.zero_grad()
            net(x).float().square().mean().backward()
            optimizer.step()

    steps(net, optimizer, 0, 3)
    in_place(net)
    before = [p.detach().clone() for p in net.parameters()]
    other_net, other = COPIES[how]((net, optimizer))
    steps(other_net, other, 3, 6)
    assert all(map(torch.equal, net.parameters(), before))
    steps(net, optimizer, 3, 6)
    assert_same(net, optimizer, other_net, other)


def by_data(net: nn.Sequential) -> None:
    net[0].weight.data.mul_(0.5)


@torch.no_grad()
def in_place(net: nn.Sequential) -> None:
    net[0].weight.mul_(0.5)


def by_load(net: nn.Sequential) -> None:
    net.load_state_dict({name: x * 0.5 for name, x in net.state_dict().items()})


@pytest.mark.parametrize("change", [by_data, in_place, by_load])
@pytest.mark.parametrize("case", ["lion-4bit", "adamw-remainder16", "muon"])
def test_weights_set_on_the_device_are_followed(case: str, change: Callable[[nn.Sequential], None]) -> None:
    """As without offload: fp32 master weights (of muon here) follow what autograd counts, the others everything."""
    here, away = make(case, False), make(case, True, Late())
    for net, *rest in (here, away):
        train(net, *rest, steps=2)
        change(net)
        train(net, *rest, steps=2, first=3)
    assert_same(here[0], here[1], away[0], away[1])


@pytest.mark.parametrize(("case", "copies"), [("muon", 2), ("adamw-remainder16", 3), ("torch", 3)])
def test_weights_are_copied_out_where_a_step_reads_them(case: str, copies: int) -> None:
    """A gradient out and weights back in are copied anyway; weights out where no fp32 master weights stand for them."""
    late = Late()
    net, *rest = make(case, True, late)
    train(net, *rest, steps=1)
    late.started = 0
    train(net, *rest, steps=1, first=1)
    assert late.started == copies * len(list(net.parameters()))


def test_master_weights_take_over_what_data_wrote() -> None:
    found = []
    for away in (False, True):
        net, optimizer, *rest = make("muon", away, Late())
        train(net, optimizer, *rest, steps=2)
        by_data(net)
        optimizer.reset_state(["master_param"], [net[0].weight])
        train(net, optimizer, *rest, steps=1, first=3)
        found += [net, optimizer]
    assert_same(*found)
    with pytest.raises(TypeError, match="optimizers of halfulp, not for AdamW"):
        make("torch", True)[1].reset_state()


def test_a_trained_optimizer_is_moved_and_groups_come_later() -> None:
    found = []
    for away in (False, True):
        net, *rest = make("adamw-remainder16", False)
        train(net, *rest, steps=2)
        optimizer = offload(rest[0], copies=Late()) if away else rest[0]
        late = nn.Parameter(torch.ones(4, 12, dtype=torch.bfloat16))
        optimizer.add_param_group({"params": [("late", late)], "lr": 0.1})
        for p in [*net.parameters(), late]:
            p.grad = torch.ones_like(p)
        optimizer.step()
        found.append((nn.ParameterList([*net.parameters(), late]), optimizer))
    assert_same(*found[0], *found[1])


def test_fp32_weights_are_found() -> None:
    net, optimizer, *rest = make("adamw-remainder16", True)
    train(net, optimizer, *rest, steps=2)
    found = halfulp.fp32_state_dict(net, optimizer)
    for (name, p), values in zip(net.named_parameters(), halfulp.fp32_params(optimizer), strict=True):
        assert torch.equal(found[name], values)
        assert bool((values != p.detach().float()).any())


def test_a_monitor_counts_what_it_would_without() -> None:
    sums = []
    for away in (False, True):
        net, optimizer, *rest = make("lion-4bit", away)
        with halfulp.StallMonitor(optimizer, every=1, sample=10**6) as watch:
            train(net, optimizer, *rest, steps=2)
            sums.append([(row.slot, row.updates, row.stalled) for row in watch.table().rows])
    assert sums[0] == sums[1]


def test_refused() -> None:
    with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer, got Sequential"):
        offload(model())  # type: ignore[arg-type]


def replace(p: Any, optimizer: Any) -> None:
    optimizer.param_groups[0]["params"][0] = nn.Parameter(torch.ones(8, 8))
    optimizer.param_groups[0]["params"][0].grad = torch.ones(8, 8)


CHANGES: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "tied": (lambda p, o: setattr(p, "data", o.param_groups[0]["params"][1].data), "0 and parameter 1 share memory"),
    "expanded": (lambda p, o: setattr(p, "data", torch.ones(8, 1).expand(8, 8)), "0 is expanded"),
    "freed": (lambda p, o: p.untyped_storage().resize_(0), "0 has no memory"),
    "cast": (lambda p, o: setattr(p, "data", p.data.bfloat16()), "bfloat16 of shape"),
    "replaced": (replace, "its copy on the host none"),
}


@pytest.mark.parametrize("name", ["tied", "expanded", "freed"])
@pytest.mark.parametrize("kind", [halfulp.AdamW, torch.optim.AdamW])
def test_parameters_that_copies_cannot_stand_for(kind: Any, name: str) -> None:
    params = [nn.Parameter(torch.ones(8, 8)) for _ in range(2)]
    optimizer = kind(params)
    change, message = CHANGES[name]
    change(params[0], optimizer)
    with pytest.raises((RuntimeError, ValueError), match=message):
        offload(optimizer)
    assert all(map(is_, optimizer.param_groups[0]["params"], params))


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("kind", [halfulp.AdamW, torch.optim.AdamW])
def test_parameters_that_are_no_longer_what_was_copied(kind: Any, name: str) -> None:
    """A step on separate copies would not be the step on the parameters. It is refused with nothing changed."""
    params = [nn.Parameter(torch.ones(8, 8)) for _ in range(2)]
    away = offload(kind(params))
    change, message = CHANGES[name]
    change(params[0], away)
    for p in params:
        p.grad = torch.ones_like(p)
    with pytest.raises((RuntimeError, ValueError), match=message):
        away.step()
    assert bool((params[1] == 1).all())
    assert not away.state


def test_groups_that_come_later_may_be_empty_or_refused() -> None:
    p, wrong = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8).double())
    optimizer = offload(halfulp.AdamW([p], lr=0.1))
    optimizer.add_param_group({"params": []})
    with pytest.raises(ValueError, match="float64"):
        optimizer.add_param_group({"params": [wrong]})
    assert len(optimizer.param_groups) == len(optimizer.optimizer.param_groups) == 2
    p.grad = torch.ones(8)
    optimizer.step()
    assert bool((p < 0.95).all())


# ---------------------------------------------------------------- gradients in fp32


def test_gradients_add_up_in_fp32() -> None:
    p = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    main_grads([p, nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2).bfloat16(), requires_grad=False)])
    parts = [1.0] + [2.0**-9] * 64
    for part in parts:
        (p * part).sum().backward()
    assert p.grad is not None
    assert p.grad.dtype == torch.float32
    assert p.grad.unique().tolist() == [1.125]  # in bfloat16 it does not leave 1
    high = nn.Parameter(torch.ones(64))
    high.grad = p.grad.clone()
    low, exact = halfulp.AdamW([p], lr=1e-3, master_weights="remainder16"), halfulp.AdamW([high], lr=1e-3)
    low.step()
    exact.step()
    assert torch.equal(low.state_tensor(p, "master_param"), high.detach())


def test_a_gradient_in_16_bits_is_refused() -> None:
    p = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="zero_grad"):
        main_grads([p])
