"""Trainers: every example really runs, killed runs continue with the same bits, and our own parts work."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import halfulp
from halfulp.training import release_gradients
from halfulp.training.trainers import TrainerFactory, groups_by_name
from support.optimizers import assert_same, weights_and_states
from support.processes import torchrun

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = {
    "accelerate_loop": 4.0,
    "bf16_weights": 4.0,
    "compiled": 3.5,
    "cpu_offload": 3.5,
    "fsdp2": 3.5,
    "gradient_release": 3.5,
    "hf_trainer": 4.6,
    "lightning_module": 3.5,
    "plain_torch": 4.2,
}
"""What the loss, ln(256) = 5.55 at the start, is below after 20 steps: the last one, for `hf_trainer` the mean."""
LONGER = {"ddpm_ema", "finetune_minilm", "teacher_digits", "workers"}
"""Experiments of their own: too long for the tests, or in need of more than the extra ``dev`` installs."""


def run_python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=600, env=env, cwd=cwd, check=False
    )


@pytest.fixture(scope="module")
def outputs() -> dict[str, str]:
    """What each example printed; filled as they run."""
    return {}


def output(name: str, outputs: dict[str, str], cwd: Path) -> str:
    if name not in outputs:
        script = str(ROOT / "examples" / f"{name}.py")
        done = torchrun("script", 2, script, cwd=cwd) if name == "fsdp2" else run_python(script, cwd=cwd)
        assert done.returncode == 0, done.stderr[-4000:]
        outputs[name] = done.stdout
    return outputs[name]


def figure(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found is not None, text
    return float(found[1].replace(",", ""))


# ---------------------------------------------------------------- examples


def test_every_example_is_tested_and_short() -> None:
    found = {p.stem: p for p in (ROOT / "examples").glob("[!_]*.py")}
    assert set(found) - LONGER == set(EXAMPLES)
    for name in EXAMPLES:
        assert len(found[name].read_text().splitlines()) <= 30, name


def test_workers_of_the_example_learn_and_send_a_quarter_in_8_bits(tmp_path: Path) -> None:
    done = torchrun("script", 2, str(ROOT / "examples" / "workers.py"), "20", cwd=tmp_path)
    rows = re.findall(r"^(.+?) +loss ([\d.]+), +([\d.]+) MB", done.stdout, re.MULTILINE)
    loss, sent = ({name: float(row[i]) for name, *row in rows} for i in (0, 1))
    assert len(loss) == 4
    assert max(loss.values()) < math.log(256) - 0.3
    assert sent["local SGD, 8 bits"] < 0.3 * sent["local SGD, fp32"]
    assert (tmp_path / "workers.png").stat().st_size > 0


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_trains(name: str, outputs: dict[str, str], tmp_path: Path) -> None:
    assert figure(r"loss ([\d.]+)", output(name, outputs, tmp_path)) < EXAMPLES[name]


def test_examples_do_what_they_say(outputs: dict[str, str], tmp_path: Path) -> None:
    """Gradients freed, bytes a parameter, half of the states on each of two ranks, formats by name."""
    parameters = 114_000
    assert figure(r"gradients alive: (\d+)", output("gradient_release", outputs, tmp_path)) == 0
    assert figure(r"([\d.]+) per parameter", output("plain_torch", outputs, tmp_path)) < 2.1
    whole = figure(r"([\d,]+) bytes of state", output("cpu_offload", outputs, tmp_path))
    assert 4 * parameters < whole < 4.1 * parameters * 1.05  # remainders included
    assert figure(r"([\d.]+) bytes a parameter beside", output("bf16_weights", outputs, tmp_path)) < 4.1
    assert figure(r"([\d,]+) bytes of state", output("fsdp2", outputs, tmp_path)) < 0.55 * (whole - 2 * parameters)
    table = output("hf_trainer", outputs, tmp_path)
    assert re.search(r"embed_tokens.*bfloat16", table) is not None
    assert re.search(r"q_proj.*float8_e4m3fn", table) is not None


def test_gradient_release_and_compiled_layers_train_alike(outputs: dict[str, str], tmp_path: Path) -> None:
    """The examples differ in how the step is made, not in what is trained."""
    losses = [
        figure(r"loss ([\d.]+)", output(name, outputs, tmp_path))
        for name in ("gradient_release", "compiled", "lightning_module")
    ]
    assert max(losses) - min(losses) < 0.02


# ---------------------------------------------------------------- killed and resumed


@pytest.mark.parametrize("client", ["hf_trainer", "accelerate", "lightning"])
def test_a_killed_run_goes_on_with_the_same_bits(client: str, tmp_path: Path) -> None:
    worker = str(ROOT / "tests" / "trainers" / "worker.py")
    killed = run_python(worker, client, str(tmp_path), "kill", cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-4000:]
    resumed = run_python(worker, client, str(tmp_path), "resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr[-4000:]
    found, expected = (torch.load(tmp_path / f"{name}.pt") for name in ("resumed", "whole"))
    assert found.keys() == expected.keys()
    assert any(t.dtype == torch.uint8 for t in expected.values() if torch.is_tensor(t))  # including codes
    for key, value in expected.items():
        if torch.is_tensor(value):
            assert found[key].dtype == value.dtype, key
            assert torch.equal(found[key], value), key
        else:
            assert found[key] == value, key


# ---------------------------------------------------------------- parts


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.Embed = nn.Embedding(16, 64)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 32)
        self.frozen = nn.Linear(64, 64)
        self.frozen.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.Embed(tokens))).square().mean()  # type: ignore[no-any-return]


def by_name(groups: list[dict[str, object]]) -> dict[str, dict[str, object]]:
    return {
        name: {k: v for k, v in g.items() if k not in ("params", "param_names")}
        for g in groups
        for name in g["param_names"]  # type: ignore[attr-defined]
    }


def test_groups_by_name() -> None:
    model = Toy()
    groups = groups_by_name(model, {"*embed*": {"state": "bf16", "lr": 0.1}, "embed.*": {"lr": 0.2}})
    assert by_name(groups) == {
        "Embed.weight": {"state": "bf16", "lr": 0.2},  # case-insensitive; the later pattern wins
        "norm.weight": {"weight_decay": 0.0},
        "norm.bias": {"weight_decay": 0.0},
        "head.weight": {},
        "head.bias": {"weight_decay": 0.0},
    }
    assert len(groups) == 3  # parameters with the same keys share a group
    parameters = dict(model.named_parameters())
    for group in groups:
        for name, param in zip(group["param_names"], group["params"], strict=True):
            assert param is parameters[name]
    everything = by_name(groups_by_name(model, no_decay=()))
    assert set(everything) == set(by_name(groups))
    assert all(keys == {} for keys in everything.values())


NORMS = {
    "batch": nn.BatchNorm1d(4), "group": nn.GroupNorm(2, 4), "instance": nn.InstanceNorm1d(4, affine=True),
    "layer": nn.LayerNorm(4), "rms": nn.RMSNorm(4), "own": type("T5LayerNorm", (nn.RMSNorm,), {})(4),
}  # fmt: skip


@pytest.mark.parametrize("kind", NORMS)
def test_norms_of_every_family_are_not_decayed(kind: str) -> None:
    """Whatever they are called: ln_1, ln_f and bn are GPT-2's and ResNet's."""
    model = nn.ModuleDict({"ln_1": NORMS[kind], "fc": nn.Linear(4, 4, bias=False)})
    keys = by_name(groups_by_name(model))
    assert keys.pop("fc.weight") == {}
    assert keys
    assert all(k == {"weight_decay": 0.0} for k in keys.values())


FAMILIES = {
    "GPT2": {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 32, "n_positions": 8},
    "Llama": {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2},
    "Bert": {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2},
    "GPTNeoX": {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2},
    "T5": {"num_layers": 1, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "vocab_size": 32},
    "Bloom": {"n_layer": 1, "n_head": 2, "hidden_size": 16, "vocab_size": 32},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_does_not_decay_is_not(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.trainer import Trainer

    model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**FAMILIES[family]))
    decayed = {n for n, keys in by_name(groups_by_name(model)).items() if "weight_decay" not in keys}
    assert decayed <= set(Trainer.get_decay_parameter_names(None, model))
    assert all(dict(model.named_parameters())[n].ndim >= 2 for n in decayed)


class Arguments:
    """What a Trainer's arguments are made of here."""

    learning_rate, weight_decay, adam_beta1, adam_beta2, adam_epsilon = 5e-5, 0.03, 0.8, 0.95, 1e-6


