"""The two experiments of ``halfulp compare``: a comparison of formats, and a scale model of a long run."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from halfulp.lab.text import Corpus

__all__ = ["is_scale_model", "run_comparison", "run_scale"]


def is_scale_model(folder: Path) -> bool:
    """Whether a run folder holds a scale model's experiment."""
    from halfulp.lab.files import read_json

    path = folder / "config.json"
    values = read_json(path) if path.exists() else None
    return isinstance(values, dict) and "factor" in values


def run_comparison(
    given: dict[str, Any], resume: Path | None, out: Path | None, jobs: int | None, source: dict[str, Any]
) -> None:
    """Run or resume a comparison, and write its page.

    `given` are fields of :class:`~halfulp.lab.config.CompareConfig`, and `source` arguments of
    :func:`~halfulp.lab.text.load_corpus`. The rest are options of the command.
    """
    from halfulp.lab import compare
    from halfulp.lab.config import CompareConfig
    from halfulp.lab.environment import cores
    from halfulp.lab.progress import ProgressView
    from halfulp.lab.report import write_report
    from halfulp.lab.tables import output
    from halfulp.lab.tokens import bpe_size

    console, began = output(), time.monotonic()
    if resume is not None:
        folder, config = resume, compare.load_run_folder(resume)
    else:
        config = CompareConfig(**given)
        bpe_size(config.tokenizer)
        folder = out if out is not None else Path("runs") / time.strftime("compare-%Y%m%d-%H%M%S")
        config = compare.prepare_run_folder(folder, config, _text(console, source))
    jobs = jobs if jobs is not None else min(cores(), len(config.runs()))
    interrupt = _Interrupt()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        with ProgressView(console, config) as view:
            statuses = compare.run_all(folder, config, jobs=jobs, watch=view)
    except KeyboardInterrupt:
        console.print(f"Stopped: {view.standing()}.", highlight=False, markup=False)
        _go_on(console, folder, 130)
    failed = [s for s in statuses if s.state == "failed"]
    for status in failed:
        console.print(f"{view.title(status)} failed:\n{status.error}", style="red", highlight=False, markup=False)
    _done(console, began, write_report(folder, console))
    if any(s.state != "done" for s in statuses):
        _go_on(console, folder, 1)


def run_scale(
    given: dict[str, Any], resume: Path | None, out: Path | None, jobs: int | None, source: dict[str, Any]
) -> None:
    """Run or resume the experiment on a scale model, and write its page.

    `given` are fields of :class:`~halfulp.lab.scale.ScaleConfig`; the rest is as for :func:`run_comparison`.
    """
    from halfulp.lab.environment import cores
    from halfulp.lab.files import check_new, read_config
    from halfulp.lab.scale import Job, ScaleConfig, run_scale_model
    from halfulp.lab.scale_report import write_scale_report
    from halfulp.lab.tables import output
    from halfulp.lab.tokens import prepare_tokens

    console, began = output(), time.monotonic()
    if resume is not None:
        folder, config = resume, read_config(resume / "config.json", ScaleConfig)
    else:
        config = ScaleConfig(**given)
        folder = out if out is not None else Path("runs") / time.strftime("scale-%Y%m%d-%H%M%S")
        check_new(folder)
        prepare_tokens(_text(console, source), "bytes", config.context, folder / "tokens")
    model = config.model
    console.print(
        f"{config.format} states over {config.steps:,} steps, modeled by {model.formats[1].mantissa_bits} fraction "
        f"bits at betas {model.model_betas[0]:g} and {model.model_betas[1]:g} over {model.model_steps:,} steps.",
        highlight=False,
    )

    def say(job: Job, done: int, of: int) -> None:
        what = {"ladder": "rates tried", "own": "at its own rate", "common": "at fp32's rate"}[job.stage]
        console.print(f"[{done}/{of}] {job.arm}: {what} ({_since(began)})", highlight=False)

    try:
        run_scale_model(folder, config, jobs=jobs if jobs is not None else cores(), report=say)
    except KeyboardInterrupt:
        console.print("Stopped.")
        _go_on(console, folder, 130)
    _done(console, began, write_scale_report(folder, console))


def _text(console: Console, source: dict[str, Any]) -> Corpus:
    from halfulp.lab.text import load_corpus

    corpus = load_corpus(**source)
    info = corpus.info
    size = f"{info['bytes'] / 1e6:.1f} MB in {info['documents']:,} documents"
    console.print(f"{info['source']}: {size}", highlight=False)
    return corpus


def _since(began: float) -> str:
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    return f"{minutes} min {seconds} s"


def _done(console: Console, began: float, page: Path) -> None:
    console.print(f"Done in {_since(began)}. Report: {page}", highlight=False, soft_wrap=True)


def _go_on(console: Console, folder: Path, status: int) -> NoReturn:
    console.print(f"Continue with: halfulp compare --resume {folder}", highlight=False, soft_wrap=True)
    raise typer.Exit(status) from None


class _Interrupt:
    """Signal handler that raises ``KeyboardInterrupt`` once. Further signals count only after `pause` seconds.

    Terminals, shells and batch systems often send several at once, while checkpoints are being written.
    """

    pause = 1.0

    def __init__(self) -> None:
        self.clock = time.monotonic
        self.first: float | None = None

    def __call__(self, number: int, frame: Any) -> None:
        now = self.clock()
        if self.first is None or now - self.first >= self.pause:
            self.first = now
            raise KeyboardInterrupt
