"""Bad input to the optimizers: errors say what was given, what is allowed and what to do, and nothing is half done."""

from __future__ import annotations

import copy
import inspect
import io
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import halfulp
import halfulp.averaging
from halfulp.numbers import log as _log
from halfulp.optim import OPTIMIZERS
from support.optimizers import CLASSES, assert_same, build, everything, model, run, set_grads

NAN, INF = float("nan"), float("inf")
STATES = ["fp32", "bf16", "fp8", "fp4", "int8", "4bit"]


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", CLASSES)
def test_a_bad_gradient_leaves_its_stretch_untouched(name: str, state: str, bad: float) -> None:
    """Parameters and states of the stretch keep their bits; all others step as if the gradient were good."""
    p, q = (nn.Parameter(torch.ones(3, 300)) for _ in range(2))
    optimizer, good = (build(name, [x], state=state, block_size=128) for x in (p, q))
    run(optimizer, 2)
    run(good, 2)
    before = everything(optimizer)
    reads = {s.slot.name: s.read() for s in optimizer.states(p)}
    grad = torch.randn(3, 300, generator=torch.Generator().manual_seed(9))
    p.grad, q.grad = grad.clone(), grad.clone()
    p.grad[1, 130] = bad
    optimizer.step()
    good.step()
    touched = torch.ones(3, 300, dtype=torch.bool)
    touched[1, 128:256] = False
    assert torch.equal(p[touched], q[touched])
    assert torch.equal(p[~touched], before[0][~touched])
    for s, t in zip(optimizer.states(p), good.states(q), strict=True):
        assert torch.equal(s.read()[touched], t.read()[touched])
        assert torch.equal(s.read()[~touched], reads[s.slot.name][~touched])
    assert optimizer.skipped == {0: 128}
    assert all(bool(torch.isfinite(s.read()).all()) for s in optimizer.states(p))
    run(optimizer, 2, 5)
    assert not torch.equal(p[~touched], before[0][~touched])  # and training continues
    assert optimizer.skipped == {0: 128}


SUMS: dict[str, dict[str, Any]] = {
    "SWATS": {}, "AMSGD": {}, "AMAdamW": {}, "AdamW": {"transforms": [halfulp.clip_global(1.0)]},
}  # fmt: skip


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("name", SUMS)
def test_a_sum_that_is_not_finite_makes_no_step(name: str, bad: float) -> None:
    """What a rule sums over the model touches no parameter; what it sums over a parameter, not that one."""
    params = [nn.Parameter(torch.ones(3, 300)) for _ in range(2)]
    optimizer = getattr(halfulp, name)(params, **SUMS[name])
    run(optimizer, 3)
    before = [tensors(optimizer, p) for p in params]
    set_grads(params, 9)
    assert params[0].grad is not None
    params[0].grad[1, 130] = bad
    optimizer.step()
    alone = name == "AMAdamW"
    assert optimizer.skipped == ({0: 900} if alone else {0: 900, 1: 900})
    after = [tensors(optimizer, p) for p in params]
    assert_same(before[0], after[0])
    if alone:
        assert not torch.equal(before[1][0], after[1][0])
    else:
        assert_same(before[1], after[1])
    run(optimizer, 1, 5)
    assert not torch.equal(params[0], before[0][0])  # and training continues


@pytest.mark.parametrize("make", OPTIMIZERS, ids=lambda c: c.__name__)
def test_a_skipped_scalar_has_the_same_bits_on_every_backend(make: Any) -> None:
    """A state that is one number per tensor is no element of the tensor, not even of a 0-D one."""
    optimizers = []
    for backend in ("reference", None):
        params = [nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(3, 40))]
        optimizer = make(params, lr=1e-2, state="fp32", backend=backend)
        run(optimizer, 2)
        set_grads(params, 7)
        assert params[0].grad is not None
        params[0].grad.fill_(1e25)  # its square overflows
        optimizer.step()
        run(optimizer, 1, 8)
        optimizers.append(optimizer)
    assert_same(*map(everything, optimizers))
    assert optimizers[0].skipped == optimizers[1].skipped


def test_all_parameters_of_swats_keep_one_rate() -> None:
    """As its source defines it: the switch is of the whole model, whatever a parameter skips."""
    params = [nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(3, 40))]
    optimizer = halfulp.SWATS(params, lr=1e-3)
    run(optimizer, 2)
    set_grads(params, 7)
    assert params[0].grad is not None
    params[0].grad.fill_(1e25)
    optimizer.step()
    assert optimizer.skipped == {0: 1}
    assert_same(*([optimizer.state_tensor(p, n) for n in ("rate_avg", "sgd_rate")] for p in params))


