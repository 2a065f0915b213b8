"""Averages saved by an earlier version load and continue bit for bit."""

import gzip
from pathlib import Path

import pytest
import torch

from support.stored_averages import BUILD, build, digest, move

SAVED = Path(__file__).parent / "data" / "averages.pt.gz"


@pytest.mark.parametrize("name", BUILD)
def test_a_saved_average_goes_on(name):
    with gzip.open(SAVED) as file:
        saved = torch.load(file, weights_only=True)[name]
    model = build()
    before = BUILD[name](model)
    for step in range(1, 7):  # bring the model to its state at the save
        move(model, step, before)
    average = BUILD[name](model)
    average.load_state_dict(saved["state"])
    for step in range(7, 13):
        move(model, step, average)
    state = average.state_dict()
    assert digest(state.get("halfulp") or state) == saved["digest"]
