"""The tables and the figure of docs/optimizers.md, from the CSVs of ``optimizers.py`` and ``rules_stall.py``.

The page's own words stay; what stands between its two marks is written anew.

    python benchmarks/optimizers_page.py
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterable
from pathlib import Path

import rules_stall
from optimizers import (
    ARGUMENTS,
    MODEL,
    ROOT,
    SEEDS,
    SETTING,
    STATES,
    TIMED,
    Losses,
    Rows,
    bytes_per_parameter,
    loss_rows,
    losses,
    time_rows,
)  # fmt: skip

import halfulp
from halfulp.optim import OPTIMIZERS

PAGE = ROOT / "docs" / "optimizers.md"
FIGURE = ROOT / "docs" / "images" / "optimizers.png"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
SIZES = ("fp32", "bf16", "8bit", "fp8", "int8", "4bit", "fp4")
FAMILIAR = ("AdamW", "Lion", "SGD", "AdEMAMix", "Adafactor", "ADOPT")
"""Labelled in the figure, beside the frontier and the ten best."""


def names() -> list[str]:
    return [c.__name__ for c in OPTIMIZERS]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    columns = list(head)
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


# ---------------------------------------------------------------- bytes and time


def cost_rows(times: Rows) -> list[list[str]]:
    rows = []
    for name in names():
        sizes = [f"{bytes_per_parameter(name, state):.2f}" for state in SIZES]
        rows.append([name, *sizes, *(time_cell(times, name, state, "one") for state in TIMED)])
        rows[-1].append(time_cell(times, name, "8bit", "many"))
    return rows


def time_cell(times: Rows, name: str, state: str, shapes: str) -> str:
    row = times.found.get((name, state, shapes))
    return "–" if row is None else f"{figures(row['p50'])} ({figures(row['p20'])}–{figures(row['p80'])})"


def figures(value: str) -> str:
    """Two figures, or all before the point."""
    number = float(value)
    return f"{number:.0f}" if number >= 10 else f"{number:.1f}" if number >= 1 else f"{number:.2f}"


# ---------------------------------------------------------------- loss


def mean(losses_of: dict[int, float]) -> float:
    """Over all seeds; NaN if one is missing."""
    return statistics.fmean(losses_of.get(seed, math.nan) for seed in SEEDS)


def difference(low: dict[int, float], fp32: dict[int, float]) -> tuple[float, float]:
    """Mean and standard error of the differences, seed by seed."""
    apart = [low[seed] - fp32[seed] for seed in SEEDS]
    return statistics.fmean(apart), statistics.stdev(apart) / math.sqrt(len(apart))


def loss_cell(name: str, state: str, found: Losses, rows: Rows) -> str:
    if nothing_low(name, state):
        return "nothing low"
    keys = [(SETTING, name, state, str(seed), f"{found.lr:g}") for seed in SEEDS]
    if not all(key in rows.found for key in keys):
        return "–"
    lost = sum(not math.isfinite(found.by_state[state][seed]) for seed in SEEDS)
    if lost:
        return f"diverged {lost}/{len(SEEDS)}"
    apart, error = difference(found.by_state[state], found.by_state["fp32"])
    return f"{apart:+.3f} ± {error:.3f}"


def nothing_low(name: str, state: str) -> bool:
    """Whether all states of an optimizer stay in fp32 whatever the format: they are vectors."""
    return bytes_per_parameter(name, state) == bytes_per_parameter(name, "fp32")


def loss_table(found: dict[str, Losses], rows: Rows) -> list[list[str]]:
    ordered = sorted(found, key=lambda n: mean(found[n].by_state["fp32"]))
    return [
        [name, f"{found[name].lr:g}", f"{mean(found[name].by_state['fp32']):.3f}",
         *(loss_cell(name, state, found[name], rows) for state in STATES[1:])]
        for name in ordered
    ]  # fmt: skip


def spread(found: dict[str, Losses], state: str) -> str:
    """Over the optimizers: mean difference, and how many are beyond two standard errors either way."""
    pairs = []
    for name, of in found.items():
        low = of.by_state[state]
        if all(math.isfinite(low[seed]) for seed in SEEDS) and not nothing_low(name, state):
            pairs.append(difference(low, of.by_state["fp32"]))
    if len(pairs) < 2:
        return f"`{state}`: not run"
    middle = statistics.fmean(p[0] for p in pairs)
    error = statistics.stdev(p[0] for p in pairs) / math.sqrt(len(pairs))
    worse, better = (sum(sign * a > 2 * e for a, e in pairs) for sign in (1, -1))
    return (
        f"`{state}` {middle:+.3f} ± {error:.3f} over {len(pairs)} optimizers ({worse} worse, {better} better by more "
        "than two of their standard errors)"
    )


def plot(found: dict[str, Losses]) -> None:
    """Loss over bytes per parameter: fp32, 8bit and fp4 of each optimizer, and the frontier."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FormatStrFormatter

    shown = {"fp32": "o", "8bit": "s", "fp4": "^"}
    points = {
        (name, state): (bytes_per_parameter(name, state), mean(of.by_state[state]))
        for name, of in found.items()
        for state in shown
        if math.isfinite(mean(of.by_state[state]))
    }
    frontier = [
        key for key, (size, loss) in points.items()
        if not any((s < size and v <= loss) or (s <= size and v < loss) for s, v in points.values())
    ]  # fmt: skip
    best = sorted((n for n, state in points if state == "fp32"), key=lambda n: points[n, "fp32"][1])[:10]
    named = dict.fromkeys([*(n for n, _ in sorted(frontier, key=points.__getitem__)), *best, *FAMILIAR])
    figure, axes = plt.subplots(figsize=(9, 5.2), layout="constrained")
    colours = plt.get_cmap("tab20")
    for name in [n for n in found if n not in named] + list(named):
        at = [(points[name, state], mark) for state, mark in shown.items() if (name, state) in points]
        colour = colours(list(named).index(name) % 20) if name in named else "0.8"
        label = name if name in named else None
        axes.plot(*zip(*(p for p, _ in at), strict=True), color=colour, linewidth=1.1, label=label)
        for (x, y), mark in at:
            axes.plot(x, y, mark, color=colour, markersize=5)
    edge = sorted(points[key] for key in frontier)
    axes.step(*zip(*edge, strict=True), where="post", color="black", linewidth=0.8, linestyle=":", label="frontier")
    axes.set(xscale="log", xlabel="bytes of state per parameter", ylabel="validation loss, nats per byte")
    axes.set_xticks([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4, 8, 16, 32])
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.minorticks_off()
    axes.set_title("circles fp32, squares 8bit, triangles fp4; grey: the rest, in the table", fontsize=10)
    axes.grid(alpha=0.25, linewidth=0.4)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(FIGURE, dpi=130)
    plt.close(figure)