def tensors(optimizer: Any, param: Tensor) -> list[Tensor]:
    """Bits of a parameter and its states."""
    return [param.detach().clone(), *(v.clone() for v in optimizer.state[param].values() if isinstance(v, Tensor))]


@pytest.mark.parametrize("name", CLASSES)
def test_raise_changes_nothing(name: str) -> None:
    a, b = (nn.Parameter(torch.ones(3, 40)) for _ in range(2))
    optimizer = build(name, [("first", a), ("second", b)], nonfinite="raise")
    run(optimizer, 2)
    before = everything(optimizer)
    set_grads([a, b], 3)
    assert b.grad is not None
    b.grad[0, 0] = NAN
    with pytest.raises(FloatingPointError, match="the gradient of second is not finite; nothing was changed"):
        optimizer.step()
    assert_same(before, everything(optimizer))


def test_an_overflowing_square_is_left_out() -> None:
    """A finite gradient whose square is beyond fp32 would poison the second moment."""
    p = nn.Parameter(torch.ones(2, 256))
    optimizer = build("AdamW", [p], block_size=128)
    run(optimizer, 1)
    before = p.detach().clone()
    p.grad = torch.ones(2, 256)
    p.grad[0, 3] = 1e30
    optimizer.step()
    assert optimizer.skipped == {0: 128}
    assert torch.equal(p[0, :128], before[0, :128])
    assert torch.isfinite(optimizer.state_tensor(p, "exp_avg_sq")).all()


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"state": "bf61"}, ValueError, "unknown state format 'bf61'. Did you mean 'bf16'?"),
        ({"state": {"exp_avg": "fp9"}}, ValueError, "unknown state format 'fp9'. Did you mean"),
        (
            {"state": {"exp_average": "fp8"}},
            ValueError,
            r"names \['exp_average'\], but the states .* are \['exp_avg', ",
        ),
        ({"state": 8}, ValueError, "a format name, a Format or a Quantizer, or by slot in a mapping; got 8"),
        (
            {"state": {"exp_avg": "ufloat8_e4m4"}},
            ValueError,
            "exp_avg takes negative values, and .* has no sign",
        ),
        ({"rounding": "up"}, ValueError, "rounding .*is 'nearest' or 'stochastic', got 'up'"),
        ({"rounding": {"v": "nearest"}}, ValueError, r"rounding= names \['v'\]"),
        ({"param_rounding": "up"}, ValueError, "param_rounding is 'nearest' or 'stochastic', got 'up'"),
        ({"block_size": 0}, ValueError, "even number of at least 2 elements, got 0"),
        ({"block_size": 33}, ValueError, "even number of at least 2 elements, got 33"),
        ({"scale": "e8m0"}, ValueError, "scale kind is 'pow2' or 'fp32', got 'e8m0'"),
        ({"nonfinite": "ignore"}, ValueError, "nonfinite must be 'skip' or 'raise', got 'ignore'"),
        ({"backend": "cuda"}, ValueError, "backend is None or one of"),
        ({"reset": -1}, ValueError, "a reset period must be at least 1 step, got -1"),
        ({"lr": -1.0}, ValueError, "lr must be finite and not negative; got -1.0"),
        ({"lr": NAN}, ValueError, "lr must be finite and not negative; got nan"),
        ({"lr": "1e-3"}, ValueError, "lr must be a number .*, got '1e-3' .YAML reads 1e-3 as text"),
        ({"lr": None}, ValueError, "lr must be a number or a tensor of one element, got None"),
        ({"lr": torch.ones(2)}, ValueError, "lr must be a number or a tensor of one element, got tensor"),
        ({"betas": 0.9}, ValueError, "betas must be two numbers in .*, got 0.9"),
        ({"betas": ("0.9", 0.99)}, ValueError, "each of betas must be a number .*, got '0.9'"),
        ({"betas": (0.9, NAN)}, ValueError, "betas must be two numbers in .*nan"),
        ({"eps": NAN}, ValueError, "eps must be finite and not negative; got nan"),
        ({"weight_decay": "0"}, ValueError, "weight_decay must be a number"),
        ({"min_size": -1}, ValueError, "min_size must be a number of elements, 0 to quantize everything; got -1"),
        ({"min_size": "4096"}, ValueError, "min_size must be a number of elements.*got '4096'"),
        ({"keep_fp32": 3}, ValueError, "keep_fp32 must be a name pattern or a list of them, got 3"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas must be two numbers in \[0, 1\)"),
        ({"betas": (0.9,)}, ValueError, r"betas must be two numbers in \[0, 1\)"),
        ({"eps": -1e-8}, ValueError, "eps must be finite and not negative"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be finite and not negative"),
        ({"stat": "fp8"}, TypeError, "unknown arguments .*Did you mean 'state'?"),
        ({"keep_fp32": ["*.norm"]}, ValueError, "patterns need names"),
        ({"seed": "zero"}, ValueError, "seed must be an integer, got 'zero'"),
        ({"seed": -1}, ValueError, "seed must be an integer from 0 to"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message.replace("?", r"\?")):
        halfulp.AdamW([nn.Parameter(torch.ones(4, 4))], **arguments)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"roundin": "nearest"}, "unknown key 'roundin' in a parameter group. Did you mean 'rounding'?"),
        ({"states": "fp8"}, "unknown key 'states' in a parameter group. Did you mean 'state'?"),
        ({"state": "fp88"}, "unknown state format 'fp88'"),
        ({"block_size": 64}, "block_size applies to the whole optimizer: pass it as an argument, not in a group"),
        ({"backend": "reference"}, "backend applies to the whole optimizer"),
        ({"reset": "never"}, "reset must be None, a period in steps"),
        ({"betas": (2, 3)}, "betas must be two numbers"),
    ],
)
def test_bad_groups_are_refused_whole(group: dict[str, Any], message: str) -> None:
    """In the constructor and later; a group refused later leaves the optimizer as it was."""
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        halfulp.AdamW([{"params": [nn.Parameter(torch.ones(4, 4))], **group}])
    optimizer = build("AdamW", model().parameters())
    run(optimizer, 1)
    before = everything(optimizer)
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4, 4))], **group})
    assert len(optimizer.param_groups) == 1
    assert_same(before, everything(optimizer))
    run(optimizer, 1, 1)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("AdamW", {"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        ("AdamW", {"betas": (0.9, 2.0)}, r"betas must be two numbers in \[0, 1\), got \(0.9, 2.0\)"),
        ("AdamW", {"lr": NAN}, "lr must be finite and not negative; got nan"),
        ("AdamW", {"lr": -1e-3}, "lr must be finite and not negative; got -0.001"),
        ("AdamW", {"lr": torch.tensor(INF)}, "lr must be finite and not negative; got inf"),
        ("AdamW", {"lr": "1e-3"}, "lr must be a number .*YAML reads 1e-3 as text"),
        ("AdamW", {"lr": torch.ones(2)}, "lr must be a number or a tensor of one element"),
        ("AdamW", {"eps": -1.0}, "eps must be finite and not negative"),
        ("AdamW", {"seed": -1}, "seed must be an integer from 0 to .*; got -1"),
        ("AdamW", {"param_rounding": "up"}, "param_rounding is 'nearest' or 'stochastic', got 'up'"),
        ("AdamW", {"rounding": "up"}, "rounding .*is 'nearest' or 'stochastic'"),
        ("AdamW", {"state": "bf16"}, "cannot become 'bf16' between steps"),
        ("SGD", {"momentum": -0.5}, "momentum must be finite and not negative"),
        ("Lion", {"betas": (1.0, 0.9)}, r"betas must be two numbers in \[0, 1\)"),
        ("Muon", {"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ("Adafactor", {"clip": NAN}, "clip must be finite and not negative; got nan"),
    ],
)
@pytest.mark.parametrize("reset", [None, 1])
def test_nonsense_between_steps_changes_nothing(name: str, change: dict[str, Any], message: str, reset: Any) -> None:
    """Refused as in the constructor, before a step of any group is counted; put right, training goes on."""
    optimizers = []
    for _ in range(2):
        first, second = (list(m.named_parameters()) for m in (model(0), model(1)))
        second = [(f"second.{n}", p) for n, p in second]
        optimizers.append(getattr(halfulp, name)([{"params": first}, {"params": second}], lr=0.01, reset=reset))
    optimizer, other = optimizers
    for o in optimizers:
        run(o, 2)
    before, group = everything(optimizer), optimizer.param_groups[1]
    kept = {k: group[k] for k in change}
    for _ in range(2):
        group.update(change)
        set_grads([p for g in optimizer.param_groups for p in g["params"]], 5)
        with pytest.raises(ValueError, match=message):
            optimizer.step()
        assert_same(before, everything(optimizer))
    group.update(kept)
    for o in optimizers:
        run(o, 2, 2)
    assert_same(everything(other), everything(optimizer))


@pytest.mark.parametrize("change", [lambda g: g["lr"].fill_(NAN), lambda g: g["betas"].__setitem__(1, 1.0)])
def test_nonsense_put_into_a_value_in_place(change: Any) -> None:
    """Where the object in the group is the same as before."""
    optimizer = halfulp.AdamW(model().parameters(), lr=torch.tensor(0.01), betas=[0.9, 0.99])  # type: ignore[arg-type]
    run(optimizer, 2)
    before = everything(optimizer)
    change(optimizer.param_groups[0])
    set_grads(optimizer.param_groups[0]["params"], 3)
    with pytest.raises(ValueError, match=r"lr must be|betas must be two numbers"):
        optimizer.step()
    assert_same(before, everything(optimizer))


@pytest.mark.parametrize("name", ["AdamW", "Muon", "Adafactor"])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_a_model_that_changes_dtype_under_its_optimizer(name: str, steps: int, dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(12, 20))
    optimizer = getattr(halfulp, name)(net.named_parameters(), lr=0.01)
    run(optimizer, steps)
    for p in net.parameters():
        p.grad, p.data = None, p.data.to(dtype)
        p.grad = torch.ones_like(p)
    before = everything(optimizer)
    with pytest.raises(ValueError, match=rf"parameters must be float32, .*got {dtype} of shape .*model.float\(\)"):
        optimizer.step()
    assert_same(before, everything(optimizer))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_parameters_of_other_dtypes(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="parameters must be float32, bfloat16 or float16"):
        halfulp.AdamW([nn.Parameter(torch.ones(4, 4, dtype=dtype))])


def test_sparse_parameters() -> None:
    with pytest.raises(ValueError, match=r"parameters must be dense; got one of layout torch.sparse_coo"):
        halfulp.AdamW([nn.Parameter(torch.eye(4).to_sparse())])


def cast_later(optimizer: Any, p: nn.Parameter) -> None:
    p.grad, p.data = None, p.data.double()
    p.grad = torch.ones_like(p)
    optimizer.step()


def sparse_gradient(optimizer: Any, p: nn.Parameter) -> None:
    p.grad = torch.ones(6, 4).to_sparse()
    optimizer.step()


def infinite_gradient(optimizer: Any, p: nn.Parameter) -> None:
    p.grad = torch.full((6, 4), INF)
    optimizer.step()


def freed(optimizer: Any, p: nn.Parameter) -> None:
    p.grad = torch.ones(6, 4)
    p.untyped_storage().resize_(0)
    optimizer.step()


def without_memory(optimizer: Any, p: nn.Parameter) -> None:
    p.grad = torch.zeros_like(p)
    optimizer.step()


def stepped(act: Any) -> Any:
    """Act after a step."""

    def after(optimizer: Any, p: nn.Parameter) -> None:
        p.grad = torch.ones_like(p)
        optimizer.step()
        act(optimizer, p)

    return after


ABOUT_A_PARAMETER: dict[str, tuple[torch.Tensor, dict[str, Any], Any]] = {
    "float64": (torch.ones(6, 4).double(), {}, None),
    "sparse": (torch.ones(6, 4).to_sparse(), {}, None),
    "remainder of float16": (torch.ones(6, 4).half(), {"master_weights": "remainder16"}, None),
    "cast later": (torch.ones(6, 4), {}, cast_later),
    "meta": (torch.ones(6, 4, device="meta"), {}, without_memory),
    "freed": (torch.ones(6, 4), {}, freed),
    "sparse gradient": (torch.ones(6, 4), {}, sparse_gradient),
    "infinite gradient": (torch.ones(6, 4), {"nonfinite": "raise"}, infinite_gradient),
    "rows": (torch.ones(6, 4), {}, stepped(lambda o, p: o.reset_state(rows=[99], params=[p]))),
    "mask": (torch.ones(6, 4), {}, stepped(lambda o, p: o.reset_state(rows=torch.ones(5).bool(), params=[p]))),
    "no rows": (torch.ones(()), {}, stepped(lambda o, p: o.reset_state(rows=[0], params=[p]))),
    "other columns": (
        torch.ones(6, 4), {}, stepped(lambda o, p: halfulp.resize_states(o, p, nn.Parameter(torch.ones(6, 3))))
    ),
    "no such state": (torch.ones(6, 4), {}, stepped(lambda o, p: o.state_tensor(p, "exp_avg_sqq"))),
    "state cut": (torch.ones(6, 4), {}, stepped(lambda o, p: (o.state[p].update(exp_avg=torch.ones(3)), o.step()))),
}  # fmt: skip


@pytest.mark.parametrize("name", [None, "decoder.weight"])
@pytest.mark.parametrize("case", ABOUT_A_PARAMETER)
def test_errors_about_a_parameter_name_it(case: str, name: str | None) -> None:
    """By its name where the optimizer was given names, by its number otherwise."""
    start, options, act = ABOUT_A_PARAMETER[case]
    p = nn.Parameter(start)
    pairs = [("encoder.weight", nn.Parameter(torch.ones(2))), (name, p)]
    params = [x for _, x in pairs] if name is None else pairs
    with pytest.raises((ValueError, RuntimeError, KeyError, FloatingPointError)) as raised:  # noqa: PT012
        optimizer = halfulp.AdamW(params, state="8bit", min_size=0, **options)
        act(optimizer, p)
    label = name or "parameter 1"
    assert str(raised.value).count(label) == 1


def test_parameters_without_memory_are_counted_but_make_no_step() -> None:
    p = nn.Parameter(torch.zeros(64, 64, device="meta"))
    optimizer = halfulp.AdamW([p], state="bf16")
    assert optimizer.memory().total == 2 * 2 * 64 * 64
    p.grad = torch.zeros_like(p)
    with pytest.raises(RuntimeError, match=r"parameter 0 is on the meta device: allocate the model first"):
        optimizer.step()


@pytest.mark.parametrize("optimizer", halfulp.optim.OPTIMIZERS)
@pytest.mark.parametrize("key", ["foreach", "fused", "differentiable"])
def test_switches_of_torch(optimizer: Any, key: str, caplog: pytest.LogCaptureFixture) -> None:
    """What only says how to compute is ignored, and said; what would change results is refused when asked for."""
    _log._said.clear()
    params = [nn.Parameter(torch.ones(4, 4))]
    assert key not in optimizer(params, **{key: None}).param_groups[0]
    if key == "differentiable":
        optimizer(params, **{key: False})
        with pytest.raises(ValueError, match=f"halfulp.{optimizer.__name__} does not support {key}=True"):
            optimizer(params, **{key: True})
    else:
        with caplog.at_level(logging.INFO, logger="halfulp"):
            optimizer(params, **{key: True})
        assert f"halfulp.{optimizer.__name__} ignores {key}=True" in caplog.text


@pytest.mark.parametrize("optimizer", halfulp.optim.OPTIMIZERS)
def test_rates_that_are_no_numbers(optimizer: Any) -> None:
    for lr in (-1.0, NAN, INF, "1e-3", None, True, torch.ones(2)):
        with pytest.raises(ValueError, match="lr must"):
            optimizer([nn.Parameter(torch.ones(4, 4))], lr=lr)


def test_a_pattern_that_fits_no_name_is_said(caplog: pytest.LogCaptureFixture) -> None:
    _log._said.clear()
    halfulp.AdamW(model().named_parameters(), keep_fp32=["*.weight", "*.norm9"])
    assert "keep_fp32 pattern '*.norm9' matches no parameter name (0.weight, 0.bias, 2.weight ...)" in caplog.text
    assert "*.weight" not in caplog.text


def test_parameters_of_others() -> None:
    """Those that are in no group; one that is put into the list of a group is a parameter of it."""
    optimizer = build("AdamW", model().parameters())
    run(optimizer, 1)
    stranger = nn.Parameter(torch.ones(3, 7))
    stranger.grad = torch.ones(3, 7)
    for ask in (optimizer.states, optimizer.coefficients, lambda p: optimizer.step_parameters([p])):
        with pytest.raises(KeyError, match=r"shape \(3, 7\) is not a parameter of this optimizer; .*add_param_group"):
            ask(stranger)
    optimizer.param_groups[0]["params"].append(stranger)
    optimizer.step()
    assert optimizer.state[stranger]["step"] == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_a_dtype_as_state_has_the_bits_of_its_name(dtype: torch.dtype) -> None:
    optimizers = [build("AdamW", model().parameters(), state=s) for s in (dtype, str(dtype).removeprefix("torch."))]
    for optimizer in optimizers:
        run(optimizer, 3)
    assert_same(*map(everything, optimizers))
    saved, named = (o.state_dict()["param_groups"] for o in optimizers)
    assert saved == named


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (
            lambda o: o.state_tensor("0.weight", "exp_avg"),
            TypeError,
            "expected the tensor of a parameter, got '0.weight'; ",
        ),
        (lambda o: o.states(0), TypeError, "expected the tensor of a parameter, got 0"),
        (lambda o: o.coefficients("0.weight"), TypeError, "expected the tensor of a parameter, got '0.weight'"),
        (lambda o: halfulp.Quantizer("fp8").quantize([1.0]), TypeError, r"takes a float32 tensor, got \[1.0\]"),
        (lambda o: halfulp.averaging.EMA(3), TypeError, "of a module or of named tensors .*; got int"),
        (lambda o: halfulp.averaging.EMA([1, 2]), TypeError, "of a module or of named tensors .*; got list"),
        (lambda o: build("AdamW", model().parameters(), transforms=3), ValueError, "a list of functions .*, got 3"),
        (lambda o: build("AdamW", model().parameters(), transforms=[3]), ValueError, r"a list of .*, got \[3\]"),
    ],
)
def test_values_of_another_kind(ask: Any, error: type[Exception], message: str) -> None:
    optimizer = build("AdamW", model().named_parameters())
    run(optimizer, 1)
    with pytest.raises(error, match=message):
        ask(optimizer)


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ValueError, match="Nesterov momentum requires a momentum and zero dampening"):
        halfulp.SGD([nn.Parameter(torch.ones(4, 4))], nesterov=True)


