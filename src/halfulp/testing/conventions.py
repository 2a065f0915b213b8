"""The conventions of torch.optim for steps, parameters, groups, checkpoints and copies."""

from __future__ import annotations

import copy
import io
import math
import pickle
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from halfulp.testing.subject import FAMILIES, RATE, Skip, Subject, bits, network, params, require, run, same

__all__ = [
    "closure", "deepcopy", "grad_scaler", "gradients", "groups", "inference_mode", "late_parameters", "lr_tensor",
    "maximize", "memory", "never_stepped", "no_gradient", "pickled", "resume", "schedulers",
]  # fmt: skip


# ---------------------------------------------------------------- the step


def closure(subject: Subject) -> None:
    """A closure runs with gradients enabled, also within ``no_grad``, and its loss is returned."""
    model = network()
    made, x, asked = subject.make(model), torch.ones(4, 12), []

    def evaluate() -> Tensor:
        made.zero_grad()
        loss: Tensor = model(x).square().mean()
        loss.backward()
        asked.append(loss.detach().clone())
        return loss

    with torch.no_grad():
        found = made.step(evaluate)
    returned = isinstance(found, Tensor) and torch.equal(found.detach(), asked[0])
    require(len(asked) == 1 and returned, f"step(closure) returned {found!r}")
    require(all(p in made.state for g in made.param_groups for p in made.active_params(g)) or subject.takes_turns,
             "the closure's gradients made no step")  # fmt: skip
    found = made.step()
    require(found is None, f"step() returned {found!r}, not None")


def gradients(subject: Subject) -> None:
    """A step does not change gradients, ``zero_grad`` removes them, and a step without gradients changes nothing."""
    made = subject.make(network())
    before = []
    for p in params(made):
        p.grad = torch.ones_like(p) if p.requires_grad else None
        before.append(p.grad)
    copies = [g.clone() for g in before if g is not None]
    made.step()
    same(copies, [g for g in before if g is not None], "the step changed gradients")
    made.zero_grad()
    require(all(p.grad is None for p in params(made)), "zero_grad() left gradients")
    after = bits(made)
    made.step()
    same(after, bits(made), "a step without gradients")


def maximize(subject: Subject) -> None:
    """``maximize=True`` gives the same bits as negated gradients."""
    up, down = subject.make(network(), maximize=True), subject.make(network())
    run(up, 3)
    run(down, 3, sign=-1.0)
    same(bits(up), bits(down), "maximize against negated gradients")


def lr_tensor(subject: Subject) -> None:
    """A tensor as learning rate works like a float, also when it is changed in place."""
    rate = torch.tensor(RATE)
    made, other = subject.make(network(), lr=rate), subject.make(network(), lr=RATE)
    run(made, 2)
    run(other, 2)
    made.param_groups[0]["lr"].mul_(0.5)
    other.param_groups[0]["lr"] *= 0.5
    run(made, 2, 2)
    run(other, 2, 2)
    same(bits(made), bits(other), "a tensor as lr against a float")


def schedulers(subject: Subject) -> None:
    """A scheduler sets the learning rate of the next step."""
    made, other = subject.make(network()), subject.make(network())
    for o in (made, other):
        o.param_groups[0]["initial_lr"] = RATE
    scheduler = torch.optim.lr_scheduler.LambdaLR(made, lambda t: 0.5**t)
    for t in range(3):
        run(made, 1, t)
        scheduler.step()
        other.param_groups[0]["lr"] = RATE * 0.5**t
        run(other, 1, t)
    same(bits(made), bits(other), "a schedule against the rates set by hand")
    run(constant := subject.make(network()), 3)
    apart = any(not torch.equal(p, q) for p, q in zip(params(made), params(constant), strict=True))
    require(apart, "a schedule that halves the rate in each step changes nothing")


