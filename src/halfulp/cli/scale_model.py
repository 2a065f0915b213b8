"""``halfulp compare --scale-model``: a scale model of a long run, including its loss."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import typer

__all__ = ["is_scale_model", "run_scale"]


def is_scale_model(folder: Path) -> bool:
    """Whether a run folder holds a scale model's experiment."""
    from halfulp.lab.files import read_json

    path = folder / "config.json"
    values = read_json(path) if path.exists() else None
    return isinstance(values, dict) and "factor" in values


def run_scale(
    given: dict[str, Any], resume: Path | None, out: Path | None, jobs: int | None, source: dict[str, Any]
) -> None:
    """Run or resume the experiment, and write its page.

    Parameters
    ----------
    given
        Fields of :class:`~halfulp.lab.scale.ScaleConfig`.
    resume, out, jobs, source
        As for ``halfulp compare``.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # one thread per parallel worker
    from halfulp.lab.environment import cores
    from halfulp.lab.files import read_config
    from halfulp.lab.scale import Job, ScaleConfig, run_scale_model
    from halfulp.lab.scale_report import write_scale_report
    from halfulp.lab.tables import output
    from halfulp.lab.text import load_corpus
    from halfulp.lab.tokens import prepare_tokens

    console, began = output(), time.monotonic()
    if resume is not None:
        folder, config = resume, read_config(resume / "config.json", ScaleConfig)
    else:
        config = ScaleConfig(**given)
        folder = out if out is not None else Path("runs") / time.strftime("scale-%Y%m%d-%H%M%S")
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty. Continue it with --resume {folder}, or choose another --out")
        corpus = load_corpus(**source)
        prepare_tokens(corpus, "bytes", config.context, folder / "tokens")
        console.print(f"{corpus.info['source']}: {corpus.info['bytes'] / 1e6:.1f} MB", highlight=False)
    model = config.model
    console.print(
        f"{config.format} states over {config.steps:,} steps, modelled by {model.formats[1].mantissa_bits} fraction "
        f"bits at betas {model.model_betas[0]:g} and {model.model_betas[1]:g} over {model.model_steps:,} steps.",
        highlight=False,
    )

    def say(job: Job, done: int, of: int) -> None:
        took = round(time.monotonic() - began)
        what = {"ladder": "rates tried", "own": "at its own rate", "common": "at fp32's rate"}[job.stage]
        console.print(f"[{done}/{of}] {job.arm}: {what} ({took // 60} min {took % 60} s)", highlight=False)

    try:
        run_scale_model(folder, config, jobs=jobs if jobs is not None else cores(), report=say)
    except KeyboardInterrupt:
        console.print(f"Stopped. Continue with: halfulp compare --resume {folder}", highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
    page = write_scale_report(folder, console)
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    console.print(f"Done in {minutes} min {seconds} s. Report: {page}", highlight=False, soft_wrap=True)
