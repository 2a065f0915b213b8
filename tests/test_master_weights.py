"""Master weights: 16-bit parameters with master weights train like fp32 weights."""

from __future__ import annotations

import copy
import logging
import math
import os
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import halfulp
from halfulp.engine.master import MasterState
from halfulp.numbers.remainder import MASTERS, join, split, weights
from support.optimizers import assert_same, everything, stored_bytes

RULES: dict[str, dict[str, Any]] = {
    "AdamW": {"lr": 3e-3, "weight_decay": 0.1}, "Lion": {"lr": 3e-4, "weight_decay": 0.1},
    "SGD": {"lr": 0.05, "momentum": 0.9}, "AdEMAMix": {"lr": 3e-3}, "Adafactor": {"lr": 3e-3}, "Muon": {"lr": 3e-3},
    "AMSGD": {"lr": 0.05}, "SWATS": {"lr": 3e-3},
}  # fmt: skip
SHAPES = [(6, 64), (3, 43), (70,)]
"""One of whole tiles, and two whose last vector is not full."""
ON_TRITON = ("AdamW", "Lion", "SGD", "AdEMAMix")
"""Rules that Triton does alone, without the reference."""
# The interpreter computes with numpy, which warns of casts whose results a selection drops.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
needs_interpreter = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="Triton's interpreter needs TRITON_INTERPRET=1"
)


def random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(name: str, params: list[Tensor], **more: Any) -> Any:
    return getattr(halfulp, name)(params, **{"min_size": 0, "block_size": 32, **RULES[name], **more})


