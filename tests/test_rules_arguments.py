"""Hyper-parameters: checks, signatures, and changes between steps."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import halfulp


def test_signatures_show_hyper_parameters_and_options() -> None:
    names = list(inspect.signature(halfulp.AdEMAMix).parameters)
    assert names[:2] == ["params", "lr"]
    assert {"alpha", "warmup", "state", "transforms"} <= set(names)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("AdaBelief", {"betas": (0.9, 1.0)}, "betas must be two numbers in"),
        ("CAME", {"betas": (0.9, 0.99)}, "betas must be three numbers"),
        ("Adam", {"transforms": [1.0]}, "a list of functions"),
        ("AMSGD", {"transforms": [halfulp.clip_global(1.0)]}, "sums over the model"),
        ("LAMB", {"bias_correction": "both"}, "bias_correction must be 'moments' or 'none' or 'step', got 'both'"),
        ("MicroAdam", {"density": 0.0}, "density must be above 0, got 0.0"),
        ("MicroAdam", {"window": 0}, "window must be at least 1, got 0"),
        ("SubspaceMomentum", {"rank": 0}, "rank must be at least 1, got 0"),
        ("BAdam", {"order": "sideways"}, "order must be 'descending' or .*, got 'sideways'"),
        ("BAdam", {"period": 0}, "period must be at least 1, got 0"),
        ("FRUGAL", {"period": 0}, "period must be at least 1, got 0"),
        ("FRUGAL", {"density": 1.5}, "density must be at most 1, got 1.5"),
        ("LARS", {"decoupled_weight_decay": True}, "decoupled_weight_decay must be False, got True"),
        ("CoRe", {"decoupled_weight_decay": False}, "decoupled_weight_decay must be True, got False"),
        ("Muon", {"adjust_lr_fn": "none"}, "adjust_lr_fn must be 'match_rms_adamw' or 'original', got 'none'"),
    ],
)
def test_values_that_cannot_work_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(halfulp, name)([torch.nn.Parameter(torch.zeros(2))], **arguments)


def test_misspelled_arguments_get_a_suggestion() -> None:
    with pytest.raises(TypeError, match="Did you mean 'alpha'"):
        halfulp.AdEMAMix([torch.nn.Parameter(torch.zeros(2))], alhpa=2.0)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_arguments_by_position_are_those_of_torch(name: str) -> None:
    def positional(cls: Any) -> dict[str, Any]:
        given = inspect.signature(cls).parameters.values()
        return {p.name: p.default for p in given if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "params"}

    assert positional(getattr(halfulp, name)) == positional(getattr(torch.optim, name))


@pytest.mark.parametrize(
    ("args", "arguments", "message"),
    [
        ((1e-3,), {"lr": 1e-3}, "AdamW got 'lr' by position and by name"),
        ((1e-3, (0.9, 0.999), 1e-8, 0.0, False, True), {}, "AdamW takes at most 5 hyper-parameters by position, got 6"),
        ((), {"decoupled_weight_decay": False}, r"unknown arguments \['decoupled_weight_decay'\]: it is True here"),
    ],
)
def test_arguments_that_are_not_taken(args: tuple[Any, ...], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        halfulp.AdamW([torch.nn.Parameter(torch.zeros(2))], *args, **arguments)


def test_what_a_declaration_needs_to_be_an_optimizer() -> None:
    rule = halfulp.Lion.rule
    with pytest.raises(TypeError, match="the rule 'lion' has the title '', which is not a valid class name"):
        halfulp.optimizer(replace(rule, title=""))
    with pytest.raises(TypeError, match="the rule 'lion' declares no hyper-parameters"):
        halfulp.optimizer(replace(rule, hyper=None))


def test_a_class_made_from_a_rule_is_like_one_written_down() -> None:
    class Written(halfulp.HyperOptimizer):
        rule = halfulp.Lion.rule

    class Sub(halfulp.Lion):
        """With an argument of its own."""

        def __init__(self, params: Any, strength: float = 1.0) -> None:
            super().__init__(params, lr=strength * 1e-3)

    made = halfulp.optimizer(halfulp.Lion.rule)
    assert (made.__name__, made.__qualname__, made.__module__) == ("Lion", "Lion", __name__)
    assert inspect.signature(Written) == inspect.signature(made) == inspect.signature(halfulp.Lion)
    assert Written.hyper is made.hyper is halfulp.Lion.hyper
    assert made.__doc__ is not None
    assert made.__doc__.startswith("Lion: the sign of a momentum, with decoupled weight decay.\n\nChen et al.")
    assert list(inspect.signature(Sub).parameters) == ["params", "strength"]
    assert Sub([torch.nn.Parameter(torch.zeros(2))], 2.0).param_groups[0]["lr"] == 2e-3


# ---------------------------------------------------------------- states that depend on hyper-parameters


@pytest.mark.parametrize("state", ["fp32", "8bit"])
def test_a_momentum_that_is_raised_later_gets_its_buffer(state: str) -> None:
    """As in torch: the buffer starts with the gradient of that step, and goes with the momentum."""
    ours, theirs = torch.nn.Parameter(torch.zeros(4, 32)), torch.nn.Parameter(torch.zeros(4, 32))
    mine = halfulp.SGD([ours], lr=0.1, state=state, min_size=0)
    oracle = torch.optim.SGD([theirs], lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        momentum = 0.9 if 2 <= step < 4 else 0.0
        for o, p in ((mine, ours), (oracle, theirs)):
            o.param_groups[0]["momentum"] = momentum
            generator.manual_seed(step)
            p.grad = torch.randn(4, 32, generator=generator)
            o.step()
        assert ("momentum_buffer" in mine.state[ours]) == (momentum > 0)
        stored = [v for v in mine.state[ours].values() if torch.is_tensor(v)]
        assert sum(t.nbytes for t in stored) == mine.memory().total
    assert (ours - theirs).abs().max() < (1e-6 if state == "fp32" else 0.02)
    assert mine.state[ours]["step"] == 6


def test_amsgrad_that_is_switched_on_later_gets_its_maximum() -> None:
    p = torch.nn.Parameter(torch.zeros(8))
    optimizer = halfulp.Adam([p], lr=0.1, state="fp32")
    for amsgrad in (False, True):
        optimizer.param_groups[0]["amsgrad"] = amsgrad
        p.grad = torch.ones(8)
        optimizer.step()
    assert torch.equal(optimizer.state_tensor(p, "max_exp_avg_sq"), optimizer.state_tensor(p, "exp_avg_sq"))
    assert optimizer.state[p]["exp_avg_age"] == 2
    assert optimizer.state[p]["max_exp_avg_sq_age"] == 1


# ---------------------------------------------------------------- explicit quantizers


def quantizers(**arguments: Any) -> dict[str, halfulp.Quantizer]:
    optimizer = halfulp.AdamW([torch.nn.Parameter(torch.zeros(64, 64))], **arguments)
    return optimizer.group_quantizers(optimizer.param_groups[0])


def test_a_quantizer_keeps_its_own_rounding_and_floor() -> None:
    own = halfulp.Quantizer("float8_e4m3fn")
    assert quantizers(state=own) == {"exp_avg": own, "exp_avg_sq": own}
    assert quantizers(state=own, rounding="stochastic", zero_floor=True)["exp_avg_sq"] == own
    floored = halfulp.Quantizer("ufloat8_e5m3", rounding="stochastic", zero_floor=True)
    assert quantizers(state={"exp_avg_sq": floored}, rounding="nearest", zero_floor=False)["exp_avg_sq"] == floored


def test_a_maximum_is_rounded_to_nearest_unless_it_has_a_quantizer_of_its_own() -> None:
    own = halfulp.Quantizer("bfloat16", rounding="stochastic")
    for state in ("bf16", own):
        found = quantizers(state=state, amsgrad=True)
        assert (found["exp_avg_sq"].rounding, found["max_exp_avg_sq"].rounding) == ("stochastic", "nearest")
    assert quantizers(state={"max_exp_avg_sq": own}, amsgrad=True)["max_exp_avg_sq"].rounding == "stochastic"


@pytest.mark.parametrize("name", ["AdamW", "AdaBelief"])
@pytest.mark.parametrize("age", [1, 2, 10, 1000])
def test_updates_are_bounded_just_above_what_exact_moments_allow(name: str, age: int) -> None:
    """The bound is a millionth above the ratio of moments whose gradients make it largest (equality in Schwarz)."""
    optimizer = getattr(halfulp, name)([torch.nn.Parameter(torch.ones(2))], betas=(0.9, 0.99))
    group, rule = optimizer.param_groups[0], optimizer.active_rules(optimizer.param_groups[0])[0]
    ages = dict.fromkeys(("step", *(slot.name for slot in rule.slots(group))), age)
    w1, w2 = (np.array([(1 - beta) * beta**k for k in range(age)]) / (1 - beta**age) for beta in (0.9, 0.99))
    gradients = w1 / w2
    largest = (w1 @ gradients) / np.sqrt(w2 @ gradients**2)
    found = rule.scalars(group, ages)
    correction = found["step_size"] / group["lr"] if "step_size" in found else 1.0  # Adam's bound is before correction
    assert found["bound"] * correction == pytest.approx(largest * (1 + 1e-6), rel=1e-9)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_the_decay_of_adam_is_that_of_torch(name: str) -> None:
    assert (
        getattr(halfulp, name)([torch.nn.Parameter(torch.ones(2))]).param_groups[0]["decoupled_weight_decay"]
        is getattr(torch.optim, name)([torch.nn.Parameter(torch.ones(2))]).param_groups[0]["decoupled_weight_decay"]
    )
