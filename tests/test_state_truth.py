"""``optimizer.state``, groups and parameters belong to the user. Every change to them is followed or clearly refused.

Each action below happens between two steps, for optimizers of several rules and formats. The expected result is stated
beside it: the next step has the bits of a run without the action (``SAME``), of one that starts again (``ANEW``) or of
one that continues from given values (``VALUES``), or it raises a helpful error and nothing has changed.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import halfulp
from halfulp.kernels import native
from halfulp.numbers import rounding
from support.optimizers import assert_same, everything, set_grads
from support.wrapped import Wrapper

OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "AdamW 8bit": ("AdamW", {"state": "8bit"}),
    "AdamW fp8 fp32 scales": ("AdamW", {"state": "fp8", "scale": "fp32"}),
    "AdamW 4bit": ("AdamW", {"state": "4bit"}),
    "AdamW bf16": ("AdamW", {"state": "bf16"}),
    "AdamW fp32": ("AdamW", {"state": "fp32"}),
    "SGD int8": ("SGD", {"state": "int8", "momentum": 0.9}),
    "Lion fp8": ("Lion", {"state": "fp8"}),
    "Adafactor 8bit": ("Adafactor", {"state": "8bit"}),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Muon 8bit": ("Muon", {"state": "8bit", "fallback": ()}),
    "SOAP int8": ("SOAP", {"state": "int8"}),
    "Gravity 4bit": ("Gravity", {"state": "4bit"}),
}
EVERY = {**OPTIMIZERS, **OTHERS}
BACKENDS = [None, "reference"] if native.why_not() is None else ["reference"]
SHAPES = [(6, 192), (8, 128)]


def make(name: str, backend: str | None = None, **options: Any) -> tuple[Any, list[torch.nn.Parameter]]:
    cls, chosen = EVERY[name]
    generator = torch.Generator().manual_seed(3)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]
    optimizer = getattr(halfulp, cls)(params, **{"lr": 1e-2, "min_size": 0, "backend": backend, **chosen, **options})
    return optimizer, params


def step(optimizer: Any, number: int, within: Any = None) -> None:
    set_grads([p for group in optimizer.param_groups for p in group["params"]], 100 + number)
    with within or contextlib.nullcontext():
        optimizer.step()


def first(optimizer: Any) -> Tensor:
    p: Tensor = optimizer.param_groups[0]["params"][0]
    return p


def tensors(optimizer: Any) -> list[tuple[dict[str, Any], str]]:
    """(entries, key) of every stored tensor of the first parameter."""
    entries = optimizer.state[first(optimizer)]
    return [(entries, k) for k, v in entries.items() if isinstance(v, Tensor)]


def each(change: Callable[[Tensor], Any]) -> Callable[[Any], None]:
    def act(optimizer: Any) -> None:
        for entries, key in tensors(optimizer):
            entries[key] = change(entries[key])

    return act


def in_place(change: Callable[[Tensor], Any]) -> Callable[[Any], None]:
    def act(optimizer: Any) -> None:
        for entries, key in tensors(optimizer):
            change(entries[key])

    return act


def strided(x: Tensor) -> Tensor:
    wide = torch.empty((*x.shape, 2), dtype=x.dtype)
    wide[..., 0] = x
    return wide[..., 0]


def moved(x: Tensor) -> None:
    x.data = x.data.clone()


def elsewhere(x: Tensor) -> None:
    x.set_(x.clone())  # type: ignore[call-overload]


def resized_and_back(x: Tensor) -> None:
    kept = x.clone()
    x.untyped_storage().resize_(0)
    x.untyped_storage().resize_(kept.nbytes)
    x.copy_(kept)


def under_inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


def param_data(optimizer: Any) -> None:
    p = first(optimizer)
    p.data = p.data.clone()


def param_strided(optimizer: Any) -> None:
    p = first(optimizer)
    p.data = p.data.t().contiguous().t()


def deep_copied(optimizer: Any) -> None:
    for p in list(optimizer.state):
        optimizer.state[p] = copy.deepcopy(optimizer.state[p])


def own_keys(optimizer: Any) -> None:
    optimizer.state[first(optimizer)]["mine"] = {"note": 1}
    optimizer.state["of all"] = 7
    for group in optimizer.param_groups:
        group["initial_lr"] = 1.0
        group["array"] = torch.arange(3).numpy()


def counts_as_tensors(optimizer: Any) -> None:
    for entries in optimizer.state.values():
        for key in entries:
            if isinstance(entries[key], int):
                entries[key] = torch.tensor(float(entries[key]))


def counts_of_numpy(optimizer: Any) -> None:
    for entries in optimizer.state.values():
        for key in entries:
            if isinstance(entries[key], int):
                entries[key] = np.int64(entries[key])


def plain_dictionary(optimizer: Any) -> None:
    optimizer.state = dict(optimizer.state)


def values_given(optimizer: Any) -> None:
    """Each state as fp32 values without scales, as a library that thinks in values puts it there."""
    p = first(optimizer)
    for state in optimizer.states(p):
        values = state.read().clone()
        optimizer.state[p][state.slot.name] = values
        optimizer.state[p].pop(state.scale_key, None)


def other_rows(optimizer: Any) -> None:
    """Half of the rows, of the parameter and of what is stored of it, under a new parameter: pruned splats."""
    group = optimizer.param_groups[0]
    old = group["params"][0]
    entries = optimizer.state.pop(old)
    for key, x in entries.items():
        if isinstance(x, Tensor) and x.ndim and x.shape[0] == old.shape[0]:
            entries[key] = x[::2].clone()
    group["params"][0] = torch.nn.Parameter(old.detach()[::2].clone())
    optimizer.state[group["params"][0]] = entries


FOLLOWED: dict[str, Callable[[Any], None]] = {
    "replaced by equal tensors": each(torch.clone),
    "replaced by strided tensors": each(strided),
    "replaced by tensors of inference mode": each(under_inference),
    "replaced by tensors that require a gradient": each(lambda x: x.clone().requires_grad_(x.is_floating_point())),
    "data replaced": in_place(moved),
    "set_": in_place(elsewhere),
    "storage freed and given back": in_place(resized_and_back),
    "entries deep-copied": deep_copied,
    "state a plain dictionary": plain_dictionary,
    "data of a parameter replaced": param_data,
    "parameter strided": param_strided,
    "counts as tensors": counts_as_tensors,
    "counts of numpy": counts_of_numpy,
    "keys of the user's": own_keys,
}


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("action", FOLLOWED)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_changes_no_value_changes_no_bit(name: str, action: str, backend: str | None) -> None:
    (got, _), (expected, _) = make(name, backend), make(name, backend)
    for number in range(2):
        step(got, number)
        step(expected, number)
    FOLLOWED[action](got)
    for number in range(2, 4):
        step(got, number)
        step(expected, number)
    for optimizer in (got, expected):
        optimizer.state.pop("of all", None)
        optimizer.state[first(optimizer)].pop("mine", None)
    assert_same(everything(got), everything(expected))
    saved = got.state_dict()
    other, _ = make(name, backend)
    other.load_state_dict(saved)


def new_dictionary(optimizer: Any) -> None:
    optimizer.state = collections.defaultdict(dict)


def deleted(optimizer: Any) -> None:
    for p in list(optimizer.state):
        del optimizer.state[p]


def cleared(optimizer: Any) -> None:
    for entries in optimizer.state.values():
        entries.clear()


ANEW: dict[str, Callable[[Any], None]] = {
    "state a new dictionary": new_dictionary,
    "state cleared": lambda optimizer: optimizer.state.clear(),
    "entries deleted": deleted,
    "entries cleared": cleared,
}


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("action", ANEW)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_taken_away_begins_anew(name: str, action: str, backend: str | None) -> None:
    got, params = make(name, backend)
    step(got, 0)
    ANEW[action](got)
    expected, others = make(name, backend)
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    for number in range(1, 3):
        step(got, number)
        step(expected, number)
    assert_same(everything(got), everything(expected))


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if "Adafactor" not in n])
def test_floating_point_values_are_stored_in_the_format(name: str, caplog: pytest.LogCaptureFixture) -> None:
    optimizer, _ = make(name)
    step(optimizer, 0)
    p = first(optimizer)
    before = {s.slot.name: s.read().clone() for s in optimizer.states(p)}
    values_given(optimizer)
    after = {s.slot.name: s.read() for s in optimizer.states(p)}
    for key, value in before.items():
        assert torch.equal(after[key], value)  # stored values are stored again unchanged
    step(optimizer, 1)
    assert {optimizer.state[p][f"{key}_age"] for key in before} == {2}


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_of_a_parameter_and_its_states(name: str, backend: str | None) -> None:
    if "Adafactor" in name:
        pytest.skip("its states are not rows of the parameter's shape")
    optimizer, _ = make(name, backend)
    step(optimizer, 0)
    kept = {s.slot.name: s.read()[::2].clone() for s in optimizer.states(first(optimizer))}
    other_rows(optimizer)
    p = first(optimizer)
    for s in optimizer.states(p):
        assert torch.equal(s.read(), kept[s.slot.name])
    before = p.detach().clone()
    step(optimizer, 1)
    assert bool((p != before).all())


def test_a_parameter_that_became_small_keeps_its_states_in_fp32() -> None:
    optimizer, _ = make("AdamW 8bit", min_size=1000)
    step(optimizer, 0)
    kept = {s.slot.name: s.read()[::2].clone() for s in optimizer.states(first(optimizer))}
    other_rows(optimizer)
    for s in optimizer.states(first(optimizer)):
        assert s.quantizer.format.is_float32
        assert torch.equal(s.read(), kept[s.slot.name])
    step(optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())


@dataclass(frozen=True)
class Refused:
    act: Callable[[Any], None]
    message: str


def set_all(change: Callable[[Tensor], Any], message: str) -> Refused:
    return Refused(each(change), message)


def freed(optimizer: Any) -> None:
    for entries, key in tensors(optimizer):
        entries[key].untyped_storage().resize_(0)


def shortened(optimizer: Any) -> None:
    for entries, key in tensors(optimizer):
        entries[key].untyped_storage().resize_(1)


def param_shortened(optimizer: Any) -> None:
    p = first(optimizer)
    p.data = p.data[: len(p) // 2].clone()


def param_freed(optimizer: Any) -> None:
    first(optimizer).untyped_storage().resize_(0)


def param_expanded(optimizer: Any) -> None:
    p = first(optimizer)
    p.data = torch.zeros(1).expand(p.shape)


def param_double(optimizer: Any) -> None:
    p = first(optimizer)
    p.data = p.data.double()


def without_step(optimizer: Any) -> None:
    del optimizer.state[first(optimizer)]["step"]


def negative_step(optimizer: Any) -> None:
    optimizer.state[first(optimizer)]["step"] = -1.0


def sparse(optimizer: Any) -> None:
    for entries, key in tensors(optimizer):
        entries[key] = entries[key].float().to_sparse()


def entries_a_list(optimizer: Any) -> None:
    optimizer.state[first(optimizer)] = [1]


def gradient_of_another_length(optimizer: Any) -> None:
    p = first(optimizer)
    assert p.grad is not None
    p.grad.data = p.grad.data[:2].clone()


def gradient_turned(optimizer: Any) -> None:
    p = first(optimizer)
    assert p.grad is not None
    p.grad.data = p.grad.data.t().contiguous()


def parameter_turned(optimizer: Any) -> None:
    p = first(optimizer)
    p.data = p.data.t().contiguous()


REFUSED: dict[str, Refused] = {
    "cut": set_all(lambda x: x[:1].clone() if x.ndim else x[None], "of shape .* or values in floating point"),
    "cut in place": Refused(in_place(lambda x: x.resize_(1)), "of shape .* or values in floating point"),
    "as integers": set_all(lambda x: x.to(torch.int64), "int64 of shape"),
    "as numbers": set_all(lambda x: 1.0, "is a float, not a plain tensor"),
    "meta": set_all(lambda x: x.to("meta"), "has no memory"),
    "sparse": Refused(sparse, "not a plain tensor"),
    "freed": Refused(freed, "has no memory"),
    "shortened": Refused(shortened, "has no memory"),
    "parameter cut": Refused(param_shortened, "in optimizer.state; a parameter of shape"),
    "parameter freed": Refused(param_freed, "has no memory"),
    "parameter expanded": Refused(param_expanded, "is expanded"),
    "parameter double": Refused(param_double, "parameters must be float32"),
    "step deleted": Refused(without_step, "but no step, on which"),
    "negative step": Refused(negative_step, "must be a number of steps"),
    "entries no dictionary": Refused(entries_a_list, "holds a list"),
    "gradient cut": Refused(gradient_of_another_length, "the gradient of parameter 0 is"),
    "gradient turned": Refused(gradient_turned, "the gradient of parameter 0 is"),
    "parameter turned under its gradient": Refused(parameter_turned, "the gradient of parameter 0 is"),
}


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("action", REFUSED)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_says_nothing_clear_is_refused_and_changes_nothing(name: str, action: str, backend: str | None) -> None:
    optimizer, params = make(name, backend)
    step(optimizer, 0)
    step(optimizer, 1)
    REFUSED[action].act(optimizer)
    kept = [q.detach().clone() for q in params[1:]]
    counted = [dict(optimizer.state[q]) for q in params[1:]]
    if "gradient" not in action and first(optimizer).shape != SHAPES[0]:
        first(optimizer).grad = torch.zeros_like(first(optimizer))
    if first(optimizer).dtype == torch.float64:
        first(optimizer).grad = torch.zeros_like(first(optimizer))
    with pytest.raises((ValueError, RuntimeError), match=REFUSED[action].message):
        optimizer.step()
    for q, before, count in zip(params[1:], kept, counted, strict=True):
        assert torch.equal(q, before)
        assert {k: v for k, v in optimizer.state[q].items() if isinstance(v, int)} == {
            k: v for k, v in count.items() if isinstance(v, int)
        }


def entries_of_another(state: Any, a: Tensor, b: Tensor) -> None:
    state[b] = state[a]


def copied_entries(state: Any, a: Tensor, b: Tensor) -> None:
    state[b] = dict(state[a])


def one_slot_for_two(state: Any, a: Tensor, b: Tensor) -> None:
    state[a]["exp_avg_sq"] = state[a]["exp_avg"]


def weights_as_state(state: Any, a: Tensor, b: Tensor) -> None:
    state[a]["exp_avg"] = b.data


@pytest.mark.parametrize("act", [entries_of_another, copied_entries, one_slot_for_two, weights_as_state])
def test_states_in_one_memory_are_refused(act: Any) -> None:
    """As of an expert that was copied with its states: a step of one would change both."""
    params = [torch.nn.Parameter(torch.randn(8, 16)) for _ in range(2)]
    optimizer = halfulp.AdamW(params, state="fp32")
    step(optimizer, 0)
    act(optimizer.state, *params)
    kept = everything(optimizer)
    with pytest.raises(ValueError, match=r"in the same memory as .*clone"):
        step(optimizer, 1)
    assert_same(kept, everything(optimizer))
    for p in params:
        optimizer.state[p] = copy.deepcopy(optimizer.state[p])
        optimizer.state[p].update({key: x.clone() for key, x in optimizer.state[p].items() if isinstance(x, Tensor)})
    step(optimizer, 2)


WITHIN: dict[str, Callable[[Tensor], Tensor]] = {
    "same data": lambda x: x.view(64, 64),
    "another shape": lambda x: x.view(32, 128),
    "the second half": lambda x: x.view(64, 64)[32:],
    "transposed": lambda x: x.view(64, 64).t(),
}


@pytest.mark.parametrize("how", WITHIN)
def test_parameters_in_one_memory_are_refused(how: str) -> None:
    """Threads of one step would write to it at once, and no run would have the bits of another."""
    x = torch.randn(64, 64)
    a, b = torch.nn.Parameter(x), torch.nn.Parameter(torch.randn(WITHIN[how](x).shape))
    optimizer = halfulp.AdamW([("embed.weight", a), ("head.weight", b)])
    b.data = WITHIN[how](a.data)
    kept = everything(optimizer)
    with pytest.raises(ValueError, match=r"(embed|head)\.weight and (embed|head)\.weight share memory.* tie the param"):
        step(optimizer, 0)
    assert_same(kept, everything(optimizer))


def test_parameters_beside_each_other_in_one_memory_step_as_in_their_own() -> None:
    """Parts of a flat buffer, and columns of one matrix, whose addresses interleave."""
    flat, matrix = torch.randn(2 * 64 * 64), torch.randn(64, 128)
    views = [flat[: 64 * 64].view(64, 64), flat[64 * 64 :].view(64, 64), matrix[:, :64], matrix[:, 64:]]
    alone, together = ([torch.nn.Parameter(x) for x in of] for of in ([v.clone() for v in views], views))
    for params in (alone, together):
        optimizer = halfulp.AdamW(params, lr=1e-2)
        step(optimizer, 0)
        step(optimizer, 1)
    assert all(map(torch.equal, alone, together))


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if any(f in n for f in ("8bit", "int8", "fp8"))])
def test_codes_that_were_cast_are_not_taken_for_values(name: str) -> None:
    if "Adafactor" in name:
        pytest.skip("its vectors have scales of other shapes")
    optimizer, _ = make(name)
    step(optimizer, 0)
    each(lambda x: x.half())(optimizer)
    with pytest.raises(ValueError, match="values in floating point"):
        optimizer.step()


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_wrappers_without_memory_step_as_what_they_wrap(name: str, backend: str | None) -> None:
    expected, params = make(name, backend)
    wrapped = [torch.nn.Parameter(Wrapper(p.detach().clone())) for p in params]
    cls, chosen = OPTIMIZERS[name]
    got = getattr(halfulp, cls)(wrapped, **{"lr": 1e-2, "min_size": 0, "backend": backend, **chosen})
    for number in range(3):
        step(got, number)
        step(expected, number)
    for w, p in zip(wrapped, params, strict=True):
        assert torch.equal(w.data.inner if hasattr(w.data, "inner") else w.inner, p)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_replaced_parameter_begins_anew_and_is_named_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    optimizer, _ = make(name)
    step(optimizer, 0)
    optimizer.param_groups[0]["params"][0] = torch.nn.Parameter(first(optimizer).detach().clone())
    halfulp.numbers.log._said.clear()
    with caplog.at_level(logging.WARNING, "halfulp"):
        step(optimizer, 1)
        step(optimizer, 2)
    assert optimizer.state[first(optimizer)]["step"] == 2
    assert [r.message for r in caplog.records if "replaced in optimizer.param_groups" in r.message] != []
    assert len([r for r in caplog.records if "replaced" in r.message]) == 1
    assert set(optimizer.state_dict()["state"]) == {0, 1}


def test_groups_that_are_removed_reordered_or_added_late() -> None:
    optimizer, params = make("AdamW 8bit")
    optimizer.param_groups[0]["params"] = params[:1]
    optimizer.add_param_group({"params": params[1:], "lr": 1e-3})
    step(optimizer, 0)
    optimizer.param_groups.reverse()
    step(optimizer, 1)
    assert [optimizer.registry[p].index for p in params] == [1, 0]
    optimizer.param_groups.pop()
    step(optimizer, 2)
    assert [optimizer.state[p]["step"] for p in params] == [2, 3]
    assert set(optimizer.state_dict()["state"]) == {0}
    other = halfulp.AdamW(params[1:], state="8bit", min_size=0)
    other.load_state_dict(optimizer.state_dict())
    assert other.state[params[1]]["step"] == 3


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES: dict[str, Callable[[], Any]] = {
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "another default device": lambda: torch.device("meta"),
    "deterministic": deterministic,
}


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["AdamW 8bit", "SGD int8", "Adafactor 8bit", *OTHERS])
def test_steps_are_the_same_in_every_mode(name: str, mode: str, backend: str | None) -> None:
    for table in (rounding.decode_table, rounding.codebook_tables):
        table.cache_clear()  # tables made within a mode serve outside of it
    got, expected = make(name, backend)[0], make(name, backend)[0]
    for number in range(4):
        within = MODES[mode]() if number % 2 == 0 else contextlib.nullcontext()
        step(got, number, within)
        step(expected, number)
    assert_same(everything(got), everything(expected))


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_gradients_may_lie_in_any_order(name: str, backend: str | None) -> None:
    (got, params), (expected, _) = make(name, backend), make(name, backend)
    for number in range(2):
        step(expected, number)
        generator = torch.Generator().manual_seed(100 + number)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).t().contiguous().t()
        got.step()
    assert_same(everything(got), everything(expected))


def test_a_count_that_is_set_back_begins_bias_correction_anew() -> None:
    """As with torch, where it is the only count."""
    (optimizer, params), theirs = (
        make("AdamW fp32"),
        [p.detach().clone().requires_grad_() for p in make("AdamW fp32")[1]],
    )
    group = optimizer.param_groups[0]
    other = torch.optim.AdamW(theirs, lr=group["lr"], betas=group["betas"], weight_decay=group["weight_decay"])
    for number in range(4):
        if number == 2:
            for entries in [*optimizer.state.values(), *other.state.values()]:
                entries["step"] = entries["step"] * 0
        step(optimizer, number)
        step(other, number)
    assert [optimizer.state[p]["exp_avg_age"] for p in params] == [2, 2]
    for p, q in zip(params, theirs, strict=True):
        torch.testing.assert_close(p, q)


def zeroed_in_place(entries: dict[str, Any], rows: slice) -> None:
    entries["exp_avg"][rows] = 0


def zeroed_anew(entries: dict[str, Any], rows: slice) -> None:
    entries["exp_avg"] = entries["exp_avg"].clone()
    entries["exp_avg"][rows] = 0


@pytest.mark.parametrize("zeroed", [zeroed_in_place, zeroed_anew])
@pytest.mark.parametrize("rows", [slice(2, 4), slice(None), slice(0)])
@pytest.mark.parametrize("state", ["8bit", "int4", "dynamic8", "codebook"])
@pytest.mark.parametrize("read", [True, False])
def test_rows_that_are_set_to_0_are_zero_whatever_code_0_is(
    read: bool, state: str, rows: slice, zeroed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    book = halfulp.Format("quarters", "codebook", 4, True, levels=tuple(i / 4 for i in range(-7, 9)))
    optimizer, params = make("AdamW 8bit", state={"exp_avg": book} if state == "codebook" else state)
    other, theirs = make("AdamW 8bit", state={"exp_avg": book} if state == "codebook" else state)
    halfulp.numbers.log._said.clear()
    with caplog.at_level(logging.WARNING, "halfulp"):
        for number in range(3):
            step(optimizer, number)
            step(other, number)
        optimizer.reset_state(rows=[0])
        other.reset_state(rows=[0])
        step(optimizer, 3)
        step(other, 3)
        assert not caplog.records
        kept = optimizer.state_tensor(params[0], "exp_avg")
        zeroed(optimizer.state[params[0]], rows)
        other.reset_state(["exp_avg"], [theirs[0]], rows=rows)
        if read:
            now = optimizer.state_tensor(params[0], "exp_avg")
            kept[rows] = 0
            assert torch.equal(now, kept)
        for number in (4, 5):
            step(optimizer, number)
            step(other, number)
    assert_same(params, theirs)
    said = state in ("dynamic8", "codebook") and rows != slice(0)
    assert [("the code of zero is stored there" in r.message) for r in caplog.records] == [True] * said


@pytest.mark.parametrize("backend", ["reference", None])
def test_rows_whose_values_are_code_0_are_left_alone(backend: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """A constant gradient makes every element the largest of its block; steps, copies and loads are no user's zeros."""
    book = halfulp.Format("quarters", "codebook", 8, True, levels=tuple(i / 128 for i in range(-127, 129)))
    p = torch.nn.Parameter(torch.ones(8, 32))
    optimizer = halfulp.AdamW([p], state={"exp_avg": book}, scale="fp32", min_size=0, backend=backend)
    for number in range(4):
        p.grad = torch.full_like(p, -1.0)
        optimizer.step()
        before = optimizer.state_tensor(p, "exp_avg")
        assert not bool(optimizer.state[p]["exp_avg"].any())
        assert bool((before < 0).all())
        if number == 1:
            entries = optimizer.state[p]
            entries.update({k: v.clone() for k, v in entries.items() if isinstance(v, torch.Tensor)})
        if number == 2:
            optimizer.load_state_dict(optimizer.state_dict())
        assert torch.equal(optimizer.state_tensor(p, "exp_avg"), before)
    assert "exp_avg in optimizer.state" not in caplog.text
    optimizer.state[p]["exp_avg"][:, 3] = 0  # no whole row: it cannot be told from what was there
    optimizer.state[p]["exp_avg"][:, 4] = 7
    p.grad = torch.full_like(p, -1.0)
    optimizer.step()
    assert "codes of exp_avg in optimizer.state were written from outside" in caplog.text