# ---------------------------------------------------------------- stalled updates


def stall_table(rows: list[rules_stall.Row]) -> list[list[str]]:
    """One row a slot: the later window of each cell, and the largest difference of all windows and cells."""
    found: dict[tuple[str, str], list[rules_stall.Row]] = {}
    for row in rows:
        found.setdefault((row.optimizer, row.slot), []).append(row)
    late, lines, notes = rules_stall.WINDOWS[-1], [], notes_of(rows)
    for (optimizer, slot), mine in sorted(found.items(), key=lambda item: (names().index(item[0][0]), item[0][1])):
        cells = []
        for state, rounding in rules_stall.CELLS:
            here = [r for r in mine if (r.state, r.rounding, r.first) == (state, rounding, late[0])]
            cells.append(" / ".join(percent(v) for v in (here[0].predicted, here[0].simulated)) if here else "–")
        worst = max((r.off for r in mine), key=lambda off: abs(off) if not math.isnan(off) else math.inf)
        why = notes.get(rules_stall.reason(optimizer, slot) or "")
        off = "–" if math.isnan(worst) else f"{100 * worst:+.1f}"
        like = next((r.like for r in mine if r.like), "–")
        lines.append([optimizer, slot, f"{mine[-1].decay:.6g}", like, *cells, f"{off} [{why}]" if why else off])
    return lines


def notes_of(rows: list[rules_stall.Row]) -> dict[str, int]:
    """Reasons that are needed, with their numbers."""
    used = [rules_stall.reason(r.optimizer, r.slot) for r in rows]
    return {why: i for i, why in enumerate(dict.fromkeys(w for w in used if w is not None), 1)}


def percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.1f}"


def never_rounded() -> str:
    """States that stay in fp32 by declaration."""
    found = []
    for name in names():
        optimizer = _small(name)
        exact = [s.name for s in optimizer.group_slots(optimizer.param_groups[0]) if s.exact]
        if exact:
            found.append(f"{', '.join(f'`{n}`' for n in exact)} of {name}")
    return "; ".join(found)


def _small(name: str) -> halfulp.engine.optimizer.RuleOptimizer:
    import torch

    made: halfulp.engine.optimizer.RuleOptimizer = getattr(halfulp, name)(
        [("weight", torch.nn.Parameter(torch.zeros(8, 8)))], **ARGUMENTS.get(name, {})
    )
    return made


# ---------------------------------------------------------------- the page


def declared() -> list[list[str]]:
    """A row for each optimizer, from its declaration; the recommended ones first."""
    rows = [[f"`{c.__name__}`", c.rule.tier, c.rule.summary, c.rule.source] for c in OPTIMIZERS]
    return sorted(rows, key=lambda row: row[1] != "core")


