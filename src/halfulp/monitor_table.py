"""What a monitor found, as rows, verdicts and a printable table."""

from __future__ import annotations

import io
from dataclasses import dataclass

__all__ = ["MonitorTable", "Row"]


@dataclass(frozen=True)
class Row:
    """One slot of one parameter over the counted steps; the terms are those of :mod:`halfulp.monitor`.

    `weights_lost` is ``None`` for parameters of 32 bits.
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
    weights_lost: float | None

    @property
    def verdict(self) -> str:
        """What is wrong, and what to do, in a line; ``"fine"`` otherwise."""
        wrong = self.ratio > 1.25 or self.ratio < 0.8 or self.off_2x > 0.25
        if self.format == "float32" or not (wrong or (self.rounding == "nearest" and self.stalled > 0.5)):
            return "fine"
        size = f"{self.ratio:.2g}x its fp32 value" if wrong else "still near its fp32 value"
        cure = "use rounding='stochastic'" if self.rounding == "nearest" else "use a format with more exponent or bits"
        return (
            f"{self.slot} is {self.format}, {self.rounding}: {self.stalled:.0%} of updates lost, {size}; {cure}, e.g. "
            "halfulp.AdamW(state='8bit')"
        )


@dataclass(frozen=True)
class MonitorTable:
    """Rows of all slots. ``print(table)`` shows them with a verdict for each slot."""

    rows: tuple[Row, ...]
    steps: int

    def by_slot(self) -> dict[str, Row]:
        """One row a slot and format: rates weighted by updates, the rest by the median parameter."""
        merged: dict[str, Row] = {}
        for key in dict.fromkeys((r.slot, r.format) for r in self.rows):
            rows = [r for r in self.rows if (r.slot, r.format) == key]
            updates = sum(r.updates for r in rows)
            weights = [r.weights_lost for r in rows if r.weights_lost is not None]

            def mean(name: str, rows: list[Row] = rows, updates: int = updates) -> float:
                return sum(getattr(r, name) * r.updates for r in rows) / max(updates, 1)

            merged[f"{key[0]} ({key[1]})"] = Row(
                parameter=f"{len(rows)} parameters",
                slot=key[0],
                format=key[1],
                rounding=rows[0].rounding,
                beta=rows[0].beta,
                updates=updates,
                stalled=mean("stalled"),
                predicted=mean("predicted"),
                lag=mean("lag"),
                ratio=mean("ratio"),
                off_2x=mean("off_2x"),
                weights_lost=sum(weights) / len(weights) if weights else None,
            )
        return merged

    def verdicts(self) -> list[str]:
        """One line for each slot and format that is not fine."""
        return [row.verdict for row in self.by_slot().values() if row.verdict != "fine"]

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=f"updates lost over {self.steps} steps", title_justify="left")
        headings = (
            "slot",
            "parameter",
            "format",
            "rounding",
            "stalled",
            "predicted",
            "lag",
            "ratio",
            "off 2x",
            "weights",
        )
        for i, heading in enumerate(headings):
            table.add_column(heading, justify="left" if i < 4 else "right", no_wrap=True)
        merged = list(self.by_slot().values())
        shown = sorted(self.rows, key=lambda r: -r.stalled)[:30] if len(self.rows) > len(merged) else []
        for part in (merged, shown):
            for r in part:
                lost = "" if r.weights_lost is None else f"{r.weights_lost:.1%}"
                prediction = "" if r.predicted != r.predicted else f"{r.predicted:.1%}"
                table.add_row(
                    r.slot, r.parameter, r.format, r.rounding, f"{r.stalled:.1%}", prediction,
                    f"{r.lag:+.2f}", f"{r.ratio:.3g}", f"{r.off_2x:.1%}", lost,
                )  # fmt: skip
            table.add_section()
        text = io.StringIO()
        console = Console(file=text, width=150)
        console.print(table)
        for line in self.verdicts() or ["every state moves as it should"]:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return text.getvalue()