class Calls:
    """Calls the factory as a Trainer does."""

    args = Arguments()

    def create_optimizer(self, **arguments: object) -> halfulp.AdamW:
        return TrainerFactory()(Toy(), **arguments)  # type: ignore[return-value, arg-type]


def test_the_factory_takes_over_the_arguments_of_the_trainer() -> None:
    made = Calls().create_optimizer()
    found = {k: made.param_groups[0][k] for k in ("lr", "betas", "eps", "weight_decay")}
    assert found == {"lr": 5e-5, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.03}
    made = Calls().create_optimizer(lr=1e-2, betas=(0.5, 0.6))  # arguments take precedence
    assert (made.param_groups[0]["lr"], made.param_groups[0]["betas"]) == (1e-2, (0.5, 0.6))
    lion = Calls().create_optimizer(optimizer=halfulp.Lion)  # its default betas differ from Adam's
    own = halfulp.Lion([nn.Parameter(torch.ones(1))]).defaults["betas"]
    assert (lion.param_groups[0]["lr"], lion.param_groups[0]["betas"]) == (5e-5, own)
    assert TrainerFactory()(Toy(), args=Arguments()).param_groups[0]["lr"] == 5e-5
    with pytest.raises(ValueError, match=r"lr=.*args="):
        TrainerFactory()(Toy())


