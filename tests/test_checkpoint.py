"""Checkpoints moved between formats and libraries, and damaged or wrong files."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import halfulp
from halfulp.checkpoint.files import pack, unpack
from halfulp.numbers.rounding import round_to
from halfulp.optim import OPTIMIZERS
from support.optimizers import assert_same

STATES = ["fp32", "bf16", "fp16", "fp8", "fp4", "int8", "int4", "8bit", "4bit"]


def model(seed: int = 0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.Tanh(), torch.nn.Linear(96, 64))


def loss_of(net: torch.nn.Module, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(32, 64, generator=generator)
    return (net(x) - x.roll(1, 1)).square().mean()


def train(net: torch.nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        optimizer.zero_grad()
        loss = loss_of(net, step)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def snapshot(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return copy.deepcopy(optimizer.state_dict())


PAIRS = {
    "AdamW": (torch.optim.AdamW, halfulp.AdamW, {"lr": 2e-3, "betas": (0.8, 0.99), "weight_decay": 0.1}),
    "Adam": (torch.optim.Adam, halfulp.Adam, {"lr": 2e-3, "weight_decay": 0.01}),
    "SGD": (torch.optim.SGD, halfulp.SGD, {"lr": 0.05, "momentum": 0.8, "dampening": 0.1}),
    "SGD nesterov": (torch.optim.SGD, halfulp.SGD, {"lr": 0.05, "momentum": 0.8, "nesterov": True}),
    "SGD plain": (torch.optim.SGD, halfulp.SGD, {"lr": 0.05}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_torch_to_ours_to_torch_keeps_every_bit_in_fp32(name: str) -> None:
    theirs, ours, options = PAIRS[name]
    net = model()
    first = theirs(net.parameters(), **options)
    train(net, first, 0, 5)
    saved = snapshot(first)
    middle = ours(net.parameters(), state="fp32")
    middle.load_state_dict(halfulp.convert_state_dict(saved, to=middle))
    assert {k: middle.param_groups[0][k] for k in options} == options
    last = theirs(net.parameters())
    last.load_state_dict(halfulp.convert_state_dict(middle.state_dict(), to=last))
    assert_same(last.state_dict(), saved)


@pytest.mark.parametrize("name", PAIRS)
def test_training_goes_on_after_the_move_as_it_would_have(name: str) -> None:
    theirs, ours, options = PAIRS[name]
    net = model()
    first = theirs(net.parameters(), **options)
    train(net, first, 0, 20)
    twin = copy.deepcopy(net)
    second = ours(twin.parameters(), state="fp32")
    second.load_state_dict(halfulp.convert_state_dict(first.state_dict(), to=second))
    expected, found = train(net, first, 20, 40), train(twin, second, 20, 40)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("state", STATES)
def test_torch_into_each_format_is_one_rounding(state: str) -> None:
    net = model()
    first = torch.optim.AdamW(net.parameters())
    train(net, first, 0, 10)
    second = halfulp.AdamW(net.parameters(), state=state, min_size=0)
    second.load_state_dict(halfulp.convert_state_dict(first.state_dict(), to=second))
    for p in net.parameters():
        for held in second.states(p):
            exact = first.state[p][held.slot.name]
            codes, scale = held.quantizer.with_rounding("nearest").quantize(exact)
            assert torch.equal(held.codes, codes)
            assert scale is None or torch.equal(held.scale, scale)
            assert held.age == 10


@pytest.mark.parametrize("state", ["bf16", "fp8", "8bit"])
def test_fp32_to_a_format_and_back_is_within_one_rounding(state: str) -> None:
    net = model()
    first = halfulp.AdamW(net.parameters(), state="fp32")
    train(net, first, 0, 10)
    second = halfulp.AdamW(net.parameters(), state=state, min_size=0)
    second.load_state_dict(halfulp.convert_state_dict(first.state_dict(), to=second))
    third = halfulp.AdamW(net.parameters(), state="fp32")
    third.load_state_dict(halfulp.convert_state_dict(second.state_dict(), to=third))
    for p in net.parameters():
        for held in second.states(p):
            exact, back = first.state_tensor(p, held.slot.name), third.state_tensor(p, held.slot.name)
            assert torch.equal(back, held.read())
            unit = held.quantizer.format.epsilon * exact.abs().clamp_min(1e-30)
            scale = held.quantizer.format.smallest * exact.abs().max() if held.scale is not None else 0.0
            assert bool(((back - exact).abs() <= unit / 2 + scale).all())
        if state == "bf16":
            assert torch.equal(third.state_tensor(p, "exp_avg"), round_to(first.state_tensor(p, "exp_avg"), "bf16"))
    fourth = halfulp.AdamW(net.parameters(), state=state, min_size=0)
    fourth.load_state_dict(halfulp.convert_state_dict(third.state_dict(), to=fourth))
    for p in net.parameters():  # values, not codes: a block whose largest element was rounded down may halve its scale
        for held in second.states(p):
            assert torch.equal(fourth.state_tensor(p, held.slot.name), held.read())


@pytest.mark.parametrize("state", ["fp8", "8bit"])
def test_resumed_in_8_bits_the_loss_does_not_jump(state: str) -> None:
    net = model()
    first = torch.optim.AdamW(net.parameters(), lr=2e-3)
    before = train(net, first, 0, 300)
    twin = copy.deepcopy(net)
    second = halfulp.AdamW(twin.parameters(), state=state)
    second.load_state_dict(halfulp.convert_state_dict(first.state_dict(), to=second))
    expected, found = train(net, first, 300, 400), train(twin, second, 300, 400)
    assert expected[-1] < before[0] / 2  # it does train
    # the first steps against torch's continuation on the same batches, in units of the loss
    assert found[:20] == pytest.approx(expected[:20], rel=0.02)
    assert sum(found) == pytest.approx(sum(expected), rel=0.02)


@pytest.mark.parametrize("optimizer_class", OPTIMIZERS, ids=lambda c: c.__name__)
def test_every_optimizer_moves_between_formats(optimizer_class: Any) -> None:
    """Factors, scalars and states at rest included: with fp32 states a move there and back loses nothing."""

    def make(net: torch.nn.Module, state: str) -> Any:
        return optimizer_class(net.named_parameters(), lr=1e-3, state=state, min_size=0)

    net, other = model(), model()
    before, after = make(net, "fp32"), make(other, "bf16")
    if optimizer_class is halfulp.BAdam:
        before.param_groups[0]["period"] = 1
    train(net, before, 0, 3)
    other.load_state_dict(net.state_dict())
    after.load_state_dict(halfulp.convert_state_dict(before.state_dict(), to=after))
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        names = [s.slot.name for s in before.states(p)] if p in before.state else []
        for name in names:
            one, two = before.state_tensor(p, name), after.state_tensor(q, name)
            torch.testing.assert_close(two, one, rtol=2**-8, atol=1e-37)
    train(other, after, 3, 4)
    back = make(net, "fp32")
    back.load_state_dict(halfulp.convert_state_dict(before.state_dict(), to=back))
    assert_same(back.state_dict(), before.state_dict())


def test_a_younger_slot_keeps_its_bias_corrected_value() -> None:
    net = model()
    first = halfulp.AdamW(net.parameters(), state="fp32")
    train(net, first, 0, 10)
    first.reset_state(names=["exp_avg_sq"])
    train(net, first, 10, 13)
    twin = copy.deepcopy(net)
    second = torch.optim.AdamW(twin.parameters())
    second.load_state_dict(halfulp.convert_state_dict(first.state_dict(), to=second))
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert second.state[q]["step"] == 13
        mine = first.state_tensor(p, "exp_avg_sq") / (1 - 0.999**3)
        assert torch.allclose(second.state[q]["exp_avg_sq"] / (1 - 0.999**13), mine, rtol=1e-5, atol=0.0)


def test_kept_fp32_odd_shapes_and_groups() -> None:
    weight, bias = torch.nn.Parameter(torch.randn(65, 67)), torch.nn.Parameter(torch.randn(7))
    groups = [{"params": [weight], "lr": 0.1}, {"params": [bias], "weight_decay": 0.0}]
    first = halfulp.AdamW(groups, state="fp4", min_size=0)
    for p in (weight, bias):
        p.grad = torch.randn_like(p)
    first.step()
    second = halfulp.AdamW([{"params": [weight]}, {"params": [bias]}], state="bf16")
    second.load_state_dict(halfulp.convert_state_dict(first.state_dict(), to=second))
    assert [g["lr"] for g in second.param_groups] == [0.1, 1e-3]
    assert [g["weight_decay"] for g in second.param_groups] == [1e-2, 0.0]
    assert second.states(bias)[0].quantizer.format.is_float32
    assert torch.equal(second.state_tensor(weight, "exp_avg"), round_to(first.state_tensor(weight, "exp_avg"), "bf16"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["bitsandbytes", "torchao 8 bit", "torchao 4 bit", "torchao fp8", "bnb lion", "bnb sgd"]
)
def test_import_from_real_peers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "torchao.optim" if "torchao" in name else "bitsandbytes"
    peer = pytest.importorskip(module, exc_type=ImportError)
    monkeypatch.setattr(torch, "compile", lambda f, **options: f)
    weight = torch.nn.Parameter(torch.randn(64, 128))
    make = {
        "bitsandbytes": lambda: peer.optim.AdamW8bit([weight], lr=3e-4),
        "bnb lion": lambda: peer.optim.Lion8bit([weight], lr=3e-4),
        "bnb sgd": lambda: peer.optim.SGD8bit([weight], lr=3e-4, momentum=0.7),
        "torchao 8 bit": lambda: peer.AdamW8bit([weight], lr=3e-4),
        "torchao 4 bit": lambda: peer.AdamW4bit([weight], lr=3e-4),
        "torchao fp8": lambda: peer.AdamWFp8([weight], lr=3e-4),
    }
    theirs = make[name]()
    for _ in range(4):
        weight.grad = torch.randn_like(weight)
        theirs.step()
    ours = {"bnb lion": halfulp.Lion, "bnb sgd": halfulp.SGD}.get(name, halfulp.AdamW)([weight], state="fp32")
    ours.load_state_dict(halfulp.convert_state_dict(theirs.state_dict(), to=ours))
    assert ours.param_groups[0]["lr"] == pytest.approx(3e-4)
    state = theirs.state[weight]
    for held in ours.states(weight):
        if "torchao" in name:
            expected = state[held.slot.name].dequantize().reshape(64, 128)
        else:
            which = "2" if held.slot.name == "exp_avg_sq" else "1"
            levels = state[f"qmap{which}"][state[f"state{which}"].long()]
            expected = (levels.reshape(-1, 256) * state[f"absmax{which}"][:, None]).reshape(64, 128)
        assert torch.equal(held.read(), expected.float())
        assert held.age == 4
    if name == "bnb sgd":
        assert ours.param_groups[0]["momentum"] == pytest.approx(0.7)


MISMATCHES = {
    "not a dictionary": (lambda s: [], "it needs the keys"),
    "no groups": (lambda s: {"state": {}}, "it needs the keys"),
    "other groups": (lambda s: {**s, "param_groups": s["param_groups"] * 2}, "parameter groups of"),
    "other shape": (lambda s: _with(s, "exp_avg", torch.zeros(3, 4)), "has shape"),
    "missing state": (lambda s: _without(s, "exp_avg_sq"), r"lacks \['exp_avg_sq'\]"),
    "foreign state": (lambda s: _with(s, "exp_avg_slow", torch.zeros(96, 64)), r"has \['exp_avg_slow'\]"),
    "not finite": (lambda s: _with(s, "exp_avg", torch.full((96, 64), torch.nan)), "not finite"),
}


def _with(saved: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    return {**saved, "state": {**saved["state"], 0: {**saved["state"][0], key: value}}}


def _without(saved: dict[str, Any], key: str) -> dict[str, Any]:
    return {**saved, "state": {**saved["state"], 0: {k: v for k, v in saved["state"][0].items() if k != key}}}


@pytest.mark.parametrize("name", MISMATCHES)
def test_what_does_not_fit_is_refused(name: str) -> None:
    change, message = MISMATCHES[name]
    net = model()
    first = torch.optim.AdamW(net.parameters())
    train(net, first, 0, 3)
    second = halfulp.AdamW(net.parameters(), state="fp8")
    train(net, second, 0, 3)
    before = snapshot(second)
    with pytest.raises(ValueError, match=message):
        halfulp.convert_state_dict(change(first.state_dict()), to=second)
    assert_same(snapshot(second), before)


def test_averages_without_a_step_count_are_refused() -> None:
    """Libraries that debias inside the average keep no step beside it: taking it for torch's would be wrong."""
    net = model()
    first = torch.optim.AdamW(net.parameters())
    train(net, first, 0, 3)
    saved = first.state_dict()
    for entries in saved["state"].values():
        del entries["step"]
    for second in (halfulp.AdamW(net.parameters()), torch.optim.AdamW(net.parameters())):
        with pytest.raises(ValueError, match="how many steps"):
            halfulp.convert_state_dict(saved, to=second)