@pytest.mark.parametrize("state", ["8bit", "int8", "4bit"])
def test_pruned_codes_beside_old_scales_name_the_function_for_it(state: str) -> None:
    """As scripts for Gaussian splatting do."""
    optimizer, params = make("AdamW 8bit", state=state)
    step(optimizer, 0)
    old, keep = params[0], torch.tensor([0, 2, 4])
    entries = optimizer.state.pop(old)
    for key in ("exp_avg", "exp_avg_sq"):
        entries[key] = entries[key][keep]
    new = torch.nn.Parameter(old.detach()[keep])
    optimizer.param_groups[0]["params"][0] = new
    optimizer.state[new] = entries
    with pytest.raises(ValueError, match=r"halfulp\.resize_states\(optimizer, old, new, rows\)"):
        step(optimizer, 1)


def test_steps_without_any_gradient_are_said(caplog: pytest.LogCaptureFixture) -> None:
    """The model has other parameters than the optimizer: nothing is trained."""
    model = torch.nn.Linear(8, 8)
    optimizer = halfulp.AdamW(model.parameters())
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    halfulp.numbers.log._said.clear()
    with caplog.at_level(logging.WARNING, "halfulp"):
        for expected in (0, 1, 1):  # one such step pleases a scheduler
            model(torch.ones(1, 8)).sum().backward()
            optimizer.step()
            assert len(caplog.records) == expected
    assert "load_state_dict(assign=True)" in caplog.text


