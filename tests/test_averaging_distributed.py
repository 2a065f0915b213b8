"""Averages of a model that FSDP2 has cut have the bits of those of the whole, also saved by one and resumed by another.

Checkpoints are those of ``torch.distributed.checkpoint``, and files of the gathered averages.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # so says dcp in one process
HERE = Path(__file__).parent / "distributed"
sys.path.insert(0, str(HERE))
import averages  # noqa: E402


def launch(ranks, out, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
         str(HERE / "averages.py"), str(out), *map(str, arguments)],
        capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two ranks have saved, and what they ended with."""
    return tmp_path_factory.mktemp("averages")


@pytest.fixture(scope="module")
def found(folder):
    return launch(2, folder / "found.pt", "run", folder)


@pytest.fixture(scope="module")
def expected():
    """One process, uninterrupted."""
    model = averages.build()
    made = averages.averages_of(model)
    averages.train(model, made, range(averages.STEPS))
    return averages.collect(model, made)


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_averages_of_shards_are_those_of_the_whole(found, expected):
    assert_same(found, expected)


def test_three_ranks_resume_what_two_have_saved(folder, found, expected):
    resumed = launch(3, folder / "resumed.pt", "resume", folder)
    ways = {f"dcp/{n}": t for n, t in expected.items() if not n.startswith("lawa")}
    assert_same(resumed, ways | {f"file/{n}": t for n, t in expected.items()})


@pytest.mark.parametrize("way", ["dcp", "file"])
def test_one_process_resumes_what_two_ranks_have_saved(way, folder, found, expected):
    model = averages.build()
    made = averages.resume(model, folder, way)
    averages.train(model, made, range(averages.SAVED, averages.STEPS))
    assert_same(averages.collect(model, made), {n: t for n, t in expected.items() if n.split("/")[0] in made})


def test_two_ranks_resume_what_one_process_has_saved(tmp_path, expected):
    model = averages.build()
    made = averages.averages_of(model)
    averages.train(model, made, range(averages.SAVED))
    averages.save(model, made, tmp_path, writes=True)
    resumed = launch(2, tmp_path / "resumed.pt", "resume", tmp_path)
    ways = {f"dcp/{n}": t for n, t in expected.items() if not n.startswith("lawa")}
    assert_same(resumed, ways | {f"file/{n}": t for n, t in expected.items()})
