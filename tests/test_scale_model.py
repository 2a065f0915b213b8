"""Scale models: similitude of the theory, the replicated training, and the order of the arms in loss."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from halfulp import AdamW, plan_reset
from halfulp.cli import app
from halfulp.lab.replicas import Replicas, round_fraction
from halfulp.lab.scale import Job, ScaleConfig, best_rate, finals, gradient_scale, ladder, learning_rate, train_job
from halfulp.lab.scale_arms import ARMS, period_of
from halfulp.lab.scale_report import load_scale_model
from halfulp.lab.text import load_corpus
from halfulp.lab.tokens import Tokens, prepare_tokens
from halfulp.theory.similitude import scale_model

TINY = ScaleConfig(
    steps=160, factor=8, hidden=16, layers=1, heads=2, batch=2, context=16, seeds=2, validation=8, lrs=(3e-3, 1e-2)
)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scale")
    prepare_tokens(load_corpus(None, max_mb=1.0), "bytes", 64, folder / "tokens")
    return folder / "tokens"


@pytest.mark.parametrize(("fmt", "factor"), [("bf16", 4), ("bf16", 8), ("fp8", 4), ("fp4", 2)])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_model_stalls_as_its_original(fmt: str, factor: int, rounding: str) -> None:
    _, original, model = scale_model(fmt, factor=factor).stalled(rounding, points=8)
    assert np.abs(original - model).max() < 0.006


@pytest.mark.parametrize(
    ("fmt", "options", "words"),
    [
        ("int8", {}, "low-precision float"),
        ("fp32", {}, "low-precision float"),
        ("bf16", {"factor": 3}, "power of two"),
        ("fp8", {"factor": 16}, "fraction bits"),
        ("bf16", {"factor": 16}, "no window"),
        ("bf16", {"steps": 4}, "no model"),
    ],
)
def test_what_has_no_model_is_refused(fmt: str, options: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        scale_model(fmt, **options)


@pytest.mark.parametrize("bits", [0, 1, 4, 7])
def test_rounding_at_any_exponent(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(4000, generator=generator) * torch.exp2(
        torch.randint(-60, 60, (4000,), generator=generator).float()
    )
    exact = x.double()
    unit = torch.exp2(torch.frexp(exact)[1].double() - 1 - bits)
    assert torch.equal(round_fraction(x, bits).double(), torch.round(exact / unit) * unit)
    words = torch.randint(0, 1 << 32, (4000,), generator=generator)
    up = round_fraction(x, bits, words).double()
    below, above = torch.trunc(exact / unit) * unit, (torch.trunc(exact / unit) + torch.sign(exact)) * unit
    assert bool(((up == below) | (up == above)).all())
    share = ((exact - below) / unit).abs()
    taken = (up == above) & (above != below)
    assert abs(float(taken.double().mean()) - float(share.mean())) < 0.03


def _replicas(seeds: list[int], lrs: list[float], architecture: str = "llama") -> Replicas:
    return Replicas(
        seeds, lrs, architecture=architecture, vocab=256, hidden=16, layers=1, heads=2, context=16, betas=(0.9, 0.99),
        weight_decay=0.1, store=lambda name, slot, value, words: value,
    )  # fmt: skip


@pytest.mark.parametrize("architecture", ["llama", "neox"])
def test_a_replica_trains_as_our_optimizer_does_on_it_alone(architecture: str) -> None:
    runs = _replicas([3, 4], [1e-2, 2e-2], architecture)
    alone = {n: p[:1].detach().clone().requires_grad_() for n, p in runs.params.items()}
    groups = [{"params": [p], "weight_decay": 0.0 if n == "norms" else 0.1} for n, p in alone.items()]
    optimizer = AdamW(groups, lr=1e-2, betas=(0.9, 0.99), state="fp32")
    for step in range(4):
        batch = torch.randint(0, 256, (2, 2, 17), generator=torch.Generator().manual_seed(step))
        runs.backward(batch)
        for name, p in alone.items():
            p.grad = runs.params[name].grad[:1].clone()  # type: ignore[index]
        runs.step(1.0)
        optimizer.step()
        for name, p in alone.items():
            assert torch.equal(p.detach(), runs.params[name][:1].detach()), name


def test_replicas_do_not_hang_on_each_other() -> None:
    batch = torch.randint(0, 256, (1, 2, 17), generator=torch.Generator().manual_seed(0))
    together = _replicas([1, 2, 3], [1e-2] * 3).backward(batch.expand(3, -1, -1))
    for i, seed in enumerate((1, 2, 3)):
        torch.testing.assert_close(_replicas([seed], [1e-2]).backward(batch), together[i : i + 1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", list(ARMS))
def test_every_arm_trains(name: str, tokens: Path) -> None:
    config = dataclasses.replace(TINY, arms=("fp32", name) if name != "fp32" else ("fp32",))
    found = train_job(config, Job(name, "final", (3e-3,), (0, 1)), Tokens(tokens, config.context))
    assert all(x is not None and x < 5.6 for x in found["validation"])
    stalled = found["rows"][-1]["stalled"]
    rounded = ARMS[name].rounding is not None and "exp_avg_sq" in ARMS[name].stored
    assert [0 < s < 1 for s in stalled] == [rounded] * 2


@pytest.mark.parametrize("regime", ["constant", "falling", "jumping"])
def test_regimes(regime: str) -> None:
    config = dataclasses.replace(TINY, regime=regime)
    scales = [gradient_scale(config, step) for step in range(1, config.model.model_steps + 1)]
    assert scales[0] > 0.85
    assert scales[-1] == pytest.approx(1.0 if regime == "constant" else 0.1)


def test_rates_warm_up_and_fall_to_zero() -> None:
    config, total = ScaleConfig(), ScaleConfig().model.model_steps
    shares = [learning_rate(config, ARMS["fp32"], None, step) for step in range(1, total + 1)]
    assert max(shares) == 1.0
    assert shares[0] == pytest.approx(1 / 50)
    assert shares[-1] == pytest.approx(0.0, abs=1e-9)


def test_periods() -> None:
    model = ScaleConfig().model
    planned = period_of(ARMS["nearest + reset"], model)
    assert planned == plan_reset(model.formats[1], beta=0.992, beta1=0.2, rounding="nearest").period
    assert planned is not None
    assert period_of(ARMS["nearest + reset, half"], model) == round(planned / 2)
    assert period_of(ARMS["nearest + reset, published"], model) == 125
    assert period_of(ARMS["nearest"], model) is None


def test_the_best_rate_is_one_at_which_nothing_diverged() -> None:
    result = {"arm": "x", "replicas": [(0, 1e-3), (1, 1e-3), (0, 2e-3), (1, 2e-3)], "validation": [2.0, 2.2, 1.0, None]}
    assert best_rate(result) == 1e-3
    with pytest.raises(ValueError, match="diverged"):
        best_rate({**result, "validation": [None] * 4})


def test_command_resumes_and_writes_its_page(tmp_path: Path, tokens: Path) -> None:
    text = tmp_path / "text.py"
    text.write_text(Path(train_job.__code__.co_filename).read_text() * 4)
    out = tmp_path / "run"
    options = [
        "--scale-model",
        "8",
        "--steps",
        "160",
        "--hidden",
        "16",
        "--layers",
        "1",
        "--heads",
        "2",
        "--batch",
        "2",
    ]
    options += ["--context", "16", "--seeds", "2", "--lr", "0.003,0.01", "--arms", "fp32,nearest,stochastic"]
    done = CliRunner().invoke(app, ["compare", *options, "--data", str(text), "--out", str(out), "--jobs", "1"])
    assert done.exit_code == 0, done.output
    results = load_scale_model(out)
    assert [a.name for a in results.arms] == ["fp32", "nearest", "stochastic"]
    assert "validation loss less fp32's" in done.output
    page = (out / "report.html").read_text()
    assert "nearest" in page
    first = (out / "final-nearest.json").read_text()
    (out / "final-nearest.json").unlink()
    again = CliRunner().invoke(app, ["compare", "--resume", str(out), "--jobs", "1"])
    assert again.exit_code == 0, again.output
    assert json.loads((out / "final-nearest.json").read_text()) == json.loads(first)


def test_finals_run_at_both_rates() -> None:
    jobs = finals(
        dataclasses.replace(TINY, arms=("fp32", "nearest")),
        {
            "fp32": {"arm": "fp32", "replicas": [(0, 3e-3), (0, 1e-2)], "validation": [1.0, 2.0]},
            "nearest": {"arm": "nearest", "replicas": [(0, 3e-3), (0, 1e-2)], "validation": [2.0, 1.0]},
        },
    )
    assert [job.lrs for job in jobs] == [(3e-3,), (1e-2, 3e-3)]
    assert {job.name for job in jobs + ladder(TINY)} == {
        "final-fp32.json", "final-nearest.json", "ladder-fp32.json", "ladder-nearest.json",
        "ladder-nearest+reset.json", "ladder-stochastic.json",
    }  # fmt: skip
