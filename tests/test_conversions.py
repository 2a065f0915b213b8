"""Conversion from other libraries by structure: parameters of every shape, wrappers, and the command line."""

from __future__ import annotations

import copy
import errno
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import halfulp
from halfulp.checkpoint.files import write_file
from halfulp.checkpoint.read import find_optimizers, read_saved
from halfulp.checkpoint.rebuild import write_saved
from halfulp.cli import app
from halfulp.engine.loading import bare
from halfulp.numbers import log as _log

STEPS, BETAS = 7, (0.8, 0.95)


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))


def gradients(net: nn.Module) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [[torch.randn(p.shape, generator=generator) for p in net.parameters()] for _ in range(STEPS)]


def torch_run(net: nn.Module, kind: Any = torch.optim.AdamW, **options: Any) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = kind(net.parameters(), lr=1e-3, **options)
    for step in gradients(net):
        for p, g in zip(net.parameters(), step, strict=True):
            p.grad = g.clone()
        optimizer.step()
    return optimizer


def debiased(values: list[torch.Tensor], beta: float) -> torch.Tensor:
    """An average that is its own bias correction, as optimi and heavyball keep it: its decay grows with the step."""
    average = torch.zeros_like(values[0], dtype=torch.float64)
    for step, value in enumerate(values, 1):
        decay = beta * (1 - beta ** (step - 1)) / (1 - beta**step)
        average = decay * average + (1 - decay) * value.double()
    return average.float()


def moments(net: nn.Module, i: int) -> tuple[torch.Tensor, torch.Tensor]:
    seen = [step[i] for step in gradients(net)]
    return debiased(seen, BETAS[0]), debiased([g * g for g in seen], BETAS[1])


def saved_by(library: str, net: nn.Module) -> dict[str, Any]:
    """What a library saves after the steps of :func:`torch_run`, by its own layout."""
    plain = torch_run(copy.deepcopy(net), betas=BETAS).state_dict()
    group = {"lr": 1e-3, "betas": BETAS, "eps": 1e-8, "weight_decay": 1e-2, "params": [0, 1, 2, 3]}
    without = {i: {k: v for k, v in e.items() if k != "step"} for i, e in plain["state"].items()}
    fused = {"state": without, "param_groups": [{**group, "bias_correction": 1, "step": STEPS}]}
    if library == "apex":
        return fused
    if library == "apex, capturable":
        return {**fused, "param_groups": [{**group, "bias_correction": True, "step": torch.tensor([STEPS])}]}
    if library == "transformer engine":
        low = {i: {**e, "master_param": torch.ones(e["exp_avg"].shape, dtype=torch.int16)} for i, e in without.items()}
        return {**fused, "state": low}
    if library == "flashoptim, not compressed":
        low = {
            i: {**e, "error_bits": torch.ones(e["exp_avg"].shape, dtype=torch.int8)} for i, e in plain["state"].items()
        }
        return {**plain, "state": low}
    if library == "megatron":
        return {"optimizer": fused, "grad_scaler": {"scale": 1.0}, "fp32_from_fp16_params": [[]]}
    if library == "deepspeed, no zero":
        return {"optimizer_state_dict": fused, "ds_version": "0.17"}
    if library == "deepspeed, one rank of zero":
        flat = {
            k: torch.cat([without[i][k].reshape(-1) for i in range(4)] + [torch.full((5,), 9.0)])
            for k in ("exp_avg", "exp_avg_sq")
        }
        base = {"state": {0: {**flat, "step": STEPS}}, "param_groups": [{**group, "params": [0]}]}
        return {"optimizer_state_dict": {"base_optimizer_state": base, "zero_stage": 2, "partition_count": [1]}}
    if library == "dcp":
        states = {str(i): e for i, e in plain["state"].items()}
        return {"state": states, "param_groups": plain["param_groups"]}
    params = range(4)
    if library == "optimi":
        names = {"exp_avg": 0, "exp_avg_sq": 1}
        state = {i: {k: moments(net, i)[w] for k, w in names.items()} | {"kahan_comp": torch.zeros(1)} for i in params}
        own = {"lr": 1e-3, "beta1": BETAS[0], "beta2": BETAS[1], "eps": 1e-8, "kahan_sum": True, "params": [0, 1, 2, 3]}
        decay = {"weight_decay": 1e-5, "decouple_lr": True, "max_lr": 1e-3}
        return {"state": state, "param_groups": [{**own, **decay, "step": torch.tensor(STEPS)}]}
    assert library == "heavyball"
    keys = ("update_by_adam_exp_avg_0", "update_by_adam_exp_avg_sq_0")
    held = {
        i: {0: {**dict(zip(keys, moments(net, i), strict=True)), "is_initialized": [0], "step": STEPS}} for i in params
    }
    return {"state": held, "param_groups": [group]}


