"""The tables of docs/migrating.md: our optimizers accept the listed replacements of other libraries' arguments."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import halfulp

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "migrating.md").read_text()
SAME = {"params", "lr", "betas", "eps", "weight_decay"}
SIGNATURES = {  # the differences from bitsandbytes 0.50, torchao 0.18, flashoptim 0.1.4 and Apex's main branch
    "bitsandbytes": {"amsgrad": False, "optim_bits": 32, "args": None, "min_8bit_size": 4096, "is_paged": False},
    "torchao": {"amsgrad": False, "block_size": 256, "bf16_stochastic_round": False},
    "FlashOptim": {
        "decouple_lr": False, "quantize": True, "compress_state_dict": True, "master_weight_bits": 24,
        "check_numerics": False, "fused": True,
    },
    "Apex": {
        "bias_correction": True, "adam_w_mode": True, "amsgrad": False, "set_grad_none": True, "capturable": False,
        "master_weights": False,
    },
}  # fmt: skip


def rows(library: str) -> list[tuple[str, str]]:
    """What stands in the first two columns of a library's table, without the marks of code."""
    section = PAGE.split(f"\n## {library}\n")[1].split("\n## ")[0]
    cells = [re.split(r" *\| *", line)[1:3] for line in section.splitlines() if line.startswith("| `")]
    return [(theirs.strip("`"), ours.strip("`")) for theirs, ours in cells]


def arguments(source: str) -> dict[str, Any]:
    taken: dict[str, Any] = eval(f"dict({source})", {"halfulp": halfulp})
    return taken


@pytest.mark.parametrize("library", SIGNATURES)
def test_every_argument_has_a_row_and_its_default(library: str) -> None:
    found: dict[str, Any] = {}
    for theirs, _ in rows(library):
        found |= arguments(theirs)
    assert found == SIGNATURES[library]
    assert not SAME & found.keys()


@pytest.mark.parametrize("library", SIGNATURES)
def test_what_stands_for_it_makes_a_step(library: str) -> None:
    here = [ours for _, ours in rows(library) if ours]
    assert here
    for ours in here:
        weight = torch.nn.Parameter(torch.ones(64, 128, dtype=torch.bfloat16))
        optimizer = halfulp.AdamW([weight], lr=0.1, **arguments(ours))
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        assert (weight < 1).all(), ours
