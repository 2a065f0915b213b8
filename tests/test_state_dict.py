"""What a state dictionary holds, which hooks see it, and what a load says and refuses."""

from __future__ import annotations

import copy
import io
import logging
from typing import Any

import pytest
import torch

import halfulp
import halfulp.averaging
from halfulp.engine.resets import Every, Staggered
from halfulp.numbers.quantizer import Quantizer

SHAPES = [(8, 128), (6, 192)]


def make(cls: Any = halfulp.AdamW, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    return cls([torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES], **options)


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


@pytest.mark.parametrize(
    "reset",
    [None, 300, "auto", Every(3), Staggered(5), lambda site: site.step == 3],
    ids=lambda reset: type(reset).__name__,
)
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


def without(*names: str) -> Any:
    """Remove states of parameter 0 from a state dictionary: all of it, or those named with their scales and ages."""

    def change(saved: dict[str, Any]) -> None:
        for key in list(saved["state"][0]):
            if key.startswith(names) and key != "step":
                del saved["state"][0][key]

    return change


INFO, WARNING = logging.INFO, logging.WARNING
MISSING: dict[str, tuple[Any, dict[str, Any], list[tuple[int, str]]]] = {
    "nothing": (lambda saved: None, {}, []),
    "nothing, with master weights": (lambda saved: None, {"master_weights": "remainder16"}, []),
    "all states": (lambda saved: saved["state"].clear(), {}, [(WARNING, "a state_dict without states")]),
    "a parameter": (lambda saved: saved["state"].pop(0), {}, [(INFO, "no states for 1 of 2")]),
    "a state": (without("exp_avg_sq"), {}, [(WARNING, "saved without exp_avg_sq, which starts at zero (a hyp")]),
    "the states of a parameter": (without("exp"), {}, [(INFO, "without exp_avg, exp_avg_sq, which starts at zero (d")]),
    "master weights": (
        without("master"), {"master_weights": "remainder16"}, [(WARNING, "a state_dict without master_param")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISSING)
def test_a_load_says_what_is_missing(name: str, caplog: pytest.LogCaptureFixture) -> None:
    change, options, said = MISSING[name]
    dtype = torch.bfloat16 if options else torch.float32
    saved = copy.deepcopy(step(make(dtype=dtype, **options)).state_dict())
    change(saved)
    optimizer = make(dtype=dtype, **options)
    with caplog.at_level(INFO, "halfulp"):
        caplog.clear()
        optimizer.load_state_dict(saved)
    assert [(record.levelno, *(m for _, m in said if m in record.message)) for record in caplog.records] == said
    assert [p in optimizer.state for p in optimizer.param_groups[0]["params"]] == [k in saved["state"] for k in (0, 1)]


NAMES: list[tuple[Any, Any, Any]] = [  # saved, of this optimizer, the order of the saved states or the error
    (None, None, [0, 1]),
    ("ab", None, [0, 1]),
    (None, "ab", [0, 1]),
    ("ab", "ab", [0, 1]),
    ("ab", "ba", [1, 0]),
    (("module.a", "module.b"), ("b", "_orig_mod.a"), [1, 0]),
    ("ab", "ac", [0, 1]),
    ("ab", "cd", [0, 1]),
    ("ab", "bc", "'b' is number 1 of its group there and 0 here"),
]


@pytest.mark.parametrize(("theirs", "mine", "expected"), NAMES)
def test_states_find_their_parameters_by_name(theirs: Any, mine: Any, expected: Any) -> None:
    def build(names: Any) -> Any:
        params = [torch.nn.Parameter(torch.zeros(4, 4)) for _ in range(2)]
        return halfulp.AdamW(params if names is None else list(zip(names, params, strict=True)))

    first, second = build(theirs), build(mine)
    for k, p in enumerate(first.param_groups[0]["params"]):
        p.grad = torch.full_like(p, k + 1.0)
    first.step()
    saved = first.state_dict()
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            second.load_state_dict(saved)
        return
    second.load_state_dict(saved)
    for p, k in zip(second.param_groups[0]["params"], expected, strict=True):
        assert torch.equal(second.state[p]["exp_avg"], saved["state"][k]["exp_avg"])


def tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return [x for part in parts for x in tensors(part)]


def averaged(optimizer: Any) -> Any:
    named = {str(k): p for k, p in enumerate(optimizer.param_groups[0]["params"])}
    return halfulp.averaging.EMA(named, state="8bit", min_size=0)


MASTERS = [{"master_weights": "fp32"}, {"master_weights": "remainder16"}]


@pytest.mark.parametrize("options", [{"min_size": 0}, {"state": "fp32"}, *MASTERS], ids=str)
@pytest.mark.parametrize("strided", [False, True])
def test_a_load_copies_and_takes_any_strides(options: dict[str, Any], strided: bool) -> None:
    """Later steps do not change the dictionary, and have the bits of the run that made it."""
    dtype = torch.bfloat16 if "master_weights" in options else torch.float32
    before, after = (step(make(dtype=dtype, **options)) for _ in range(2))
    ema, other = averaged(before), averaged(after)
    ema.update()
    saved = copy.deepcopy({"optimizer": before.state_dict(), "average": ema.state_dict()})
    if strided:  # columns first
        for x in tensors(saved):
            x.set_(x.mT.contiguous().mT if x.ndim > 1 else torch.stack([x, x], dim=-1)[..., 0])
    kept = copy.deepcopy(saved)
    after.load_state_dict(saved["optimizer"])
    other.load_state_dict(saved["average"])
    for p, q in zip(before.param_groups[0]["params"], after.param_groups[0]["params"], strict=True):
        name = "master_param" if options in MASTERS else "exp_avg_sq"
        assert torch.equal(before.state_tensor(p, name), after.state_tensor(q, name))
    assert all(x.is_contiguous() for x in tensors([after.state_dict(), other.state_dict()]))
    for optimizer, average in ((before, ema), (after, other)):
        step(optimizer)
        average.update()
    assert len(tensors(kept)) >= 6
    assert all(map(torch.equal, tensors(kept), tensors(saved)))
    ours, theirs = (tensors([o.state_dict(), a.state_dict()]) for o, a in ((before, ema), (after, other)))
    assert all(map(torch.equal, ours, theirs))


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
