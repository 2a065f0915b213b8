"""Checking a state dictionary against an optimizer before any of it is used."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from halfulp.engine.groups import RuleGroups
from halfulp.engine.options import STORAGE_KEYS
from halfulp.engine.sharding import local
from halfulp.engine.slot_state import SlotState
from halfulp.engine.storage import format_specs
from halfulp.numbers.log import log_once

__all__ = ["count", "tensor_entries", "validate"]


def validate(
    optimizer: RuleGroups, state_dict: dict[str, Any]
) -> tuple[dict[Tensor, dict[str, Any]], list[dict[str, Any]]]:
    """Entries per parameter and values per group to be applied, or ``ValueError`` saying what does not fit."""
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= set(state_dict):
        raise ValueError("not an optimizer state_dict: it needs the keys 'state' and 'param_groups'")
    saved_groups, groups = state_dict["param_groups"], optimizer.param_groups
    if (
        not isinstance(state_dict["state"], dict)
        or not isinstance(saved_groups, (list, tuple))
        or not all(isinstance(g, dict) and isinstance(g.get("params"), (list, tuple)) for g in saved_groups)
    ):
        raise ValueError("not an optimizer state_dict: 'state' is a dictionary, 'param_groups' a list of groups")
    if [len(g["params"]) for g in saved_groups] != [len(g["params"]) for g in groups]:
        raise ValueError(
            f"the state_dict has parameter groups of {[len(g['params']) for g in saved_groups]} parameters, this "
            f"optimizer of {[len(g['params']) for g in groups]}: build it with the groups it was saved with"
        )
    states: dict[Tensor, dict[str, Any]] = {}
    values: list[dict[str, Any]] = []
    current = optimizer.state_dict()["param_groups"]
    for saved, group, own in zip(saved_groups, groups, current, strict=True):
        keep = {*STORAGE_KEYS, "params", "param_names"} - {"seed"}
        values.append(deepcopy({k: v for k, v in saved.items() if k not in keep}))
        merged = {**group, **values[-1]}  # what the group will be: its hyper-parameters decide which states there are
        _check_storage(optimizer, saved, own, merged)
        optimizer._check_group(merged)
        for key, param in zip(saved["params"], group["params"], strict=True):
            if key in state_dict["state"]:
                states[param] = _entries(optimizer, merged, param, state_dict["state"][key])
    known = {k for g in saved_groups for k in g["params"]}
    strangers = [k for k in state_dict["state"] if k not in known]
    if strangers:
        raise ValueError(f"the state_dict has states of parameters {strangers} that are in none of its groups")
    return states, values


def _check_storage(optimizer: RuleGroups, saved: dict[str, Any], own: dict[str, Any], merged: dict[str, Any]) -> None:
    name = type(optimizer).__name__
    missing = sorted(k for k in own if k not in saved and k != "param_names")
    how = "optimizer.load_state_dict(halfulp.convert_state_dict(state_dict, to=optimizer))"
    if not isinstance(saved.get("state"), str):
        raise ValueError(
            f"not a state_dict of halfulp.{name}, but of torch.optim or another library: its groups lack {missing}. "
            f"Convert it: {how}"
        )
    if missing:
        raise ValueError(f"the state_dict is of another optimizer: its groups lack {missing}, which {name} has")
    stored = format_specs(optimizer.group_quantizers(merged))
    if saved["state"] != stored:
        raise ValueError(
            f"the state_dict stores [{saved['state']}], this optimizer [{stored}]. Build the optimizer with the "
            f"stored formats (state=...), or convert it: {how}"
        )


def _entries(optimizer: RuleGroups, group: dict[str, Any], param: Tensor, saved: dict[str, Any]) -> dict[str, Any]:
    label = optimizer.registry[param].label
    entries: dict[str, Any] = {}
    states = [SlotState(slot, q, shape, entries) for slot, shape, q in optimizer.slot_storage(group, param)]
    if not isinstance(saved, dict):
        raise ValueError(f"{label}: the state_dict has a {type(saved).__name__} instead of its states")
    if states and set(saved) == {"step"}:
        states = []
        log_once(f"{label}: saved without states, which begin anew (forgotten, as of blocks at rest)")
    expected = {"step", *(key for state in states for key in state.keys)}
    if set(saved) != expected:
        raise ValueError(
            f"{label}: the state_dict has entries {sorted(saved)}, this optimizer {sorted(expected)} for shape "
            f"{tuple(param.shape)}. Build it with the shapes, min_size and keep_fp32 it was saved with"
        )
    for key in ("step", *(s.age_key for s in states)):
        entries[key] = count(label, key, saved[key])
    for state in states:
        tensor_entries(label, state, saved, param.device)
    return entries


def tensor_entries(label: str, state: SlotState, saved: dict[str, Any], device: torch.device) -> None:
    """Copy the saved codes and scales of one state into its entries; ``ValueError`` where they do not fit."""
    keys = (state.slot.name, state.scale_key)
    for key, (dtype, shape) in zip(keys, state.quantizer.stored_as(state.shape), strict=False):
        tensor = saved[key]
        if not isinstance(tensor, Tensor) or tuple(local(tensor).shape) != tuple(shape) or tensor.dtype != dtype:
            found = (
                f"{tensor.dtype} {tuple(local(tensor).shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            )
            raise ValueError(f"{label}: {key} is {found} in the state_dict, expected {dtype} {tuple(shape)}")
        state.entries[key] = tensor.detach().to(device, copy=True)


def count(label: str, key: str, value: Any) -> int:
    """A saved number of steps as an integer; ``ValueError`` for anything else."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 2**63 or value != int(value):
        raise ValueError(f"{label}: {key} must be a number of steps, got {value!r}")
    return int(value)
