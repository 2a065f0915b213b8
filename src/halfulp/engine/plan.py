"""The resolved arguments of a group: rules, slots, storage, resets and random streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from halfulp.engine.master import MASTER, check_master, storage_of
from halfulp.engine.registry import Place
from halfulp.engine.resets import ResetSchedule, as_schedule
from halfulp.engine.sharding import is_flat, is_sharded, local_state_shape
from halfulp.engine.storage import FLOAT32, StorageOptions, format_specs, fp32_reason, slot_quantizers
from halfulp.numbers.log import log_once, warn_once
from halfulp.numbers.quantizer import Quantizer, check_rounding
from halfulp.numbers.rng import lanes
from halfulp.rules.base import Rule
from halfulp.rules.checks import check_decay, check_slots
from halfulp.rules.hyper import as_number, check_switch, is_rate
from halfulp.rules.slots import StateSlot

__all__ = ["GroupPlan", "StatePlan", "check_options", "plan_group", "plan_states", "values_of"]

PLAIN = frozenset({float, int, bool, str, NoneType})


class StatePlan(NamedTuple):
    """One state of one parameter: its slot, its shape (of this rank's part), and how it is stored."""

    slot: StateSlot
    shape: torch.Size
    quantizer: Quantizer


@dataclass(frozen=True, eq=False)
class GroupPlan:
    """The resolved arguments of a group, made when the group is added and again when an argument changes.

    Parameters
    ----------
    rules, slots
        Every rule that its parameters may have, with the optimizer's transforms, and the slots of each under the
        group's hyper-parameters.
    quantizers
        The storage of every slot, for the parameters whose states do not stay in fp32. It is the same object as before
        if a change of arguments leaves the storage unchanged.
    streams
        The lane of the random stream of every slot and of the parameter.
    master
        The kind of master weights of 16-bit parameters, one of :data:`~halfulp.numbers.remainder.MASTERS`, or ``None``.
    seen
        The argument values that the plan was made from.
    """

    rules: tuple[Rule, ...]
    slots: dict[Rule, tuple[StateSlot, ...]]
    quantizers: dict[str, Quantizer]
    reset: ResetSchedule | None
    streams: dict[str, int]
    master: str | None
    seen: list[Any]

    @property
    def specs(self) -> str:
        """The storage of all slots as one line of text."""
        specs = [format_specs(self.quantizers)] if self.quantizers else []
        return ",".join([*specs, *([f"{MASTER}={storage_of(self.master)}"] if self.master else [])])

    @property
    def all_slots(self) -> dict[str, StateSlot]:
        """The slots of all rules, by name."""
        return {slot.name: slot for slots in self.slots.values() for slot in slots}


def values_of(group: Mapping[str, Any], keys: Sequence[str]) -> list[Any]:
    """Return a group's current values under some keys, to compare with those that a plan was made from."""
    return [v if (v := group[k]).__class__ in PLAIN else _value(v) for k in keys]


def _value(given: Any) -> Any:
    """Return an immutable snapshot of an entry that could be changed in place."""
    if given.__class__ is tuple and PLAIN.issuperset(map(type, given)):
        return given
    if isinstance(given, Tensor):
        return given.tolist()
    if isinstance(given, Mapping):
        return dict(given)
    return tuple(map(_value, given)) if isinstance(given, (tuple, list)) else given


def check_options(group: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for invalid options of a group."""
    if not is_rate(as_number("lr", group["lr"])):
        raise ValueError(f"lr must be finite and not negative; got {group['lr']}")
    check_rounding(group["param_rounding"], "param_rounding")
    check_master(group["master_weights"])
    for switch in ("bound_update", "maximize"):
        check_switch(switch, group[switch])
    if not isinstance(group["seed"], int):
        raise ValueError(f"seed must be an integer, got {group['seed']!r}")
    if not 0 <= group["seed"] < 1 << 64:
        raise ValueError(f"seed must be an integer from 0 to 2**64 - 1; got {group['seed']}")


def plan_group(
    rules: tuple[Rule, ...], group: Mapping[str, Any], storage: StorageOptions, keys: Sequence[str],
    before: GroupPlan | None = None,
) -> GroupPlan:  # fmt: skip
    """Return the plan of a group. Raise ``ValueError`` for invalid arguments.

    The rules have the optimizer's transforms. `keys` are the group keys whose values determine the plan. `before` is
    the previous plan, if states may have been made by it: their formats cannot change.
    """
    slots = {rule: check_slots(rule.name, rule.slots(group)) for rule in rules}
    check_decay(rules, group)
    named = {slot.name: slot for found in slots.values() for slot in found}
    chosen = slot_quantizers(tuple(named.values()), group["state"], group["rounding"], storage)
    quantizers = dict(zip(named, chosen, strict=True))
    made = GroupPlan(
        rules, slots, quantizers, as_schedule(group["reset"]), lanes(tuple(named)), group["master_weights"],
        values_of(group, keys),
    )  # fmt: skip
    if before is None:
        return made
    if made.master != before.master:
        raise ValueError(
            f"the master_weights of a group are {before.master!r} and cannot become {made.master!r} between steps; "
            "build a new optimizer"
        )
    for name, q in quantizers.items():
        old = before.quantizers.get(name, q)
        if q.with_rounding(old.rounding) != old:
            was, now = (dict(zip(keys, plan.seen, strict=True))["state"] for plan in (before, made))
            raise ValueError(
                f"the states of a group are stored as {was!r} and cannot become {now!r} between steps; build a new "
                "optimizer"
            )
    if rules == before.rules and quantizers == before.quantizers:
        return replace(made, rules=before.rules, slots=before.slots, quantizers=before.quantizers)
    return made


def plan_states(plan: GroupPlan, rule: Rule, param: Tensor, place: Place, storage: StorageOptions) -> list[StatePlan]:
    """Return every state of a parameter under the plan of its group, including those kept in fp32."""
    quantizers, sharded = plan.quantizers, is_sharded(param)
    reason = fp32_reason(param, place.name, storage)
    if reason is None and param.ndim < 2 and sharded:
        reason = "sharded vector, whose blocks a shard would cut"
    if reason is not None and any(not q.format.is_float32 for q in quantizers.values()):
        log_once(f"states of {place.label} stay in float32: {reason}")
        quantizers = dict.fromkeys(quantizers, FLOAT32)
    if sharded and not rule.shardable:
        warn_once(
            f"{rule.title or rule.name}: rule {rule.name!r} needs all elements of a sharded parameter, so its states "
            "are whole on every rank (memory() counts them so)"
        )
    if is_flat(param) and not rule.shardable:
        warn_once(
            f"{rule.title or rule.name}: rule {rule.name!r} needs whole parameters, but FSDP1 gives it flat parts, "
            "which it treats as vectors. Shard with fully_shard (FSDP2) instead"
        )
    found = []
    with place.naming():
        for slot in plan.slots[rule]:
            shape = slot.shape(tuple(param.shape))
            if shape is None:
                continue
            small = shape != tuple(param.shape) and torch.Size(shape).numel() < storage.min_size
            quantizer = FLOAT32 if small else quantizers[slot.name]
            if shape == tuple(param.shape) and sharded and rule.shardable:
                shape = local_state_shape(param, quantizer)
            found.append(StatePlan(slot, torch.Size(shape), quantizer))
    return found