# ---------------------------------------------------------------- checkpoints


def trained(seed: int = 0, **options: Any) -> Any:
    optimizer = build("AdamW", model(seed).parameters(), **{"state": "fp8", **options})
    run(optimizer, 2)
    return optimizer


def broken(kind: str) -> Any:
    """A state_dict that must not load into an AdamW with fp8 states."""
    if kind == "torch":
        net = model()
        other = torch.optim.AdamW(net.parameters())
        run(other, 1)
        return other.state_dict()
    if kind in ("bf16", "fp4", "fp32"):
        return trained(state=kind).state_dict()
    if kind == "block size":
        return trained(block_size=32).state_dict()
    if kind in ("SGD", "Lion"):
        optimizer = build(kind, model().parameters(), state="fp8")
        run(optimizer, 1)
        return optimizer.state_dict()
    if kind == "shape":
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 5))
        optimizer = build("AdamW", net.parameters(), state="fp8")
        run(optimizer, 1)
        return optimizer.state_dict()
    if kind == "groups":
        a, *rest = model().parameters()
        return build("AdamW", [{"params": [a]}, {"params": rest}], state="fp8").state_dict()
    if kind == "not a dict":
        return [1, 2]
    d = copy.deepcopy(trained().state_dict())
    changes = {
        "no state": lambda: d.pop("state"),
        "missing entry": lambda: d["state"][0].pop("exp_avg_scale"),
        "truncated": lambda: d["state"][3].update(exp_avg=torch.zeros(2)),
        "dtype": lambda: d["state"][0].update(exp_avg=d["state"][0]["exp_avg"].float()),
        "not a tensor": lambda: d["state"][0].update(exp_avg=None),
        "negative step": lambda: d["state"][0].update(step=-1),
        "fractional step": lambda: d["state"][0].update(step=1.5),
        "NaN step": lambda: d["state"][0].update(step=NAN),
        "text step": lambda: d["state"][0].update(exp_avg_age="two"),
        "stranger": lambda: d["state"].update({99: d["state"][0]}),
        "states are no dict": lambda: d["state"].update({0: 7}),
        "bad lr": lambda: d["param_groups"][0].update(lr=-1.0),
        "bad betas": lambda: d["param_groups"][0].update(betas=(0.9, 7.0)),
        "no params": lambda: d["param_groups"][0].pop("params"),
        "groups are no list": lambda: d.update(param_groups=5),
    }
    changes[kind]()
    return d


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("torch", "torch"),
        ("bf16", r"stores \[exp_avg=bfloat16,exp_avg_sq=bfloat16\].*convert"),
        ("fp4", "convert"),
        ("fp32", "convert"),
        ("block size", "block32.*block16"),
        ("SGD", "another optimizer: its groups lack"),
        ("Lion", "another optimizer: its groups lack"),
        ("shape", r"parameter 0: exp_avg is torch.uint8 \(12, 20\) in the state_dict, expected torch.uint8 \(20, 12\)"),
        ("groups", r"parameter groups of \[1, 3\] parameters, this optimizer has groups of \[4\]"),
        ("not a dict", "not an optimizer state_dict"),
        ("no state", "not an optimizer state_dict: it needs the keys 'state' and 'param_groups'"),
        ("missing entry", "parameter 0: the state_dict has entries"),
        ("truncated", r"exp_avg is torch.float32 \(2,\) in the state_dict"),
        ("dtype", r"exp_avg is torch.float32 \(20, 12\) in the state_dict, expected torch.uint8"),
        ("not a tensor", "exp_avg is NoneType"),
        ("negative step", "step must be a number of steps, got -1"),
        ("fractional step", "got 1.5"),
        ("NaN step", "step must be a number of steps, got nan"),
        ("text step", "exp_avg_age must be a number of steps, got 'two'"),
        ("stranger", "states of parameter 99, which is in none"),
        ("states are no dict", "expected its states in the state_dict, got a int"),
        ("bad lr", "lr must be finite and not negative"),
        ("bad betas", "betas must be two numbers"),
        ("no params", "'param_groups' a list of groups"),
        ("groups are no list", "'param_groups' a list of groups"),
    ],
)
def test_a_state_dict_that_does_not_fit_changes_nothing(kind: str, message: str) -> None:
    optimizer = trained(1)
    before, groups = everything(optimizer), [dict(g) for g in optimizer.param_groups]
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(broken(kind))
    assert_same(before, everything(optimizer))
    assert [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups] == [
        {k: v for k, v in g.items() if k != "params"} for g in groups
    ]
    run(optimizer, 1, 7)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.97])
