"""``halfulp.testing.check_optimizer``: each convention detects an optimizer that breaks it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import halfulp
from halfulp import optim
from halfulp.rules.base import Rule
from halfulp.rules.hyper import HyperParameters
from halfulp.rules.transforms import with_weight_decay
from halfulp.testing import CONVENTIONS, ConventionError, check_optimizer

LION = halfulp.Lion.rule
Step = tuple[Tensor, dict[str, Tensor]]
pytestmark = pytest.mark.usefixtures("one_thread")


# ---------------------------------------------------------------- rules and classes that break a convention


def in_place(param: Tensor, grad: Tensor, states: Any, c: Any) -> Step:
    states["exp_avg"].add_(1.0)
    return param - grad * c["lr"], states


def behind_autograd(param: Tensor, grad: Tensor, states: Any, c: Any) -> Step:
    states["exp_avg"].data.add_(1.0)
    return param - grad * c["lr"], states


def mean_of_all(param: Tensor, grad: Tensor, states: Any, c: Any) -> Step:
    return param - (grad - grad.mean()) * c["lr"], states


def standing_still(param: Tensor, grad: Tensor, states: Any, c: Any) -> Step:
    return param, states


class AnyArgument(halfulp.Lion):
    def __init__(self, params: Any, not_an_argument: int = 0, **options: Any) -> None:
        super().__init__(params, **options)


class NoLoss(halfulp.Lion):
    def step(self, closure: Any = None) -> None:
        super().step(closure)


class GradientsHalved(halfulp.Lion):
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(0.5)
        return super().step(closure)


class NeverUp(halfulp.Lion):
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["maximize"] = False
        return super().step(closure)


class CopiedRate(halfulp.Lion):
    def __init__(self, params: Any, lr: Any = 1e-3, **options: Any) -> None:
        super().__init__(params, lr=lr.clone() if isinstance(lr, Tensor) else lr, **options)
        self.first = self.param_groups[0]["lr"]

    def step(self, closure: Any = None) -> Any:
        if isinstance(self.first, Tensor):
            self.param_groups[0]["lr"] = self.first = torch.tensor(2.0**-7)
        return super().step(closure)


class FixedRate(halfulp.Lion):
    def step(self, closure: Any = None) -> Any:
        self.param_groups[0]["lr"] = 2.0**-7
        return super().step(closure)


class ScalesItself(halfulp.Lion):
    _step_supports_amp_scaling = True


class Buffered(halfulp.Lion):
    buffer: Any = None

    def step(self, closure: Any = None) -> Any:
        if self.buffer is None:
            self.buffer = torch.zeros(1)
        self.buffer.add_(1)
        return super().step(closure)


class EverythingMoves(halfulp.Lion):
    def step(self, closure: Any = None) -> Any:
        for p in self.param_groups[0]["params"]:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        return super().step(closure)


class ByNumber(halfulp.Lion):
    """Rates depend on how many parameters there are."""

    def step(self, closure: Any = None) -> Any:
        count = sum(len(group["params"]) for group in self.param_groups)
        for group in self.param_groups:
            group["lr"] = 2.0**-count
        return super().step(closure)


class OneRate(halfulp.Lion):
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["lr"] = self.param_groups[0]["lr"]
        return super().step(closure)


class KeepsStates(halfulp.Lion):
    def load_state_dict(self, state_dict: Any) -> None:
        if state_dict["state"]:
            super().load_state_dict(state_dict)


class Counting(halfulp.Lion):
    """Counts its steps where no checkpoint and no copy looks."""

    count = 0

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        self.param_groups[0]["lr"] = 2.0**-self.count
        return super().step(closure)


class Modest(halfulp.Lion):
    def memory(self) -> Any:
        report = super().memory()
        return replace(report, rows=(replace(report.rows[0], bytes=1),))


class FasterInC(halfulp.Lion):
    def step(self, closure: Any = None) -> Any:
        self.param_groups[0]["lr"] = 2.0**-5 if self.backend == "cpu" else 2.0**-6
        return super().step(closure)


class ByThreads(halfulp.Lion):
    def step(self, closure: Any = None) -> Any:
        self.param_groups[0]["lr"] = 2.0**-5 / torch.get_num_threads()
        return super().step(closure)


BROKEN: list[tuple[str, Any, str]] = [
    ("declaration", AnyArgument, "an argument that does not exist is taken"),
    ("pure_update", replace(LION, name="in_place", update=in_place), "changes its argument exp_avg in place"),
    ("pure_update", replace(LION, name="behind", update=behind_autograd), "changed what it was given"),
    ("pure_update", replace(LION, name="empty", update=lambda p, g, s, c: (p, {})), "exp_avg"),
    ("elementwise", replace(LION, name="mean_of_all", update=mean_of_all), "seven rows alone: "),
    ("closure", NoLoss, "step(closure) returned None"),
    ("gradients", GradientsHalved, "the step changed gradients: "),
    ("maximize", NeverUp, "maximize against negated gradients: "),
    ("lr_tensor", CopiedRate, "a tensor as lr against a float: "),
    ("schedulers", FixedRate, "a schedule that halves the rate in each step changes nothing"),
    ("grad_scaler", ScalesItself, "a step with infinite gradients: "),
    ("inference_mode", Buffered, "Inplace update to inference tensor"),
    ("no_gradient", EverythingMoves, "a parameter without gradient"),
    ("late_parameters", ByNumber, "the other parameters: "),
    ("groups", OneRate, "a group with a rate and a format of its own: "),
    ("never_stepped", KeepsStates, "4 parameters keep states"),
    ("resume", Counting, "resumed with state='fp32' and torch.float32 parameters: "),
    ("deepcopy", Counting, "the copy, three steps later: "),
    ("pickled", Counting, "the copy, three steps later: "),
    ("memory", Modest, "memory() says 1 bytes"),
    ("trains", replace(LION, name="standing_still", update=standing_still), "the loss is not halved in 40 steps"),
    ("same_bits", FasterInC, "the C kernels against the reference with {'state': 'fp32'"),
    ("threads", ByThreads, "one thread against three: "),
]


@pytest.mark.parametrize(("convention", "broken", "seen"), BROKEN)
def test_what_breaks_a_convention_is_found(convention: str, broken: Any, seen: str) -> None:
    with pytest.raises(ConventionError) as caught:
        check_optimizer(broken, only=[convention])
    assert caught.value.convention == convention
    assert f"breaks the convention {convention!r}: " in str(caught.value)
    assert seen in str(caught.value)
    assert isinstance(caught.value, AssertionError)


def test_every_convention_has_something_that_breaks_it() -> None:
    assert {convention for convention, _, _ in BROKEN} == set(CONVENTIONS)
    assert all(check.__doc__ for check in CONVENTIONS.values())


# ---------------------------------------------------------------- rules and names


def test_a_rule_is_checked_without_a_class_and_pickled_by_nobody() -> None:
    rule: Rule = replace(LION, title="Mine")
    report = check_optimizer(rule, only=["pickled", "closure"], weight_decay=0.1)
    assert (report.name, report.passed) == ("Mine", ("closure",))
    assert str(report) == (
        "Mine: 1 convention holds; not checked: pickled (Mine is no name of the module halfulp.testing.check, where "
        "pickle would look for it)"
    )


SLOT = halfulp.Lion.rule.slots({"betas": (0.9, 0.99)})[0]
MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": (
        {"update": lambda p, g, s, c: None},
        "returns .new param, new states., with the states exp_avg; got None",
    ),
    "param alone": ({"update": lambda p, g, s, c: p}, r"got a float32 tensor of shape \(4, 64\)"),
    "states alone": ({"update": lambda p, g, s, c: s}, "got a dict of str"),
    "list": ({"update": lambda p, g, s, c: [p, s]}, "got a list of Parameter, dict"),
    "no dictionary": ({"update": lambda p, g, s, c: (p, g)}, "in a dictionary; got a float32 tensor"),
    "renamed": ({"update": lambda p, g, s, c: (p, {"m": g})}, "the states exp_avg; got m"),
    "one more": ({"update": lambda p, g, s, c: (p, {**s, "m": g})}, "the states exp_avg; got exp_avg, m"),
    "sum": ({"update": lambda p, g, s, c: (p.sum(), s)}, r"returns param as .* \(4, 64\); got .* of shape \(\)"),
    "row": ({"update": lambda p, g, s, c: (p, {"exp_avg": g[0]})}, r"returns exp_avg as .* got .* \(64,\)"),
    "half": ({"update": lambda p, g, s, c: (p, {"exp_avg": g.half()})}, "got a float16 tensor"),
    "double": ({"update": lambda p, g, s, c: (p.double(), {"exp_avg": g})}, "got a float64 tensor"),
    "double state": (
        {"update": lambda p, g, s, c: (p, {"exp_avg": g + torch.zeros(64, dtype=torch.double)})},
        "returns exp_avg as .* got a float64 tensor",
    ),
    "gradient in place": (
        {"update": lambda p, g, s, c: (p - g.mul_(c["lr"]), s)},
        "changes its argument grad in place",
    ),
    "state in place": ({"update": lambda p, g, s, c: (p - s["exp_avg"].add_(g), s)}, "its argument exp_avg in place"),
    "number": ({"update": lambda p, g, s, c: (p, {"exp_avg": 0.0})}, "got 0.0"),
    "no scalars": ({"scalars": lambda hyper, ages: None}, "are a dictionary of numbers by name, got None"),
    "text": ({"scalars": lambda hyper, ages: {"lr": "0.1"}}, "the scalar 'lr' of .* is a number, got '0.1'"),
    "one slot": ({"slots": lambda hyper: SLOT}, "are a tuple of StateSlot"),
    "twice": ({"slots": lambda hyper: (SLOT, SLOT)}, "has an entry 'exp_avg' already; rename"),
    "taken": ({"slots": lambda hyper: (SLOT, replace(SLOT, name="exp_avg_age"))}, "'exp_avg_age' already"),
    "hyper": ({"hyper": dict}, "is a subclass of HyperParameters or HyperBase, got <class 'dict'>"),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("backend", ["reference", None])
def test_what_a_rule_must_return_is_said(name: str, backend: str | None) -> None:
    change, message = MALFORMED[name]
    weight = torch.nn.Parameter(torch.ones(4, 64))
    weight.grad = torch.ones(4, 64)
    rule = replace(LION, name=f"malformed {name}", title="Malformed", **change)
    with pytest.raises((TypeError, ValueError), match=message):
        halfulp.optimizer(rule)([weight], lr=0.1, min_size=0, backend=backend).step()
    assert bool((weight == 1).all())


def without_decay(rule: Rule, **change: Any) -> Rule:
    """A rule whose scalars do not read weight_decay."""

    def scalars(hyper: Any, ages: Any) -> dict[str, float]:
        return {"lr": float(hyper["lr"])}

    kept = {"hyper": HyperParameters, "update": lambda p, g, s, c: (p - g * c["lr"], s), **change}
    return replace(rule, title="Forgetful", scalars=scalars, **kept)


def test_weight_decay_that_a_rule_does_not_read_is_refused() -> None:
    """When it is given, set later, or set for one group; with_weight_decay and transforms read it."""
    weight = torch.nn.Parameter(torch.ones(4, 64))
    weight.grad = torch.ones(4, 64)
    forgetful = without_decay(LION, name="forgetful")
    cls = halfulp.optimizer(forgetful)
    message = "weight_decay=0.1 would have no effect: the scalars of the rule 'forgetful' do not read it"
    with pytest.raises(ValueError, match=message):
        cls([weight], weight_decay=0.1)
    with pytest.raises(ValueError, match=message):
        cls([{"params": [weight], "weight_decay": 0.1}])
    optimizer = cls([weight])
    optimizer.step()
    optimizer.param_groups[0]["weight_decay"] = 0.1
    before = weight.detach().clone()
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert torch.equal(weight, before)
    cls([weight], weight_decay=0.1, transforms=[with_weight_decay]).step()
    halfulp.optimizer(with_weight_decay(forgetful))([weight], weight_decay=0.1).step()


@pytest.mark.parametrize("name", [cls.__name__ for cls in optim.OPTIMIZERS])
def test_every_optimizer_reads_weight_decay(name: str) -> None:
    weight = torch.nn.Parameter(torch.ones(8, 8))
    assert getattr(halfulp, name)([("weight", weight)], weight_decay=0.1).param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("backend", ["reference", None])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_negative_values_of_an_unsigned_state_are_told(
    ndim: int, backend: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    weight = torch.nn.Parameter(torch.ones((16, 4, 4)[:ndim]))
    weight.grad = torch.ones_like(weight)
    unsigned = replace(SLOT, signed=False, drive=None)
    rule = without_decay(LION, name=f"negative {ndim} {backend}", slots=lambda hyper: (unsigned,))
    for power, told in ((1, 1), (2, 0)):
        caplog.clear()
        mine = replace(rule, update=lambda p, g, s, c, power=power: (p, {"exp_avg": g if power == 1 else g * g}))
        halfulp.optimizer(mine)([weight], backend=backend).step()
        found = [r.getMessage() for r in caplog.records if "negative values of exp_avg" in r.getMessage()]
        assert len(found) == told
        assert all("signed=False: they are stored as zero" in text for text in found)


BAD_SLOTS: list[tuple[dict[str, Any], str]] = [
    ({"decay": 0.9}, "decay of the slot 'exp_avg' is a function .*got 0.9"),
    ({"drive": "gradient"}, "drive of the slot"),
    ({"shape": (3,)}, "shape of the slot"),
    ({"least_bits": 99}, "0 to 8, got 99"),
    ({"name": ""}, "a slot has a name"),
]


@pytest.mark.parametrize(("change", "message"), BAD_SLOTS)
def test_bad_slots(change: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        replace(SLOT, **change)


@pytest.mark.parametrize("given", [len, torch.optim.SGD, LION.update])
def test_only_rules_and_their_classes_are_checked(given: Any) -> None:
    with pytest.raises(TypeError, match="a Rule or a class made from one is checked"):
        check_optimizer(given)


def test_names_that_are_no_conventions() -> None:
    with pytest.raises(ValueError, match=r"no conventions: \['clozure'\]; there are \['closure', "):
        check_optimizer(halfulp.Lion, only=["clozure"])
