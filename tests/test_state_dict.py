"""What a state dictionary holds, which hooks see it, and what a load says and refuses."""

from __future__ import annotations

import copy
import io
import logging
from typing import Any

import pytest
import torch

import halfulp
from halfulp.engine.resets import Every, Staggered
from halfulp.numbers.quantizer import Quantizer

SHAPES = [(8, 128), (6, 192)]


def make(cls: Any = halfulp.AdamW, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    return cls([torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES], **options)


def step(optimizer: Any) -> Any:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.full_like(p, 0.01)
    optimizer.step()
    return optimizer


def hooks_of(cls: Any) -> tuple[list[str], dict[str, Any]]:
    """Save and load with every hook, of which the last two return new dictionaries."""
    called: list[str] = []
    optimizer, saved = step(make(cls)), step(make(cls)).state_dict()

    def note(name: str, *, changes: bool = False) -> Any:
        def hook(optimizer: Any, state_dict: dict[str, Any] | None = None) -> dict[str, Any] | None:
            called.append(name)
            return {**state_dict, name: 1} if changes and state_dict is not None else None

        return hook

    optimizer.register_state_dict_pre_hook(note("before saving"))
    optimizer.register_state_dict_post_hook(note("saved"))
    optimizer.register_state_dict_post_hook(note("saved, changed", changes=True))
    optimizer.register_load_state_dict_pre_hook(note("before loading"))
    optimizer.register_load_state_dict_pre_hook(note("before loading, changed", changes=True))
    optimizer.register_load_state_dict_post_hook(note("loaded"))
    result = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    return called, result


def test_hooks_are_called_as_torch_calls_them() -> None:
    (called, result), (wanted, of_torch) = hooks_of(halfulp.AdamW), hooks_of(torch.optim.AdamW)
    assert called == wanted
    assert set(result) == set(of_torch) == {"state", "param_groups", "saved, changed"}


@pytest.mark.parametrize("reset", [None, 300, "auto", Every(3), Staggered(5), lambda site: site.step == 3], ids=str)
def test_a_schedule_is_saved_as_a_plain_value(reset: Any) -> None:
    """Torch's loader without pickles reads it."""
    file = io.BytesIO()
    torch.save(make(reset=reset).state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)["param_groups"][0]["reset"]
    assert saved == (reset if reset in (None, 300, "auto") else repr(reset))


def test_values_put_beside_the_codes_are_saved_as_codes() -> None:
    optimizer = step(make(state="fp8", rounding="nearest", min_size=0))
    p = optimizer.param_groups[0]["params"][0]
    values = torch.randn(SHAPES[0])
    optimizer.state[p]["exp_avg"] = values
    del optimizer.state[p]["exp_avg_scale"]
    saved = optimizer.state_dict()["state"][0]
    codes, scale = Quantizer("float8_e4m3fn", rounding="nearest").quantize(values)
    assert torch.equal(saved["exp_avg"], codes)
    assert scale is not None
    assert torch.equal(saved["exp_avg_scale"], scale)


@pytest.mark.parametrize(
    ("kept", "said"), [((), "a state_dict without states"), ((1,), "no states for 1 of 2"), ((0, 1), None)]
)
def test_a_load_says_which_states_are_missing(
    kept: tuple[int, ...], said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    saved = copy.deepcopy(step(make()).state_dict())
    saved["state"] = {k: v for k, v in saved["state"].items() if k in kept}
    optimizer = make()
    with caplog.at_level(logging.INFO, "halfulp"):
        optimizer.load_state_dict(saved)
    assert [said in message for message in caplog.messages] == ([] if said is None else [True])
    assert [p in optimizer.state for p in optimizer.param_groups[0]["params"]] == [0 in kept, 1 in kept]


GROUP = {"params": [0, 1]}
NO_LAYOUTS: list[Any] = [
    None, 3, [], ["state", "param_groups"], {}, {"state": {}}, {"param_groups": [GROUP]},
    {"state": [], "param_groups": [GROUP]}, {"state": {}, "param_groups": GROUP}, {"state": {}, "param_groups": [[]]},
    {"state": {}, "param_groups": [{}]}, {"state": {}, "param_groups": [{"params": 2}]},
    {"state": {}, "param_groups": [GROUP, {"params": None}]}, {"state": {}, "param_groups": [{"params": [0, 1.5]}]},
]  # fmt: skip


@pytest.mark.parametrize("given", NO_LAYOUTS, ids=repr)
def test_what_is_no_state_dict_is_refused_as_such(given: Any) -> None:
    with pytest.raises(ValueError, match="not an optimizer state_dict: "):
        make().load_state_dict(given)