def finished(rows: Rows) -> dict[str, Losses]:
    known = {key[1] for key in rows.found}
    found = {name: losses(name, rows, None) for name in names() if name in known}
    return {name: of for name, of in found.items() if not math.isnan(mean(of.by_state["fp32"]))}


def body(folder: Path) -> list[str]:
    rows, times, stalls = loss_rows(folder), time_rows(folder), rules_stall.read(folder / "rules_stall.csv")
    found = finished(rows)
    unfinished = [n for n in names() if n not in found]
    notes = notes_of(stalls)
    missing = [n for n in names() if n not in {r.optimizer for r in stalls}]
    agree = [r for r in stalls if abs(r.off) <= rules_stall.BOUND]
    given = "; ".join(f"{n} {', '.join(f'{k}={v}' for k, v in a.items())}" for n, a in ARGUMENTS.items())
    return [
        "## All optimizers",
        "",
        "Core optimizers are recommended and kept for good; contributed ones are implemented and tested in the same",
        "way, for those who want them. `help(halfulp.AdamW)` describes the arguments.",
        "",
        *table(["optimizer", "tier", "what it is", "source"], declared()),
        "",
        "## Loss",
        "",
        f"A llama of width {MODEL.hidden} and {MODEL.layers} layer on the source of Python's own library, bytes",
        f"as tokens, {MODEL.steps} steps of {MODEL.batch} × {MODEL.context}; validation loss at the end, nats a byte,",
        f"mean over {len(SEEDS)} seeds, and the mean difference of each format to fp32, seed by seed, with",
        "its standard error (a rough one, of so few). Stochastic rounding. The rate was tuned with fp32 states and",
        "another seed, on a ladder of half decades, and is the same for all formats; a dash: not run. Other arguments",
        f"are the defaults, but for {given}. By optimizer, the best in fp32 first:",
        "",
        *table(["optimizer", "lr", "fp32", *(f"{s} − fp32" for s in STATES[1:])], loss_table(found, rows)),
        "",
        *([f"Not run yet: {', '.join(unfinished)}.", ""] if unfinished else []),
        "All optimizers together (but those with nothing low, whose states are vectors, which stay in fp32):",
        "",
        *(f"- {spread(found, state)}" for state in STATES[1:]),
        "",
        "![Loss over bytes of state per parameter, a line from fp32 over 8bit to fp4 for each optimizer](images/"
        f"{FIGURE.name})",
        "",
        "## Bytes and time",
        "",
        "Bytes of state per parameter with scales, of one layer of a llama of width 1024; time of a step over that of",
        "torch's fused fp32 AdamW, interleaved in one process on one thread, processor time, median (20th to 80th",
        "percentile): of one tensor of 2048 × 2048 with fp32 and with `8bit` states, and of 256 of 64 × 64 with",
        "`8bit` states.",
        "",
        *table(["optimizer", *SIZES, "time fp32", "time 8bit", "time 8bit, small"], cost_rows(times)),
        "",
        "## Stalled updates: predicted against simulated",
        "",
        "Percent of the updates that leave the stored value as it was, predicted / simulated, in steps "
        f"{rules_stall.WINDOWS[-1][0]} to {rules_stall.WINDOWS[-1][1]}.",
        "The prediction knows what the rule declares of the state: what it averages, its decay in the last step, its",
        "age. Simulated is the rule itself, on normal gradients, run and counted by the engine; `StallMonitor` has to",
        "agree where it watches. `worst` is the largest difference, in points, of both formats, both roundings and two",
        f"stretches of age ({' and '.join(f'{a} to {b}' for a, b in rules_stall.WINDOWS)} steps). "
        f"Of {len(stalls)} figures {len(agree)} are within {100 * rules_stall.BOUND:.0f} points;",
        "the others have a reason.",
        "",
        *table(
            ["optimizer", "state", "decay", "like", *(f"{s} {r}" for s, r in rules_stall.CELLS), "worst"],
            stall_table(stalls),
        ),
        "",
        *(f"- [{i}] {why}." for why, i in notes.items()),
        *([f"- Not simulated yet: {', '.join(missing)}."] if missing else []),
        "",
        f"Never rounded, and so not in the table: {never_rounded()}.",
        "",
        "Made by `python benchmarks/optimizers.py loss`, the same with `time`, `python benchmarks/rules_stall.py` and",
        "`python benchmarks/optimizers_page.py`; all figures are in [results](results).",
    ]


def written_anew(page: str, folder: Path) -> str:
    """The page with what stands between its marks made of the CSVs in a folder."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "\n".join([before + BEGIN, "", *body(folder), "", END]) + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results", help="folder of the CSVs")
    args = parser.parse_args()
    plot(finished(loss_rows(args.results)))
    partial = PAGE.with_suffix(".partial")
    partial.write_text(written_anew(PAGE.read_text(), args.results))
    partial.replace(PAGE)


if __name__ == "__main__":
    main()