def grad_scaler(subject: Subject) -> None:
    """A step whose gradients overflow under a ``GradScaler`` is skipped entirely."""
    model = network()
    made = subject.make(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(model(torch.ones(4, 12)).square().mean()).backward()
    scaler.step(made)
    scaler.update()
    before = bits(made)
    made.zero_grad()
    scaler.scale(model(torch.full((4, 12), math.inf)).sum()).backward()
    scaler.step(made)
    scaler.update()
    same(before, bits(made), "a step with infinite gradients")


def inference_mode(subject: Subject) -> None:
    """A step within ``inference_mode`` is an ordinary step, and its states can be used outside."""
    made, other = subject.make(network()), subject.make(network())
    run(made, 2)
    with torch.inference_mode():
        run(other, 1)
    run(other, 1, 1)
    same(bits(made), bits(other), "a first step in inference mode")
    left = [
        v for entries in other.state.values() for v in entries.values() if isinstance(v, Tensor) and v.is_inference()
    ]
    require(not left, f"{len(left)} states are inference tensors")


# ---------------------------------------------------------------- parameters and groups


def no_gradient(subject: Subject) -> None:
    """Parameters without a gradient do not change and get no state."""
    made = subject.make(network())
    first, *others = params(made)
    before = first.detach().clone()
    for p in others:
        p.grad = torch.ones_like(p) if p.requires_grad else None
    made.step()
    same([before], [first.detach()], "a parameter without gradient")
    require(not made.state.get(first), f"a parameter without gradient has the state {made.state.get(first)}")


def late_parameters(subject: Subject) -> None:
    """Parameters of a group that is added later start at age 0, and do not affect the others."""
    if subject.coupled:
        raise Skip("its parameters depend on each other")
    made, alone = subject.make(network()), subject.make(network())
    run(made, 2)
    run(alone, 2)
    late = nn.Parameter(torch.ones(8, 16))
    made.add_param_group({"params": [("late", late)], "lr": RATE / 2})
    run(made, 2, 2)
    run(alone, 2, 2)
    require(made.state[late]["step"] == 2, f"the step of a late parameter is {made.state[late]['step']}, not 2")
    same(bits(alone), bits(made)[: len(bits(alone))], "the other parameters")


def groups(subject: Subject) -> None:
    """Each group has its own arguments, and steps as it would in its own optimizer."""
    if subject.coupled:
        raise Skip("its parameters depend on each other")
    one, two = list(network().named_parameters()), list(network(1).named_parameters())
    two = [(f"two.{name}", p) for name, p in two]
    both = subject.make([{"params": one}, {"params": two, "lr": RATE / 4, "state": "bf16"}], rounding="nearest")
    alone = subject.make(list(network(1).named_parameters()), lr=RATE / 4, state="bf16", rounding="nearest")
    run(both, 3)
    for t in range(3):  # the gradients of the second half of a longer list
        generator = torch.Generator().manual_seed(t)
        for _, p in one:
            torch.randn(p.shape, generator=generator)
        for q in params(alone):
            q.grad = torch.randn(q.shape, generator=generator)
        alone.step()
    same(bits(alone), bits(both)[-len(bits(alone)) :], "a group with a rate and a format of its own")


# ---------------------------------------------------------------- checkpoints and copies


def never_stepped(subject: Subject) -> None:
    """The ``state_dict`` of an optimizer without steps can be loaded, and clears the states of one with steps."""
    fresh = subject.make(network()).state_dict()
    made, other = subject.make(network()), subject.make(network())
    made.load_state_dict(fresh)
    run(made, 2)
    run(other, 2)
    same(bits(made), bits(other), "after loading the state of no step")
    made.load_state_dict(fresh)
    left = [p for p in params(made) if made.state.get(p)]
    require(not left, f"{len(left)} parameters keep states that the loaded dictionary does not have")


def resume(subject: Subject) -> None:
    """A run that is saved, loaded with ``weights_only`` and continued has the same bits as an uninterrupted one."""
    for state, dtype in (("fp32", torch.float32), *((state, torch.bfloat16) for state in FAMILIES)):
        options = {"state": state, "param_rounding": "stochastic", "seed": 11}
        whole = subject.make(network(dtype=dtype), **options)
        run(whole, 4)
        half = subject.make(model := network(dtype=dtype), **options)
        run(half, 2)
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": half.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        other = network(1, dtype)
        other.load_state_dict(saved["model"])
        resumed = subject.make(other, **{**options, "seed": 3})
        resumed.load_state_dict(saved["optimizer"])
        run(resumed, 2, 2)
        same(bits(whole), bits(resumed), f"resumed with state={state!r} and {dtype} parameters")


def deepcopy(subject: Subject) -> None:
    """A deep copy continues identically, and shares nothing."""
    _copied(subject, copy.deepcopy)


def pickled(subject: Subject) -> None:
    """A pickled optimizer continues identically."""
    cls = subject.cls
    if subject.made_here or getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is not cls:
        raise Skip(f"{cls.__name__} is no name of the module {cls.__module__}, where pickle would look for it")
    _copied(subject, lambda made: pickle.loads(pickle.dumps(made)))


def _copied(subject: Subject, how: Callable[[Any], Any]) -> None:
    made = subject.make(network(), state="4bit", reset=3)
    run(made, 4)
    other = how(made)
    before = bits(made)
    same(before, bits(other), "the copy")
    run(other, 3, 4)
    same(before, bits(made), "the original, after steps of the copy")
    run(made, 3, 4)
    same(bits(made), bits(other), "the copy, three steps later")


def memory(subject: Subject) -> None:
    """``memory()`` counts the bytes of the states."""
    for state in FAMILIES:
        made = subject.make(network(), state=state)
        run(made, 2)
        stored = sum(v.nbytes for e in made.state.values() for v in e.values() if isinstance(v, Tensor))
        found = made.memory().total
        require(stored == found, f"memory() says {found} bytes with state={state!r}, and {stored} are stored")