def test_an_override_outweighs_no_decay() -> None:
    assert by_name(groups_by_name(Toy(), {"norm.*": {"weight_decay": 0.3}}))["norm.bias"] == {"weight_decay": 0.3}


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no parameter name matches \['\*embd\*'\]; names look like Embed.weight"):
        groups_by_name(Toy(), {"*embd*": {"state": "bf16"}})
    with pytest.raises(ValueError, match="frozen"):
        groups_by_name(Toy(), {"frozen.*": {"state": "bf16"}})  # matches no trained parameter


@pytest.mark.parametrize("name", ["AdamW", "Lion", "SGD"])
def test_factory_builds_the_optimizer_that_groups_do(name: str) -> None:
    kind = getattr(halfulp, name)
    overrides = {"*embed*": {"state": "bf16"}}
    arguments = {"lr": 1e-2, "state": "8bit", "min_size": 64, "weight_decay": 0.1, "rounding": "stochastic"}
    if name == "SGD":
        arguments["momentum"] = 0.9
    runs = []
    for build in ("factory", "groups"):
        model = Toy()
        if build == "factory":
            optimizer = TrainerFactory()(model, optimizer=kind, overrides=overrides, **arguments)
        else:
            optimizer = kind(groups_by_name(model, overrides), **arguments)
        assert type(optimizer) is kind
        train(model, optimizer, 3)
        runs.append(weights_and_states(model, optimizer))
    assert_same(*runs)


def test_factory_passes_bad_arguments_on() -> None:
    with pytest.raises(ValueError, match="lr"):
        TrainerFactory()(Toy(), lr=-1.0)
    with pytest.raises(TypeError, match="momentum"):
        TrainerFactory()(Toy(), lr=1e-3, momentum=0.9)
    with pytest.raises(TypeError, match="optimizer= is a class"):
        TrainerFactory()(Toy(), lr=1e-3, optimizer="Lion")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="state"):
        TrainerFactory()(Toy(), lr=1e-3, overrides={"*embed*": {"state": "float9"}})


def train(model: nn.Module, optimizer: halfulp.AdamW, steps: int, *, released: bool = False) -> None:
    tokens = torch.randint(16, (steps, 24), generator=torch.Generator().manual_seed(5))
    for batch in tokens:
        model(batch).backward()
        if not released:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("state", ["fp32", "bf16", "8bit", "4bit"])
@pytest.mark.parametrize("name", ["AdamW", "Lion"])
def test_released_gradients_give_the_bits_of_a_step(name: str, state: str) -> None:
    runs = []
    for released in (False, True):
        model = Toy()
        optimizer = getattr(halfulp, name)(
            model.named_parameters(), lr=1e-2, state=state, rounding="stochastic", reset=2, min_size=64
        )
        release = release_gradients(optimizer) if released else None
        train(model, optimizer, 5, released=released)
        assert all(p.grad is None for p in model.parameters())
        runs.append(weights_and_states(model, optimizer))
        if release is not None:
            release.remove()
        model(torch.arange(16)).backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)  # removed: gradients are kept
    assert_same(*runs)


def test_at_most_one_gradient_is_alive() -> None:
    model = Toy()
    alive: list[int] = []
    release_gradients(halfulp.AdamW(model.parameters(), lr=1e-3))
    for param in model.parameters():  # after the hook that frees the gradient
        if param.requires_grad:
            param.register_post_accumulate_grad_hook(
                lambda _: alive.append(sum(p.grad is not None for p in model.parameters()))
            )
    model(torch.arange(16)).backward()
    assert alive == [0] * 5