def test_truncated_files(tmp_path: Path, keep: float) -> None:
    """torch.load (weights only) and safetensors refuse them; the optimizer that was to take them is as it was."""
    optimizer = trained()
    before = everything(optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    data = file.getvalue()
    with pytest.raises((RuntimeError, ValueError)):
        optimizer.load_state_dict(torch.load(io.BytesIO(data[: int(keep * len(data))]), weights_only=True))
    tensors = {
        f"{i}.{k}": v for i, e in optimizer.state_dict()["state"].items() for k, v in e.items() if isinstance(v, Tensor)
    }
    path = tmp_path / "states.safetensors"
    save_file(tensors, path)
    assert_same(list(tensors.values()), [load_file(path)[k] for k in tensors])
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(SafetensorError):
        load_file(path)
    assert_same(before, everything(optimizer))


def test_a_pickle_with_code_is_refused() -> None:
    """A state_dict needs nothing beyond weights_only: tensors, numbers, text, lists, tuples, dictionaries."""
    file = io.BytesIO()
    torch.save(trained(reset=halfulp.Every(5)).state_dict(), file)
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    assert loaded["param_groups"][0]["reset"] == repr(halfulp.Every(5))


SWITCHES = [
    (make, name)
    for make in (halfulp.AdamW, halfulp.SGD, halfulp.AdaBound, halfulp.ADOPT, halfulp.Muon, halfulp.Adafactor)
    for name, parameter in inspect.signature(make).parameters.items()
    if isinstance(parameter.default, bool) and name != "differentiable"
] + [(halfulp.AdamW, "maximize"), (halfulp.AdamW, "bound_update")]


@pytest.mark.parametrize("value", ["false", None, 2, float("nan"), [False]])
@pytest.mark.parametrize(("make", "name"), SWITCHES)
def test_a_switch_is_true_or_false(make: Any, name: str, value: Any) -> None:
    """Text from a configuration file, such as 'false', would count as true."""
    with pytest.raises(ValueError, match=f"{name} is True or False, got"):
        make([("a", nn.Parameter(torch.ones(2, 2)))], **{name: value})


def test_a_parameter_twice_in_a_group_is_refused() -> None:
    """torch warns of it and steps it twice."""
    p, q = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    with (
        pytest.warns(UserWarning, match="duplicate"),
        pytest.raises(ValueError, match=r"\(4, 4\) is in its group twice"),
    ):
        halfulp.AdamW([p, q, p])
