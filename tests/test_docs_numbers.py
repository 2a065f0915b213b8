"""Numbers in the documentation, computed again: a random sample, or all with ``HALFULP_ALL_NUMBERS=1``."""

from __future__ import annotations

import importlib
import itertools
import os
import random
from pathlib import Path

import pytest

import halfulp
from halfulp.theory.loss_gap import PER_RESIDUAL

DOCS = Path(__file__).parents[1] / "docs"
EVERY = os.environ.get("HALFULP_ALL_NUMBERS") == "1"
SEED = 1
Cell = tuple[str, float, str]


def cells(page: str, heading: str) -> list[Cell]:
    """(formats, beta, text) of the table whose first column has this heading: six of them, of betas up to 0.999."""
    text = (DOCS / page).read_text()
    lines = itertools.takewhile(lambda line: line.startswith("|"), text[text.index(f"| {heading} |") :].splitlines())
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    found = [(row[0], float(b), said) for row in rows for b, said in zip(head[1:], row[1:], strict=True)]
    return found if EVERY else random.Random(SEED).sample([cell for cell in found if cell[1] < 0.9999], 6)


PAGES = ("theory.md", "results/theory.md")


@pytest.mark.parametrize(("name", "beta", "said"), [cell for page in PAGES for cell in cells(page, "format")])
def test_planned_periods(name: str, beta: float, said: str) -> None:
    plan = halfulp.plan_reset(name, beta=beta, rounding="nearest")
    assert ("never" if plan.period is None else str(plan.period)) == said


@pytest.mark.parametrize("slot", ["exp_avg_sq", "exp_avg"] if "HALFULP_EVERY_CASE" in os.environ else ["exp_avg_sq"])
def test_predicted_stalled_fractions(slot: str) -> None:
    for names, beta, said in [cell for page in PAGES for cell in cells(page, f"`{slot}`")]:
        for name in names.split(", "):
            found = [
                100 * halfulp.stall_probability(name, beta=beta, rounding=rounding, slot=slot)
                for rounding in ("nearest", "stochastic")
            ]
            assert " / ".join(f"{x:.1f}" for x in found) == said, (name, beta)


def test_scale_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables of loss are those of the runs: all of them in ``docs/results``, a part of the first in lab.md."""
    monkeypatch.syspath_prepend(str(DOCS.parent / "benchmarks"))
    scale_models = importlib.import_module("scale_models")
    lines = scale_models.tables(scale_models.read())
    assert len(lines) > 6
    page = (DOCS / "results" / "scale_models.md").read_text()
    assert all(line in page for line in lines)
    lab = (DOCS / "lab.md").read_text()
    table = lab[lab.index("| bf16 at 1:8") :].split("\n\n")[0].splitlines()
    assert len(table) > 4
    assert set(table) <= set(lines)


@pytest.mark.parametrize(
    ("results", "page"),
    [
        ("peers_loss.csv", "results/peers.md"), ("resets_loss.csv", "results/scale_models.md"),
        ("bf16_loss.csv", "training-bf16.md"),
    ],
)  # fmt: skip
def test_paired_losses(results: str, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS.parent / "benchmarks"))
    table = importlib.import_module("paired").table(DOCS / "results" / results)
    assert len(table.splitlines()) > 4
    assert table in (DOCS / page).read_text()


def test_losses_by_reset_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS.parent / "benchmarks"))
    planner_regret = importlib.import_module("planner_regret")
    lines = planner_regret.table(planner_regret.read())
    assert len(lines) > 6
    page = (DOCS / "results" / "scale_models.md").read_text()
    assert all(line in page for line in lines)


def test_loss_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The predicted gaps are those of the stored samples, and the constant is the one that fits."""
    monkeypatch.syspath_prepend(str(DOCS.parent / "benchmarks"))
    loss_gap = importlib.import_module("loss_gap")
    gaps = loss_gap.read()
    assert loss_gap.fitted(loss_gap.at_one_rate(gaps), loss_gap.from_sample) == pytest.approx(PER_RESIDUAL, abs=0.005)
    lines = [*loss_gap.table(gaps), *loss_gap.scores(gaps)]
    assert len(lines) > 40
    page = (DOCS / "results" / "scale_models.md").read_text()
    assert all(line in page for line in lines)
