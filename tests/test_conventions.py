"""The conventions of torch.optim that users rely on, and the library's options per group and per tensor."""

from __future__ import annotations

import copy
import io
import logging
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import halfulp
from halfulp.numbers import log as _log
from halfulp.numbers.rng import random_bits, slot_id, stream_keys
from halfulp.numbers.rounding import encode
from halfulp.testing import CONVENTIONS, check_optimizer
from support.optimizers import assert_same, build, each_optimizer, everything, model, run, set_grads

# ---------------------------------------------------------------- what users can check too


CHEAP = [name for name in CONVENTIONS if name not in ("trains", "same_bits", "resume", "memory")]
NOT: dict[str, list[str]] = {"CoRe": ["schedulers"]}
"""Its ``lr`` is the first size of its steps, which the rule changes by itself from there on."""
MORE: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9, "nesterov": True}, "Adam": {"weight_decay": 0.1}}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["Adam", "AdamW", "Lion", "SGD"])
def test_the_common_optimizers_pass_as_a_whole(name: str) -> None:
    report = check_optimizer(getattr(halfulp, name), **MORE.get(name, {}))
    assert {*report.passed, *report.skipped} == set(CONVENTIONS)
    assert set(report.skipped) <= {"same_bits"}
    assert max(report.losses.values()) < 0.5


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("cls", halfulp.OPTIMIZERS)
def test_every_optimizer_keeps_the_conventions(cls: Any) -> None:
    report = check_optimizer(cls, only=CHEAP, skip=NOT.get(cls.__name__, []), **MORE.get(cls.__name__, {}))
    rules = cls.rule
    apart = {"elementwise", "threads"} if not rules.shardable else set()
    apart |= {"late_parameters", "groups"} if rules.measure and not rules.per_tensor else set()
    apart |= {"late_parameters", "groups"} if cls is halfulp.BAdam else set()
    assert set(report.skipped) == apart


# ---------------------------------------------------------------- compiled training steps


@each_optimizer
def test_a_compiled_training_step_has_the_same_bits(name: str) -> None:
    """The step of the optimizer is left as it is; around it, torch compiles."""

    def train(net: nn.Module, optimizer: Any, x: Tensor) -> None:
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()

    torch.compiler.reset()
    compiled = torch.compile(train, backend="eager")
    nets = [model(), model()]
    plain, other = (build(name, net.parameters()) for net in nets)
    for t in range(2):
        x = torch.randn(3, 12, generator=torch.Generator().manual_seed(t))
        train(nets[0], plain, x)
        compiled(nets[1], other, x)
    step = torch.compile(other.step, backend="eager")
    set_grads(nets[0].parameters(), 3)
    set_grads(nets[1].parameters(), 3)
    plain.step()
    step()
    assert_same(everything(plain), everything(other))


# ---------------------------------------------------------------- learning rates


