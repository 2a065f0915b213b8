"""State dictionaries: what is saved, and how it is checked before use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from halfulp.engine.callers import calling
from halfulp.engine.master import MASTER, MasterState
from halfulp.engine.options import STORAGE_KEYS
from halfulp.engine.plan import GroupPlan, StatePlan, plan_states
from halfulp.engine.sharding import is_flat, local
from halfulp.engine.slot_state import SlotState, count, loaded
from halfulp.engine.states import drop_leftovers
from halfulp.numbers.log import log_once, warn_once
from halfulp.numbers.rounding import decode_table, unpack4
from halfulp.numbers.scaling import rows_and_cols

if TYPE_CHECKING:
    from halfulp.engine.optimizer import RuleOptimizer

__all__ = [
    "bare", "check_layout", "check_values", "count", "groups_in_order", "in_order", "packed", "reading",
    "tensor_entries", "validate",
]  # fmt: skip

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Name components that model wrappers insert into parameter names."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn the errors that saved data of a wrong type cause within the block into ``ValueError``.

    A file may hold anything, so the types of its values are not checked one by one.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{what} is damaged, or something else: {type(error).__name__}: {error}") from error


def packed(optimizer: RuleOptimizer) -> dict[str, Any]:
    """Return the state dictionary of an optimizer in torch's layout, with formats by their full names."""
    for pre_hook in optimizer._optimizer_state_dict_pre_hooks.values():
        pre_hook(optimizer)
    registry = optimizer.registry
    state: dict[Any, Any] = {}
    for key, entries in optimizer.state.items():
        if not isinstance(key, Tensor):
            state[key] = entries
        elif key in registry:
            if entries:
                optimizer.states(key)  # repair what was put there since the last step
            state[registry[key].index] = _decoded(optimizer, key, entries) if is_flat(key) else entries
        else:
            warn_once("states of tensors that are no longer in a group are not saved")
    result: dict[str, Any] = {
        "state": state,
        "param_groups": [_packed_group(optimizer, g) for g in optimizer.param_groups],
    }
    for post_hook in optimizer._optimizer_state_dict_post_hooks.values():
        result = post_hook(optimizer, result) or result
    return result


def _decoded(optimizer: RuleOptimizer, param: Tensor, entries: dict[str, Any]) -> dict[str, Any]:
    """Return entries with decoded values in place of codes and scales. FSDP1 gathers and shards states by element."""
    decoded = dict(entries)
    for state in optimizer.states(param) if entries else ():
        decoded.pop(state.scale_key, None)
        decoded[state.slot.name] = state.read()
    master = optimizer.master(param)
    return decoded if master is None else {**decoded, MASTER: master.read(param)}


def _packed_group(optimizer: RuleOptimizer, group: dict[str, Any]) -> dict[str, Any]:
    saved = {k: v for k, v in group.items() if k != "params"}
    plan, reset = optimizer.plan(group), group["reset"]
    saved["state"] = plan.specs
    saved["rounding"] = ",".join(f"{name}={q.rounding}" for name, q in plan.quantizers.items())
    saved["reset"] = reset if reset is None or isinstance(reset, (int, str)) else repr(reset)
    saved["params"] = [optimizer.place(p).index for p in group["params"]]
    return saved


@reading("the state_dict")
def validate(
    optimizer: RuleOptimizer, state_dict: dict[str, Any]
) -> tuple[dict[Any, dict[str, Any]], list[dict[str, Any]]]:
    """Return the entries per parameter and the values per group to load. Raise ``ValueError`` if they do not fit."""
    check_layout(state_dict)
    groups = optimizer.param_groups
    for saved in state_dict["param_groups"]:
        _check_kind(optimizer, saved)
    saved_groups = groups_in_order(state_dict["param_groups"], groups)
    if [len(g["params"]) for g in saved_groups] != [len(g["params"]) for g in groups]:
        raise ValueError(
            f"the state_dict has parameter groups of {[len(g['params']) for g in saved_groups]} parameters, this "
            f"optimizer has groups of {[len(g['params']) for g in groups]}: build it with the groups it was saved with"
        )
    states: dict[Any, dict[str, Any]] = {}
    values: list[dict[str, Any]] = []
    for saved, group in zip(saved_groups, groups, strict=True):
        keep = {*STORAGE_KEYS, "params", "param_names"} - {"seed"}
        values.append(deepcopy({k: v for k, v in saved.items() if k not in keep}))
        merged = {**group, **values[-1]}  # the future group: its hyper-parameters decide which states there are
        plan = optimizer.plan(merged)
        _check_storage(saved, plan)
        for key, param in zip(in_order(saved, group), group["params"], strict=True):
            if key in state_dict["state"]:
                rule, place = optimizer.active_rule(merged, param), optimizer.place(param)
                stored = plan_states(plan, rule, param, place, optimizer.storage)
                entries: dict[str, Any] = {}
                master = MasterState.of(param, plan.master, entries, rule, place.label)
                states[param] = _entries(param, place.label, stored, master, entries, state_dict["state"][key])
    if 0 < len(states) < len(optimizer.registry):
        log_once(
            f"the state_dict has no states for {len(optimizer.registry) - len(states)} of {len(optimizer.registry)} "
            "parameters: they begin at zero with their first step"
        )
    if not states and not _being_wrapped():
        warn_once(
            "a state_dict without states was loaded: all states start at zero. That is right before the first step. "
            "If the run has made steps, note that torch.distributed.checkpoint fills only entries that exist: give "
            "it get_optimizer_state_dict(model, optimizer) instead of optimizer.state_dict()"
        )
    known = {k for g in saved_groups for k in g["params"]}
    for key, entries in state_dict["state"].items():
        if isinstance(key, str) and key.isdigit() and int(key) in known:
            raise ValueError(
                f"the states of the state_dict are numbered by text ({key!r}), as JSON does: convert the keys of "
                "state_dict['state'] back with int()"
            )
        if isinstance(key, int) and key not in known:
            raise ValueError(f"the state_dict has states of parameter {key}, which is in none of its groups")
        if not isinstance(key, int):
            states[key] = deepcopy(entries)
    return states, values


