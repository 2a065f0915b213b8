"""The main job as a user runs it: in subprocesses, killed, interrupted, continued; and bad input to it."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from halfulp.cli.runs import _Interrupt
from halfulp.lab.compare import RunStatus, load_run_folder, run_all
from halfulp.lab.config import CompareConfig
from halfulp.lab.files import read_json
from halfulp.lab.progress import ProgressView
from support.lab_runs import TINY, TINY_OPTIONS, averages, bits, command, environment, figures, run, run_folder

ARMS = "fp32,bf16-nearest,fp8-stochastic-reset30"
PATIENCE = 300
"""Seconds before something counts as hanging: many times what it takes, since machines can be slow."""
OPTIONS = ["--arms", ARMS, "--steps", "60", "--checkpoint-every", "7", "--jobs", "2", *TINY_OPTIONS]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "run"
    done = run("compare", *OPTIONS, "--out", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Report: {folder / 'report.html'}" in done.stdout
    assert "second moment" in done.stdout
    return folder


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs and their children ignore it


def begin(folder: Path) -> subprocess.Popen[str]:
    """Start a comparison in a session of its own, and wait until both of its workers have a checkpoint."""
    process = subprocess.Popen(
        command("compare", *OPTIONS, "--out", str(folder)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        start_new_session=True,
        preexec_fn=_hear_interrupts,
    )
    deadline = time.monotonic() + PATIENCE
    while len(list(folder.glob("runs/*/checkpoint.safetensors"))) < 2:
        assert time.monotonic() < deadline, f"no checkpoints after {PATIENCE} s"
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.02)
    return process


def continue_and_compare(folder: Path, straight: Path) -> None:
    done = run("compare", "--resume", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert bits(folder) == bits(straight)
    assert figures(folder) == figures(straight)
    assert averages(folder) == averages(straight)
    assert (folder / "report.html").exists()
    assert not (folder / "tokens").exists()


def test_run_folder_holds_everything(straight: Path) -> None:
    assert load_run_folder(straight).steps == 60
    about = read_json(straight / "environment.json")
    assert about["text"]["bytes"] > 4e5
    assert about["packages"]["torch"]
    names = [spec.name for spec in load_run_folder(straight).runs()]
    assert sorted(figures(straight)) == sorted(names)
    for name in names:
        files = {p.name for p in (straight / "runs" / name).iterdir()}
        assert files == {"checkpoint.safetensors", "metrics.jsonl", "summary.json"}


def test_killed_in_the_middle_and_resumed_is_bit_identical(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = begin(folder)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(list(folder.glob("runs/*/summary.json"))) < 3
    continue_and_compare(folder, straight)


@pytest.mark.parametrize(
    "sent",
    [[signal.SIGINT], [signal.SIGTERM, signal.SIGINT, signal.SIGINT]],
    ids=["ctrl-c", "three at once"],
)
def test_interrupted_writes_a_checkpoint_and_is_resumed(sent: list[int], straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = begin(folder)
    for number in sent:
        os.killpg(process.pid, number)  # like Ctrl-C in a terminal or a batch system: the whole group gets it
        time.sleep(0.005)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, output
    assert f"Continue with: halfulp compare --resume {folder}" in output
    assert "Traceback" not in output
    assert "failed" not in output
    assert re.search(r"stopped \(step \d+", output)
    assert re.search(r"Stopped: \d of 3 runs done; stopped .* at step \d+", output)
    continue_and_compare(folder, straight)


def test_a_second_interrupt_does_not_wait_and_says_what_is_lost() -> None:
    config = CompareConfig(arms=("fp32", "bf16-nearest", "fp8-nearest"), steps=90, checkpoint_every=30)
    view = ProgressView(Console(file=io.StringIO()), config)
    states = ("stopped", "running", "waiting")
    view([RunStatus(spec, state, 40) for spec, state in zip(config.runs(), states, strict=True)])
    assert view.standing() == (
        "0 of 3 runs done; stopped fp32 at step 40; ended without a checkpoint, up to 30 steps to be done again: "
        "bf16 nearest at step 40; 1 not begun"
    )
    interrupt = _Interrupt()
    raised = []
    for at in (0.0, 0.005, 0.9, 1.1, 1.2):
        interrupt.clock = lambda at=at: at  # type: ignore[method-assign, misc]
        try:
            interrupt(signal.SIGINT, None)
        except KeyboardInterrupt:
            raised.append(at)
    assert raised == [0.0, 1.1]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the workers in /proc")
def test_workers_stop_when_their_parent_is_killed(tmp_path: Path) -> None:
    process = begin(tmp_path / "run")
    process.kill()
    process.communicate()

    def alive() -> list[str]:
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == process.pid and fields[0] != "Z":  # session, state
                found.append(stat.parent.name)
        return found

    deadline = time.monotonic() + PATIENCE
    while alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive()


def test_finished_run_is_not_done_again(straight: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in straight.glob("runs/*/*")}
    config = load_run_folder(straight)
    statuses = run_all(straight, config, jobs=1)
    assert [s.state for s in statuses] == ["done"] * 3
    assert {p: p.stat().st_mtime_ns for p in straight.glob("runs/*/*")} == before


def test_failed_arm_is_told_and_leaves_the_others(tmp_path: Path) -> None:
    config = CompareConfig(arms=("fp32", "bf16-nearest"), steps=4, **TINY)
    folder = run_folder(tmp_path / "run", config)
    broken = folder / "runs" / config.runs()[1].name
    broken.mkdir(parents=True)
    (broken / "checkpoint.safetensors").write_bytes(b"not a checkpoint")
    statuses = run_all(folder, config, jobs=2)
    assert [s.state for s in statuses] == ["done", "failed"]
    assert "is truncated or no safetensors file" in (statuses[1].error or "")
    assert "Delete it to start this arm anew" in (statuses[1].error or "")
    assert (folder / "tokens").exists()  # the rest can be continued


@pytest.mark.parametrize(("width", "gone"), [(100, ""), (60, "tokens/s valid. step"), (40, "loss, stalled v")])
@pytest.mark.parametrize("height", [40, 12])
def test_live_table_goes_without_what_has_no_room(width: int, gone: str, height: int) -> None:
    config = CompareConfig(seeds=(0, 1))
    runs = [RunStatus(spec, "done", 1000) for spec in config.runs()]
    runs[-1] = RunStatus(runs[-1].spec, "running", 340, 2.3456, 2.4567, 0.976, 12345.0)
    console = Console(force_terminal=True, width=width, height=height, file=io.StringIO(), legacy_windows=False)
    with ProgressView(console, config) as view:
        view(runs)
        assert isinstance(console.file, io.StringIO)
        seen = console.file.getvalue()
        assert view.title(runs[-1]) in seen  # the one that is running is shown, however low the terminal
        assert ("and 10 done" in seen) == (height == 12)
    seen = console.file.getvalue()
    assert "…" not in seen
    assert all(view.title(s) in seen for s in runs)  # the last frame is complete
    assert not [name for name in re.split(r"[ ,]+", gone) if name and name in seen]
    lost = "ended without a checkpoint, up to 100 steps to be done again: fp4 stochastic, seed 1 at step 340"
    assert view.standing() == f"17 of 18 runs done; {lost}"


BAD = {
    "unknown format": (["--arms", "fp9-nearest"], "Did you mean 'fp8'"),
    "no rounding": (["--arms", "fp8"], "write fp8-nearest or fp8-stochastic"),
    "learning rate": (["--lr", "fast"], "--lr takes comma-separated numbers"),
    "seeds": (["--seeds", "0"], "at least 1"),
    "steps": (["--steps", "0"], "steps is a whole number of at least 1, got 0"),
    "tokenizer": (["--tokenizer", "words"], "'bytes' or 'bpe:SIZE'"),
    "model": (["--model", "gpt"], "llama, neox, mixtral"),
    "data": (["--data", "/no/such/file"], "no such file or folder"),
    "resume": (["--resume", "/no/such/folder"], "is no run folder"),
    "resume and more": (["--resume", "/x", "--steps", "3"], "takes all options from the run folder"),
    "jobs": (["--jobs", "0", *TINY_OPTIONS], "--jobs must be at least 1"),
    "full folder": (["--out", "OUT", *TINY_OPTIONS], "is not empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_what_is_wrong(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from halfulp.cli import main

    arguments, message = BAD[case]
    (tmp_path / "something").touch()
    monkeypatch.chdir(tmp_path)
    arguments = [str(tmp_path) if a == "OUT" else a for a in arguments]
    monkeypatch.setattr(sys, "argv", ["halfulp", "compare", *arguments])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["something"]  # no run folder
