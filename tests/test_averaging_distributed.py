"""Averages of a model that FSDP2 has cut have the bits of those of the whole."""

import os
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent / "distributed"
sys.path.insert(0, str(HERE))
import averages  # noqa: E402


def test_averages_of_shards_are_those_of_the_whole(tmp_path):
    out = tmp_path / "found.pt"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(HERE / "averages.py"), str(out)],
        capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = torch.load(out, weights_only=True)
    expected = averages.run(averages.build())
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