def test_a_failed_first_step_leaves_no_states(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, _ = make("AdamW 8bit")
    real, calls = halfulp.Quantizer.zeros, []

    def scarce(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return real(self, *args)

    monkeypatch.setattr(halfulp.Quantizer, "zeros", scarce)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        step(optimizer, 0)
    assert not optimizer.state
    monkeypatch.undo()
    expected, _ = make("AdamW 8bit")
    step(optimizer, 0)
    step(expected, 0)
    assert_same(everything(optimizer), everything(expected))


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_a_gradient_with_the_negative_bit_has_its_sign(backend: str | None) -> None:
    p = torch.nn.Parameter(torch.zeros(1))
    (torch.complex(torch.zeros(1), p).conj() * 1j).real.sum().backward()
    assert p.grad is not None
    assert p.grad.is_neg()
    halfulp.SGD([p], lr=1.0, backend=backend).step()
    assert p.item() == -1.0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float64])
def test_frozen_parameters_may_have_any_dtype(dtype: torch.dtype) -> None:
    base = torch.nn.Parameter(torch.zeros(64, 64).to(dtype), requires_grad=False)
    adapter = torch.nn.Parameter(torch.zeros(64, 64))
    optimizer = halfulp.AdamW([base, adapter])
    adapter.grad = torch.ones(64, 64)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert {r.parameter for r in optimizer.memory().rows} == {"parameter 1"}
    if dtype == torch.float64:
        with pytest.raises(ValueError, match="or freeze it"):
            halfulp.AdamW([base.requires_grad_()])


