"""The report: its figures are those of the run, its sentences follow from them, and a browser shows it."""

from __future__ import annotations

import html.parser
import itertools
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from halfulp.lab.config import CompareConfig
from halfulp.lab.files import read_json, read_jsonl, write_json
from halfulp.lab.report import write_report
from halfulp.lab.results import Interval, load_comparison
from halfulp.lab.svg import spread, ticks
from halfulp.lab.words import AVERAGES, averages, cannot_show, shows
from support.lab_runs import TINY, run, run_folder, train_all
from support.web import dump

ARMS = (
    "fp32",
    "fp32-reset10",
    "bf16-nearest",
    "fp8-nearest",
    "fp8-nearest-reset10",
    "fp8-stochastic",
    "fp4-stochastic",
)
CONFIG = CompareConfig(arms=ARMS, steps=25, **TINY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = run_folder(tmp_path_factory.mktemp("report") / "run", CONFIG)
    train_all(folder, CONFIG)
    write_report(folder)
    return folder


class Page(html.parser.HTMLParser):
    """Addresses, element counts and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.count: dict[str, int] = {}
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_page_needs_nothing_else(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.addresses == ["data:,"]
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org)", text)
    assert page.count["svg"] == len(ARMS) + 2 * 5 + 4 + 2  # keys; a panel twice per low arm; distances; losses
    assert len(text) < 1_000_000


def test_table_holds_the_figures_of_the_run(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    for spec in CONFIG.runs():
        rows = read_jsonl(folder / "runs" / spec.name / "metrics.jsonl")
        summary = read_json(folder / "runs" / spec.name / "summary.json")
        last = rows[-1]["slots"]["exp_avg_sq"]
        line = re.search(rf'<th scope="row">{re.escape(spec.arm.label)}</th>(.*)</tr>', text)
        assert line is not None, spec.arm.label
        cells = re.findall(r"<td>(.*?)</td>", line[1])
        assert cells[0] == f"{summary['bytes_per_parameter']:.3f}"
        assert cells[1] == ("10" if spec.period else "-")
        assert cells[4] == f"{last['stalled']:.2%}"
        assert cells[7] == f"{last['off_2x']:.2%}"
        assert cells[9] == f"{summary['validation']:.4f}"


def test_panels_show_what_the_gradients_of_the_arm_predict(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert text.count('class="line b') > 0
    assert text.count(' own"') == 2 * 2 * 5  # two slots, two axes, five arms in low precision
    comparison = load_comparison(folder)
    for arm in comparison.arms:
        series = arm.shown.slots["exp_avg_sq"]
        if arm.arm.is_fp32:
            assert series.own is None
            continue
        own = read_json(folder / "runs" / arm.shown.spec.name / "summary.json")["own_prediction"]["exp_avg_sq"]
        assert f"from its gradients {np.mean(own):.1%}" in text
        pairs = zip(series.stalled, series.steps, series.ages, strict=True)
        gaps = [abs(m - own[s - 1]) for m, s, a in pairs if a >= 5]
        assert series.own_miss(5) == pytest.approx(np.mean(gaps))


def test_averages_of_the_weights_have_their_table(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    section = re.search(r'<section id="averages">(.*?)</section>', text, re.DOTALL)
    assert section is not None
    found = read_json(folder / "runs" / "fp32_lr0.002_seed0" / "summary.json")["averages"]
    for state, name in AVERAGES.items():
        line = re.search(rf'<th scope="row">{re.escape(name)}</th>(.*)</tr>', section[1])
        assert line is not None, name
        values = found[state]
        shown = [f"{values['bytes_per_weight']:.2f}", f"{values['validation']:.4f}", f"{values['distance']:.4f}"]
        assert re.findall(r"<td>(.*?)</td>", line[1]) == shown
    said = averages(load_comparison(folder))
    assert said in html.unescape(section[1])
    for state in ("bf16", "8bit"):
        gap = found[state]["validation"] - found["fp32"]["validation"]
        if abs(gap) >= 5e-4:
            assert f"{'higher' if gap > 0 else 'lower'} by {abs(gap):.3f} nats" in said


def test_charts_hold_every_measured_point(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    charts = [json.loads(html.unescape(d)) for d in re.findall(r'data-chart="([^"]*)"', text)]
    series = charts[0]["series"]  # bf16 nearest, linear
    measured = next(s for s in series if s["label"] == "second moment, measured")
    rows = read_jsonl(folder / "runs" / "bf16-nearest_lr0.002_seed0" / "metrics.jsonl")
    assert [p[1] for p in measured["points"]] == [r["step"] for r in rows]
    assert len(next(s for s in series if s["label"] == "second moment, predicted")["points"]) >= 25


def test_series_are_read_against_the_age_they_met(folder: Path) -> None:
    from halfulp import stall_curve

    arm = next(a for a in load_comparison(folder).arms if a.arm.label == "fp8 nearest + reset")
    series = arm.shown.slots["exp_avg_sq"]
    curve = stall_curve("fp8", beta=0.999, rounding="nearest", steps=10)
    assert series.ages == [(s - 1) % 10 for s in series.steps]
    predicted = series.predicted(series.steps)
    assert predicted == [curve[a] for a in series.ages]
    every = np.interp(range(series.steps[0], 26), series.steps, series.stalled)
    assert series.mean_stalled() == pytest.approx(every.mean())
    young = [s for s, a in zip(series.stalled, series.ages, strict=True) if a == 0]
    assert young == [0.0, 0.0, 0.0][: len(young)]  # nothing is lost in the first step after a reset


def test_sentences_follow_from_the_figures(folder: Path) -> None:
    comparison = load_comparison(folder)
    said = " ".join(shows(comparison))
    for arm in comparison.arms:
        if arm.arm.is_fp32 or arm.arm.reset:
            continue
        assert f"{arm.arm.formats} {arm.shown.slots['exp_avg_sq'].mean_stalled() * 100:.1f} %" in said
    assert "A reset every 10 steps brings fp8 nearest to" in said
    assert "With one seed there is no interval" in said
    assert "No run diverged" in said
    text = comparison.environment["text"]
    for source, expected in (
        ("standard library of Python 3.12", "about 0.023 nats"),
        ("prose.txt", "was not measured"),
    ):
        other = replace(comparison, environment={**comparison.environment, "text": {**text, "source": source}})
        assert expected in " ".join(shows(other))  # the noise was measured only on the default text
    limits = " ".join(cannot_show(comparison))
    assert "--seeds 3" in limits
    assert "--lr 1e-3,3e-3" in limits
    assert "0.0 windows" in limits


def test_seeds_give_paired_intervals_and_the_sweep_its_table(tmp_path: Path) -> None:
    config = CompareConfig(arms=("fp32", "bf16-stochastic"), seeds=(0, 1, 2), lrs=(1e-3, 5e-3), steps=5, **TINY)
    folder = run_folder(tmp_path / "run", config)
    train_all(folder, config)
    comparison = load_comparison(folder)
    finals = {s.name: read_json(folder / "runs" / s.name / "summary.json")["validation"] for s in config.runs()}
    assert all(a.best_lr == 5e-3 for a in comparison.arms)  # five steps: faster is better
    gaps = [finals[f"bf16-stochastic_lr0.005_seed{i}"] - finals[f"fp32_lr0.005_seed{i}"] for i in range(3)]
    gap = comparison.arms[1].against(comparison.arms[0])
    assert gap is not None
    low, high = scipy.stats.t.interval(0.95, 2, loc=np.mean(gaps), scale=scipy.stats.sem(gaps))
    assert (gap.mean - gap.half, gap.mean + gap.half) == pytest.approx((low, high))  # type: ignore[operator]
    text = write_report(folder).read_text()
    assert f"{gap.mean:+.4f} ± {gap.half:.4f}" in text
    assert "95 % t" in text
    assert 'id="sweep"' in text
    assert "Against fp32, seed by seed" in " ".join(shows(comparison))


def test_interval_of_one_value_has_no_width() -> None:
    assert Interval.of([]) is None
    assert Interval.of([2.0]) == Interval(2.0, None, 1)


def test_divergence_is_counted_apart(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    name = "fp8-nearest_lr0.002_seed0"
    summary = read_json(copy / "runs" / name / "summary.json")
    write_json(copy / "runs" / name / "summary.json", {**summary, "diverged": True, "validation": None})
    comparison = load_comparison(copy)
    assert "1 of all runs diverged" in " ".join(shows(comparison))
    assert "1 of 1" in write_report(copy).read_text()


def test_unfinished_run_says_so(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    (copy / "runs" / "fp4-stochastic_lr0.002_seed0" / "summary.json").unlink()
    assert "This run is not finished" in write_report(copy).read_text()
    assert "This run is not finished" not in write_report(folder).read_text()


def test_formats_without_a_prediction_are_shown_all_the_same(tmp_path: Path) -> None:
    config = CompareConfig(arms=("int8-nearest",), steps=5, **TINY)
    folder = run_folder(tmp_path / "run", config)
    train_all(folder, config)
    assert "int8 nearest" in write_report(folder).read_text()


def test_report_command_writes_page_and_figures(folder: Path, tmp_path: Path) -> None:
    page = folder / "report.html"
    before = page.read_bytes()
    page.unlink()
    figures = tmp_path / "new" / "figures"
    done = run("report", str(folder), "--export", str(figures / "figure.png"))
    assert done.returncode == 0, done.stderr
    assert page.read_bytes() == before
    assert "fp8 nearest + reset" in done.stdout
    assert (figures / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(p.name for p in figures.iterdir()) == ["figure.png"]


def test_figure_as_svg_names_every_arm(folder: Path, tmp_path: Path) -> None:
    from halfulp.lab.figure import draw

    draw(load_comparison(folder), tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert all(label in text for label in ("bf16 nearest", "fp8 nearest + reset", "fp4 stochastic"))


BAD: dict[str, tuple[list[str], str]] = {
    "no folder": (["/no/such/folder"], "is no run folder of halfulp compare"),
    "figure type": (["FOLDER", "--export", "figure.gif"], ".png, .svg, .pdf"),
    "nothing measured": (["EMPTY"], "holds no measurements yet"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_what_is_wrong(
    case: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from halfulp.cli import main

    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    arguments, message = BAD[case]
    places = {"FOLDER": str(folder), "EMPTY": str(tmp_path)}
    monkeypatch.setattr(sys, "argv", ["halfulp", "report", *(places.get(a, a) for a in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_labels_are_spread_and_ticks_are_round() -> None:
    places = spread([10.0, 11.0, 12.0, 90.0], 15, 0, 100)
    assert all(b - a >= 15 for a, b in itertools.pairwise(places))
    assert places[-1] <= 100
    assert ticks((0, 1), False) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert ticks((1, 1000), True) == [1.0, 10.0, 100.0, 1000.0]
    assert ticks((0.5, 2.0), True) == [0.5, 1.0, 2.0]


# -------------------------------------------------------------------------------------------- in a browser


PROBE = """
<script>
const chart = document.querySelector("#stalled svg.chart");
const box = chart.getBoundingClientRect();
const at = { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2, bubbles: true };
chart.dispatchEvent(new PointerEvent("pointermove", at));
const facts = {
  tip: document.getElementById("tip").innerText,
  overflow: document.documentElement.scrollWidth - innerWidth,
  width: innerWidth,
  linear: getComputedStyle(document.querySelector(".on-linear")).display,
  paths: [...document.querySelectorAll("svg.chart path.line")].filter(p => p.getTotalLength() > 20).length,
  wide: [...document.querySelectorAll("svg.chart text.label")].filter(
    t => t.getBoundingClientRect().right > innerWidth).map(t => t.textContent),
};
document.querySelector('label[for="log"]').click();
facts.log = getComputedStyle(document.querySelector(".on-log")).display;
facts.hidden = getComputedStyle(document.querySelector(".on-linear")).display;
document.body.dataset.facts = JSON.stringify(facts);
</script></body>"""


@pytest.mark.parametrize("size", [(1280, 1000), (500, 900)])
def test_page_in_a_browser(folder: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    page = tmp_path / "page.html"
    text = (folder / "report.html").read_text()
    page.write_text(text.replace("</body>", PROBE))
    dom, console = dump(page, tmp_path / "profile", f"--window-size={size[0]},{size[1]}")
    problems = [line for line in console.splitlines() if ":CONSOLE" in line]
    assert problems == []
    found = re.search(r'data-facts="([^"]*)"', dom)
    assert found is not None, console[-2000:]
    facts: dict[str, Any] = json.loads(html.unescape(found[1]))
    assert facts["width"] == size[0]
    assert facts["overflow"] <= 0
    assert facts["wide"] == []
    assert facts["tip"].startswith("step ")
    assert "second moment, measured: " in facts["tip"]
    assert facts["paths"] >= 2 * 5 + 4 * 5
    assert (facts["linear"], facts["log"], facts["hidden"]) == ("grid", "grid", "none")


def test_console_errors_would_be_seen(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text((folder / "report.html").read_text().replace("</body>", "<script>nothing.here()</script></body>"))
    _, console = dump(page, tmp_path / "profile")
    assert any(":CONSOLE" in line and "nothing is not defined" in line for line in console.splitlines())