def _being_wrapped() -> bool:
    """Return whether accelerate is wrapping the optimizer. It then reloads the state_dict to move it to the device."""
    wrappers = calling(lambda owner: type(owner).__name__ == "AcceleratedOptimizer")
    return any("device_placement" in variables for _, variables in wrappers)  # an argument of its constructor


def check_layout(state_dict: Any) -> None:
    """Raise ``ValueError`` for anything without the layout of a state dictionary. States are not checked here."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
        raise ValueError("not an optimizer state_dict: it needs the keys 'state' and 'param_groups'")
    groups = state_dict["param_groups"]
    if (
        not isinstance(state_dict["state"], Mapping)
        or not isinstance(groups, (list, tuple))
        or not all(isinstance(g, Mapping) and isinstance(g.get("params"), (list, tuple)) for g in groups)
    ):
        raise ValueError(
            "not an optimizer state_dict: 'state' must be a dictionary, and 'param_groups' a list of groups that "
            "each name their 'params'"
        )
    if not all(isinstance(key, (int, str)) for g in groups for key in g["params"]):
        raise ValueError("not an optimizer state_dict: the 'params' of a group must be numbers or names of parameters")


def _check_kind(optimizer: RuleOptimizer, saved: dict[str, Any]) -> None:
    name = type(optimizer).__name__
    younger = ("differentiable", "split", "master_weights")
    missing = sorted(k for k in optimizer.defaults if k not in saved and k not in younger)
    if not isinstance(saved.get("state"), str):
        raise ValueError(
            f"not a state_dict of halfulp.{name}, but of torch.optim or another library: its groups lack {missing}. "
            f"Convert it: {CONVERT}"
        )
    several = [k for k in optimizer.defaults if isinstance(v := saved.get(k), Tensor) and v.numel() != 1]
    if several:
        raise ValueError(f"{several[0]!r} of a group of the state_dict is a tensor of several values; {DAMAGED}")
    if missing:
        raise ValueError(f"the state_dict is of another optimizer: its groups lack {missing}, which {name} has")


CONVERT = "optimizer.load_state_dict(halfulp.convert_state_dict(state_dict, to=optimizer))"


def _check_storage(saved: Mapping[str, Any], plan: GroupPlan) -> None:
    if saved["state"] != plan.specs:
        raise ValueError(
            f"the state_dict stores [{saved['state']}], this optimizer [{plan.specs}]. Build the optimizer with the "
            f"stored formats (state=...), or convert it: {CONVERT}"
        )


def groups_in_order(saved: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the saved groups in the order of an optimizer's, matched by parameter names if both have them.

    Raise ``ValueError`` if the groups distribute the same names differently.
    """
    theirs, mine = ([frozenset(map(bare, g.get("param_names") or ())) for g in side] for side in (saved, groups))
    if all(theirs) and len(set(theirs)) == len(theirs) and set(theirs) == set(mine):
        return [saved[theirs.index(names)] for names in mine]
    homes = {name: k for k, names in enumerate(theirs) for name in names}
    moved = [(n, k) for k, names in enumerate(mine) for n in sorted(names) if homes.get(n, k) != k]
    if moved and len(theirs) == len(mine):
        name, k = moved[0]
        raise ValueError(
            f"{name!r} is in group {homes[name]} of the state_dict and in group {k} of this optimizer: build it with "
            f"the groups it was saved with, or convert the state_dict, which matches names across groups: {CONVERT}"
        )
    return list(saved)


def in_order(saved: Mapping[str, Any], group: Mapping[str, Any]) -> list[Any]:
    """Return the saved keys in the order of a group's parameters, matched by name if both have names."""
    theirs, mine = ([bare(n) for n in g.get("param_names") or ()] for g in (saved, group))
    keys = list(saved["params"])
    if theirs == mine or len(theirs) != len(keys) or len(mine) != len(keys):
        return keys
    if set(theirs) == set(mine) and len(set(mine)) == len(mine):
        return [keys[theirs.index(name)] for name in mine]
    moved = [n for i, n in enumerate(mine) if n in theirs and theirs[i] != n]
    if moved:
        raise ValueError(
            f"the state_dict has parameters in another order, and not all names are the same: {moved[0]!r} is number "
            f"{theirs.index(moved[0])} of its group there and {mine.index(moved[0])} here; build the optimizer as it "
            "was saved"
        )
    there, here = next((a, b) for a, b in zip(theirs, mine, strict=True) if a != b)
    warn_once(f"a state_dict with other parameter names is loaded by order: {there!r} into {here!r}")
    return keys


