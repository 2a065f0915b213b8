"""Small real runs that the tests of the lab share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from halfulp.checkpoint.files import read_file
from halfulp.lab.compare import prepare_run_folder
from halfulp.lab.config import CompareConfig
from halfulp.lab.files import read_json, read_jsonl
from halfulp.lab.text import Corpus, load_corpus
from halfulp.lab.train import train
from halfulp.testing.subject import thread_count

TINY: dict[str, Any] = {
    "hidden": 64, "layers": 1, "heads": 2, "batch": 4, "context": 32, "warmup": 5, "measure_every": 5, "sample": 2000,
    "validation": 16,
}  # fmt: skip
TINY_OPTIONS = [
    "--hidden", "64", "--layers", "1", "--heads", "2", "--batch", "4", "--context", "32", "--measure-every", "5",
    "--max-mb", "0.5",
]  # fmt: skip


def corpus() -> Corpus:
    """Return half a megabyte of the standard library."""
    return load_corpus(max_mb=0.5)


def run_folder(folder: Path, config: CompareConfig) -> Path:
    """Return a run folder in which nothing has run yet."""
    prepare_run_folder(folder, config, corpus())
    return folder


def train_all(folder: Path, config: CompareConfig, **options: Any) -> None:
    """Train every run, one after the other, in this process."""
    with thread_count(1):
        for spec in config.runs():
            train(folder / "runs" / spec.name, folder / "tokens", config, spec, **options)


def command(*arguments: str) -> list[str]:
    """Return the command line for a subprocess."""
    return [sys.executable, "-m", "halfulp", *arguments]


def environment() -> dict[str, str]:
    """Return the environment of a subprocess: no network, a terminal of known width."""
    return {**os.environ, "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}


def run(*arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=timeout, env=environment(), check=False
    )


def bits(folder: Path) -> dict[str, dict[str, bytes]]:
    """Return every tensor of every checkpoint of a run folder, as bytes."""
    out = {}
    for path in sorted(folder.glob("runs/*/checkpoint.safetensors")):
        tensors = flat(read_file(path))
        out[path.parent.name] = {k: v.contiguous().view(torch.uint8).numpy().tobytes() for k, v in tensors.items()}
    return out


def flat(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors of nested dictionaries and lists, by their paths."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {k: v for key, item in inside for k, v in flat(item, f"{name}.{key}" if name else str(key)).items()}


def figures(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return every row of every ``metrics.jsonl`` of a run folder, without times."""
    out = {}
    for path in sorted(folder.glob("runs/*/metrics.jsonl")):
        out[path.parent.name] = [{k: v for k, v in row.items() if k != "seconds"} for row in read_jsonl(path)]
    return out


def averages(folder: Path) -> dict[str, Any]:
    """Return the entries on averages of the weights in each ``summary.json`` of a run folder."""
    return summaries(folder, "averages")


def summaries(folder: Path, key: str) -> dict[str, Any]:
    """Return one entry of each ``summary.json`` of a run folder."""
    return {path.parent.name: read_json(path)[key] for path in sorted(folder.glob("runs/*/summary.json"))}
