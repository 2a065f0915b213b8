"""Results of a monitor as rows, verdicts and a printable table."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from halfulp.numbers.show import Shown, html_table

__all__ = ["MonitorTable", "Row", "Weights", "stalled_of"]

LONGEST = 52
"""Maximum length of a parameter's name in a table."""
HEADINGS = ("slot", "parameter", "format", "rounding", "stalled", "predicted", "lag", "ratio", "off 2x", "weights")
ABBREVIATIONS = {"exp_avg_sq": "v", "exp_avg": "m"}


@dataclass(frozen=True)
class Row:
    """One slot of one parameter over the counted steps. :mod:`halfulp.monitor` defines the terms.

    Parameters
    ----------
    parameter, slot, format, rounding, beta
        The state, its storage and its decay.
    updates
        Number of updates in the sample that were due.
    stalled, predicted
        Measured and predicted stalled fraction. The prediction is NaN if theory has no answer.
    lag, ratio, off_2x
        Difference from the float64 shadow.
    weights_stalled, weights_moved
        Only for 16-bit parameters. `weights_moved` is also ``None`` if the size of the update is unknown.
    elements
        Number of elements of the parameter.
    scale_moves
        Whether block scales follow their largest element, so that values move while codes do not.
    factor, residual
        Only for averages of squares.

    Examples
    --------
    >>> Row("w", "exp_avg_sq", "bfloat16", "nearest", 0.999, 1000, 0.97, 0.97, 0.6, 1.9, 0.3, None).verdict[:61]
    'exp_avg_sq is bfloat16, nearest: 97% of updates stall, v is 1'
    """

    parameter: str
    slot: str
    format: str
    rounding: str
    beta: float
    updates: int
    stalled: float
    predicted: float
    lag: float
    ratio: float
    off_2x: float
    weights_stalled: float | None
    weights_moved: float | None = None
    elements: int = 1
    scale_moves: bool = False
    factor: float | None = None
    residual: float | None = None

    @property
    def verdict(self) -> str:
        """One line that says what is wrong and what to do, or ``"fine"``.

        Stalled updates alone are an error under nearest rounding, unless block scales move: an unchanged code then
        decays with its block.
        """
        wrong = self.ratio > 1.25 or self.ratio < 0.8 or self.off_2x > 0.25
        stuck = self.rounding == "nearest" and self.stalled > 0.5 and not self.scale_moves
        if self.format == "float32" or not (wrong or stuck):
            return "fine"
        name = ABBREVIATIONS.get(self.slot, self.slot)
        if self.ratio > 1.25:
            size = f"{name} is {self.ratio:.2g}x too large"
        elif self.ratio < 0.8:
            size = f"{name} is {1 / self.ratio:.2g}x too small" if self.ratio > 0 else f"{name} is zero"
        elif wrong:
            size = f"{self.off_2x:.0%} of {name} is off by more than 2x"
        else:
            size = f"{name} is still near its fp32 value"
        if self.rounding != "nearest":
            cure = "use a format with more exponent or bits"
        elif self.slot in ABBREVIATIONS:
            cure = "use fp32 states or stochastic rounding, e.g. halfulp.AdamW(state='8bit', rounding='stochastic')"
        else:
            cure = "use fp32 states or stochastic rounding"
        return f"{self.slot} is {self.format}, {self.rounding}: {self.stalled:.0%} of updates stall, {size}; {cure}"


@dataclass(frozen=True)
class Weights:
    """Stalled updates of a 16-bit parameter, and the share of the intended movement that took place, if known."""

    parameter: str
    elements: int
    stalled: float
    moved: float | None


def stalled_of(weights: Iterable[Weights]) -> float | None:
    """Return the share of stalled updates of 16-bit weights, weighted by elements, or ``None`` if there are none."""
    found = list(weights)
    return _weighted([(w.stalled, w.elements) for w in found]) if found else None