LIBRARIES = [
    "apex", "apex, capturable", "transformer engine", "flashoptim, not compressed", "megatron", "deepspeed, no zero",
    "deepspeed, one rank of zero", "dcp", "optimi", "heavyball",
]  # fmt: skip


@pytest.mark.parametrize("to", ["halfulp", "torch"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_have_the_moments_of_torch(library: str, to: str) -> None:
    net = model()
    expected = torch_run(copy.deepcopy(net), betas=BETAS)
    ours = halfulp.AdamW(net.parameters(), state="fp32") if to == "halfulp" else torch.optim.AdamW(net.parameters())
    ours.load_state_dict(halfulp.convert_state_dict(saved_by(library, net), to=ours))
    assert ours.param_groups[0]["betas"] == BETAS
    assert ours.param_groups[0]["weight_decay"] == pytest.approx(1e-2)
    for mine, theirs in zip(ours.state.values(), expected.state.values(), strict=True):
        assert int(mine["step"]) == STEPS
        for key in ("exp_avg", "exp_avg_sq"):
            if library in ("optimi", "heavyball"):
                torch.testing.assert_close(mine[key], theirs[key], rtol=2e-6, atol=1e-7)
            else:
                assert torch.equal(mine[key], theirs[key])


@pytest.mark.parametrize("dampening", [False, True])
def test_momentum_of_optimi(dampening: bool) -> None:
    net = model()
    seen = gradients(net)
    options = {"momentum": 0.8, "dampening": 0.8 if dampening else 0.0}
    expected = torch_run(copy.deepcopy(net), torch.optim.SGD, **options)
    state = {}
    for i in range(4):
        buffer = torch.zeros_like(seen[0][i])
        for step in seen:
            buffer = 0.8 * buffer + (0.2 if dampening else 1.0) * step[i]
        state[i] = {"exp_avg": buffer}
    saved = {
        "state": state,
        "param_groups": [
            {"lr": 1e-3, "momentum": 0.8, "dampening": dampening, "kahan_sum": None, "params": [0, 1, 2, 3]}
        ],
    }
    ours = halfulp.SGD(net.parameters(), lr=1e-3, state="fp32", momentum=0.1)
    ours.load_state_dict(halfulp.convert_state_dict(saved, to=ours))
    assert ours.param_groups[0]["dampening"] == pytest.approx(options["dampening"])
    states = zip(ours.state.values(), expected.state.values(), strict=True)
    for i, (mine, theirs) in enumerate(states):
        # torch takes the first gradient whole, with or without dampening: this share of it is left
        first = seen[0][i] * 0.8**STEPS if dampening else 0.0
        torch.testing.assert_close(mine["momentum_buffer"] + first, theirs["momentum_buffer"], rtol=1e-5, atol=1e-6)


def _group(**more: Any) -> dict[str, Any]:
    return {"lr": 1e-3, "betas": BETAS, "eps": 1e-8, "weight_decay": 0.0, "params": [0, 1, 2, 3], **more}


def _each(**entries: Any) -> dict[int, dict[str, Any]]:
    return {i: dict(entries) for i in range(4)}


def _flash(values: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    """A state as FlashOptim compresses it, by its documentation, computed element by element."""
    flat = [math.sqrt(x) if name == "exp_avg_sq" else x for x in values.double().reshape(-1).tolist()]
    scales = [max(1e-12, *map(abs, flat[i : i + 32])) for i in range(0, len(flat), 32)]
    codes = []
    for i, x in enumerate(flat):
        share = x / scales[i // 32]
        share = share * 255 if name == "exp_avg_sq" else 2 * share / (1 + abs(share)) * 127
        codes.append(math.floor(share + 0.5))
    dtype = torch.uint8 if name == "exp_avg_sq" else torch.int8
    stored = torch.tensor(codes, dtype=dtype).reshape(values.shape)
    return {f"{name}::quantized": stored, f"{name}::scales": torch.tensor(scales).half()}


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_compressed_states_of_flashoptim(weights: torch.dtype) -> None:
    net = model()
    expected = torch_run(copy.deepcopy(net), betas=BETAS)
    state = {}
    for i, entry in enumerate(expected.state.values()):
        state[i] = {"step": STEPS, **_flash(entry["exp_avg"], "exp_avg"), **_flash(entry["exp_avg_sq"], "exp_avg_sq")}
        if weights == torch.bfloat16:  # the scales' bits, under the dtype of the weights
            state[i] = {k: v.view(torch.bfloat16) if str(k).endswith("scales") else v for k, v in state[i].items()}
    ours = halfulp.AdamW(net.to(weights).parameters(), state="fp32")
    ours.load_state_dict(halfulp.convert_state_dict({"state": state, "param_groups": [_group()]}, to=ours))
    for mine, theirs in zip(ours.state.values(), expected.state.values(), strict=True):
        assert int(mine["step"]) == STEPS
        for name, most in (("exp_avg", 127), ("exp_avg_sq", 255)):
            exact = theirs[name].double().reshape(-1)
            root = exact.sqrt() if name == "exp_avg_sq" else exact
            largest = torch.cat([block.abs().max().expand(len(block)) for block in root.split(32)])
            # half a code, twice as wide at the largest magnitudes of a signed state, and the rounding of the scale
            bound = largest * ((1.0 if name == "exp_avg" else 0.5) / most + 2**-11)
            found = mine[name].double().reshape(-1)
            found = found.sqrt() if name == "exp_avg_sq" else found
            assert bool(((found - root).abs() <= bound * 1.0001).all())
            assert not torch.equal(mine[name], theirs[name])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "flashoptim, incomplete": (
        {"state": _each(**{"exp_avg::quantized": torch.zeros(1, dtype=torch.int8)}), "param_groups": [_group()]},
        "exp_avg::quantized is torch.int8, with one of exp_avg::scales in 16 bits for every 32 elements, as tensors",
    ),
    "flashoptim, too few scales": (
        {
            "state": _each(**{**_flash(torch.zeros(40), "exp_avg"), "exp_avg::scales": torch.zeros(1).half()}),
            "param_groups": [_group()],
        },
        "these are 40 elements of torch.int8 and 1 of torch.float16",
    ),
    "schedule-free": (
        {"state": _each(z=torch.zeros(1), exp_avg_sq=torch.zeros(1)), "param_groups": [_group(k=3, weight_sum=1.0)]},
        "sequence z in place of a first moment",
    ),
    "prodigy": (
        {"state": _each(p0=torch.zeros(1), s=torch.zeros(1), step=3), "param_groups": [_group(d=1e-6)]},
        "estimate of the distance",
    ),
    "heavyball, another transform": (
        {
            "state": _each(**{"0": 0}) | {0: {0: {"is_initialized": [0], "update_by_soap_GG_0": torch.zeros(2, 2)}}},
            "param_groups": [_group()],
        },
        "not Adam's",
    ),
    "heavyball, several views": (
        {"state": {0: {0: {"is_initialized": [0]}, 1: {"is_initialized": [0]}}}, "param_groups": [_group()]},
        "several views",
    ),
    "no bias correction": (
        {"state": _each(exp_avg=torch.zeros(1)), "param_groups": [_group(step=3, bias_correction=0)]},
        "bias_correction=False",
    ),
    "debiased without steps": (
        {
            "state": _each(exp_avg=torch.zeros(1), exp_avg_sq=torch.zeros(1)),
            "param_groups": [{**_group(kahan_sum=True), "beta1": 0.9}],
        },
        "does not say after how many steps",
    ),
    "groups without parameters": ({"state": {}, "param_groups": [{"lr": 1e-3}]}, "name their 'params'"),
    "one rank of several": (
        {"optimizer_state_dict": {"base_optimizer_state": {}, "partition_count": [8, 8]}},
        "one of 8 partitions of DeepSpeed's ZeRO",
    ),
    "vectors that are too short": (
        {
            "base_optimizer_state": {
                "state": {0: {"exp_avg": torch.zeros(9), "exp_avg_sq": torch.zeros(9), "step": 1}},
                "param_groups": [_group(params=[0])],
            }
        },
        "has 9 elements, the parameters of its group 82",
    ),
    "megatron's distributed optimizer": (
        {"optimizer": {"param_groups": [_group(step=3)]}, "param_state_sharding_type": "dp_zero_gather_scatter"},
        "Megatron-LM's distributed optimizer",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_says_why(name: str) -> None:
    saved, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        halfulp.convert_state_dict(saved, to=halfulp.AdamW(model().parameters()))


# ---------------------------------------------------------------- the Hugging Face Trainer's 8-bit optimizers


@pytest.mark.parametrize("wrapped", [False, True])
def test_states_of_bitsandbytes_go_on(wrapped: bool) -> None:
    """As ``optim="adamw_bnb_8bit"`` saves them: codes under a table, scales of blocks of 256 elements, flat."""
    p = nn.Parameter(torch.zeros(33, 70))
    generator = torch.Generator().manual_seed(0)
    entries: dict[str, Any] = {"step": 9}
    expected = {}
    for which, low, slot in (("1", -1.0, "exp_avg"), ("2", 0.0, "exp_avg_sq")):
        table = torch.linspace(low, 1.0, 256)
        codes = torch.randint(256, (33, 70), generator=generator).to(torch.uint8)
        scales = torch.rand(-(-codes.numel() // 256), generator=generator)
        entries |= {f"state{which}": codes, f"qmap{which}": table, f"absmax{which}": scales}
        expected[slot] = (table[codes.long()].reshape(-1) * scales.repeat_interleave(256)[: codes.numel()]).reshape(
            33, 70
        )
    if wrapped:
        kept = {k: entries.pop(k) for k in list(entries) if k != "step"}
        entries["__bnb_optimizer_quant_state__"] = kept
    group = {"lr": 1e-4, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "params": [0]}
    saved = {"state": {0: entries}, "param_groups": [group]}
    for state in ("fp32", "8bit"):
        ours = halfulp.AdamW([p], state=state, min_size=0)
        ours.load_state_dict(halfulp.convert_state_dict(saved, to=ours))
        for slot, values in expected.items():
            quantizer = next(s.quantizer for s in ours.states(p) if s.slot.name == slot)
            codes, scale = quantizer.with_rounding("nearest").quantize(values)
            assert torch.equal(ours.state[p][slot], codes)
            assert ours.state[p][f"{slot}_age"] == 9
            assert scale is None or torch.equal(ours.state[p][f"{slot}_scale"], scale)
        p.grad = torch.ones_like(p)
        ours.step()
        assert ours.state[p]["step"] == 10


# ---------------------------------------------------------------- shapes


class Odd(nn.Module):
    """Parameters of every unusual shape, one of them not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = {"scalar": (), "one": (1,), "unit": (1, 1, 1), "row": (1, 70), "column": (70, 1), "cube": (3, 5, 9)}
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=generator)))
        self.empty = nn.Parameter(torch.zeros(0))
        self.hollow = nn.Parameter(torch.zeros(4, 0))
        self.turned = nn.Parameter(torch.randn(64, 66, generator=generator).t())
        self.strided = nn.Parameter(torch.randn(20, 30, generator=generator)[::2, ::3])


@pytest.mark.parametrize("min_size", [0, 4096])
@pytest.mark.parametrize("state", ["fp32", "bf16", "8bit", "4bit"])
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_parameters_of_every_shape(name: str, state: str, min_size: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"momentum": 0.9} if name == "SGD" else {}
    module = Odd()
    assert not module.turned.is_contiguous()
    old = getattr(torch.optim, name)(module.parameters(), lr=1e-3, **options)
    for p in module.parameters():
        p.grad = torch.randn_like(p)
    old.step()
    kind = getattr(halfulp, name)
    ours = kind(module.named_parameters(), lr=1e-3, state=state, min_size=min_size, **options)
    ours.load_state_dict(halfulp.convert_state_dict(old.state_dict(), to=ours))
    for p, entries in old.state.items():
        for key, value in entries.items():
            if key == "step":
                continue
            read = ours.state_tensor(p, key)
            assert read.shape == p.shape
            tolerance = {"fp32": 0.0, "bf16": 0.01, "8bit": 0.1, "4bit": 0.6}[state]
            scale = float(value.abs().max()) if value.numel() else 1.0
            assert torch.allclose(read, value, rtol=0.0, atol=tolerance * scale)
    assert halfulp.check_roundtrip(ours) >= 4  # kinds of storage
    halfulp.save_optimizer(ours, tmp_path / "a.safetensors")
    fresh = kind(module.named_parameters(), lr=1e-3, state=state, min_size=min_size, **options)
    halfulp.load_optimizer(fresh, tmp_path / "a.safetensors")
    back = getattr(torch.optim, name)(module.parameters(), lr=1e-3, **options)
    back.load_state_dict(halfulp.convert_state_dict(fresh.state_dict(), to=back))
    for p in module.parameters():
        for key in old.state[p]:
            if key != "step":
                assert torch.equal(back.state[p][key], ours.state_tensor(p, key))
    back.step()
    fresh.step()


# ---------------------------------------------------------------- groups and wrappers


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_groups_may_differ_where_both_sides_have_names(prefix: str) -> None:
    net = model()
    named = list(net.named_parameters())
    old = torch.optim.AdamW([(prefix + n, p) for n, p in named], lr=3e-4, weight_decay=0.2)
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    old.step()
    groups = [{"params": named[2:3]}, {"params": [named[3], *named[:2]]}]
    new = halfulp.AdamW(groups, state="fp32")
    new.load_state_dict(halfulp.convert_state_dict(old.state_dict(), to=new))
    for p in net.parameters():
        assert torch.equal(new.state[p]["exp_avg"], old.state[p]["exp_avg"])
    assert [g["lr"] for g in new.param_groups] == [3e-4, 3e-4]
    fewer = torch.optim.AdamW([(prefix + n, p) for n, p in named[:3]])
    with pytest.raises(ValueError, match=r"lacks parameters \['2.bias'\]"):
        halfulp.convert_state_dict(fewer.state_dict(), to=new)


def test_a_group_out_of_groups_that_differ_is_refused() -> None:
    net = model()
    named = list(net.named_parameters())
    old = torch.optim.AdamW([{"params": named[:2]}, {"params": named[2:], "weight_decay": 0.0}])
    new = halfulp.AdamW(named)
    with pytest.raises(ValueError, match=r"groups that differ in \['weight_decay'\]"):
        halfulp.convert_state_dict(old.state_dict(), to=new)


def test_groups_without_names_say_what_to_do() -> None:
    net = model()
    old = torch.optim.AdamW([{"params": [net[0].weight, net[2].weight]}, {"params": [net[0].bias, net[2].bias]}])
    with pytest.raises(ValueError, match=r"groups_by_name\(model\).* named_parameters\(\)"):
        halfulp.convert_state_dict(old.state_dict(), to=halfulp.AdamW(net.parameters()))


def test_the_optimizer_in_accelerate_is_found() -> None:
    accelerate = pytest.importorskip("accelerate")
    net = model()
    old = torch_run(copy.deepcopy(net))
    wrapped = accelerate.Accelerator(cpu=True).prepare(halfulp.AdamW(net.parameters(), state="fp32"))
    wrapped.load_state_dict(halfulp.convert_state_dict(old.state_dict(), to=wrapped))
    states = zip(wrapped.state_dict()["state"].values(), old.state_dict()["state"].values(), strict=True)
    assert all(torch.equal(mine["exp_avg"], theirs["exp_avg"]) for mine, theirs in states)


def test_lost_states_are_said_but_not_when_accelerate_wraps_an_optimizer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Accelerate reloads the state_dict of the new optimizer, to move it to the device."""
    accelerate = pytest.importorskip("accelerate")
    monkeypatch.setattr(_log, "_said", set())
    wrapped = accelerate.Accelerator(cpu=True).prepare(halfulp.AdamW(model().parameters()))
    assert not caplog.records
    wrapped.load_state_dict(wrapped.state_dict())
    assert "a state_dict without states was loaded" in caplog.text


# ---------------------------------------------------------------- the command


def as_file(saved: dict[str, Any], form: str, folder: Path) -> Path:
    if form == "safetensors":
        write_file(saved, folder / "in.safetensors")
        return folder / "in.safetensors"
    if form == "torch":
        torch.save({"model": {}, "optimizer": saved}, folder / "in.pt")
        return folder / "in.pt"
    if form == "trainer":
        torch.save(saved, folder / "optimizer.pt")
        return folder
    import torch.distributed.checkpoint as dcp

    dcp.save({"optim": saved}, checkpoint_id=folder / "in")
    return folder / "in"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(
    ("form", "out"),
    [("safetensors", "o.pt"), ("torch", "o.safetensors"), ("trainer", "o"), ("dcp", "o.safetensors"), ("dcp", "o")],
)
def test_the_command_converts_what_the_function_does(form: str, out: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 66), nn.Linear(66, 4))
    old = torch.optim.AdamW(net.named_parameters(), lr=3e-4)
    net(torch.randn(4, 64)).square().sum().backward()
    old.step()
    (tmp_path / "in").mkdir()
    source = as_file(old.state_dict(), form, tmp_path / "in")
    result = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / out), "--state", "8bit"])
    assert result.exit_code == 0, result.output
    assert "states of 4 parameters as AdamW, 8bit" in " ".join(result.output.split())
    ((_, found),) = find_optimizers(read_saved(tmp_path / out))
    new = halfulp.AdamW(net.named_parameters(), state="8bit")
    expected = halfulp.convert_state_dict(old.state_dict(), to=new)
    new.load_state_dict(halfulp.convert_state_dict(found, to=new) if out == "o" else found)
    for number, p in enumerate(net.parameters()):
        for key, value in expected["state"][number].items():
            assert torch.equal(torch.as_tensor(new.state[p][key]), torch.as_tensor(value))
    assert new.param_groups[0]["lr"] == 3e-4


def test_the_command_goes_back_to_torch(tmp_path: Path) -> None:
    net = model()
    old = torch_run(net)
    torch.save(old.state_dict(), tmp_path / "a.pt")
    for source, target, state in (("a.pt", "b.safetensors", "fp32"), ("b.safetensors", "c.pt", "torch")):
        arguments = ["convert", str(tmp_path / source), str(tmp_path / target), "--state", state]
        assert CliRunner().invoke(app, arguments).exit_code == 0
    fresh = torch.optim.AdamW(net.parameters())
    fresh.load_state_dict(torch.load(tmp_path / "c.pt"))
    assert all(torch.equal(fresh.state[p]["exp_avg"], old.state[p]["exp_avg"]) for p in net.parameters())


def test_what_the_command_refuses(tmp_path: Path) -> None:
    net = nn.Linear(64, 66)
    old = halfulp.AdamW(net.parameters(), state="4bit")
    net(torch.ones(1, 64)).sum().backward()
    old.step()
    torch.save({"a": old.state_dict(), "b": old.state_dict()}, tmp_path / "two.pt")
    halfulp.save_optimizer(old, tmp_path / "packed.safetensors")
    cases = [
        (["two.pt", "o.pt"], "name one of a, b with --at"),
        (["two.pt", "o.pt", "--at", "c"], "no optimizer at 'c'"),
        (["packed.safetensors", "o.pt"], "whether its rows are odd"),
    ]
    for (source, target, *more), message in cases:
        result = CliRunner().invoke(app, ["convert", str(tmp_path / source), str(tmp_path / target), *more])
        assert result.exit_code == 1
        assert message in str(result.exception)


ORDERS: dict[str, tuple[list[list[str]], list[list[str]], str | None]] = {
    "as saved": ([["a", "b"], ["c"]], [["a", "b"], ["c"]], None),
    "another order": ([["a", "b", "c"]], [["c", "a", "b"]], None),
    "other groups": ([["a", "b", "c"]], [["c"], ["a", "b"]], None),
    "other groups of the same sizes": ([["a"], ["b", "c"]], [["b"], ["c", "a"]], None),
    "a wrapper": ([["module.a", "module.b"], ["module._orig_mod.c"]], [["c", "a"], ["b"]], None),
    "other names": ([["x", "y", "z"]], [["a", "b", "c"]], None),  # matched by order, with a warning
    "some other names, in another order": ([["a", "y", "c"]], [["c", "a", "b"]], "in another order, and not all"),
    "others in other groups": ([["a", "b", "x"]], [["a"], ["b", "c"]], r"lacks parameters \['c'\] and has \['x'\]"),
}


@pytest.mark.parametrize("case", ORDERS)
@pytest.mark.parametrize("how", ["convert", "load"])
def test_conversion_matches_names_as_loading_does(case: str, how: str) -> None:
    saved, here, message = ORDERS[case]
    flat = [bare(name) for group in saved for name in group]

    def build(cls: Any, groups: list[list[str]], **options: Any) -> tuple[Any, dict[str, nn.Parameter]]:
        params = {name: nn.Parameter(torch.zeros(4, 4)) for group in groups for name in group}
        return cls([{"params": [(n, params[n]) for n in group]} for group in groups], **options), params

    source, params = build(halfulp.AdamW, saved, state="fp32")
    for i, p in enumerate(params.values()):
        p.grad = torch.full((4, 4), i + 1.0)
    source.step()
    target, own = build(halfulp.AdamW, here, state="fp32")
    regrouped = how == "load" and {frozenset(map(bare, g)) for g in saved} != {frozenset(g) for g in here}
    if message is not None or (regrouped and case != "other names"):
        with pytest.raises(ValueError, match=message if how == "convert" else None):
            load(source.state_dict(), target, how)
        return
    load(source.state_dict(), target, how)
    for place, (name, p) in enumerate(own.items()):
        number = flat.index(name) if name in flat else place
        expected = source.state[list(params.values())[number]]["exp_avg"]
        assert torch.equal(target.state[p]["exp_avg"], expected)


def load(state_dict: dict[str, Any], target: Any, how: str) -> None:
    target.load_state_dict(halfulp.convert_state_dict(state_dict, to=target) if how == "convert" else state_dict)


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("before", [None, "empty", "an older checkpoint"])
@pytest.mark.parametrize("error", ["full disk", "Ctrl-C"])
def test_a_folder_is_written_whole_or_not_at_all(
    error: str, before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = torch_run(model()), torch_run(model(), betas=BETAS)
    torch.save(new.state_dict(), tmp_path / "new.pt")
    out, command = tmp_path / "out", ["convert", str(tmp_path / "new.pt"), str(tmp_path / "out"), "--state", "torch"]
    if before is not None:
        out.mkdir()
    if before == "an older checkpoint":
        write_saved(old.state_dict(), out)
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with monkeypatch.context() as patched:
        failed = KeyboardInterrupt if error == "Ctrl-C" else OSError
        patched.setattr(os, "fsync", interrupted if error == "Ctrl-C" else full_disk)
        result = CliRunner().invoke(app, command)
        assert isinstance(result.exception, (failed, SystemExit))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert out.is_dir() == (before is not None)
    assert CliRunner().invoke(app, command).exit_code == 0
    ((_, found),) = find_optimizers(read_saved(out))
    for number, entries in new.state_dict()["state"].items():
        assert torch.equal(found["state"][str(number)]["exp_avg"], entries["exp_avg"])


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("out", "message"),
    [("new.pt/x", "Not a directory|File exists"), ("none/x.pt", "no folder to write to"), ("file", "not a folder")],
)
def test_a_target_that_cannot_be_is_named(out: str, message: str, tmp_path: Path) -> None:
    torch.save(torch_run(model()).state_dict(), tmp_path / "new.pt")
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "new.pt"), str(tmp_path / out)])
    assert isinstance(result.exception, OSError)
    assert re.search(message, str(result.exception))
    assert ".tmp" not in str(result.exception)