def test_a_step_that_only_makes_states_does_not_count() -> None:
    """As torch.distributed.checkpoint makes one before it saves: a rate of zero and gradients of zeros."""
    (got, params), (expected, _) = make("AdamW 8bit"), make("AdamW 8bit")
    for p in params:
        p.grad = torch.zeros_like(p)
    got.param_groups[0]["lr"] = 0.0
    got.step()
    assert {p: got.state[p]["step"] for p in params} == dict.fromkeys(params, 0)
    got.param_groups[0]["lr"] = 1e-2
    for number in range(2):
        step(got, number)
        step(expected, number)
    assert_same(everything(got), everything(expected))


# ---------------------------------------------------------------- checkpoints


def named(order: list[int], name: str = "AdamW 8bit", prefix: str = "") -> tuple[Any, dict[str, Tensor]]:
    cls, chosen = OPTIMIZERS[name]
    generator = torch.Generator().manual_seed(5)
    params = {f"{i}.weight": torch.nn.Parameter(torch.randn(6, 192, generator=generator)) for i in range(3)}
    chosen_order = [(f"{prefix}{n}", params[n]) for n in (f"{i}.weight" for i in order)]
    return getattr(halfulp, cls)(chosen_order, **{"lr": 1e-2, "min_size": 0, **chosen}), params


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_named_parameters_are_found_by_their_names(prefix: str) -> None:
    saved, params = named([0, 1, 2])
    for p in params.values():
        p.grad = torch.randn(p.shape)
    saved.step()
    other, others = named([2, 0, 1], prefix=prefix)
    other.load_state_dict(saved.state_dict())
    for name, p in params.items():
        assert torch.equal(other.state[others[name]]["exp_avg"], saved.state[p]["exp_avg"])


