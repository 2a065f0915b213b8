"""Scale models: similitude in the theory, replicated training, and the order of the arms in loss."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from halfulp import AdamW, plan_reset
from halfulp.cli import app
from halfulp.lab import scale
from halfulp.lab.decoder import ARCHITECTURES, Decoder
from halfulp.lab.files import write_json
from halfulp.lab.replicas import Replicas, round_fraction_
from halfulp.lab.results import paired
from halfulp.lab.scale import Job, ScaleConfig, best_rate, finals, gradient_scale, ladder, learning_rate, train_job
from halfulp.lab.scale_arms import ARMS, period_of, scale_arm
from halfulp.lab.scale_report import load_scale_model, write_scale_report
from halfulp.lab.text import load_corpus
from halfulp.lab.tokens import Tokens, prepare_tokens
from halfulp.numbers.formats import get_format
from halfulp.numbers.quantizer import Quantizer
from halfulp.theory.predict import stall_curve
from halfulp.theory.similitude import free_float, scale_model
from support.decoder import decoder_loss

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
        ("bf16", {"steps": 7}, "no model that is 8 times shorter"),
        ("bf16", {"factor": 0}, "power of two, got 0"),
        ("bf16", {"factor": -8}, "power of two, got -8"),
        ("bf16", {"betas": (0.875, 0.999)}, "no window"),
        ("bf16", {"betas": (0.9, 0.875)}, "no window"),
        ("bf16", {"betas": (0.9, 1.0)}, "no window"),
        ("bf16", {"betas": (0.0, 0.999), "factor": 1}, "no window"),
        ("fp4", {"factor": 4}, "go to a factor of 2, got 4"),
    ],
)
def test_what_has_no_model_is_refused(fmt: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        scale_model(fmt, **options)


def test_the_smallest_and_largest_models() -> None:
    smallest = scale_model("bf16", steps=8, betas=(0.876, 0.999))
    assert (smallest.model_steps, smallest.model_betas) == (1, (0.008, 0.992))
    assert [fmt.mantissa_bits for fmt in scale_model("fp4", factor=2).formats] == [0, 1]
    same = scale_model("fp8", factor=1)
    assert (same.model_steps, same.model_betas) == (same.steps, same.betas)
    assert [fmt.mantissa_bits for fmt in same.formats] == [same.first.mantissa_bits, same.second.mantissa_bits]
    assert [smallest.period(steps) for steps in (None, 1, 3, 12, 13, 1000)] == [None, 1, 1, 2, 2, 125]
    for bits in (-1, 8):
        with pytest.raises(ValueError, match=f"0 to 7 fraction bits, got {bits}"):
            free_float(bits)


def test_shares_of_a_run_are_those_of_its_curve() -> None:
    model = scale_model("fp8", factor=4, steps=400, betas=(0.9, 0.99))
    for rounding in ("nearest", "stochastic"):
        shares, *curves = model.stalled(rounding, points=4)
        assert shares.tolist() == [0.25, 0.5, 0.75, 1.0]
        for bits, beta, steps, found in ((3, 0.99, 400, curves[0]), (1, 0.96, 100, curves[1])):
            curve = stall_curve(free_float(bits), beta=beta, rounding=rounding, steps=steps)
            assert found.tolist() == [curve[steps * k // 4 - 1] for k in (1, 2, 3, 4)]
    shares, *curves = scale_model("fp8", factor=4, steps=8, betas=(0.9, 0.99)).stalled("nearest", points=5)
    assert curves[1][0] == curves[1][1] != curves[1][-1]  # ages 1, 1, 1, 2 and 2


@pytest.mark.parametrize("bits", [0, 1, 4, 7])
def test_rounding_at_any_exponent(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(4000, generator=generator) * torch.exp2(
        torch.randint(-60, 60, (4000,), generator=generator).float()
    )
    exact = x.double()
    unit = torch.exp2(torch.frexp(exact)[1].double() - 1 - bits)
    assert torch.equal(round_fraction_(x.clone(), bits).double(), torch.round(exact / unit) * unit)
    words = torch.randint(-(1 << 31), 1 << 31, (4000,), generator=generator).to(torch.int32)
    up = round_fraction_(x.clone(), bits, words).double()
    below, above = torch.trunc(exact / unit) * unit, (torch.trunc(exact / unit) + torch.sign(exact)) * unit
    assert bool(((up == below) | (up == above)).all())
    share = ((exact - below) / unit).abs()
    taken = (up == above) & (above != below)
    assert abs(float(taken.double().mean()) - float(share.mean())) < 0.03


def _replicas(seeds: list[int], lrs: list[float], architecture: str = "llama") -> Replicas:
    return Replicas(Decoder(architecture, 256, 16, 2, 2), seeds, lrs, betas=(0.9, 0.99), weight_decay=0.1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_those_of_autograd(architecture: str) -> None:
    runs = _replicas([3, 4], [1e-2, 1e-2], architecture)
    noise = torch.Generator().manual_seed(1)
    runs.params += 0.1 * torch.randn(runs.params.shape, generator=noise)
    tokens = torch.randint(0, 256, (2, 3, 17), generator=noise)
    losses = runs.backward(tokens)
    for row in range(2):
        weights = {n: w[row].double().requires_grad_() for n, w in runs.weights.items()}
        loss = decoder_loss(weights, tokens[row], architecture, heads=2)
        assert losses[row].item() == pytest.approx(loss.item(), rel=1e-6)
        loss.backward()
        for name, weight in weights.items():
            found, exact = runs.weight_grads[name][row].double(), weight.grad
            assert exact is not None
            assert (found - exact).norm() < 1e-5 * exact.norm(), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_replica_trains_as_our_optimizer_does_on_it_alone(architecture: str) -> None:
    runs = _replicas([3, 4], [1e-2, 2e-2], architecture)
    alone = {g: runs.params[0, span].clone().requires_grad_() for g, span in runs.groups.items()}
    groups = [{"params": [p], "weight_decay": 0.0 if g == "norms" else 0.1} for g, p in alone.items()]
    optimizer = AdamW(groups, lr=1e-2, betas=(0.9, 0.99), state="fp32")
    for step in range(4):
        batch = torch.randint(0, 256, (2, 2, 17), generator=torch.Generator().manual_seed(step))
        runs.backward(batch)
        for group, p in alone.items():
            p.grad = runs.grads[0, runs.groups[group]].clone()
        runs.step(1.0)
        optimizer.step()
        for group, p in alone.items():
            assert torch.equal(p.detach(), runs.params[0, runs.groups[group]]), group


def test_replicas_do_not_hang_on_each_other() -> None:
    batch = torch.randint(0, 256, (1, 2, 17), generator=torch.Generator().manual_seed(0))
    together = _replicas([1, 2, 3], [1e-2] * 3).backward(batch.expand(3, -1, -1))
    for i, seed in enumerate((1, 2, 3)):
        torch.testing.assert_close(_replicas([seed], [1e-2]).backward(batch), together[i : i + 1], rtol=1e-6, atol=1e-6)


def test_a_replica_with_a_gradient_that_is_not_finite_is_known() -> None:
    runs = _replicas([1, 2], [1e-2] * 2)
    runs.grads[1, 5] = float("nan")
    runs.step(1.0)
    assert runs.skipped[0] == 0 < runs.skipped[1]


@pytest.mark.parametrize("name", ["nearest + reset", "stochastic"])
def test_a_job_that_was_cut_short_goes_on_with_the_same_bits(
    name: str, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "CHECKPOINT", 7)
    config = dataclasses.replace(TINY, arms=("fp32", name))
    job, text = Job(name, "own", (3e-3,), (0, 1)), Tokens(tokens, config.context)
    whole = train_job(config, job, text)

    class Cut:
        vocab = text.vocab

        def batch(self, seed: int, step: int, size: int) -> torch.Tensor:
            if step == 17:
                raise KeyboardInterrupt
            return text.batch(seed, step, size)

    with pytest.raises(KeyboardInterrupt):
        train_job(config, job, Cut(), tmp_path / "part")  # type: ignore[arg-type]
    again = train_job(config, job, text, tmp_path / "part")
    assert len(again["rows"]) == len(whole["rows"])
    assert again == whole


@pytest.mark.parametrize("name", list(ARMS))
def test_every_arm_trains(name: str, tokens: Path) -> None:
    config = dataclasses.replace(TINY, arms=("fp32", name) if name != "fp32" else ("fp32",))
    found = train_job(config, Job(name, "own", (3e-3,), (0, 1)), Tokens(tokens, config.context))
    assert all(x is not None and x < 5.6 for x in found["validation"])
    stalled = found["rows"][-1]["stalled"]
    rounded = ARMS[name].rounding is not None and "exp_avg_sq" in ARMS[name].stored
    assert [0 < s < 1 for s in stalled] == [rounded] * 2


def test_a_state_that_was_just_reset_is_compared_bias_corrected() -> None:
    runs = _replicas([1, 2], [1e-3] * 2)
    watch = scale._Watch(runs)
    for step in range(12):
        if step == 10:
            runs.reset(tuple(runs.groups))
        runs.grads.fill_(0.1)  # all averages of a constant square are equal, at any age
        watch.follow(True)
        runs.step(1.0)
        watch.record(torch.zeros(2))
    assert [row["ratio"] for row in watch.rows] == [pytest.approx([1.0, 1.0], rel=1e-5)] * 12


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
    assert period_of(ARMS["nearest + reset (half)"], model) == round(planned / 2)
    assert period_of(ARMS["nearest + reset (published)"], model) == 125
    assert period_of(ARMS["nearest"], model) is None
    assert period_of(scale_arm("nearest + reset (40)"), model) == 40
    for name in ("nearest + reset", "nearest + reset (embedding spared)"):
        assert scale_arm(f"{name} (40)") == dataclasses.replace(ARMS[name], reset=40)


N, S = "nearest", "stochastic"
ROUNDED = {  # first and second moment of the embedding, then of the matrices
    "fp32": (None, None, None, None), "nearest": (N, N, N, N), "stochastic": (S, S, S, S),
    "nearest (first moment only)": (N, None, N, None), "nearest (second moment only)": (None, N, None, N),
    "nearest (embedding fp32)": (None, None, N, N), "nearest (first moment stochastic)": (S, N, S, N),
    "nearest (second moment stochastic)": (N, S, N, S), "nearest + reset (embedding spared)": (N, N, N, N),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUNDED)
@pytest.mark.parametrize("blocks", [False, True])
def test_arms_round_what_they_say(name: str, blocks: bool) -> None:
    config = dataclasses.replace(TINY, format="fp8", factor=4, blocks=blocks, arms=("fp32", name))
    generator = torch.Generator().manual_seed(0)
    values = torch.rand((2, 8 * config.hidden), generator=generator)
    words = torch.randint(-(1 << 31), 1 << 31, values.shape, generator=generator).int()
    store = scale.storage(config, ARMS[name])
    places = [(group, slot) for group in ("embedding", "layer 0") for slot in ("exp_avg", "exp_avg_sq")]
    for (group, slot), rounding in zip(places, ROUNDED[name], strict=True):
        found = values.clone()
        store(group, slot, found, words)
        expected = values.clone()
        if rounding is not None and blocks:
            fmt = get_format("fp8", signed=slot == "exp_avg")
            quantizer = Quantizer(fmt, rounding=rounding, zero_floor=slot == "exp_avg_sq")
            rows = expected.reshape(-1, config.hidden)
            codes = quantizer.quantize(rows, words.reshape(rows.shape).long() & 0xFFFFFFFF if rounding == S else None)
            expected = quantizer.dequantize(*codes, rows.shape).reshape(values.shape)
        elif rounding is not None:
            bits = config.model.formats[slot == "exp_avg_sq"].mantissa_bits
            round_fraction_(expected, bits, words if rounding == S else None)
        assert torch.equal(found, expected), (group, slot)
    norms = values.clone()
    store("norms", "exp_avg_sq", norms, words)
    assert torch.equal(norms, values)


@pytest.mark.parametrize("name", ["nearest (40)", "nearest + reset (1)", "bf16 + reset (40)", "nearest + reset (x)"])
def test_an_arm_that_does_not_exist(name: str) -> None:
    with pytest.raises(ValueError, match=r"stochastic \+ reset.*resets every N steps"):
        ScaleConfig(arms=("fp32", name))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden": 0}, "hidden is a whole number of at least 1, got 0"),
        ({"heads": -1}, "heads is a whole number of at least 1, got -1"),
        ({"hidden": 12, "heads": 4}, "an even width, got 12 over 4 heads"), ({"warmup": 1.5}, "got 1.5 and None"),
        ({"clip": 0.0}, "clip positive, got 0.02 and 0.0"),
        ({"validation": 0}, "validation is a whole number of at least 1, got 0"),
    ],
)  # fmt: skip
def test_sizes_are_checked_before_anything_runs(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScaleConfig(**values)


def test_the_best_rate_is_one_at_which_nothing_diverged() -> None:
    result = {"arm": "x", "replicas": [(0, 1e-3), (1, 1e-3), (0, 2e-3), (1, 2e-3)], "validation": [2.0, 2.2, 1.0, None]}
    assert best_rate(result) == 1e-3
    with pytest.raises(ValueError, match="diverged"):
        best_rate({**result, "validation": [None] * 4})


def test_command_resumes_and_writes_its_page(tmp_path: Path, tokens: Path) -> None:
    text = tmp_path / "text.py"
    text.write_text(Path(train_job.__code__.co_filename).read_text() * 4)
    out = tmp_path / "run"
    size = "--steps 160 --hidden 16 --layers 1 --heads 2 --batch 2 --context 16 --seeds 2 --lr 0.003,0.01"
    options = ["--scale-model", "8", *size.split(), "--arms", "fp32,nearest,stochastic"]
    done = CliRunner().invoke(app, ["compare", *options, "--data", str(text), "--out", str(out), "--jobs", "1"])
    assert done.exit_code == 0, done.output
    results = load_scale_model(out)
    assert [a.name for a in results.arms] == ["fp32", "nearest", "stochastic"]
    assert "validation loss minus fp32's" in done.output
    page = (out / "report.html").read_text()
    assert "nearest" in page
    first = (out / "own-nearest.json").read_text()
    (out / "own-nearest.json").unlink()
    again = CliRunner().invoke(app, ["compare", "--resume", str(out), "--jobs", "1"])
    assert again.exit_code == 0, again.output
    assert json.loads((out / "own-nearest.json").read_text()) == json.loads(first)
    picture = tmp_path / "loss.png"
    drawn = CliRunner().invoke(app, ["report", str(out), "--export", str(picture)])
    assert drawn.exit_code == 0, drawn.output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_every_arm_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("halfulp.cli.runs.run_scale", lambda given, *others: asked.append(given))
    done = CliRunner().invoke(app, ["compare", "--scale-model", "8", "--arms", "all", "--seeds", "8"])
    assert done.exit_code == 0, done.output
    assert asked == [{"arms": tuple(ARMS), "seeds": 8, "factor": 8}]


def test_one_rate_needs_no_ladder(tokens: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, lrs=(3e-3,), arms=("fp32", "nearest"))
    assert ladder(config) == []
    (tmp_path / "tokens").symlink_to(tokens)
    write_json(tmp_path / "config.json", dataclasses.asdict(config))
    jobs = finals(config, {})
    assert [job.name for job in jobs] == ["own-fp32.json", "own-nearest.json"]
    for job in jobs:
        write_json(tmp_path / job.name, train_job(config, job, Tokens(tokens, config.context)))
    results = load_scale_model(tmp_path)
    fp32, nearest = results.arms
    assert nearest.own == nearest.common == paired(nearest.final, fp32.final)
    assert fp32.own is None
    assert 0 < nearest.late_stalled < 1
    assert "Loss against rate" not in write_scale_report(tmp_path).read_text()


def test_finals_run_at_both_rates() -> None:
    jobs = finals(
        dataclasses.replace(TINY, arms=("fp32", "nearest")),
        {
            "fp32": {"arm": "fp32", "replicas": [(0, 3e-3), (0, 1e-2)], "validation": [1.0, 2.0]},
            "nearest": {"arm": "nearest", "replicas": [(0, 3e-3), (0, 1e-2)], "validation": [2.0, 1.0]},
        },
    )
    assert {job.name: job.lrs for job in jobs} == {
        "own-fp32.json": (3e-3,), "own-nearest.json": (1e-2,), "common-nearest.json": (3e-3,),
    }  # fmt: skip
    assert {job.name for job in ladder(TINY)} == {
        "ladder-fp32.json", "ladder-nearest.json", "ladder-nearest-reset.json", "ladder-stochastic.json",
    }  # fmt: skip


def test_nearest_rounding_of_bf16_costs_loss_and_resets_and_stochastic_rounding_give_it_back(tokens: Path) -> None:
    """Six windows of the second moment, four paired seeds at one rate, a model of 18 000 parameters."""
    config = ScaleConfig(steps=6000, hidden=32, layers=1, heads=2, batch=2, context=32, validation=64)
    text = Tokens(tokens, config.context)
    losses = {
        arm: np.array(train_job(config, Job(arm, "own", (2e-3,), (0, 1, 2, 3)), text)["validation"])
        for arm in config.arms
    }
    gaps = {arm: loss - losses["fp32"] for arm, loss in losses.items()}
    assert gaps["nearest"].mean() > 0.02, gaps
    for arm in ("nearest + reset", "stochastic"):
        assert (losses[arm] < losses["nearest"]).sum() >= 3, gaps
        assert gaps[arm].mean() < 0.7 * gaps["nearest"].mean(), gaps
