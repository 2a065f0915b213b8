"""Optimizers in processes that are forked, spawned and killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.seeds import FIRST, many

SCRIPT = Path(__file__).parent / "support" / "children.py"
KILLS = many("HALFULP_KILLS", 40)
"""How often a process that saves is killed: hundreds by hand."""


def run(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("threads", "steps", "imported"), [(1, 0, 1), (1, 0, 0), (1, 1, 1), (0, 0, 1)])
def test_a_forked_child_makes_its_steps(threads: int, steps: int, imported: int) -> None:
    """Whether or not the parent had used torch's threads, made a step, or imported the library."""
    run("fork", threads, steps, imported)


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_a_child_has_the_bits_of_its_parent(how: str) -> None:
    import torch

    if how not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"no {how} here")
    run({"fork": "fork_child"}.get(how, how))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_workers_of_a_loader_make_steps() -> None:
    run("loader")


@pytest.mark.parametrize("process", range(2))
def test_first_steps_in_threads_have_the_bits_of_the_reference(process: int) -> None:
    """Fresh processes: tables of formats are made by whichever thread is first."""
    run("threads")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_save_that_is_killed_leaves_a_whole_file(tmp_path: Path) -> None:
    found = json.loads(run("kill", FIRST, KILLS, tmp_path))
    assert found["kills"] == sum(found["seen"].values()) == KILLS
    assert set(found["seen"]) == {"64", "1000"}  # killed during both kinds of writes