def parameters(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Weights of bfloat16, in a dtype."""
    starts = [random(shape, k).bfloat16() for k, shape in enumerate(SHAPES)]
    return [torch.nn.Parameter(start.to(dtype)) for start in starts]


def step(optimizer: Any, number: int) -> None:
    """A step with gradients of bfloat16."""
    for k, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        grad = random(tuple(p.shape), 1000 * number + k).bfloat16()
        p.grad = grad.to(p.dtype)
    optimizer.step()


def same_bits(a: Tensor, b: Tensor) -> bool:
    bytes_of = [x.reshape(-1).view(torch.uint8) for x in (a, b)]
    return a.dtype == b.dtype and torch.equal(*bytes_of)


def resumed(name: str, optimizer: Any, **arguments: Any) -> Any:
    """Another optimizer over copies of the parameters, with the state of one."""
    params = [torch.nn.Parameter(p.detach().clone()) for p in optimizer.param_groups[0]["params"]]
    fresh = make(name, params, **arguments)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return fresh


def entries(optimizer: Any) -> list[dict[str, Any]]:
    """States of all parameters, without what is kept beside weights."""
    return [
        {k: v for k, v in optimizer.state[p].items() if k != "master_param"}
        for group in optimizer.param_groups
        for p in group["params"]
    ]


def assert_fp32(low: Any, high: Any) -> None:
    """Every bit of `low`'s fp32 weights and states is `high`'s."""
    for p, q in zip(low.param_groups[0]["params"], high.param_groups[0]["params"], strict=True):
        assert same_bits(low.state_tensor(p, "master_param"), q.detach())
    for mine, wanted in zip(entries(low), entries(high), strict=True):
        assert mine.keys() == wanted.keys()
        assert all(same_bits(v, wanted[k]) if isinstance(v, Tensor) else v == wanted[k] for k, v in mine.items())


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *((name, backend) for name in RULES for backend in ("cpu", "reference")),
        *(pytest.param(name, "triton", marks=needs_interpreter) for name in ON_TRITON),
    ],
)
@pytest.mark.parametrize("state", ["fp32", "8bit", "4bit"])
def test_sixteen_bits_give_the_bits_of_fp32_weights(name: str, state: str, backend: str) -> None:
    """In every state and weight, from the same gradients; through a checkpoint too."""
    arguments = {"state": state, "backend": backend}
    kept = {**arguments, "master_weights": "remainder16"}
    low, high = make(name, parameters(torch.bfloat16), **kept), make(name, parameters(torch.float32), **arguments)
    steps = 2 if backend == "triton" else 1000 if os.environ.get("HALFULP_LONG") else 12
    for number in range(steps):
        if number == steps // 2:
            low = resumed(name, low, **kept)
        step(low, number)
        step(high, number)
    assert_fp32(low, high)


BORDERS = [0x0, 0x1, 0x7FFF, 0x8000, 0x7FFFFF, 0x800000, 0x3F7FFFFF, 0x3F808000, 0x3F818000, 0x477FE000, 0x477FEFFF,
           0x477FF000, 0x7F7F0000, 0x7F7F0001, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000]  # fmt: skip
"""Patterns at which rounding to 16 bits changes its ways."""


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(torch.bfloat16, k) for k in (None, "fp32", "remainder16", "remainder8")] + [(torch.float16, None)],
)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_kernels_round_every_weight_as_the_reference_does(dtype: torch.dtype, kind: str | None, rounding: str) -> None:
    """Subnormals, the largest, infinities and NaN among random patterns; a NaN may have any payload."""
    patterns = torch.randint(-(2**31), 2**31, (64 * 70,), generator=torch.Generator().manual_seed(0))
    borders = torch.tensor(BORDERS)
    patterns[: 2 * len(BORDERS)] = torch.cat([borders, borders - 2**31])
    start = patterns.int().view(torch.float32).to(dtype)
    found = []
    for backend in ("cpu", "reference"):
        p = torch.nn.Parameter(start.reshape(64, 70).clone())
        kept = {"state": "8bit", "param_rounding": rounding, "master_weights": kind, "backend": backend, "lr": 1e-2}
        optimizer = make("AdamW", [p], **kept)
        for number in range(3):
            step(optimizer, number)
        weight = optimizer.state_tensor(p, "master_param") if kind else p.detach()
        found.append([x.nan_to_num(nan=1.5, posinf=torch.inf, neginf=-torch.inf) for x in (p.detach(), weight)])
    assert all(same_bits(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["cpu", "reference", pytest.param("triton", marks=needs_interpreter)])
def test_fp32_masters_go_as_fp32_weights_and_the_parameter_is_their_cast(dtype: torch.dtype, backend: str) -> None:
    kept = {"backend": backend, "master_weights": "fp32"}
    low = make("AdamW", [torch.nn.Parameter(p.detach().to(dtype)) for p in parameters(torch.bfloat16)], **kept)
    high = make("AdamW", [torch.nn.Parameter(p.detach().float()) for p in low.param_groups[0]["params"]])
    for number in range(3):
        step(low, number)
        step(high, number)
    assert_fp32(low, high)
    for p, q in zip(low.param_groups[0]["params"], high.param_groups[0]["params"], strict=True):
        assert torch.equal(p.detach(), q.detach().to(dtype))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("name", ["AdamW", "Muon", "SGD"])
def test_eight_bits_are_the_same_everywhere(name: str, rounding: str) -> None:
    """On C, the reference and Triton, whatever the number of threads, and after a checkpoint."""
    kept = {"master_weights": "remainder8", "param_rounding": rounding}
    backends = ["cpu", "reference", *(["triton"] if name != "Muon" and not needs_interpreter.args[0] else [])]
    ones = [make(name, parameters(torch.bfloat16), backend=backend, **kept) for backend in backends]
    ones.append(make(name, parameters(torch.bfloat16), **kept))
    for number in range(4):
        ones[-1] = resumed(name, ones[-1], **kept)
        for one in ones:
            step(one, number)
    for one in ones[1:]:
        assert_same(everything(ones[0]), everything(one))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_eight_bits_round_the_fp32_step(rounding: str) -> None:
    """A step from the same weights: the pair is the fp32 result in 15 fraction bits; stochastic ones keep the mean."""
    shape, found = (64, 128), []
    high = torch.nn.Parameter(torch.ones(shape))
    optimizer = make("SGD", [high])
    high.grad = random(shape, 0).bfloat16().float() * 1e-4
    optimizer.step()
    for seed in range(64 if rounding == "stochastic" else 1):
        low = torch.nn.Parameter(torch.ones(shape, dtype=torch.bfloat16))
        one = make("SGD", [low], master_weights="remainder8", param_rounding=rounding, seed=seed)
        low.grad = high.grad.bfloat16()
        one.step()
        found.append(one.state_tensor(low, "master_param"))
    exact = make_exact(high.grad.bfloat16())
    if rounding == "nearest":
        assert torch.equal(found[0], join(*split(exact, "remainder8")))
    else:
        unit = 2.0**-15
        assert all(bool(((x - exact).abs() < unit).all()) for x in found)
        drift = (torch.stack(found).double().mean(0) - exact.double()).mean() / unit
        assert abs(float(drift)) < 5 * 0.5 / (64 * exact.numel()) ** 0.5


def make_exact(grad: Tensor) -> Tensor:
    """fp32 weights of ones after a step of SGD."""
    p = torch.nn.Parameter(torch.ones(grad.shape))
    p.grad = grad.float()
    make("SGD", [p]).step()
    return p.detach()


@pytest.mark.parametrize("kind", [None, "fp32", "remainder16", "remainder8"])
def test_steps_below_half_a_unit(kind: str | None) -> None:
    p = torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    optimizer = halfulp.SGD([p], lr=1e-3, master_weights=kind, param_rounding="nearest")
    for _ in range(50):
        p.grad = -torch.ones(64, dtype=torch.bfloat16)
        optimizer.step()
    assert p.detach()[0].item() == (1.0 if kind is None else 1.046875)  # 1.05 rounded to bfloat16


@pytest.mark.parametrize("kind", ["fp32", "remainder16", "remainder8"])
@pytest.mark.parametrize("backend", ["cpu", "reference", pytest.param("triton", marks=needs_interpreter)])
def test_a_tile_that_is_not_finite_keeps_its_bits(kind: str, backend: str) -> None:
    p = torch.nn.Parameter(random((3, 96), 1).bfloat16())
    optimizer = make("AdamW", [p], master_weights=kind, backend=backend)
    step(optimizer, 0)
    old, weight = optimizer.master(p).codes.clone(), p.detach().clone()
    p.grad = torch.full_like(p, 1.0)
    p.grad[1, 40] = float("nan")
    optimizer.step()
    master = optimizer.master(p).codes
    moved = torch.zeros(3, 96, dtype=torch.bool)
    moved[[0, 2]] = moved[1, :32] = moved[1, 64:] = True
    assert torch.equal(p.detach()[~moved], weight[~moved])
    assert torch.equal(master[~moved], old[~moved])
    assert float((weights(p.detach(), master) != weights(weight, old))[moved].float().mean()) > 0.9


# ---------------------------------------------------------------- a state like any other


@pytest.mark.parametrize(
    ("kind", "bytes_each", "storage"),
    [("fp32", 4, "float32"), ("remainder16", 2, "remainder16"), ("remainder8", 1, "remainder8")],
)
def test_bytes_and_storage_are_reported(kind: str, bytes_each: int, storage: str) -> None:
    p = torch.nn.Parameter(random((64, 128), 0).bfloat16())
    optimizer = halfulp.AdamW([p], master_weights=kind)
    step(optimizer, 0)
    row = next(r for r in optimizer.memory().rows if r.slot == "master_param")
    assert (row.bytes, row.storage) == (bytes_each * p.numel(), storage)
    assert optimizer.state_dict()["param_groups"][0]["state"].endswith(f",master_param={storage}")
    assert stored_bytes(optimizer) == optimizer.memory().total


@pytest.mark.parametrize("kind", ["fp32", "remainder16", "remainder8"])
def test_a_model_that_becomes_fp32_drops_them(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Left where they are, they would be taken up again by weights that become bfloat16 later."""
    model = torch.nn.Linear(64, 64).bfloat16()
    optimizer = halfulp.AdamW(model.parameters(), master_weights=kind)
    halfulp.numbers.log._said.clear()
    with caplog.at_level(logging.WARNING, "halfulp"):
        for cast in (torch.bfloat16, torch.float32):
            model.to(cast)
            optimizer.zero_grad()
            model(torch.ones(1, 64, dtype=cast)).sum().backward()
            optimizer.step()
    assert "fp32_state_dict" in caplog.text
    assert not any("master_param" in entries for entries in optimizer.state.values())


def test_resets_spare_them_unless_they_are_named() -> None:
    p = torch.nn.Parameter(random((6, 64), 0).bfloat16())
    optimizer = make("AdamW", [p], master_weights="remainder16", reset=2)
    for number in range(5):
        step(optimizer, number)
    weight = optimizer.state_tensor(p, "master_param").clone()
    optimizer.reset_state()
    assert torch.equal(optimizer.state_tensor(p, "master_param"), weight)
    assert not bool(optimizer.state_tensor(p, "exp_avg").any())
    optimizer.reset_state(["master_param"])
    assert torch.equal(optimizer.state_tensor(p, "master_param"), p.detach().float())


@pytest.mark.parametrize("kind", ["fp32", "remainder16", "remainder8"])
def test_they_go_with_their_rows(kind: str) -> None:
    """When a parameter grows; and rows of them are reset alone."""
    p = torch.nn.Parameter(random((6, 64), 0).bfloat16())
    optimizer = make("AdamW", [p], master_weights=kind)
    step(optimizer, 0)
    before = optimizer.state_tensor(p, "master_param")
    new = torch.nn.Parameter(torch.cat([p.detach()[[4, 0]], torch.ones(2, 64, dtype=torch.bfloat16)]))
    halfulp.resize_states(optimizer, p, new, rows=[4, 0, -1, -1])
    found = optimizer.state_tensor(new, "master_param").clone()
    assert torch.equal(found, torch.cat([before[[4, 0]], torch.ones(2, 64)]))
    optimizer.reset_state(["master_param"], rows=[1])
    found[1] = new.detach()[1].float()
    assert torch.equal(optimizer.state_tensor(new, "master_param"), found)


@pytest.mark.parametrize("kind", ["fp32", "remainder16", "remainder8"])
def test_they_are_converted_with_the_states(kind: str) -> None:
    """To another format of the states; and remainders of 16 bits from Transformer Engine's int16."""
    p = torch.nn.Parameter(random((6, 64), 0).bfloat16())
    one = make("AdamW", [p], master_weights=kind, state="8bit")
    step(one, 0)
    for saved in (one.state_dict(), as_transformer_engine(one) if kind == "remainder16" else one.state_dict()):
        other = make("AdamW", [p], master_weights=kind, state="bf16")
        other.load_state_dict(halfulp.convert_state_dict(saved, to=other))
        assert torch.equal(other.state_tensor(p, "master_param"), one.state_tensor(p, "master_param"))
    none = make("AdamW", [p], state="bf16")
    none.load_state_dict(halfulp.convert_state_dict(one.state_dict(), to=none))
    assert "master_param" not in none.state[p]


def as_transformer_engine(optimizer: Any) -> dict[str, Any]:
    """fp32 moments, and the lower half of the weights as int16."""
    (p,) = optimizer.param_groups[0]["params"]
    entries = {name: optimizer.state_tensor(p, name) for name in ("exp_avg", "exp_avg_sq")}
    entries |= {"step": torch.tensor(1.0), "master_param": optimizer.master(p).codes.clone()}
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "params": [0]}
    return {"state": {0: entries}, "param_groups": [group]}


