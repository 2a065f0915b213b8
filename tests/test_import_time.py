"""``from halfulp import AdamW`` costs little more than ``import torch`` and imports nothing optional."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import halfulp

SCRIPT = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.process_time()  # processor time: what else runs here must not decide
import halfulp
from halfulp import AdamW, Quantizer
took = time.process_time() - start
print(json.dumps([took, sorted({m.split(".")[0] for m in set(sys.modules) - before})]))
"""


def test_import_time_and_modules() -> None:
    times, modules = [], set()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(5):  # the first import writes the bytecode that an installed package has
        out = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, check=True, env=env
        )
        seconds, loaded = json.loads(out.stdout.splitlines()[-1])
        times.append(seconds)
        modules |= set(loaded)
    assert min(times) < 0.2, times  # other processes can only increase the time
    optional = {"matplotlib", "plotly", "transformers", "tokenizers", "datasets", "pyarrow", "triton", "typer", "rich"}
    assert not modules & optional


@pytest.mark.parametrize(("name", "home"), halfulp._MODULES.items())
def test_modules_are_there_after_the_import_alone(name: str, home: str) -> None:
    code = f"import halfulp; assert '{name}' in dir(halfulp); print(halfulp.{name}.__name__)"
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == f"halfulp.{home}\n"