def test_the_refusal_of_a_foreign_checkpoint_names_the_conversion() -> None:
    net = model()
    first = torch.optim.AdamW(net.parameters())
    train(net, first, 0, 2)
    second = halfulp.AdamW(net.parameters(), state="fp8")
    with pytest.raises(ValueError, match=r"halfulp\.convert_state_dict\(state_dict, to=optimizer\)"):
        second.load_state_dict(first.state_dict())
    third = halfulp.AdamW(net.parameters(), state="bf16")
    with pytest.raises(ValueError, match=r"halfulp\.convert_state_dict\(state_dict, to=optimizer\)"):
        third.load_state_dict(second.state_dict())
    with pytest.raises(ValueError, match="not to"):
        halfulp.convert_state_dict(first.state_dict(), to=type("Other", (torch.optim.SGD,), {})(net.parameters()))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("state", STATES)
def test_a_file_brings_back_every_bit(state: str, tmp_path: Path) -> None:
    net = model()
    first = halfulp.AdamW(net.parameters(), lr=torch.tensor(1e-3), state=state, min_size=0)
    train(net, first, 0, 3)
    path = tmp_path / "optimizer.safetensors"
    halfulp.save_optimizer(first, path)
    second = halfulp.AdamW(net.parameters(), state=state, min_size=0)
    halfulp.load_optimizer(second, path)
    assert_same(second.state_dict(), first.state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["optimizer.safetensors"]


def test_a_file_of_torch_loads_into_ours_with_convert(tmp_path: Path) -> None:
    net = model()
    first = torch.optim.AdamW(net.parameters(), lr=0.5)
    train(net, first, 0, 3)
    halfulp.save_optimizer(first, tmp_path / "a.safetensors")
    second = halfulp.AdamW(net.parameters(), state="fp8")
    with pytest.raises(ValueError, match="convert_state_dict"):
        halfulp.load_optimizer(second, tmp_path / "a.safetensors")
    halfulp.load_optimizer(second, tmp_path / "a.safetensors", convert=True)
    assert second.param_groups[0]["lr"] == 0.5


def damaged(data: bytes, how: str) -> bytes:
    if how == "truncated":
        return data[: len(data) // 2]
    if how == "empty":
        return b""
    if how == "noise":
        return bytes(range(256)) * 8
    if how == "flipped bit in a tensor":
        return data[:-5] + bytes([data[-5] ^ 16]) + data[-4:]
    raise AssertionError(how)


@pytest.mark.parametrize("how", ["truncated", "empty", "noise", "flipped bit in a tensor"])
def test_damaged_files_change_nothing(how: str, tmp_path: Path) -> None:
    net = model()
    optimizer = halfulp.AdamW(net.parameters(), state="fp8")
    train(net, optimizer, 0, 3)
    path = tmp_path / "optimizer.safetensors"
    halfulp.save_optimizer(optimizer, path)
    train(net, optimizer, 3, 5)
    before = snapshot(optimizer)
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(ValueError, match=r"damaged|truncated"):
        halfulp.load_optimizer(optimizer, path)
    assert_same(snapshot(optimizer), before)


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    net = model()
    optimizer = halfulp.AdamW(net.parameters(), state="fp8")
    train(net, optimizer, 0, 3)
    path = tmp_path / "optimizer.safetensors"
    halfulp.save_optimizer(optimizer, path)
    old = path.read_bytes()

    def crash(handle: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", crash)
    train(net, optimizer, 3, 5)
    with pytest.raises(OSError, match="no space"):
        halfulp.save_optimizer(optimizer, path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_stored_is_named(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(model().parameters(), lr=0.1)
    optimizer.param_groups[0]["hook"] = print
    with pytest.raises(ValueError, match=r"\['param_groups'\]\[0\]\['hook'\] is a builtin_function_or_method"):
        halfulp.save_optimizer(optimizer, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        halfulp.load_optimizer(optimizer, tmp_path / "none.safetensors")
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not of an optimizer"):
        halfulp.load_optimizer(optimizer, tmp_path / "model.safetensors")


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
TREES = st.recursive(
    LEAVES | st.integers(0, 3).map(lambda n: torch.arange(n, dtype=torch.float32)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(TREES)
@settings(max_examples=200)
def test_any_tree_of_plain_things_comes_back(tree: Any) -> None:
    back = unpack(*pack(tree))
    assert type(back) is type(tree)
    assert_same(tree, back)


# ---------------------------------------------------------------- self-test


@pytest.mark.parametrize("state", STATES)
def test_the_self_test_passes_before_and_after_the_first_step(state: str) -> None:
    net = model()
    optimizer = halfulp.AdamW(net.parameters(), state=state)
    before = snapshot(optimizer)
    tried = halfulp.check_roundtrip(optimizer)
    assert tried == 2  # a matrix and a vector
    assert_same(snapshot(optimizer), before)
    train(net, optimizer, 0, 2)
    assert halfulp.check_roundtrip(optimizer) == tried


def test_the_self_test_of_a_torch_optimizer() -> None:
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), amsgrad=True)
    train(net, optimizer, 0, 2)
    assert halfulp.check_roundtrip(optimizer) == 4


def test_the_self_test_finds_what_would_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    from halfulp.checkpoint import selftest

    optimizer = halfulp.AdamW(model().parameters(), state="fp8")

    def lossy(state_dict: dict[str, Any]) -> Any:
        buffer = io.BytesIO()
        torch.save(state_dict, buffer)
        buffer.seek(0)
        found = torch.load(buffer, weights_only=True)
        next(iter(found["state"].values()))["exp_avg"].view(torch.uint8)[0] ^= 1
        return found

    monkeypatch.setattr(selftest, "_by_torch", lossy)
    with pytest.raises(
        RuntimeError, match=r"state_dict\['state'\]\[\d\]\['exp_avg'\] does not come back from torch.save"
    ):
        halfulp.check_roundtrip(optimizer)
