"""Run the arms of a comparison in parallel, each in a single-threaded process, in a folder that can be resumed.

A run folder contains ``config.json``, ``environment.json``, ``tokens/`` (removed when all arms are done),
``runs/NAME/`` with the metrics and checkpoints of each run, and the report.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from halfulp.lab.config import CompareConfig, RunSpec
from halfulp.lab.environment import describe
from halfulp.lab.files import check_new, check_tokens, read_config, read_json, write_json
from halfulp.lab.text import Corpus
from halfulp.lab.tokens import prepare_tokens

__all__ = ["RunStatus", "load_run_folder", "prepare_run_folder", "run_all"]

HEARTBEAT = 0.25
"""Seconds between messages of a worker, and between polls of the parent."""


@dataclass
class RunStatus:
    """Status of one run in the comparison. `state` is waiting, running, done, stopped or failed."""

    spec: RunSpec
    state: str = "waiting"
    step: int = 0
    loss: float | None = None
    validation: float | None = None
    stalled: float | None = None
    tokens_per_second: float | None = None
    diverged: bool = False
    error: str | None = None
    process: Any = field(default=None, repr=False)
    connection: Connection | None = field(default=None, repr=False)


def prepare_run_folder(folder: Path, config: CompareConfig, corpus: Corpus) -> CompareConfig:
    """Create a run folder with tokens, environment and configuration. Return the configuration with numeric periods.

    Raise ``ValueError`` if the folder is not empty, or the text is too short.
    """
    check_new(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokens = prepare_tokens(corpus, config.tokenizer, config.context, folder / "tokens")
    write_json(folder / "environment.json", describe(corpus.info, tokens))
    config = config.with_periods()
    write_json(folder / "config.json", asdict(config))
    return config


def load_run_folder(folder: Path) -> CompareConfig:
    """Return the configuration of a run folder. Raise ``FileNotFoundError`` for any other folder."""
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} is no run folder of halfulp compare: it has no config.json")
    return read_config(path, CompareConfig)


def run_all(
    folder: Path, config: CompareConfig, *, jobs: int, watch: Callable[[list[RunStatus]], None] = lambda statuses: None
) -> list[RunStatus]:
    """Run everything that is not done yet, `jobs` processes at a time.

    On ``KeyboardInterrupt`` the running workers write a checkpoint and stop, and then the exception is raised again. A
    second interrupt raises it at once. Runs without a checkpoint are then still ``"running"``. A worker that receives
    SIGTERM does the same, and leaves its run stopped. `watch` is called about four times a second with the status of
    all runs.
    """
    if jobs < 1:
        raise ValueError(f"jobs is at least 1, got {jobs}")
    statuses = [_status(folder, spec) for spec in config.runs()]
    if all(s.state == "done" for s in statuses):
        watch(statuses)
        return statuses
    check_tokens(folder)
    context = _context()
    stop = context.Event()
    try:
        while any(s.state in ("waiting", "running") for s in statuses):
            _start(statuses, jobs, context, stop, folder, config)
            _listen(statuses)
            watch(statuses)
    except KeyboardInterrupt:
        stop.set()
        _let_finish(statuses, watch)
        raise
    finally:
        for status in statuses:
            if status.process is not None and status.process.is_alive():
                status.process.kill()  # its last checkpoint exists, and it handles SIGTERM only between two steps
    if all(s.state == "done" for s in statuses):
        shutil.rmtree(folder / "tokens")
    return statuses


def _status(folder: Path, spec: RunSpec) -> RunStatus:
    status = RunStatus(spec)
    summary = folder / "runs" / spec.name / "summary.json"
    if summary.exists():
        values = read_json(summary)
        status.state, status.step = "done", values["steps"]
        status.validation, status.diverged = values["validation"], values["diverged"]
    return status


def _context() -> Any:
    """Return a fork server that has imported torch and transformers, if available; otherwise use new processes."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["halfulp.lab.warm"])
    return context


def _start(statuses: list[RunStatus], jobs: int, context: Any, stop: Any, folder: Path, config: CompareConfig) -> None:
    running = sum(s.state == "running" for s in statuses)
    for status in [s for s in statuses if s.state == "waiting"][: jobs - running]:
        status.connection, theirs = context.Pipe(duplex=False)
        status.process = context.Process(target=_work, args=(folder, config, status.spec, theirs, stop), daemon=True)
        status.process.start()
        theirs.close()
        status.state = "running"


def _listen(statuses: list[RunStatus], *, stopping: bool = False) -> None:
    """Read the workers' messages of one heartbeat."""
    silence = {"state": "failed", "error": "its process ended without a word (out of memory, or killed?)"}
    by_connection = {s.connection: s for s in statuses if s.state == "running" and s.connection is not None}
    deadline = time.monotonic() + HEARTBEAT
    while by_connection and (left := deadline - time.monotonic()) > 0:
        for ready in wait(list(by_connection), left):
            assert isinstance(ready, Connection)
            status = by_connection[ready]
            try:
                message = ready.recv()
            except EOFError:
                message = {"state": "stopped"} if stopping else silence
            for key, value in message.items():
                setattr(status, key, value)
            if status.state != "running":
                status.process.join()
                ready.close()
                del by_connection[ready]


def _let_finish(statuses: list[RunStatus], watch: Callable[[list[RunStatus]], None]) -> None:
    deadline = time.monotonic() + 60
    while any(s.state == "running" for s in statuses) and time.monotonic() < deadline:
        _listen(statuses, stopping=True)
        watch(statuses)


def _work(folder: Path, config: CompareConfig, spec: RunSpec, connection: Connection, stop: Any) -> None:
    """Run a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and sets `stop`
    told: list[int] = []  # a batch system sends SIGTERM to every process of the group
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    parent = multiprocessing.parent_process()
    spoken, latest = 0.0, dict[str, Any]()

    def say(progress: Any) -> None:
        nonlocal spoken, latest
        now, latest = time.monotonic(), vars(progress)
        if now - spoken >= HEARTBEAT or progress.step == config.steps:
            spoken = now
            connection.send(latest)

    def stopping() -> bool:
        return bool(told) or stop.is_set() or (parent is not None and not parent.is_alive())

    try:
        from halfulp.lab.train import train

        done = train(folder / "runs" / spec.name, folder / "tokens", config, spec, report=say, stop=stopping)
        state = "done" if done else "stopped"
        diverged = done and read_json(folder / "runs" / spec.name / "summary.json")["diverged"]
        connection.send({**latest, "state": state, "diverged": diverged})
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the parent is gone, and the checkpoints exist
    except Exception:
        connection.send({"state": "failed", "error": traceback.format_exc()})
