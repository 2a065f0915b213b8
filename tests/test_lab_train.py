"""Training runs of the lab: they learn, continue to the same bits after an interruption, and measure."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from halfulp.lab.averages import WeightAverages
from halfulp.lab.checkpoint import load_checkpoint
from halfulp.lab.config import CompareConfig
from halfulp.lab.files import read_json, write_json
from halfulp.lab.model import MODELS, build_model
from halfulp.lab.train import is_measured, learning_rate
from support.lab_runs import TINY, averages, bits, figures, run_folder, summaries, train_all

ARMS = ("fp32", "bf16-nearest", "fp8-stochastic-reset8", "fp4-stochastic", "int8-nearest")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = CompareConfig(arms=ARMS, steps=20, checkpoint_every=6, **TINY)
    folder = run_folder(tmp_path_factory.mktemp("straight") / "run", config)
    train_all(folder, config)
    return folder


def test_every_arm_learns(straight: Path) -> None:
    for name, rows in figures(straight).items():
        assert rows[0]["loss"] == pytest.approx(math.log(256), abs=0.35), name
        assert rows[-1]["validation"] < rows[0]["loss"] - 0.5, name
        assert rows[-1]["step"] == 20
        assert read_json(straight / "runs" / name / "summary.json")["validation"] == rows[-1]["validation"]


def test_plain_fp32_arm_keeps_averages_that_do_not_touch_it(straight: Path, tmp_path: Path) -> None:
    kept = averages(straight)
    assert [name for name, found in kept.items() if found] == ["fp32_lr0.002_seed0"]
    found = kept["fp32_lr0.002_seed0"]
    assert list(found) == ["live", "fp32", "bf16", "8bit"]
    assert found["live"]["validation"] == figures(straight)["fp32_lr0.002_seed0"][-1]["validation"]
    assert [found[s]["bytes_per_weight"] for s in ("fp32", "bf16")] == [4.0, 2.0]
    assert 1.0 < found["8bit"]["bytes_per_weight"] < 1.1
    config = CompareConfig(arms=("fp32",), steps=20, checkpoint_every=6, average_decay=None, **TINY)
    folder = run_folder(tmp_path / "run", config)
    train_all(folder, config)
    assert averages(folder) == {"fp32_lr0.002_seed0": None}
    assert figures(folder)["fp32_lr0.002_seed0"] == figures(straight)["fp32_lr0.002_seed0"]
    tensors = bits(straight)["fp32_lr0.002_seed0"]
    assert bits(folder)["fp32_lr0.002_seed0"] == {k: v for k, v in tensors.items() if not k.startswith("averages.")}
    with pytest.raises(ValueError, match="other averages"):
        train_all(folder, CompareConfig(arms=("fp32",), steps=20, checkpoint_every=6, **TINY))


def test_averages_are_those_of_the_formula() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(80, 64, bias=False))
    averages_, decay = WeightAverages(model, 0.9, seed=0), 0.9
    exact = coarse = None
    for step in range(30):
        torch.nn.init.normal_(model[0].weight, mean=1.0, std=0.2, generator=torch.Generator().manual_seed(step))
        averages_.update()
        live = model[0].weight.detach()
        exact = live.double() if exact is None else exact * decay + live.double() * (1 - decay)
        rounded = live.bfloat16()
        coarse = rounded if coarse is None else torch.lerp(coarse, rounded, 1 - decay)
    values = {state: found["0.weight"] for state, found in averages_.values().items()}
    assert exact is not None
    assert coarse is not None
    torch.testing.assert_close(values["fp32"].double(), exact, rtol=1e-6, atol=1e-6)
    assert torch.equal(values["bf16"], coarse.float())
    before = model[0].weight.detach().clone()
    found = averages_.measure(lambda: float(model[0].weight.detach().double().sum()))
    assert torch.equal(model[0].weight, before)
    for state, value in values.items():
        assert found[state]["validation"] == float(value.double().sum())
        distance = (value.double() - values["fp32"].double()).norm() / values["fp32"].double().norm()
        assert found[state]["distance"] == pytest.approx(float(distance), rel=1e-4, abs=1e-9)


def test_arms_start_alike_and_part(straight: Path) -> None:
    first = {rows[0]["loss"] for rows in figures(straight).values()}
    last = {rows[-1]["loss"] for rows in figures(straight).values()}
    assert len(first) == 1
    assert len(last) == len(ARMS)


def test_memory_is_that_of_the_formats(straight: Path) -> None:
    sizes = {n: read_json(straight / "runs" / n / "summary.json") for n in figures(straight)}
    per = {n.partition("_")[0]: s["bytes_per_parameter"] for n, s in sizes.items()}
    assert per["fp32"] == 8.0
    kept = 8.0 * 192 / sizes["fp32_lr0.002_seed0"]["parameters"]  # three norms of 64
    assert per["bf16-nearest"] == pytest.approx(4.0 + kept / 2, abs=1e-6)
    assert 2.0 < per["fp8-stochastic-reset8"] < 2.06 + kept
    assert 1.0 < per["fp4-stochastic"] < 1.06 + kept


@pytest.mark.parametrize("cut", [5, 6, 13])
def test_stopped_and_continued_is_bit_identical(cut: int, straight: Path, tmp_path: Path) -> None:
    config = CompareConfig(arms=ARMS, steps=20, checkpoint_every=6, **TINY)
    folder = run_folder(tmp_path / "run", config)
    steps = {"left": cut}

    def stop() -> bool:
        steps["left"] -= 1
        return steps["left"] % cut == 0

    train_all(folder, config, stop=stop)
    assert not list(folder.glob("runs/*/summary.json"))
    train_all(folder, config)
    assert bits(folder) == bits(straight)
    assert figures(folder) == figures(straight)
    assert averages(folder) == averages(straight)
    assert summaries(folder, "own_prediction") == summaries(straight, "own_prediction")


def test_arms_in_low_precision_predict_from_their_own_gradients(straight: Path, tmp_path: Path) -> None:
    for name, own in summaries(straight, "own_prediction").items():
        assert (own is None) == name.startswith("fp32")
        if own is not None:
            rows = figures(straight)[name][3:]  # from the fourth measurement on
            for slot, lost in own.items():
                assert len(lost) == 20
                gaps = [abs(lost[row["step"] - 1] - row["slots"][slot]["stalled"]) for row in rows]
                assert sum(gaps) / len(gaps) < 0.08  # of 32 blocks, in the very first steps
    config = CompareConfig(arms=("bf16-nearest",), steps=20, checkpoint_every=6, gradient_blocks=0, **TINY)
    folder = run_folder(tmp_path / "without", config)
    train_all(folder, config)
    assert summaries(folder, "own_prediction") == {"bf16-nearest_lr0.002_seed0": None}
    assert figures(folder).items() <= figures(straight).items()  # recording changes nothing


def test_rows_after_the_checkpoint_are_done_again(straight: Path, tmp_path: Path) -> None:
    """As after a kill: metrics reach further than the checkpoint, and the last line is torn."""
    config = CompareConfig(arms=("bf16-nearest",), steps=20, checkpoint_every=6, **TINY)
    folder = run_folder(tmp_path / "run", config)
    calls = iter([False] * 5 + [True])
    train_all(folder, config, stop=lambda: next(calls))
    (metrics,) = folder.glob("runs/*/metrics.jsonl")
    with metrics.open("a") as file:
        file.write(json.dumps({"step": 8, "loss": 0.0, "slots": {}}) + '\n{"step": 9, "lo')
    train_all(folder, config)
    name = metrics.parent.name
    assert figures(folder)[name] == figures(straight)[name]
    assert bits(folder)[name] == bits(straight)[name]


def test_damaged_and_foreign_checkpoints_are_refused(straight: Path, tmp_path: Path) -> None:
    from halfulp import AdamW, StallMonitor

    good = next(straight.glob("runs/bf16-nearest*/checkpoint.safetensors"))
    bad = tmp_path / "checkpoint.safetensors"
    bad.write_bytes(good.read_bytes()[:-100])
    sizes = {"vocab": 256, "layers": 1, "heads": 2, "context": 32, "seed": 0}
    model = build_model("llama", hidden=64, **sizes)  # type: ignore[arg-type]
    other = build_model("llama", hidden=32, **sizes)  # type: ignore[arg-type]
    before = [p.clone() for p in model.parameters()]
    cases = [
        (bad, model, "is truncated .* Delete it to start this arm anew"),
        (good, other, "of another model"),
        (good, model, "groups"),
    ]
    for path, into, message in cases:
        optimizer = AdamW(into.parameters(), state="bf16")
        with pytest.raises(ValueError, match=message):
            load_checkpoint(path, into, {"optimizer": optimizer, "monitor": StallMonitor(optimizer)})
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains(name: str, tmp_path: Path) -> None:
    config = CompareConfig(arms=("fp8-stochastic",), steps=15, model=name, **TINY)
    folder = run_folder(tmp_path / "run", config)
    train_all(folder, config)
    (rows,) = figures(folder).values()
    assert rows[-1]["validation"] < rows[0]["loss"] - 0.1
    assert rows[-1]["slots"]["exp_avg_sq"]["format"] == "float8_e4m3fn"


def test_initial_weights_hang_on_the_seed_only() -> None:
    sizes = {"vocab": 256, "hidden": 32, "layers": 1, "heads": 2, "context": 16}
    a, b, c = (build_model("llama", seed=s, **sizes) for s in (0, 0, 1))  # type: ignore[arg-type]
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert any(not torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))


def test_divergence_ends_a_run_and_is_counted(tmp_path: Path) -> None:
    config = CompareConfig(arms=("fp32",), steps=20, lrs=(1e30,), **TINY)
    folder = run_folder(tmp_path / "run", config)
    train_all(folder, config)
    (summary,) = (read_json(p) for p in folder.glob("runs/*/summary.json"))
    assert summary["diverged"]
    assert summary["validation"] is None
    assert summary["steps"] < 20
    (rows,) = figures(folder).values()
    assert rows[-1]["step"] == summary["steps"]


def test_measured_at_regular_steps_and_at_young_ages() -> None:
    config = CompareConfig(steps=1000)
    plain = [s for s in range(1, 1001) if is_measured(config, None, s)]
    assert {20, 40, 980, 1000} <= set(plain)
    assert {2, 3, 4, 5, 6} <= set(plain)  # ages 1 to 5
    reset = [s for s in range(1, 1001) if is_measured(config, 300, s)]
    assert {302, 303, 304, 602, 603, 902} <= set(reset)
    assert len(reset) < 200


def test_learning_rate_rises_and_falls() -> None:
    config = CompareConfig(steps=100, warmup=10)
    rates = [learning_rate(config, 1.0, s) for s in range(1, 101)]
    assert rates[:10] == [pytest.approx((i + 1) / 10) for i in range(10)]
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))
    assert rates[-1] == pytest.approx(0.1)


def test_files_are_there_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"x": 2})
    assert read_json(path) == {"x": 1}
    path.write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        read_json(path)
