"""Groups of an optimizer: which rule, and which storage, each parameter has.

What can be said without any step: arguments and their checks, rules under their transforms, slots and quantizers, what
stays in fp32 and why, bytes.
"""

from __future__ import annotations

import difflib
import fnmatch
from types import NoneType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from halfulp.engine.memory import MemoryReport, MemoryRow
from halfulp.engine.options import GROUP_DEFAULTS, NOT_GROUP, Options, without_torch_switches
from halfulp.engine.registry import Registry
from halfulp.engine.resets import as_schedule
from halfulp.engine.sharding import is_sharded, local, local_state_shape
from halfulp.engine.storage import FLOAT32, StorageOptions, fp32_reason, slot_quantizers
from halfulp.kernels import dispatch
from halfulp.numbers.log import log_once
from halfulp.numbers.quantizer import Quantizer
from halfulp.rules.base import Rule
from halfulp.rules.hyper import as_number, is_rate
from halfulp.rules.slots import StateSlot
from halfulp.rules.transforms import check_transforms, compose

__all__ = ["PARAM_DTYPES", "RuleGroups", "check_param", "followed"]

PARAM_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class RuleGroups(Optimizer):
    """Parameter groups under a rule; :class:`~halfulp.engine.optimizer.RuleOptimizer` takes the arguments and steps."""

    rule: ClassVar[Rule]

    def __init__(self, params: Any, hyper: dict[str, Any], **options: Any) -> None:
        options = without_torch_switches(type(self).__name__, options)
        unknown = set(options) - set(Options.__annotations__)
        if unknown:
            known = [*hyper, *Options.__annotations__]
            near = difflib.get_close_matches(sorted(unknown)[0], known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{type(self).__name__} got unknown arguments {sorted(unknown)}.{hint}")
        extra = {k: options.pop(k) for k in NOT_GROUP if k in options}
        self.nonfinite: str = extra.pop("nonfinite", "skip")
        self.backend: str | None = extra.pop("backend", None)
        self.capturable: bool = extra.pop("capturable", False)
        self.transforms = check_transforms(extra.pop("transforms", ()))
        if self.nonfinite not in ("skip", "raise"):
            raise ValueError(f"nonfinite is 'skip' or 'raise', got {self.nonfinite!r}")
        dispatch.check_backend(self.backend)
        self.storage = StorageOptions(**extra)
        self._start_caches()
        super().__init__(params, {**hyper, **GROUP_DEFAULTS, **options})
        if self.storage.keep_fp32 and not any("param_names" in g for g in self.param_groups):
            raise ValueError("keep_fp32 patterns need names: pass model.named_parameters() instead of parameters()")
        names = [name for g in self.param_groups for name in g.get("param_names", ())]
        for pattern in self.storage.keep_fp32:
            if not fnmatch.filter(names, pattern):
                log_once(f"keep_fp32 pattern {pattern!r} fits no parameter name ({', '.join(names[:3])} ...)", level=30)

    def _start_caches(self) -> None:
        self._registry: Registry | None = None

    @property
    def registry(self) -> Registry:
        """Number, name and group of every parameter."""
        if self._registry is None:
            self._registry = Registry(self.param_groups)
        return self._registry

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch; its keys, formats and parameters are checked here."""
        for key in param_group:
            if key in NOT_GROUP:
                raise ValueError(f"{key} holds for the whole optimizer: pass it as an argument, not in a group")
            near = difflib.get_close_matches(key, [*self.defaults, "params", "param_names"], n=1, cutoff=0.8)
            if near and near[0] != key:
                raise ValueError(f"unknown key {key!r} in a parameter group. Did you mean {near[0]!r}?")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        self._registry = None
        try:
            for param in group["params"]:
                check_param(param)
            self._check_group(group)
        except Exception:
            self.param_groups.pop()
            self._registry = None
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise ``ValueError`` for values of a group that cannot work; rules extend it."""
        if not is_rate(as_number("lr", group["lr"])):
            raise ValueError(f"lr must not be negative, and finite; got {group['lr']}")
        if group["param_rounding"] not in ("nearest", "stochastic"):
            raise ValueError(f"param_rounding is 'nearest' or 'stochastic', got {group['param_rounding']!r}")
        if not isinstance(group["seed"], int):
            raise ValueError(f"seed is an integer, got {group['seed']!r}")
        if not 0 <= group["seed"] < 1 << 64:
            raise ValueError(f"seed is an integer of at most 64 bits, not negative; got {group['seed']}")
        as_schedule(group["reset"])
        self.group_quantizers(group)

    # ---------------------------------------------------------------- rules and storage

    def rules(self, group: dict[str, Any]) -> tuple[Rule, ...]:
        """Every rule that parameters of a group may follow: :attr:`rule` alone, unless a subclass has several."""
        return (self.rule,)

    def rule_for(self, group: dict[str, Any], param: Tensor) -> Rule:
        """The rule of one parameter, one of :meth:`rules`."""
        return self.rules(group)[0]

    def active_rules(self, group: dict[str, Any]) -> tuple[Rule, ...]:
        """The rules of a group under the optimizer's transforms."""
        return tuple(compose(rule, self.transforms) for rule in self.rules(group))

    def active_rule(self, group: dict[str, Any], param: Tensor) -> Rule:
        """The rule of one parameter under the optimizer's transforms."""
        return compose(self.rule_for(group, param), self.transforms)

    def group_slots(self, group: dict[str, Any]) -> tuple[StateSlot, ...]:
        """Slots that parameters of a group may have, each name once."""
        slots = {slot.name: slot for rule in self.active_rules(group) for slot in rule.slots(group)}
        return tuple(slots.values())

    def group_quantizers(self, group: dict[str, Any]) -> dict[str, Quantizer]:
        """Storage of each slot of a group, for the parameters that do not stay in fp32."""
        slots = self.group_slots(group)
        chosen = slot_quantizers(slots, group["state"], group["rounding"], self.storage)
        return {slot.name: quantizer for slot, quantizer in zip(slots, chosen, strict=True)}

    def slot_storage(self, group: dict[str, Any], param: Tensor) -> list[tuple[StateSlot, torch.Size, Quantizer]]:
        """(slot, shape, quantizer) of each state of a parameter, fp32 where it is kept so."""
        quantizers = self.group_quantizers(group)
        place = self.registry[param]
        reason = fp32_reason(param, place.name, self.storage)
        if reason is None and param.ndim < 2 and is_sharded(param):
            reason = "sharded vector, whose blocks a shard would cut"
        if reason is not None and any(not q.format.is_float32 for q in quantizers.values()):
            log_once(f"states of {place.label} stay in float32: {reason}")
            quantizers = dict.fromkeys(quantizers, FLOAT32)
        rule = self.active_rule(group, param)
        if is_sharded(param) and not rule.shardable:
            log_once(
                f"{type(self).__name__}: rule {rule.name!r} needs all elements of a sharded parameter, so that its "
                "states are whole on every rank (memory() counts them so)",
                level=30,
            )
        found = []
        for slot in rule.slots(group):
            shape = slot.shape(tuple(param.shape))
            if shape is None:
                continue
            small = shape != tuple(param.shape) and torch.Size(shape).numel() < self.storage.min_size
            quantizer = FLOAT32 if small else quantizers[slot.name]
            if shape == tuple(param.shape) and self._on_shards(group, param):
                shape = local_state_shape(param, quantizer)
            found.append((slot, torch.Size(shape), quantizer))
        return found

    def _on_shards(self, group: dict[str, Any], param: Tensor) -> bool:
        """Whether each rank updates its own part of a sharded parameter, rather than the whole."""
        return is_sharded(param) and self.active_rule(group, param).shardable

    def active_params(self, group: dict[str, Any]) -> list[Tensor]:
        """Parameters of a group that take part in the present step: all, unless a subclass takes turns."""
        params: list[Tensor] = group["params"]
        return params

    def memory(self) -> MemoryReport:
        """Bytes of state of each tensor and in all, by format; and what stays in fp32, and why.

        Counts what the states take once every parameter has made a step; on sharded parameters, this rank's part.
        """
        rows = []
        for group in self.param_groups:
            low = any(not q.format.is_float32 for q in self.group_quantizers(group).values())
            for p in self.active_params(group):
                place = self.registry[p]
                reason = fp32_reason(p, place.name, self.storage) if low else None
                for slot, shape, q in self.slot_storage(group, p):
                    rows.append(MemoryRow(place.label, slot.name, tuple(shape), q.spec, q.bytes(shape), reason))
        count = sum(local(p).numel() for g in self.param_groups for p in g["params"])
        return MemoryReport(tuple(rows), count)


def check_param(param: Tensor) -> None:
    """Raise ``ValueError`` for a parameter that no optimizer here takes."""
    if param.dtype not in PARAM_DTYPES:
        raise ValueError(
            f"parameters are float32, bfloat16 or float16 (the arithmetic is fp32); got {param.dtype} of shape "
            f"{tuple(param.shape)}: use model.float(), .bfloat16() or .half()"
        )
    if param.layout != torch.strided:
        raise ValueError(f"parameters are dense; got one of layout {param.layout}: give param.to_dense() to the model")


PLAIN = frozenset({float, int, bool, str, NoneType})
NOT_FOLLOWED = frozenset({"params", "param_names", "lr"})
"""Group keys whose changes need no check of the whole group: schedules change the rate in every step."""


def followed(group: dict[str, Any]) -> list[Any]:
    """What a group holds now, to be compared with what it held when it was last checked."""
    return [v if v.__class__ in PLAIN else _value(v) for k, v in group.items() if k not in NOT_FOLLOWED]


def _value(given: Any) -> Any:
    """What a group's entry is now, of those that can be changed in place."""
    if isinstance(given, Tensor):
        return given.tolist()
    return tuple(map(_value, given)) if isinstance(given, (tuple, list)) else given