def kahan_run(p: Tensor, updates: int) -> tuple[Tensor, Tensor]:
    """A bfloat16 weight after Kahan-compensated updates, and its compensation; as optimi computes them."""
    weight, lacking = p.clone(), torch.zeros_like(p)
    for k in range(updates):
        lacking = lacking + 1e-4 * random(tuple(p.shape), k).bfloat16()
        new = weight + lacking
        lacking = lacking + (weight - new)
        weight = new
    return weight, lacking


@pytest.mark.parametrize("source", ["kahan_comp", "master_param"])
@pytest.mark.parametrize(("kind", "unit"), [("fp32", 0.0), ("remainder16", 2.0**-23), ("remainder8", 2.0**-15)])
def test_fp32_weights_of_other_libraries_become_those_of_the_target(source: str, kind: str, unit: float) -> None:
    """Within a half of what the kind resolves, but for ties: there a pair can be a whole one off."""
    weight, lacking = kahan_run(random((6, 64), 0).bfloat16(), 200)
    exact = weight.float() + lacking.float()
    assert int((exact != weight.float()).sum()) > 300
    p = torch.nn.Parameter(weight)
    entries = {name: random((6, 64), k).abs() for k, name in enumerate(("exp_avg", "exp_avg_sq"))}
    entries |= {"step": torch.tensor(200.0), source: lacking if source == "kahan_comp" else exact}
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "params": [0]}
    optimizer = make("AdamW", [p], master_weights=kind)
    saved = {"state": {0: entries}, "param_groups": [group]}
    optimizer.load_state_dict(halfulp.convert_state_dict(saved, to=optimizer))
    found = optimizer.state_tensor(p, "master_param")
    assert torch.equal(p.detach(), weight)
    tied = ((exact - weight.float()).abs() * 2.0**8 / torch.frexp(exact.abs()).mantissa) == 1.0
    assert bool(((found - exact).abs() <= unit * exact.abs() * (0.5 + 0.5 * tied)).all())
    if kind == "remainder16":
        assert int((found != exact).sum()) < 30  # only ties


