"""Generate the list and figure of docs/optimizers.md and the tables of docs/results from the CSVs there.

Only the text between the page's two marks is replaced.

    python benchmarks/optimizers_page.py
"""

from __future__ import annotations

import argparse
import math
import statistics
import textwrap
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
    Losses,
    Rows,
    bytes_per_parameter,
    loss_rows,
    losses,
    time_rows,
)  # fmt: skip
from pictures import PALETTE, axes_of, label_ends, save

import halfulp
from halfulp.lab.files import write_text
from halfulp.lab.results import Interval
from halfulp.optim import OPTIMIZERS

PAGE = ROOT / "docs" / "optimizers.md"
STALLS = ROOT / "docs" / "results" / "stalls.md"
TABLES = ROOT / "docs" / "results" / "optimizers.md"
FIGURE = ROOT / "docs" / "images" / "optimizers.png"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
SIZES = ("fp32", "bf16", "8bit", "4bit")
ALIKE = {"fp8": "8bit", "int8": "8bit", "fp4": "4bit"}
"""Formats with the same number of bytes as another."""
FAMILIAR = ("AdamW", "Lion", "SGD", "AdEMAMix", "Adafactor", "ADOPT")
"""Optimizers labelled in the figure, besides the frontier and the ten best."""


def names() -> list[str]:
    return [c.__name__ for c in OPTIMIZERS]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    columns = list(head)
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


# ---------------------------------------------------------------- bytes and time


TIMES = {
    "fp32": ("avx2", "fp32", "one"), "8bit": ("avx2", "8bit", "one"), "8bit, small": ("avx2", "8bit", "many"),
    "8bit, AVX-512": ("avx512vbmi", "8bit", "one"), "8bit, small, AVX-512": ("avx512vbmi", "8bit", "many"),
}  # fmt: skip
"""The columns of times: the instruction set, the format, and the shapes."""


def cost_rows(times: Rows) -> list[list[str]]:
    rows = []
    for name in names():
        sizes = [f"{bytes_per_parameter(name, state):.2f}" for state in SIZES]
        for state, other in ALIKE.items():
            if bytes_per_parameter(name, state) != bytes_per_parameter(name, other):
                raise ValueError(f"{name}: {state} takes other bytes than {other}, which the page says are the same")
        rows.append([name, *sizes, *(time_cell(times, name, *of) for of in TIMES.values())])
    return rows


def time_cell(times: Rows, name: str, isa: str, state: str, shapes: str) -> str:
    row = times.found.get((isa, name, state, shapes))
    return "–" if row is None else figures(row["p50"])


def figures(value: str) -> str:
    """Format with two digits, or all digits before the point."""
    number = float(value)
    return f"{number:.0f}" if number >= 10 else f"{number:.1f}" if number >= 1 else f"{number:.2f}"


# ---------------------------------------------------------------- loss


