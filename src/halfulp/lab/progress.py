"""The live view of a comparison: one line per run on a terminal, one line per event in a log."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from halfulp.lab.compare import RunStatus
from halfulp.lab.config import CompareConfig
from halfulp.lab.tables import fit

__all__ = ["ProgressView"]

NARROW = ("tokens/s", "valid.", "step", "loss", "stalled v", "left")
"""Columns that a narrow terminal omits, in this order."""
SHOWN_FIRST = ("running", "failed", "stopped", "waiting", "done")
"""States in the order of priority on a short terminal."""
MARKS = {"waiting": "[dim]waiting", "done": "[green]done", "stopped": "[yellow]stopped", "failed": "[red]failed"}


class ProgressView:
    """Context manager that displays :class:`~halfulp.lab.compare.RunStatus` lists.

    A terminal gets a live table, anything else a line whenever a run starts or ends.
    """

    def __init__(self, console: Console, config: CompareConfig) -> None:
        self.console, self.config = console, config
        self.began = time.monotonic()
        self._done_before: int | None = None
        self._known: dict[str, str] = {}
        self._statuses: list[RunStatus] = []
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> ProgressView:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.update(self._fitted(self.table(self._statuses)))  # nothing follows, so it keeps its height
            self._live.stop()

    def __call__(self, statuses: list[RunStatus]) -> None:
        """Display the status of all runs."""
        self._statuses = statuses
        if self._live:
            room = max(self.console.height - 4, 1)  # title, headings, omitted runs, and the cursor's line
            self._live.update(self._fitted(self.table(statuses, room)), refresh=True)
            return
        for status in statuses:
            if self._known.get(status.spec.name) != status.state:
                self._known[status.spec.name] = status.state
                if status.state != "waiting":
                    self.console.print(self._line(status), highlight=False)

    def _line(self, s: RunStatus) -> str:
        text = f"{self.title(s)}: {'diverged' if s.diverged else s.state}"
        if s.state == "running":
            return text
        parts = [f"step {s.step}"]
        if s.validation is not None:
            parts.append(f"validation {s.validation:.4f}")
        if s.stalled is not None:
            parts.append(f"second moment stalled {s.stalled:.1%}")
        if s.tokens_per_second:
            parts.append(f"{s.tokens_per_second:,.0f} tokens/s")
        return f"{text} ({', '.join(parts)})"

    def title(self, status: RunStatus) -> str:
        """Return the name of a run, with what distinguishes it from the others."""
        words = [status.spec.arm.label]
        if len(self.config.lrs) > 1:
            words.append(f"lr {status.spec.lr:g}")
        if len(self.config.seeds) > 1:
            words.append(f"seed {status.spec.seed}")
        return ", ".join(words)

    def eta(self, statuses: list[RunStatus]) -> str:
        """Return the time left for everything, estimated from the pace so far."""
        total = len(statuses) * self.config.steps
        done = sum(self.config.steps if s.state in ("done", "failed") else s.step for s in statuses)
        if self._done_before is None:
            self._done_before = done
        elapsed, progress = time.monotonic() - self.began, done - self._done_before
        if progress <= 0:
            return "-"
        return _clock(elapsed * (total - done) / progress)

    def standing(self) -> str:
        """Return a sentence on what is done and what is not, for a comparison that was stopped."""
        counts = Counter(s.state for s in self._statuses)
        parts = [f"{counts['done']} of {len(self._statuses)} runs done"]
        at = [f"{self.title(s)} at step {s.step}" for s in self._statuses if s.state == "stopped"]
        if at:
            parts.append(f"stopped {', '.join(at)}")
        lost = [f"{self.title(s)} at step {s.step}" for s in self._statuses if s.state == "running"]
        if lost:
            every = self.config.checkpoint_every
            parts.append(f"ended without a checkpoint, up to {every} steps to be done again: {', '.join(lost)}")
        if counts["failed"]:
            parts.append(f"{counts['failed']} failed")
        if counts["waiting"]:
            parts.append(f"{counts['waiting']} not begun")
        return "; ".join(parts)

    def _fitted(self, table: Table) -> Table:
        fit(self.console, table, NARROW)
        return table

    def table(self, statuses: list[RunStatus], room: int | None = None) -> Table:
        """Return the live table.

        If `room` has fewer lines than there are runs, it shows the most important ones and says so.
        """
        room = len(statuses) if room is None else room
        ranked = sorted(statuses, key=lambda s: SHOWN_FIRST.index(s.state))
        shown = {s.spec.name for s in ranked[:room]}
        elapsed = _clock(time.monotonic() - self.began)
        table = Table(
            box=None,
            pad_edge=False,
            title=f"[bold]halfulp compare[/]  {elapsed} elapsed, {self.eta(statuses)} left",
            title_justify="left",
            title_style="",
            caption=_hidden(ranked[room:]),
            caption_justify="left",
        )
        table.add_column("arm", no_wrap=True)
        table.add_column("progress", width=10)
        for heading in ("step", "loss", "valid.", "stalled v", "tokens/s", "left"):
            table.add_column(heading, justify="right", no_wrap=True)
        for s in [s for s in statuses if s.spec.name in shown]:
            mark = MARKS.get(s.state)
            if s.diverged:
                mark = "[red]diverged"
            bar = ProgressBar(total=self.config.steps, completed=s.step, width=10)
            left = "-"
            if s.state == "running" and s.tokens_per_second:
                tokens = (self.config.steps - s.step) * self.config.batch * self.config.context
                left = _clock(tokens / s.tokens_per_second)
            table.add_row(
                self.title(s),
                bar if s.state in ("running", "done") and not s.diverged else (mark or ""),
                str(s.step) if s.step else "-",
                _number(s.loss, ".3f"),
                _number(s.validation, ".3f"),
                _number(s.stalled, ".1%"),
                _number(s.tokens_per_second, ",.0f"),
                "[green]done" if s.state == "done" and not s.diverged else left,
            )
        return table


def _hidden(statuses: list[RunStatus]) -> str | None:
    """Return the line about runs that are not shown."""
    if not statuses:
        return None
    counts = Counter(s.state for s in statuses)
    return "and " + ", ".join(f"{counts[state]} {state}" for state in SHOWN_FIRST if counts[state])


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