def test_weights_that_changed_since_have_no_remainder() -> None:
    p = torch.nn.Parameter(random((6, 64), 0).bfloat16())
    optimizer = make("AdamW", [p], master_weights="remainder16")
    step(optimizer, 0)
    entry = optimizer.master(p).beside(p, optimizer.state_tensor(p, "master_param") + 1.0)
    assert not bool(entry.any())


def test_float32_parameters_have_none() -> None:
    p = torch.nn.Parameter(random((6, 64), 0))
    optimizer = make("AdamW", [p], master_weights="remainder16")
    step(optimizer, 0)
    assert "master_param" not in optimizer.state[p]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def test_groups_differ() -> None:
    kinds = (None, "fp32", "remainder16", "remainder8")
    params = [torch.nn.Parameter(random((6, 64), k).bfloat16()) for k in range(len(kinds))]
    groups = [{"params": [p], "master_weights": kind} for p, kind in zip(params, kinds, strict=True)]
    optimizer = halfulp.AdamW(groups, lr=1e-3)
    step(optimizer, 0)
    dtypes = [None, torch.float32, torch.uint8, torch.uint8]
    assert [getattr(optimizer.state[p].get("master_param"), "dtype", None) for p in params] == dtypes


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: halfulp.AdamW([p], master_weights="int8"), "'fp32', 'remainder16', 'remainder8'; got 'int8'"),
        (
            lambda p: make("AdamW", [half(p)], master_weights="remainder16"),
            "model.bfloat",
        ),
        (lambda p: changed(p, master_weights="fp32"), "cannot become 'fp32'"),
        (lambda p: put(p, torch.zeros(3, dtype=torch.int16)), "delete master_param"),
        (lambda p: put(p, torch.zeros(6, 64, 2, dtype=torch.int8)), "delete master_param"),
        (lambda p: put(p, torch.zeros(6, 64, dtype=torch.uint8)), "delete master_param"),
        (lambda p: loaded(p, master_weights=None), "this optimizer"),
        (
            lambda p: replaced(p, "remainder16", torch.zeros(6, 64, 2, dtype=torch.int8)),
            r"expected torch.uint8 \(6, 64, 2",
        ),
        (
            lambda p: replaced(p, "remainder16", torch.zeros(6, 64, dtype=torch.uint8)),
            r"expected torch.uint8 \(6, 64, 2",
        ),
        (lambda p: replaced(p, "remainder8", "none"), r"is str in the state_dict"),
        (lambda p: replaced(p, "fp32", torch.full((6, 64), math.inf)), "not finite; the checkpoint is damaged"),
    ],
)
def test_refused(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(torch.nn.Parameter(random((6, 64), 0).bfloat16()))


def half(p: Tensor) -> Tensor:
    return torch.nn.Parameter(p.detach().half())


def trained(p: Tensor, kind: str = "remainder16") -> Any:
    optimizer = make("AdamW", [p], master_weights=kind)
    step(optimizer, 0)
    return optimizer


def changed(p: Tensor, **more: Any) -> None:
    optimizer = trained(p)
    optimizer.param_groups[0].update(more)
    optimizer.step()


def put(p: Tensor, master: Tensor) -> None:
    optimizer = trained(p)
    optimizer.state[p]["master_param"] = master
    optimizer.step()


def loaded(p: Tensor, **more: Any) -> None:
    make("AdamW", [p], **more).load_state_dict(trained(p).state_dict())


def replaced(p: Tensor, kind: str, master: Any) -> None:
    optimizer = trained(p, kind)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["master_param"] = master
    optimizer.load_state_dict(saved)


SETS: dict[str, Callable[[nn.Module, nn.Parameter], object]] = {
    "load_state_dict": lambda module, p: module.load_state_dict({"weight": torch.full_like(p, 3.0)}),
    "in place": lambda module, p: p.fill_(3.0),
    "some rows": lambda module, p: p[:2].fill_(3.0),
}


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", SETS)
def test_weights_that_are_set_between_steps_stay_set(how: str, dtype: torch.dtype, backend: str | None) -> None:
    """Master weights in fp32 follow them; those of all other weights keep their bits."""
    module = nn.Linear(64, 8, bias=False).to(dtype)
    p = module.weight
    optimizer = halfulp.SGD([p], lr=1e-4, master_weights="fp32", backend=backend)
    for _ in range(3):
        p.grad = torch.full_like(p, 0.1)
        optimizer.step()
    before = halfulp.fp32_params(optimizer)[0].clone()
    with torch.no_grad():
        SETS[how](module, p)
    rows = slice(0, 2) if how == "some rows" else slice(None)
    p.grad = torch.full_like(p, 0.1)
    optimizer.step()
    after = halfulp.fp32_params(optimizer)[0]
    moved = 1e-4 * torch.full((), 0.1, dtype=dtype).float()
    expected = before.clone()
    expected[rows] = 3.0
    assert torch.equal(after, expected - moved)
    assert torch.equal(p.detach(), after.to(dtype))


TINY = 2.0**-133
"""The smallest positive bfloat16."""


@pytest.mark.parametrize(
    ("master", "weight", "follows"),
    [
        (1.0, 1 + 2.0**-7, False), (1.0, 1 + 2.0**-6, True), (1.0, 1 - 2.0**-7, False), (1.0, 1 - 3 * 2.0**-8, True),
        (1 + 2.0**-20, 1.0, False), (-1.0, 1.0, True), (1.0, 0.0, True), (0.0, 1.0, True), (1.0, math.nan, True),
        (0.0, TINY, False), (0.0, 2 * TINY, True), (-TINY, TINY, True), (TINY, 0.0, False),
    ],
)  # fmt: skip
def test_masters_follow_weights_more_than_a_unit_away(master: float, weight: float, follows: bool) -> None:
    """A unit is 2**-7 of the larger of the two, and at least the smallest number. Steps leave less than that."""
    p, other = torch.tensor([weight, 2.0]).bfloat16(), 2 + 2.0**-20
    entries = {"master_param": torch.tensor([master, other])}
    assert MasterState("fp32", p.shape, entries).follow_(p) is follows
    found = entries["master_param"].tolist()
    assert found == pytest.approx([weight if follows else master, other], rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("offset", [0, 1])
def test_remainders_at_odd_addresses_are_copied(offset: int) -> None:
    """Two bytes are read as one integer. Others stay where they are."""
    p, q = (torch.nn.Parameter(random((6, 64), 0).bfloat16()) for _ in range(2))
    optimizer, other = trained(p), trained(q)
    given = torch.zeros(6 * 64 * 2 + offset, dtype=torch.uint8)[offset:].view(6, 64, 2)
    optimizer.state[p]["master_param"] = given.copy_(other.state[q]["master_param"])
    for each in (optimizer, other):
        step(each, 1)
    assert (optimizer.state[p]["master_param"] is given) == (offset == 0)
    assert torch.equal(optimizer.state_tensor(p, "master_param"), other.state_tensor(q, "master_param"))


def reloaded(param: nn.Parameter, optimizer: Any) -> tuple[nn.Parameter, Any]:
    other = nn.Parameter(param.detach().clone())
    after = halfulp.AdamW([other], lr=1e-2, master_weights=optimizer.param_groups[0]["master_weights"])
    after.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other, after


COPIED: dict[str, Callable[[nn.Parameter, Any], tuple[nn.Parameter, Any]]] = {
    "deepcopy": lambda *both: copy.deepcopy(both),
    "pickle": lambda *both: pickle.loads(pickle.dumps(both)),
    "state_dict": reloaded,
}


@pytest.mark.parametrize("how", COPIED)
@pytest.mark.parametrize("kind", MASTERS)
def test_weights_set_before_a_copy_are_followed_by_it(kind: str, how: str) -> None:
    """As after load_state_dict of a model: the fp32 weights of the copy must not undo it."""
    generator = torch.Generator().manual_seed(0)
    param = nn.Parameter(torch.randn(64, 128, generator=generator).bfloat16())
    optimizer: Any = halfulp.AdamW([param], lr=1e-2, master_weights=kind)
    for _ in range(2):
        param.grad = torch.randn(64, 128, generator=generator).bfloat16()
        optimizer.step()
    with torch.no_grad():
        param[:32].mul_(0.5)
    other, after = COPIED[how](param, optimizer)
    param.grad = torch.randn(64, 128, generator=generator).bfloat16()
    other.grad = param.grad.clone()
    for one in (optimizer, after):
        one.step()
    assert torch.equal(param, other)
    assert torch.equal(optimizer.state_tensor(param, "master_param"), after.state_tensor(other, "master_param"))