def bare(name: str) -> str:
    """Return the name of a parameter without the components that model wrappers insert."""
    return ".".join(part for part in str(name).split(".") if part not in WRAPPERS)


def _entries(
    param: Tensor, label: str, plan: Sequence[StatePlan], master: MasterState | None, entries: dict[str, Any],
    saved: Any,
) -> dict[str, Any]:  # fmt: skip
    if not isinstance(saved, dict):
        raise ValueError(f"{label}: expected its states in the state_dict, got a {type(saved).__name__}")
    states = [SlotState(s.slot, s.quantizer, s.shape, entries) for s in plan]
    left = dict(saved)
    left.pop(f"{MASTER}_age", None)  # from older checkpoints, where it was a state of its rule
    if master is not None and MASTER in left:
        master.loaded(label, left, param.device)
    elif master is not None:
        warn_once(f"a state_dict without {MASTER} was loaded: training continues from the weights in {param.dtype}")
    for name in drop_leftovers(left, {s.slot.name for s in states}):
        log_once(f"{label}: {name} is left out: a hyper-parameter had removed its slot before the state_dict was saved")
    gone = [s for s in states if not set(s.keys) & set(left)]
    if gone:
        names, all_of_it = ", ".join(s.slot.name for s in gone), len(gone) == len(states)
        why = "dropped, as for blocks at rest" if all_of_it else "a hyper-parameter may have added its slot"
        (log_once if all_of_it else warn_once)(f"{label}: saved without {names}, which starts at zero ({why})")
    states = [s for s in states if s not in gone]
    expected = {"step", *(key for state in states for key in state.keys)}
    if is_flat(param):
        _encode(param, label, states, left)
    ours = {f"{s.slot.name}{end}" for s in states for end in ("", "_scale", "_age")} | {"step"}
    if set(left) & ours != expected:
        raise ValueError(
            f"{label}: the state_dict has entries {sorted(map(str, saved))}, this optimizer {sorted(expected)} for "
            f"shape {tuple(param.shape)}. Build it with the shapes, min_size and keep_fp32 it was saved with"
        )
    for key in ("step", *(s.age_key for s in states)):
        entries[key] = count(label, key, left[key])
    for state in states:
        tensor_entries(label, state, left, param.device)
        check_values(label, state)
    entries.update({k: deepcopy(v) for k, v in left.items() if k not in entries})  # the user's own
    return entries


def _encode(param: Tensor, label: str, states: Sequence[SlotState], saved: dict[str, Any]) -> None:
    """Replace decoded values by codes and scales. The state_dict of a flat parameter holds decoded values."""
    for state in states:
        values = saved.get(state.slot.name)
        if not isinstance(values, Tensor) or (values.dtype, values.shape) != (torch.float32, state.shape):
            continue  # codes, or something that is refused later
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{label}: {state.slot.name} has values that are not finite; {DAMAGED}")
        saved.update(state.encoded(param, values.to(param.device)))


@torch.inference_mode(False)
def tensor_entries(label: str, state: SlotState, saved: Mapping[str, Any], device: torch.device) -> None:
    """Copy the saved codes and scales of one state into its entries. Raise ``ValueError`` if they do not fit."""
    for key, (dtype, shape) in zip(state.tensor_keys, state.quantizer.stored_as(state.shape), strict=True):
        state.entries[key] = loaded(saved[key], f"{label}: {key}", dtype, shape, device)


def check_values(label: str, state: SlotState) -> None:
    """Raise ``ValueError`` for codes or scales that no step produces. Blocks with them would never change again."""
    slot, quantizer, scale = state.slot, state.quantizer, state.entries.get(state.scale_key)
    if scale is not None:
        factors = quantizer.scaling.values(local(scale))
        if not bool(((factors >= 0) & torch.isfinite(factors)).all()):
            raise ValueError(f"{label}: {slot.name} has scales that are negative or not finite; {DAMAGED}")
    values = local(state.entries[slot.name])
    if values.dtype == torch.uint8:
        if quantizer.format.packed:
            values = unpack4(values, rows_and_cols(state.shape)[1])
        table = decode_table(quantizer.format).to(values.device)
        values = table[torch.bincount(values.reshape(-1), minlength=len(table)).nonzero().reshape(-1)]
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{label}: {slot.name} has values that are not finite; {DAMAGED}")
    if not slot.signed and bool((values < 0).any()):
        raise ValueError(f"{label}: {slot.name} has negative values, which it never takes; {DAMAGED}")


DAMAGED = "the checkpoint is damaged, or from a run that had diverged"