@each_optimizer
def test_a_tensor_lr_is_the_float_lr(name: str) -> None:
    first, second = build(name, model().parameters(), lr=1e-2), build(name, model().parameters(), lr=torch.tensor(1e-2))
    run(first, 3)
    run(second, 3)
    for a, b in zip(
        everything(first), everything(second), strict=True
    ):  # fp32(1e-2) differs from 1e-2 in the last bits
        if isinstance(a, Tensor) and a.is_floating_point():
            torch.testing.assert_close(a.float(), b.float(), rtol=1e-6, atol=1e-7)
    second.param_groups[0]["lr"].fill_(0.0)
    before = [p.detach().clone() for p in second.param_groups[0]["params"]]
    second.param_groups[0]["weight_decay"] = 0.0
    run(second, 1, 3)
    assert_same(before, [p.detach() for p in second.param_groups[0]["params"]])


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("kind", ["step", "cosine", "lambda", "onecycle"])
def test_lr_schedulers(kind: str, tensor: bool) -> None:
    schedulers = torch.optim.lr_scheduler
    make = {
        "step": lambda o: schedulers.StepLR(o, 2, 0.1),
        "cosine": lambda o: schedulers.CosineAnnealingLR(o, 10),
        "lambda": lambda o: schedulers.LambdaLR(o, lambda t: 0.5**t),
        "onecycle": lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=10),
    }[kind]
    rates = []
    for optimizer in (
        halfulp.AdamW(model().parameters(), lr=torch.tensor(0.1) if tensor else 0.1, state="fp32"),
        torch.optim.AdamW(model().parameters(), lr=torch.tensor(0.1) if tensor else 0.1, foreach=False),
    ):
        scheduler = make(optimizer)
        seen = []
        for t in range(6):
            seen.append((float(optimizer.param_groups[0]["lr"]), tuple(map(float, optimizer.param_groups[0]["betas"]))))
            set_grads(optimizer.param_groups[0]["params"], t)
            optimizer.step()
            scheduler.step()
        rates.append((seen, [p.detach() for p in optimizer.param_groups[0]["params"]]))
    assert rates[0][0] == rates[1][0]
    for a, b in zip(rates[0][1], rates[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- the step


@each_optimizer
def test_grad_scaler(name: str) -> None:
    """Unscaled gradients reach the optimizer; a step with an infinity is left out altogether."""
    net = model()
    optimizer = build(name, net.parameters(), state="fp8")
    plain = build(name, (other := model()).parameters(), state="fp8")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(3):
        x = torch.randn(4, 12)
        for who, network in ((optimizer, net), (plain, other)):
            who.zero_grad()
            loss = network(x).square().mean()
            (scaler.scale(loss) if who is optimizer else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        plain.step()
    assert_same(everything(optimizer), everything(plain))
    before = everything(optimizer)
    scaler.scale(net(torch.full((4, 12), float("inf"))).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert_same(before, everything(optimizer))
    assert scaler.get_scale() == 512.0


@each_optimizer
def test_clip_grad_norm_and_zero_grad(name: str) -> None:
    net = model()
    optimizer = build(name, net.parameters())
    net(torch.randn(4, 12) * 100).square().sum().backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    clipped = [p.grad.clone() for p in net.parameters()]
    optimizer.step()
    assert_same(clipped, [p.grad for p in net.parameters()])  # the step does not change gradients
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    before = everything(optimizer)
    optimizer.step()
    assert_same(before, everything(optimizer))
    set_grads(net.parameters(), 1)
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())


def test_step_hooks_run() -> None:
    optimizer = build("AdamW", model().parameters())
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    run(optimizer, 1)
    assert seen == ["pre", "post"]


# ---------------------------------------------------------------- parameters


@each_optimizer
def test_parameters_without_gradient_are_left_alone(name: str) -> None:
    net = model()
    optimizer = build(name, net.parameters())
    frozen, *others = net.parameters()
    before = frozen.detach().clone()
    set_grads(others, 0)
    optimizer.step()
    assert torch.equal(frozen, before)
    assert frozen not in optimizer.state
    with pytest.raises(KeyError, match="has no state before its first step"):
        optimizer.states(frozen)
    set_grads(net.parameters(), 1)
    optimizer.step()
    assert (optimizer.state[frozen]["step"], optimizer.state[others[0]]["step"]) == (1, 2)


@each_optimizer
def test_parameters_that_appear_later(name: str) -> None:
    """Their states start at age 0, with options of their own; those already there are not disturbed."""
    first, late = nn.Parameter(torch.ones(8, 16)), nn.Parameter(torch.ones(8, 16))
    optimizer, alone = build(name, [first]), build(name, [nn.Parameter(torch.ones(8, 16))])
    run(optimizer, 3)
    run(alone, 3)
    optimizer.add_param_group({"params": [late], "lr": 0.5, "state": "bf16"})
    for t in range(3, 5):
        for p in (first, alone.param_groups[0]["params"][0]):
            p.grad = torch.randn(8, 16, generator=torch.Generator().manual_seed(t))
        late.grad = torch.ones(8, 16)
        optimizer.step()
        alone.step()
    assert torch.equal(first, alone.param_groups[0]["params"][0])
    assert optimizer.state[late]["step"] == 2
    assert all(s.quantizer.format.name == "bfloat16" and s.age == 2 for s in optimizer.states(late))
    assert not torch.equal(late, torch.ones(8, 16))


def test_sparse_gradients_are_refused_clearly() -> None:
    embedding = nn.Embedding(10, 4, sparse=True)
    optimizer = build("AdamW", embedding.parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    before = everything(optimizer)
    with pytest.raises(RuntimeError, match="needs dense gradients, got a sparse one: use sparse=False"):
        optimizer.step()
    assert_same(before, everything(optimizer))


def test_strides_do_not_matter() -> None:
    """A channels-last weight takes the same steps as a contiguous one."""
    weight = torch.randn(8, 4, 3, 3)
    results = []
    for p in (nn.Parameter(weight.clone()), nn.Parameter(weight.clone().to(memory_format=torch.channels_last))):
        optimizer = build("AdamW", [p], state="4bit")
        run(optimizer, 3)
        results.append([p.detach(), optimizer.state[p]["exp_avg"], optimizer.state_tensor(p, "exp_avg_sq")])
    assert_same(*results)


# ---------------------------------------------------------------- checkpoints


@each_optimizer
@pytest.mark.parametrize("state", ["fp32", "bf16", "8bit", "fp4", "int8"])
def test_resume_has_the_same_bits(name: str, state: str) -> None:
    """Save with torch.save, load with weights_only, go on: as if nothing had happened, for fp32 and bf16 weights."""
    for dtype in (torch.float32, torch.bfloat16):
        options = {"state": state, "param_rounding": "stochastic", "seed": 11}
        whole = build(name, model(dtype=dtype).parameters(), **options)
        run(whole, 6)
        net = model(dtype=dtype)
        half = build(name, net.parameters(), **options)
        run(half, 3)
        file = io.BytesIO()
        torch.save({"net": net.state_dict(), "optimizer": half.state_dict()}, file)
        saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        other = model(1, dtype)
        other.load_state_dict(saved["net"])
        resumed = build(name, other.parameters(), **{**options, "seed": 3})
        resumed.load_state_dict(saved["optimizer"])
        assert_same(everything(half), everything(resumed))
        run(resumed, 3, 3)
        assert_same(everything(whole), everything(resumed))


def test_step_is_never_rounded() -> None:
    """bf16 parameters, thousands of steps: the step and the ages stay exact integers, through a checkpoint too."""
    p = nn.Parameter(torch.ones(2, 16, dtype=torch.bfloat16))
    optimizer = build("AdamW", [p], state="bf16")
    run(optimizer, 300)
    assert optimizer.state[p]["step"] == 300
    saved = optimizer.state_dict()
    saved["state"][0]["step"] = torch.tensor(70_001.0)  # torch stores steps like this
    saved["state"][0]["exp_avg_age"] = 70_001
    optimizer.load_state_dict(saved)
    assert optimizer.state[p]["step"] == 70_001
    run(optimizer, 1)
    assert optimizer.state[p]["step"] == 70_002
    assert {type(optimizer.state[p][k]) for k in ("step", "exp_avg_age", "exp_avg_sq_age")} == {int}


def test_loading_never_casts_states() -> None:
    net = model(dtype=torch.bfloat16)
    optimizer = build("AdamW", net.parameters(), state={"exp_avg": "fp32", "exp_avg_sq": "fp8"})
    run(optimizer, 2)
    other = build("AdamW", model(1, torch.bfloat16).parameters(), state={"exp_avg": "fp32", "exp_avg_sq": "fp8"})
    other.load_state_dict(optimizer.state_dict())
    weight = other.param_groups[0]["params"][0]
    assert other.state[weight]["exp_avg"].dtype == torch.float32
    assert other.state[weight]["exp_avg_sq"].dtype == torch.uint8
    assert other.state[weight]["exp_avg"].data_ptr() != optimizer.state_dict()["state"][0]["exp_avg"].data_ptr()


def test_loading_shares_no_tensor_lr() -> None:
    source = build("AdamW", model().parameters(), lr=torch.tensor(0.1))
    target = build("AdamW", model().parameters(), lr=torch.tensor(0.2))
    target.load_state_dict(source.state_dict())
    source.param_groups[0]["lr"].fill_(9.0)
    assert float(target.param_groups[0]["lr"]) == pytest.approx(0.1)


@each_optimizer
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_go_on_alike(name: str, how: str) -> None:
    net = model()
    optimizer = build(name, net.parameters(), state="4bit", reset=3)
    run(optimizer, 4)
    other = copy.deepcopy(optimizer) if how == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    assert_same(everything(optimizer), everything(other))
    assert other.reset_log == optimizer.reset_log
    assert len(other.reset_log) == 4
    run(optimizer, 3, 4)
    before = everything(other)
    assert other.state[other.param_groups[0]["params"][0]]["step"] == 4  # nothing is shared
    run(other, 3, 4)
    assert_same(everything(optimizer), everything(other))
    assert len(before) == len(everything(other))


def test_state_dict_names_full_formats() -> None:
    group = build("AdamW", model().parameters(), state="4bit").state_dict()["param_groups"][0]
    assert group["state"] == "exp_avg=float4_e2m1fn:pow2:block16,exp_avg_sq=ufloat4_e4m0:pow2:block16"
    assert group["rounding"] == "exp_avg=stochastic,exp_avg_sq=stochastic"


# ---------------------------------------------------------------- groups and names


def test_groups_differ_in_state_rounding_and_reset() -> None:
    a, b, c = (nn.Parameter(torch.ones(8, 16)) for _ in range(3))
    optimizer = build(
        "AdamW",
        [
            {"params": [a], "state": "bf16", "rounding": "nearest", "reset": 2},
            {"params": [b], "state": {"exp_avg": "fp8"}, "rounding": {"exp_avg": "nearest"}},
            {"params": [c]},
        ],
        state="fp4",
    )
    run(optimizer, 3)
    stored = {
        p: [(s.quantizer.format.name, s.quantizer.rounding, s.age) for s in optimizer.states(p)] for p in (a, b, c)
    }
    assert stored[a] == [("bfloat16", "nearest", 1)] * 2
    assert stored[b] == [("float8_e4m3fn", "nearest", 3), ("ufloat8_e5m3", "stochastic", 3)]
    assert stored[c] == [("float4_e2m1fn", "stochastic", 3), ("ufloat4_e2m2", "stochastic", 3)]
    assert list(optimizer.reset_log) == [(2, 0, ("exp_avg", "exp_avg_sq"))]


def test_rounding_may_change_between_steps_and_formats_may_not() -> None:
    optimizer = build("AdamW", model().parameters(), state="fp8", rounding="nearest")
    run(optimizer, 2)
    weight = optimizer.param_groups[0]["params"][0]
    optimizer.param_groups[0]["rounding"] = "stochastic"
    run(optimizer, 1, 2)
    assert {s.quantizer.rounding for s in optimizer.states(weight)} == {"stochastic"}
    assert {s.age for s in optimizer.states(weight)} == {3}
    before = everything(optimizer)
    optimizer.param_groups[0]["state"] = "fp4"
    with pytest.raises(ValueError, match="are stored as 'fp8' and cannot become 'fp4' between steps"):
        optimizer.step()
    assert_same(before, everything(optimizer))


def test_what_stays_fp32_is_queryable_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.ModuleDict({
        "embed": nn.Embedding(64, 32), "norm": nn.LayerNorm(32), "small": nn.Linear(4, 4), "big": nn.Linear(32, 64),
    })  # fmt: skip
    _log._said.clear()
    optimizer = halfulp.AdamW(net.named_parameters(), state="fp8", keep_fp32=["embed*", "head"], min_size=100)
    with caplog.at_level(logging.INFO, logger="halfulp"):
        for _ in range(3):
            set_grads(net.parameters(), 0)
            optimizer.step()
            report = optimizer.memory()
    reasons = {
        "embed.weight": "name matches keep_fp32 pattern 'embed*'",
        "norm.weight": "1-D tensor", "norm.bias": "1-D tensor",
        "small.weight": "16 elements, fewer than min_size=100", "small.bias": "1-D tensor", "big.bias": "1-D tensor",
    }  # fmt: skip
    assert report.kept_fp32 == reasons
    for parameter, reason in reasons.items():
        assert caplog.messages.count(f"states of {parameter} stay in float32: {reason}") == 1
        assert reason == "1-D tensor" or f"{parameter}: {reason}" in str(report)
    assert "4 vectors, such as norm.weight" in str(report)
    assert {s.quantizer.format.name for s in optimizer.states(net["big"].weight)} == {"float8_e4m3fn"}
    assert {s.quantizer.format.name for s in optimizer.states(net["embed"].weight)} == {"float32"}


def test_a_single_pattern_may_be_a_string() -> None:
    net = model()
    optimizer = halfulp.AdamW(net.named_parameters(), state="fp8", keep_fp32="0.*", min_size=0)
    assert optimizer.memory().kept_fp32["0.weight"] == "name matches keep_fp32 pattern '0.*'"
    assert "2.weight" not in optimizer.memory().kept_fp32
    with pytest.raises(ValueError, match=r"patterns need names: pass model.named_parameters\(\)"):
        halfulp.AdamW(net.parameters(), keep_fp32="0.*")


# ---------------------------------------------------------------- 16-bit parameters


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_parameters_move_without_bias(dtype: torch.dtype) -> None:
    """Updates a hundred times below half a unit: nearest never moves, stochastic moves by their sum."""
    moved = {}
    spacing = torch.finfo(dtype).eps
    steps, lr = 200, spacing / 200
    for how in ("nearest", "stochastic"):
        p = nn.Parameter(torch.full((64, 256), 1.25, dtype=dtype))
        optimizer = halfulp.Lion([p], lr=lr, state="fp32", param_rounding=how)
        for _ in range(steps):
            p.grad = torch.full_like(p, -1.0)
            optimizer.step()
        moved[how] = (p.detach().double() - 1.25).mean().item()
    assert moved["nearest"] == 0.0
    # each element makes steps * lr / spacing = 1 jump on average: a Poisson-like count over 16384 elements
    assert moved["stochastic"] == pytest.approx(steps * lr, abs=5 * spacing / 128)


def test_stochastic_parameters_use_their_own_stream() -> None:
    """The rounded parameter is the fp32 result rounded with the words of the slot named "param"."""
    start, grad = torch.randn(8, 16).bfloat16(), torch.randn(8, 16).bfloat16()
    p = nn.Parameter(start.clone())
    optimizer = build("SGD", [p], momentum=0.0, nesterov=False, param_rounding="stochastic", seed=4)
    p.grad = grad
    optimizer.step()
    words = random_bits(stream_keys(4, 0, slot_id("optimizer"), 1), 0, 128).reshape(8, 16)
    exact = start.float() - grad.float() * torch.tensor(1e-2)
    assert torch.equal(p.detach(), encode(exact, halfulp.get_format("bf16"), words))


def test_seed_parameter_and_step_change_the_rounding() -> None:
    def trained(seed: int) -> list[Tensor]:
        pair = [nn.Parameter(torch.ones(8, 16)) for _ in range(2)]
        optimizer = build("AdamW", pair, state="fp8", seed=seed)
        for _ in range(3):
            for p in pair:
                p.grad = torch.linspace(0.1, 1, 128).reshape(8, 16)
            optimizer.step()
        return [optimizer.state[p]["exp_avg_sq"].clone() for p in pair]

    a, b = trained(0)
    assert not torch.equal(a, b)
    assert torch.equal(a, trained(0)[0])
    assert not torch.equal(a, trained(1)[0])
