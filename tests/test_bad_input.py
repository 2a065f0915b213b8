"""Bad input to the optimizers: what was given, what is allowed, what to do; and nothing half done."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import halfulp
from test_conventions import CLASSES, assert_same, build, everything, model, run, set_grads

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
    assert not torch.equal(p[~touched], before[0][~touched])  # and it trains on
    assert optimizer.skipped == {0: 128}


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
        ({"rounding": "up"}, ValueError, "rounding is 'nearest' or 'stochastic'.*got 'up'"),
        ({"rounding": {"v": "nearest"}}, ValueError, r"rounding= names \['v'\]"),
        ({"param_rounding": "up"}, ValueError, "param_rounding is 'nearest' or 'stochastic', got 'up'"),
        ({"block_size": 0}, ValueError, "even number of at least 2 elements, got 0"),
        ({"block_size": 33}, ValueError, "even number of at least 2 elements, got 33"),
        ({"scale": "e8m0"}, ValueError, "scale kind is 'pow2' or 'fp32', got 'e8m0'"),
        ({"nonfinite": "ignore"}, ValueError, "nonfinite is 'skip' or 'raise', got 'ignore'"),
        ({"backend": "cuda"}, ValueError, "backend is None or one of"),
        ({"reset": -1}, ValueError, "a reset period is at least 1 step, got -1"),
        ({"lr": -1.0}, ValueError, "lr must not be negative, got -1.0"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas are two numbers in \[0, 1\)"),
        ({"betas": (0.9,)}, ValueError, r"betas are two numbers in \[0, 1\)"),
        ({"eps": -1e-8}, ValueError, "eps must not be negative"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must not be negative"),
        ({"differentiable": True}, ValueError, "does not support differentiable=True"),
        ({"stat": "fp8"}, TypeError, "unknown arguments .*Did you mean 'state'?"),
        ({"keep_fp32": ["*.norm"]}, ValueError, "patterns need names"),
        ({"seed": "zero"}, ValueError, "seed is an integer, got 'zero'"),
        ({"seed": -1}, ValueError, "seed is an integer of at most 64 bits, not negative"),
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
        ({"block_size": 64}, "block_size holds for the whole optimizer: pass it as an argument, not in a group"),
        ({"backend": "reference"}, "backend holds for the whole optimizer"),
        ({"reset": "never"}, "reset is None, a period in steps"),
        ({"betas": (2, 3)}, "betas are two numbers"),
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_parameters_of_other_dtypes(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="parameters are float32, bfloat16 or float16"):
        halfulp.AdamW([nn.Parameter(torch.ones(4, 4, dtype=dtype))])


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
        "entry too many": lambda: d["state"][0].update(max_exp_avg_sq=torch.ones(2)),
        "truncated": lambda: d["state"][3].update(exp_avg=torch.zeros(2)),
        "dtype": lambda: d["state"][0].update(exp_avg=d["state"][0]["exp_avg"].float()),
        "not a tensor": lambda: d["state"][0].update(exp_avg=None),
        "negative step": lambda: d["state"][0].update(step=-1),
        "fractional step": lambda: d["state"][0].update(step=1.5),
        "NaN step": lambda: d["state"][0].update(step=NAN),
        "text step": lambda: d["state"][0].update(exp_avg_age="two"),
        "stranger": lambda: d["state"].update({99: d["state"][0], "x": d["state"][0]}),
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
        ("groups", r"parameter groups of \[1, 3\] parameters, this optimizer of \[4\]"),
        ("not a dict", "not an optimizer state_dict"),
        ("no state", "not an optimizer state_dict: it needs the keys 'state' and 'param_groups'"),
        ("missing entry", "parameter 0: the state_dict has entries"),
        ("entry too many", "max_exp_avg_sq"),
        ("truncated", r"exp_avg is torch.float32 \(2,\) in the state_dict"),
        ("dtype", r"exp_avg is torch.float32 \(20, 12\) in the state_dict, expected torch.uint8"),
        ("not a tensor", "exp_avg is NoneType"),
        ("negative step", "step must be a number of steps, got -1"),
        ("fractional step", "got 1.5"),
        ("NaN step", "step must be a number of steps, got nan"),
        ("text step", "exp_avg_age must be a number of steps, got 'two'"),
        ("stranger", r"states of parameters \[99, 'x'\]"),
        ("states are no dict", "has a int instead of its states"),
        ("bad lr", "lr must not be negative"),
        ("bad betas", "betas are two numbers"),
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