def mean(losses_of: dict[int, float]) -> float:
    """Return the mean over all seeds; NaN if one is missing."""
    return statistics.fmean(losses_of.get(seed, math.nan) for seed in SEEDS)


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean and half of its 95 % interval."""
    found = Interval.of(values)
    assert found is not None
    assert found.half is not None
    return found.mean, found.half


def difference(low: dict[int, float], fp32: dict[int, float]) -> tuple[float, float]:
    """Return the mean of the paired differences, and half of its 95 % interval."""
    return interval([low[seed] - fp32[seed] for seed in SEEDS])


def loss_cell(name: str, state: str, found: Losses, rows: Rows) -> str:
    if nothing_low(name, state):
        return "all fp32"
    keys = [(SETTING, name, state, str(seed), f"{found.lr:g}") for seed in SEEDS]
    if not all(key in rows.found for key in keys):
        return "–"
    lost = sum(not math.isfinite(found.by_state[state][seed]) for seed in SEEDS)
    if lost:
        return f"diverged {lost}/{len(SEEDS)}"
    apart, half = difference(found.by_state[state], found.by_state["fp32"])
    return f"{apart:+.3f} ± {half:.3f}"


def nothing_low(name: str, state: str) -> bool:
    """Whether all states of an optimizer are vectors and so stay in fp32 in every format."""
    return bytes_per_parameter(name, state) == bytes_per_parameter(name, "fp32")


def loss_table(found: dict[str, Losses], rows: Rows) -> list[list[str]]:
    ordered = sorted(found, key=lambda n: mean(found[n].by_state["fp32"]))
    return [
        [name, f"{found[name].lr:g}", f"{mean(found[name].by_state['fp32']):.3f}",
         *(loss_cell(name, state, found[name], rows) for state in shown(rows))]
        for name in ordered
    ]  # fmt: skip


def shown(rows: Rows) -> list[str]:
    """Return the formats other than fp32 that were run with at least one optimizer."""
    run = {key[2] for key in rows.found}
    return [state for state in STATES[1:] if state in run]


def spread(found: dict[str, Losses], state: str) -> str:
    """Return the mean difference over the optimizers, and how many intervals lie above and below zero."""
    pairs = []
    for name, of in found.items():
        low = of.by_state[state]
        if all(math.isfinite(low[seed]) for seed in SEEDS) and not nothing_low(name, state):
            pairs.append(difference(low, of.by_state["fp32"]))
    middle, half = interval([apart for apart, _ in pairs])
    worse, better = (sum(sign * apart > of for apart, of in pairs) for sign in (1, -1))
    return f"`{state}`: {middle:+.3f} ± {half:.3f} over {len(pairs)} optimizers ({worse} worse, {better} better)"


def plot(found: dict[str, Losses]) -> None:
    """Plot loss over bytes per parameter: fp32, 8bit and fp4 of each optimizer, and the frontier."""
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
    named = list(dict.fromkeys([*(n for n, _ in sorted(frontier, key=points.__getitem__)), *best, *FAMILIAR]))
    figure, (axes,) = axes_of(height=5.6)
    ends = []
    for name in [n for n in found if n not in named] + named:
        at = [(*points[name, state], mark) for state, mark in shown.items() if (name, state) in points]
        color = PALETTE[named.index(name) % len(PALETTE)] if name in named else "0.82"
        axes.plot([x for x, _, _ in at], [y for _, y, _ in at], color=color, linewidth=1.1)
        for x, y, mark in at:
            axes.plot(x, y, mark, color=color, markersize=5)
        if name in named:
            ends.append((name, color, *at[0][:2]))
    edge = sorted(points[key] for key in frontier)
    axes.step(*zip(*edge, strict=True), where="post", color="black", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="bytes of state per parameter", ylabel="validation loss, nats per byte")
    axes.set_xticks([0.01, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.minorticks_off()
    title = "circles: fp32, squares: 8bit, triangles: fp4; dotted: the frontier; gray: other optimizers"
    axes.set_title(title, fontsize=10)
    label_ends(axes, ends)
    save(figure, FIGURE)


# ---------------------------------------------------------------- stalled updates


def stall_table(rows: list[rules_stall.Row]) -> list[list[str]]:
    """Return one row per group of similar slots: the later window of each cell, and the largest difference."""
    found: dict[tuple[str, str], list[rules_stall.Row]] = {}
    for row in rows:
        found.setdefault((row.optimizer, row.slot), []).append(row)
    late, notes = rules_stall.WINDOWS[-1], notes_of(rows)
    alike: dict[tuple[str, ...], list[tuple[str, float]]] = {}
    for (optimizer, slot), mine in sorted(found.items(), key=lambda item: (item[0][1], names().index(item[0][0]))):
        cells = []
        for state, rounding in rules_stall.CELLS:
            here = [r for r in mine if (r.state, r.rounding, r.first) == (state, rounding, late[0])]
            cells.append(" / ".join(percent(v) for v in (here[0].predicted, here[0].simulated)) if here else "–")
        why = notes.get(rules_stall.reason(optimizer, slot) or "")
        like = next((r.like for r in mine if r.like), "–")
        key = (slot, f"{mine[-1].decay:.6g}", like, *cells, f" [{why}]" if why else "")
        alike.setdefault(key, []).extend((optimizer, r.off) for r in mine)
    return [
        [", ".join(dict.fromkeys(name for name, _ in of)), *key[:-1], worst([off for _, off in of]) + key[-1]]
        for key, of in alike.items()
    ]


def worst(differences: list[float]) -> str:
    """Return the largest difference in points, or a dash if there is no prediction."""
    largest = max((abs(off) for off in differences if not math.isnan(off)), default=math.nan)
    return "–" if math.isnan(largest) else f"{100 * largest:.1f}"


def notes_of(rows: list[rules_stall.Row]) -> dict[str, int]:
    """Return the reasons that are needed, with their numbers."""
    used = [rules_stall.reason(r.optimizer, r.slot) for r in rows]
    return {why: i for i, why in enumerate(dict.fromkeys(w for w in used if w is not None), 1)}


def percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.1f}"


def never_rounded() -> str:
    """Return the states that are declared to stay in fp32."""
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
    """Return one row per optimizer, from its declaration. Recommended ones come first."""
    rows = [[f"`{c.__name__}`", c.rule.tier, c.rule.summary, c.rule.source] for c in OPTIMIZERS]
    return sorted(rows, key=lambda row: row[1] != "core")


def finished(rows: Rows) -> dict[str, Losses]:
    known = {key[1] for key in rows.found}
    found = {name: losses(name, rows, None) for name in names() if name in known}
    return {name: of for name, of in found.items() if not math.isnan(mean(of.by_state["fp32"]))}


def body(folder: Path) -> list[str]:
    rows = loss_rows(folder)
    found = finished(rows)
    return [
        "## All optimizers",
        "",
        *prose("""Core optimizers are recommended and will be kept. Contributed ones are tested alike, but may be
            dropped. `help(halfulp.AdamW)` describes the arguments."""),
        *table(
            ["core optimizer", "what it is"], [[name, what] for name, tier, what, _ in declared() if tier == "core"]
        ),
        "",
        *prose(f"""Contributed: {", ".join(name for name, tier, *_ in declared() if tier != "core")}.
            [What each of them is](results/optimizers.md#all-optimizers), with its source."""),
        "## Loss",
        "",
        *prose("""These are means over all optimizers that have states to round: validation loss minus that of fp32
            states, in nats, with 95% intervals. In parentheses: how many of them have an interval that excludes zero
            (by chance, one in twenty does). [The table](results/optimizers.md#loss) has every optimizer. The runs used
            [earlier random bits](results/README.md#rows-that-are-older-than-the-random-bits)."""),
        *(f"- {spread(found, state)}" for state in shown(rows)),
        "",
        f"![Loss over bytes of state per parameter: fp32, 8bit and fp4 of each optimizer](images/{FIGURE.name})",
        "",
        "## Bytes and time",
        "",
        *prose("""[One table](results/optimizers.md#bytes-and-time) has the bytes of state and the step time of every
            optimizer; [another](results/stalls.md) has the share of stalled updates of every state."""),
    ]