def test_names_in_another_order_that_are_not_all_known_are_refused() -> None:
    saved, params = named([0, 1])
    for p in params.values():
        p.grad = torch.randn(p.shape)
    saved.step()
    with pytest.raises(ValueError, match=r"'0.weight' is number 0 of its group there and 1 here"):
        named([2, 0])[0].load_state_dict(saved.state_dict())


def in_groups(*groups: list[int]) -> tuple[Any, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    params = {f"{i}.weight": torch.nn.Parameter(torch.randn(6, 192, generator=generator)) for i in range(3)}
    chosen = [
        {"params": [(f"{i}.weight", params[f"{i}.weight"]) for i in ones], "lr": 0.1 * min(ones)} for ones in groups
    ]
    return halfulp.AdamW(chosen, min_size=0), params


def test_named_groups_may_stand_in_another_order() -> None:
    """Decayed and other parameters, say, of equal shapes: by their order, each would get the states of another."""
    saved, params = in_groups([0, 1], [2])
    for p in params.values():
        p.grad = torch.randn(p.shape)
    saved.step()
    other, others = in_groups([2], [1, 0])
    other.load_state_dict(saved.state_dict())
    for name, p in params.items():
        assert torch.equal(other.state[others[name]]["exp_avg"], saved.state[p]["exp_avg"])
    assert [g["lr"] for g in other.param_groups] == [0.2, 0.0]


def test_names_that_are_shared_out_otherwise_are_refused() -> None:
    saved, params = in_groups([0, 1], [2])
    for p in params.values():
        p.grad = torch.randn(p.shape)
    saved.step()
    other, others = in_groups([0, 2], [1])
    saved.param_groups[1]["lr"] = saved.param_groups[0]["lr"]
    with pytest.raises(ValueError, match=r"'2.weight' is in group 1 of the state_dict and in group 0 .* convert"):
        other.load_state_dict(saved.state_dict())
    other.load_state_dict(halfulp.convert_state_dict(saved.state_dict(), to=other))
    for name, p in params.items():
        assert torch.equal(other.state_tensor(others[name], "exp_avg"), saved.state_tensor(p, "exp_avg"))


def test_keys_that_became_text_are_refused() -> None:
    optimizer, _ = make("AdamW 8bit")
    step(optimizer, 0)
    saved = optimizer.state_dict()
    saved["state"] = {str(key): entries for key, entries in saved["state"].items()}
    with pytest.raises(ValueError, match="numbered by text"):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize("params", [[{}], [[0]], [None], [0.5], 3, {"0": 0}])
@pytest.mark.parametrize("how", ["load", "convert"])
def test_what_numbers_no_parameters_is_refused(how: str, params: Any) -> None:
    """Found by damaged files: keys that cannot be looked up."""
    optimizer, _ = make("AdamW 8bit")
    step(optimizer, 0)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["params"] = params
    with pytest.raises(ValueError, match="not an optimizer state_dict"):
        optimizer.load_state_dict(saved) if how == "load" else halfulp.convert_state_dict(saved, to=optimizer)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_way_out_is_said_where_groups_differ_too(groups: int) -> None:
    """States of torch.optim in other groups: that they are to be converted is the first thing to know."""
    params = [torch.nn.Parameter(torch.zeros(8, 8)) for _ in range(2)]
    theirs = torch.optim.AdamW([{"params": params}] if groups == 2 else [{"params": [p]} for p in params])
    mine = halfulp.AdamW([{"params": [p]} for p in params] if groups == 2 else params)
    with pytest.raises(ValueError, match=r"another library.*convert_state_dict"):
        mine.load_state_dict(theirs.state_dict())


def test_keys_of_schedulers_survive_a_load_and_no_hook_of_state_dict_runs() -> None:
    first_run, _ = make("AdamW 8bit")
    step(first_run, 0)
    second, _ = make("AdamW 8bit")
    torch.optim.lr_scheduler.OneCycleLR(second, 1e-2, total_steps=50)
    second.param_groups[0]["mine"] = "kept"
    called: list[int] = []
    second.register_state_dict_pre_hook(lambda optimizer: called.append(1))
    second.register_state_dict_post_hook(lambda optimizer, state_dict: called.append(1))
    second.load_state_dict(first_run.state_dict())
    assert not called
    assert second.param_groups[0]["mine"] == "kept"
    assert second.param_groups[0]["max_lr"] == 1e-2
    third, _ = make("AdamW 8bit")
    third.load_state_dict(second.state_dict())
    assert third.param_groups[0]["mine"] == "kept"


def test_keys_of_the_users_are_saved_and_loaded() -> None:
    optimizer, _ = make("AdamW 8bit")
    step(optimizer, 0)
    own_keys(optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    other, _ = make("AdamW 8bit")
    other.load_state_dict(saved)
    assert other.state[first(other)]["mine"] == {"note": 1}
    assert other.state["of all"] == 7


@pytest.mark.parametrize(
    ("scale", "key", "value", "what"),
    [
        ("fp32", "exp_avg_scale", float("nan"), "scales"),
        ("fp32", "exp_avg_sq_scale", -1.0, "scales"),
        ("fp32", "exp_avg_scale", float("inf"), "scales"),
        ("pow2", "exp_avg_scale", 255, "scales"),
        ("pow2", "exp_avg", 127, "values that are not finite"),
    ],
)
def test_states_that_no_step_makes_are_not_loaded(scale: str, key: str, value: float, what: str) -> None:
    optimizer, _ = make("AdamW 8bit", state="fp8", scale=scale)
    step(optimizer, 0)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0][key][0] = value
    before = everything(optimizer)
    with pytest.raises(ValueError, match=what):
        optimizer.load_state_dict(saved)
    assert_same(everything(optimizer), before)


@pytest.mark.parametrize(("name", "value"), [("exp_avg_sq", -1.0), ("exp_avg", float("nan"))])
@pytest.mark.parametrize("state", ["fp32", "bf16"])
def test_values_that_no_step_makes_are_not_loaded(state: str, name: str, value: float) -> None:
    optimizer, _ = make("AdamW 8bit", state=state)
    step(optimizer, 0)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0][name][0, 0] = value
    with pytest.raises(ValueError, match="damaged, or from a run that had diverged"):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize("stepped", [False, True])
