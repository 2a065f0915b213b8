"""``halfulp compare``: train under several state formats and compare."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["command"]


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in _list(text))
    except ValueError:
        raise ValueError(f"{option} takes comma-separated numbers, got {text!r}") from None


def command(
    arms: Annotated[
        str | None,
        typer.Option(help="Comma-separated arms: fp32, fp8-nearest, fp8-stochastic, fp8-nearest-reset300 ..."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of each arm.", show_default="1000")] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            help="Number of paired seeds: each arm runs with the seeds 0 to N-1.", show_default="1, 6 in a scale model"
        ),
    ] = None,
    lr: Annotated[
        str | None,
        typer.Option(help="Comma-separated peak learning rates; each arm runs at each.", show_default="0.002"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="A text, .jsonl or .parquet file, or a folder. Default: Python's standard library."),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="A Hugging Face dataset, NAME or NAME:CONFIGURATION.")] = None,
    text_key: Annotated[str | None, typer.Option(help="Field or column that holds the text.")] = None,
    max_mb: Annotated[float, typer.Option(help="Megabytes of text to read at most.")] = 64.0,
    tokenizer: Annotated[
        str | None, typer.Option(help="bytes, or bpe:SIZE (trained on the text).", show_default="bytes")
    ] = None,
    model: Annotated[str | None, typer.Option(help="llama, neox or mixtral.", show_default="llama")] = None,
    hidden: Annotated[int | None, typer.Option(help="Width of the model.", show_default="64")] = None,
    layers: Annotated[int | None, typer.Option(help="Layers of the model.", show_default="2")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads of the model.", show_default="4")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences per step.", show_default="8")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens per sequence.", show_default="128")] = None,
    beta2: Annotated[float | None, typer.Option(help="Decay of the second moment.", show_default="0.999")] = None,
    measure_every: Annotated[
        int | None, typer.Option(help="Steps between regular measurements.", show_default="20")
    ] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.", show_default="100")] = None,
    scale_model: Annotated[
        int | None,
        typer.Option(
            help="Train a scale model of a long run, shortened by this factor (8 for bf16, 4 for fp8, 2 for fp4)."
        ),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option("--format", help="With --scale-model: state format of the long run.", show_default="bf16"),
    ] = None,
    regime: Annotated[
        str | None,
        typer.Option(
            help="With --scale-model: scale of the gradients: constant, falling or jumping.", show_default="constant"
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Runs at a time, one thread each. Default: the number of cores.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/compare-DATE-TIME.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder.")] = None,
) -> None:
    """Train on real text under several state formats, measure how the states stall, and write one HTML page.

    Without options, nine arms of a small LLaMA train on the source of Python's standard library, which takes a few
    minutes on two cores. Ctrl-C writes a checkpoint of each running arm, and --resume continues to the same bits. A
    second Ctrl-C does not wait for the checkpoints.

    With --scale-model it shows what rounding costs in loss. Windows are shortened and the grid is coarsened by the same
    factor, so that a short run stalls like one of 20,000 steps. Learning rates are tuned for every arm, and seeds are
    paired. --steps is then the length of the long run, and --arms takes "fp32", "nearest", "nearest + reset",
    "stochastic" and more. On two idle cores the default takes about 4.5 minutes; every arm with 8 seeds (--arms all
    --seeds 8) takes about half an hour.
    """
    given: dict[str, Any] = {
        "steps": steps, "tokenizer": tokenizer, "model": model, "hidden": hidden, "layers": layers, "heads": heads,
        "batch": batch, "context": context, "measure_every": measure_every, "checkpoint_every": checkpoint_every,
    }  # fmt: skip
    given = {k: v for k, v in given.items() if v is not None}
    if arms is not None:
        given["arms"] = _list(arms)
    if seeds is not None:
        if seeds < 1:
            raise ValueError(f"--seeds must be at least 1, got {seeds}")
        given["seeds"] = tuple(range(seeds))
    if lr is not None:
        given["lrs"] = _numbers(lr, "--lr")
    if beta2 is not None:
        given["betas"] = (0.9, beta2)
    source = {"path": data, "dataset": dataset, "text_key": text_key, "max_mb": max_mb}
    if scale_model is None and (state is not None or regime is not None):
        raise ValueError("--format and --regime need --scale-model")
    if resume is not None and (given or scale_model or data or dataset or text_key or out):
        raise ValueError("--resume takes all options from the run folder; only --jobs may be given with it")
    if jobs is not None and jobs < 1:  # before the run folder exists
        raise ValueError(f"--jobs must be at least 1, got {jobs}")
    os.environ["OMP_NUM_THREADS"] = "1"  # one thread per parallel worker
    from halfulp.cli.runs import is_scale_model, run_comparison, run_scale

    if scale_model is not None or (resume is not None and is_scale_model(resume)):
        of_model = {"factor": scale_model, "format": state, "regime": regime}
        given = {**_for_scale(given), **{k: v for k, v in of_model.items() if v is not None}}
        run_scale(given, resume, out, jobs, source)
    else:
        run_comparison(given, resume, out, jobs, source)


def _for_scale(given: dict[str, Any]) -> dict[str, Any]:
    """Translate the options of an ordinary comparison to those of a scale model."""
    names = {
        "steps": "steps", "hidden": "hidden", "layers": "layers", "heads": "heads", "batch": "batch",
        "context": "context", "model": "architecture", "arms": "arms", "lrs": "lrs", "betas": "betas", "seeds": "seeds",
    }  # fmt: skip
    strange = sorted(set(given) - set(names))
    if strange:
        raise ValueError(f"--{strange[0].replace('_', '-')} cannot be used with --scale-model")
    chosen = {names[k]: len(v) if k == "seeds" else v for k, v in given.items()}
    if chosen.get("arms") == ("all",):
        from halfulp.lab.scale_arms import ARMS

        chosen["arms"] = tuple(ARMS)
    return chosen