def tables_page(folder: Path) -> str:
    """Return the page of losses, bytes and times."""
    rows, times = loss_rows(folder), time_rows(folder)
    found = finished(rows)
    unfinished = [n for n in names() if n not in found]
    given = "; ".join(f"{n} {', '.join(f'{k}={v}' for k, v in a.items())}" for n, a in ARGUMENTS.items())
    lines = [
        "# Optimizers: what they are, and figures",
        "",
        "## All optimizers",
        "",
        *table(["optimizer", "tier", "what it is", "source"], declared()),
        "",
        "## Loss",
        "",
        *prose(f"""A LLaMA of width {MODEL.hidden} with {MODEL.layers} layer was trained for {MODEL.steps} steps of
            {MODEL.batch} × {MODEL.context} bytes from the source of Python's standard library, with stochastic
            rounding. The fp32 column is the validation loss in nats per byte, a mean over {len(SEEDS)} seeds. The other
            columns are mean differences from fp32 over the same seeds, with 95% intervals. The learning rate was tuned
            with fp32 states and another seed, on a half-decade grid, and is the same for all formats. Other arguments
            are the defaults, except {given}. A dash: not run. *All fp32*: all states are vectors, which stay in
            fp32."""),
        *table(["optimizer", "lr", "fp32", *(f"{s} − fp32" for s in shown(rows))], loss_table(found, rows)),
        "",
        *(prose(f"Not run yet: {', '.join(unfinished)}.") if unfinished else []),
        "## Bytes and time",
        "",
        *prose("""Bytes of state per parameter, scales included, for one layer of a LLaMA of width 1024. `fp8` and
            `int8` take as many bytes as `8bit`, and `fp4` as many as `4bit`. BAdam's bytes are those of the active
            block."""),
        *prose("""Step times are relative to torch's fused fp32 AdamW: medians of processor time on one thread, of an
            AMD EPYC (Zen 3, AVX2) or a Xeon (Emerald Rapids, AVX-512), for one tensor of 2048 × 2048, and for 256
            tensors of 64 × 64 (*small*). Steps follow each other directly: after another operation torch's own step
            takes longer, so the ratios of small tensors are lower in [CPU kernels](../kernels.md#speed). On small
            tensors, rules that run in torch operations (SOAP, Muon, SMMF) spend most of their time in Python, 0.5 to 2
            ms per tensor."""),
        *table(["optimizer", *SIZES, *(f"time {of}" for of in TIMES)], cost_rows(times)),
        "",
        *prose("""Made by `python benchmarks/optimizers.py loss` and `time`, and `python benchmarks/optimizers_page.py`,
            from [optimizers_loss.csv](optimizers_loss.csv) and [optimizers_time.csv](optimizers_time.csv)."""),
    ]
    return "\n".join(lines)