def test_an_optimizer_loads_its_own_checkpoint_after_a_momentum_came_or_went(stepped: bool) -> None:
    for before, after in ((0.9, 0.0), (0.0, 0.9)):
        optimizer, params = make("SGD int8", momentum=before)
        step(optimizer, 0)
        optimizer.param_groups[0]["momentum"] = after
        if stepped:
            params[0].grad = None
            params[1].grad = torch.ones_like(params[1])
            optimizer.step()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        step(optimizer, 2)
        assert ("momentum_buffer" in optimizer.state[params[0]]) == (after > 0)


def test_a_state_dict_without_states_is_named(caplog: pytest.LogCaptureFixture) -> None:
    optimizer, _ = make("AdamW 8bit")
    halfulp.numbers.log._said.clear()
    with caplog.at_level(logging.WARNING, "halfulp"):
        optimizer.load_state_dict(make("AdamW 8bit")[0].state_dict())
    assert "get_optimizer_state_dict" in caplog.text


# ---------------------------------------------------------------- defaults


def test_sixteen_bit_parameters_are_rounded_stochastically_unless_said_otherwise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Updates of a tenth of a unit: lost by rounding to nearest, kept on average by default, said once."""

    def travelled(**options: Any) -> float:
        p = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
        optimizer = halfulp.SGD([p], lr=1.0, **options)
        for _ in range(100):
            p.grad = torch.full_like(p, 2.0**-7 / 10)
            optimizer.step()
        return float((1 - p.detach().float()).mean())

    halfulp.numbers.log._said.clear()
    with caplog.at_level(logging.INFO, "halfulp"):
        assert travelled() == pytest.approx(100 * 2.0**-7 / 10, rel=0.1)
        assert travelled(param_rounding="nearest") == 0.0
    assert len([r for r in caplog.records if "rounded stochastically" in r.message]) == 1


def test_what_a_mapping_leaves_out_has_the_default() -> None:
    optimizer = halfulp.AdamW([torch.nn.Parameter(torch.ones(64, 64))], state={"exp_avg": "bf16"})
    plain = halfulp.AdamW([torch.nn.Parameter(torch.ones(64, 64))])
    group, default = (o.group_quantizers(o.param_groups[0]) for o in (optimizer, plain))
    assert group["exp_avg"].spec == "bfloat16"
    assert group["exp_avg_sq"] == default["exp_avg_sq"]
    rounded = halfulp.AdamW([torch.nn.Parameter(torch.ones(64, 64))], rounding={"exp_avg": "nearest"})
    quantizers = rounded.group_quantizers(rounded.param_groups[0])
    assert [quantizers[n].rounding for n in ("exp_avg", "exp_avg_sq")] == ["nearest", "stochastic"]