@dataclass(frozen=True, repr=False)
class MonitorTable(Shown):
    """Rows of all slots. ``print(table)`` shows them with a verdict for each slot.

    Parameters
    ----------
    rows
        One row per slot and parameter.
    steps
        Number of counted steps.
    skipped
        States that were not watched and the reason, by parameter and slot.
    weights
        Measurements of each 16-bit parameter.
    weight_notes
        Reasons why the exact update of some 16-bit parameters is unknown.

    Examples
    --------
    >>> row = Row("w", "exp_avg_sq", "float32", "nearest", 0.999, 1000, 0.0, 0.0, 0.0, 1.0, 0.0, None)
    >>> MonitorTable((row,), steps=10).verdicts()
    []
    """

    rows: tuple[Row, ...]
    steps: int
    skipped: Mapping[tuple[str, str], str] = field(default_factory=dict)
    weights: tuple[Weights, ...] = ()
    weight_notes: tuple[str, ...] = ()

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return the rows as plain dictionaries, such as for ``pandas.DataFrame`` or JSON."""
        return [asdict(row) for row in self.rows]

    def by_slot(self) -> dict[str, Row]:
        """Return one row per slot and format: means over the parameters, weighted by updates (geometric for the ratio).

        Values of weights are weighted by elements.
        """
        merged: dict[str, Row] = {}
        for slot, fmt in dict.fromkeys((r.slot, r.format) for r in self.rows):
            rows = [r for r in self.rows if (r.slot, r.format) == (slot, fmt)]
            means: dict[str, Any] = {name: _mean(rows, name) for name in ("stalled", "predicted", "lag", "off_2x")}
            for name in ("weights_stalled", "weights_moved", "factor", "residual"):
                means[name] = _optional_mean(rows, name)
            merged[f"{slot} ({fmt})"] = replace(
                rows[0],
                parameter=f"{len(rows)} parameter{'s' * (len(rows) > 1)}",
                updates=sum(r.updates for r in rows),
                elements=sum(r.elements for r in rows),
                ratio=_geometric_mean(rows),
                **means,
            )
        return merged

    def verdicts(self) -> list[str]:
        """Return a line for each slot and format that is not fine, and one if 16-bit weights hardly move."""
        lines = [row.verdict for row in self.by_slot().values() if row.verdict != "fine"]
        bad = [w for w in self.weights if w.stalled > 0.5 and w.moved is not None and w.moved < 0.8]
        if bad:
            stalled, moved = (_weighted([(getattr(w, name), w.elements) for w in bad]) for name in ("stalled", "moved"))
            total = sum(w.elements for w in self.weights)
            lines.append(
                f"16-bit weights: {stalled:.0%} of updates stall in {len(bad)} of {len(self.weights)} tensors "
                f"({sum(w.elements for w in bad):,} of {total:,} weights), {max(moved, 0):.0%} of their movement took "
                "place; keep fp32 weights, or round them stochastically (halfulp's default param_rounding)"
            )
        return lines

    def _all_well(self) -> str:
        if self.rows:
            return "every state moves as it should"
        if not self.steps:
            return "nothing was watched yet: the optimizer has made no step"
        seen = "the one step" if self.steps == 1 else f"all {self.steps} steps"
        return f"nothing was watched yet: {seen} passed uncounted (see every=), or without a state that can be watched"

    def in_short(self) -> str:
        """The numbers of states, counted steps and verdicts."""
        return f"{len(self.rows)} states, {self.steps} steps, {len(self.verdicts())} verdicts"

    def in_html(self) -> str:
        """The table with one row per slot and format."""
        return html_table(HEADINGS, self._cells(list(self.by_slot().values())), self._lines(), left=4)

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=f"stalled updates over {self.steps} steps", title_justify="left")
        for i, heading in enumerate(HEADINGS):
            table.add_column(heading, justify="left" if i < 4 else "right", no_wrap=True)
        merged = list(self.by_slot().values())
        low = [r for r in self.rows if r.format != "float32"] or list(self.rows)
        shown = sorted(low, key=lambda r: -r.stalled)[:30] if len(self.rows) > len(merged) else []
        for part in (merged, shown):
            for cells in self._cells(part):
                table.add_row(*cells)
            table.add_section()
        text = io.StringIO()
        console = Console(file=text, width=150)
        console.print(table)
        for line in self._lines():
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return text.getvalue()

    def _lines(self) -> list[str]:
        """Return the verdicts, and what was not watched."""
        missed = dict.fromkeys(f"{slot} ({why})" for (_, slot), why in self.skipped.items())
        missed |= dict.fromkeys(f"movement of 16-bit weights ({why})" for why in self.weight_notes)
        return [*(self.verdicts() or [self._all_well()]), *(f"not watched: {what}" for what in missed)]

    @staticmethod
    def _cells(rows: list[Row]) -> list[tuple[str, ...]]:
        """Return the rows as text, in the order of the headings."""
        return [
            (
                r.slot, name, r.format, r.rounding, f"{r.stalled:.1%}",
                "" if math.isnan(r.predicted) else f"{r.predicted:.1%}", f"{r.lag:+.2f}", f"{r.ratio:.3g}",
                f"{r.off_2x:.1%}", "" if r.weights_stalled is None else f"{r.weights_stalled:.1%}",
            )
            for r, name in zip(rows, shortened([r.parameter for r in rows]), strict=True)
        ]  # fmt: skip


def _mean(rows: list[Row], name: str) -> float:
    total = sum(r.updates for r in rows)
    if total == 0:
        return float(getattr(rows[0], name))
    return sum(float(getattr(r, name)) * r.updates for r in rows if r.updates) / total


def _geometric_mean(rows: list[Row]) -> float:
    total = sum(r.updates for r in rows)
    if total == 0 or any(not 0 < r.ratio < math.inf for r in rows):
        return sorted(r.ratio for r in rows)[len(rows) // 2]
    return math.exp(sum(math.log(r.ratio) * r.updates for r in rows) / total)


def _optional_mean(rows: list[Row], name: str) -> float | None:
    values = [(float(getattr(r, name)), r.elements) for r in rows if getattr(r, name) is not None]
    return _weighted(values) if values else None


def _weighted(values: list[tuple[float, int]]) -> float:
    return sum(value * weight for value, weight in values) / max(sum(weight for _, weight in values), 1)


def shortened(names: Sequence[str]) -> list[str]:
    """Shorten names to fit in a table: drop their common prefix and cut them in the middle.

    Examples
    --------
    >>> shortened([f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_A.default.weight" for i in (1, 12)])
    ['...1.self_attn.q_proj.lora_A.default.weight', '...12.self_attn.q_proj.lora_A.default.weight']
    """
    if all(len(name) <= LONGEST for name in names):
        return list(names)
    parts = zip(*(name.split(".")[:-1] for name in names), strict=False)
    alike = list(itertools.takewhile(lambda part: len(set(part)) == 1, parts)) if len(names) > 1 else []
    left = (LONGEST - 3) // 2
    kept = ["..." + ".".join(name.split(".")[len(alike) :]) if alike else name for name in names]
    return [n if len(n) <= LONGEST else f"{n[:left]}...{n[left + 3 - LONGEST :]}" for n in kept]
