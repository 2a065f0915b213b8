"""The declared states of rules predict how many updates stall: a fast part of ``benchmarks/rules_stall.py``.

The simulation is the rule itself, counted by the engine. The prediction uses only the declaration. The cases cover the
kinds of declarations: shared squares, sums, a state that starts whole or restarts, a changing decay, a rotating pair.
"""

from __future__ import annotations

import pytest
import rules_stall
import torch

import halfulp
from halfulp.optim import OPTIMIZERS

CASES = [
    ("AdamW", "bf16", "nearest"), ("ADOPT", "bf16", "stochastic"), ("AMAdamW", "fp8", "nearest"),
    ("AMSGD", "fp8", "stochastic"), ("AdaBelief", "fp8", "stochastic"), ("DiffGrad", "fp8", "nearest"),
    ("ComplexMomentum", "fp8", "nearest"), ("Gravity", "fp8", "stochastic"), ("LARS", "fp8", "nearest"),
    ("MADGRAD", "fp8", "stochastic"), ("FRUGAL", "fp8", "stochastic"), ("CAME", "fp8", "stochastic"),
    ("SubsetNorm", "fp8", "nearest"), ("Lion", "fp8", "nearest"),
]  # fmt: skip
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("name", "state", "rounding"), CASES)
def test_predicted_is_simulated(name: str, state: str, rounding: str) -> None:
    rows = rules_stall.simulate(name, state, rounding, ((65, 128),), samples=9)
    assert rows
    for row in rows:
        assert row.due > 0.9, row
        assert abs(row.off) <= rules_stall.BOUND, row


def test_every_state_has_a_prediction_or_a_reason() -> None:
    """Of every optimizer, so that a new one cannot leave it open; and no reason is left for a state that is gone."""
    used = set()
    for cls in OPTIMIZERS:
        name = cls.__name__
        param = torch.nn.Parameter(torch.zeros(8, 8))
        optimizer = getattr(halfulp, name)([("weight", param)], **rules_stall.ARGUMENTS.get(name, {}))
        group = optimizer.param_groups[0]
        for slot in optimizer.group_slots(group):
            why = rules_stall.reason(name, slot.name)
            used |= {key for key in rules_stall.REASONS if key in ((name, slot.name), (name, "*"))}
            assert slot.exact or why or slot.average(group, (8, 8), 10) is not None, (name, slot.name)
    assert used == set(rules_stall.REASONS)
