"""The commands predict, plan and simulate, as a user runs them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import halfulp
from halfulp.theory.arguments import Criterion

PNG = b"\x89PNG"


def run(*args: str, folder: Path | None = None, columns: int | None = None) -> subprocess.CompletedProcess[str]:
    """What a command prints into a pipe, where nothing or COLUMNS tells it a width."""
    env = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | ({"COLUMNS": str(columns)} if columns else {})
    return subprocess.run(
        [sys.executable, "-m", "halfulp", *args], capture_output=True, text=True, timeout=600, check=False, cwd=folder,
        env=env,
    )  # fmt: skip


def test_predict_prints_the_table_and_draws(tmp_path: Path) -> None:
    done = run("predict", "-f", "fp8", "-b", "0.999", "--plot", str(tmp_path / "p.png"))
    assert done.returncode == 0, done.stderr
    assert "48.7" in done.stdout  # nearest at age 10
    assert "98.8" in done.stdout  # stochastic at age 3000
    assert (tmp_path / "p.png").read_bytes().startswith(PNG)


def test_predict_one_step_is_the_published_form() -> None:
    done = run("predict", "-f", "bf16", "--model", "one-step")
    assert "94.6" in done.stdout
    assert "82.5" in done.stdout


def test_plan_says_why(tmp_path: Path) -> None:
    done = run("plan", "-f", "fp8", "--parameters", "10", "--plot", str(tmp_path / "p.svg"))
    assert done.returncode == 0, done.stderr
    assert "Every" in done.stdout
    assert "Never" in done.stdout
    assert "Staggered" in done.stdout
    assert "<svg" in (tmp_path / "p.svg").read_text()


@pytest.mark.parametrize("criterion", ["residual", "total"])
def test_plan_by_criterion(criterion: Criterion) -> None:
    plan = halfulp.plan_reset("fp8", beta=0.99, rounding="nearest", criterion=criterion)
    done = run("plan", "-f", "fp8", "-b", "0.99", "--criterion", criterion)
    assert f"Every {plan.period} steps" in done.stdout


def test_simulate_shows_the_ratchet(tmp_path: Path) -> None:
    """After the drop fp32 falls, bf16 rounded to nearest stands still."""
    done = run(
        "simulate", "--steps", "600", "--beta", "0.999", "--coordinates", "1024", "--plot", str(tmp_path / "s.pdf")
    )
    assert done.returncode == 0, done.stderr
    rows = {
        line.split()[1]: line.split() for line in done.stdout.splitlines() if line.strip().startswith(("bf16", "fp32"))
    }
    assert rows["nearest"][2] == "100.0%"
    assert float(rows["nearest"][3]) > 1.2
    assert float(rows["stochastic"][3]) == pytest.approx(1.0, abs=0.05)
    assert rows["exact"][2] == "0.0%"
    assert (tmp_path / "s.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("predict", "-f", "fp9"), "Did you mean"),
        (("predict", "-b", "1.5"), "beta is between 0 and 1"),
        (("predict", "-b", "0.99999999"), "--beta must be at most 0.9999996"),
        (("predict", "--slot", "v"), "slot is"),
        (("plan", "-f", "fp8", "--drift", "5"), "each of drifts is a rate from 0 to 0.5"),
        (("plan", "-f", "fp8", "--plot", "x.gif"), ".png, .svg, .pdf"),
        (("plan", "--criterion", "loss"), "criterion is 'residual' or 'total', got 'loss'"),
        (("plan", "-f", "fp8", "--plot", "/no/such/folder/x.png"), "no folder"),
        (("simulate", "--scenario", "storm"), "stationary, drop, decay, spike"),
        (("simulate", "--steps", "0"), "--steps must be at least 1, got 0"),
        (("simulate", "--spread", "-1", "--plot", "x.svg"), "spread is between 0 and 10, got -1.0"),
        (("simulate", "--spread", "nan"), "spread is between 0 and 10, got nan"),
        (("simulate", "--seed", str(1 << 64)), "at most 9223372036854775808, got 18446744073709551616"),
        (("simulate", "--reset", "-1"), "or 0 for none; got -1"),
        (("simulate", "--coordinates", "0"), "coordinates is a whole number of at least 1, got 0"),
        (("simulate", "--beta", "1"), "beta is between 0 and 1, got 1.0"),
        (("plan", "--parameters", "-3", "--plot", "x.svg"), "or 0 for no staggering; got -3"),
        (("compare", "--max-mb", "-1"), "million bytes above 0, got -1"),
        (("compare", "--max-mb", "nan"), "million bytes above 0, got nan"),
        (("compare", "--lr", "nan"), "positive and finite, got (nan,)"),
        (("compare", "--jobs", "0"), "--jobs must be at least 1, got 0"),
        (("compare", "--seeds", "-2"), "at least 1, got -2"),
        (("check", "x.pt", "--decay", "0.9"), "--decay 0.9 is the decay of a weight average and needs --live"),
        (("check", "bad.txt"), "is neither a torch checkpoint (torch.save) nor safetensors"),
    ],
)
def test_bad_input_ends_with_the_message_alone(args: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("hello, I am a log file")
    done = run(*args, folder=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert not done.stdout.strip()
    assert [p.name for p in tmp_path.iterdir()] == ["bad.txt"]  # nothing was written


CURVES = set("▁▂▃▄▅▆▇█")


@pytest.mark.parametrize("columns", [60, 80, 120, None])
def test_curves_give_way_and_figures_stay(columns: int | None) -> None:
    """At any width, and in a pipe, every figure is whole and every curve is beside its label."""
    from typer.testing import CliRunner

    from halfulp.cli import app

    env = {"COLUMNS": None if columns is None else str(columns)}
    arguments = ["simulate", "-f", "bf16", "--steps", "50", "--beta", "0.99", "--coordinates", "256"]
    simulated = CliRunner().invoke(app, arguments, env=env).output
    predicted = CliRunner().invoke(app, ["predict", "-f", "fp8", "-f", "bf16"], env=env).output
    for text in (simulated, predicted):
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= (columns or 1000)
    arms = {(name, how) for name in ("bf16", "fp8") for how in ("nearest", "stochastic")}
    for text, names, ends in ((simulated, {"bf16"}, (58, 78)), (predicted, {"bf16", "fp8"}, (26 + 33, 26 + 52))):
        lines = [line.rstrip() for line in text.splitlines() if line.rstrip()[-1:] in CURVES]
        assert {tuple(line.split()[:2]) for line in lines} == {arm for arm in arms if arm[0] in names}
        assert max(map(len, lines)) == ends[columns != 60]
    assert predicted.splitlines()[-1].split() == ["age", "0", "log", "scale", "3000"]
    for figure in ("48.7", "98.8", "97.2"):
        assert figure in predicted


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
def test_tables_lose_nothing_on_a_narrow_terminal(width: int) -> None:
    """Whole figures at any width: as rows where they fit, else on their side."""
    from rich.console import Console
    from rich.table import Table

    from halfulp.lab.tables import print_table

    text = io.StringIO()
    table = Table(title="t")
    for i in range(10):
        table.add_column(f"heading{i}", no_wrap=i < 9)
    rows = [[f"{r}.{i}2345" for i in range(9)] + ["moves, without bias"] for r in range(2)]
    for row in rows:
        table.add_row(*row)
    print_table(Console(file=text, width=width), table)
    shown = text.getvalue()
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width
    assert all(cell in shown for row in rows for cell in row[:9])
    upright = any("heading0" in line and "heading9" in line for line in shown.splitlines())
    assert upright is (width == 140)


def test_the_version() -> None:
    import halfulp

    assert run("--version").stdout == f"halfulp {halfulp.__version__}\n"


def test_help_says_the_defaults_of_a_comparison() -> None:
    import inspect

    from halfulp.cli.compare import command
    from halfulp.lab.config import CompareConfig
    from halfulp.lab.scale import ScaleConfig

    config = CompareConfig()
    scaled = ScaleConfig()
    special = {
        "seeds": f"{len(config.seeds)}, {scaled.seeds} in a scale model",
        "lr": config.lrs[0], "beta2": config.betas[1], "state": scaled.format,
        "regime": scaled.regime,
    }  # fmt: skip
    parameters = inspect.signature(command, eval_str=True).parameters
    shown = {name: p.annotation.__metadata__[0].show_default for name, p in parameters.items()}
    said = {name: text for name, text in shown.items() if isinstance(text, str)}
    assert said == {name: str(special.get(name, getattr(config, name, None))) for name in said}
    assert len(said) == 15


@pytest.mark.parametrize(
    ("beta", "ages", "model"),
    [
        (0.5, [0, 1, 3, 10], "build-up"),
        (0.9, [0, 1, 3, 10, 30], "chain"),
        (0.95, [0, 1, 3, 10, 30, 60], "chain"),
        (0.99, [0, 1, 3, 10, 30, 100, 300], "one-step"),
    ],
)
def test_predict_shows_the_probability_of_each_age(beta: float, ages: list[int], model: Any) -> None:
    from typer.testing import CliRunner

    from halfulp.cli import app
    from halfulp.theory.predict import stall_probability

    arguments = ["predict", "-f", "bf16", "-f", "fp8", "-b", str(beta), "--model", model]
    lines = [x.split() for x in CliRunner().invoke(app, arguments, env={"COLUMNS": "120"}).output.splitlines()]
    assert [x[2:] for x in lines if x[:2] == ["format", "rounding"]] == [list(map(str, ages))]
    assert ["age", "0", "log", "scale", str(ages[-1])] in lines
    for arm in (["bf16", "nearest"], ["bf16", "stochastic"], ["fp8", "nearest"], ["fp8", "stochastic"]):
        row, chart = (x[2:] for x in lines if x[:2] == arm)
        wanted = [stall_probability(arm[0], beta=beta, rounding=arm[1], age=age, model=model) for age in ages]
        assert [float(x) / 100 for x in row] == pytest.approx(wanted, abs=0.00051)
        bars = "".join(chart).rjust(52)  # spaces where next to nothing stalls
        levels = [(" ▁▂▃▄▅▆▇█".index(bars[end]), 8 * wanted[end]) for end in (0, -1)]
        assert all(abs(level - eighths) <= 0.501 for level, eighths in levels)