def stalls_page(folder: Path) -> str:
    """Return the page of stalled updates of every state."""
    stalls = rules_stall.read(folder / "rules_stall.csv")
    notes = notes_of(stalls)
    missing = [n for n in names() if n not in {r.optimizer for r in stalls}]
    agree = [r for r in stalls if abs(r.off) <= rules_stall.BOUND]
    windows = " and ".join(f"{a} to {b}" for a, b in rules_stall.WINDOWS)
    late = "{} to {}".format(*rules_stall.WINDOWS[-1])
    lines = [
        "# Stalled updates: predicted against simulated",
        "",
        *prose(f"""Percentage of updates that leave the stored value unchanged, predicted / simulated, in steps {late}.
            The prediction uses what the rule declares: what the state averages, its decay and its age. The simulation
            runs the rule on normal gradients. `worst` is the largest difference in points, over both formats, both
            roundings and two stretches of age ({windows} steps). Of {len(stalls)} figures, {len(agree)} are within
            {100 * rules_stall.BOUND:.0f} points; the notes explain the others."""),
        *table(
            ["optimizers", "state", "decay", "averages", *(f"{s} {r}" for s, r in rules_stall.CELLS), "worst"],
            stall_table(stalls),
        ),
        "",
        *(f"- [{i}] {why}." for why, i in notes.items()),
        *([f"- Not simulated yet: {', '.join(missing)}."] if missing else []),
        "",
        *prose(f"Never rounded: {never_rounded()}."),
        *prose("""Made by `python benchmarks/rules_stall.py` and `python benchmarks/optimizers_page.py`; all figures
            are in [rules_stall.csv](rules_stall.csv)."""),
    ]
    return "\n".join(lines)


def prose(text: str) -> list[str]:
    """Return a wrapped paragraph, followed by an empty line."""
    return [*textwrap.wrap(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False), ""]


def written_anew(page: str, folder: Path) -> str:
    """Return the page with the text between its marks generated from the CSVs in a folder."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "\n".join([before + BEGIN, "", *body(folder), "", END]) + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results", help="folder of the CSVs")
    args = parser.parse_args()
    plot(finished(loss_rows(args.results)))
    write_text(PAGE, written_anew(PAGE.read_text(), args.results))
    write_text(STALLS, stalls_page(args.results))
    write_text(TABLES, tables_page(args.results))


if __name__ == "__main__":
    main()
