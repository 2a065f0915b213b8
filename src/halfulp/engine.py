"""The engine under every optimizer: storage, rounding, random bits, resets and checkpoints around a pure rule.

A step goes: reset the slots that are due, add one to the ages, compute the rule's scalars, and hand each parameter as
a piece of :class:`~halfulp.kernels.work.Work` to a backend, which decodes the states, applies the rule, and encodes.
"""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from halfulp import checkpoint
from halfulp._log import log_once
from halfulp.kernels import dispatch
from halfulp.kernels.work import Work
from halfulp.memory import MemoryReport, MemoryRow
from halfulp.quantizer import Quantizer
from halfulp.resets import ResetSchedule, Site, SlotSite, as_schedule
from halfulp.rng import slot_id, stream_keys
from halfulp.rules.base import Rule, Scalars, fp32
from halfulp.state import EmaState
from halfulp.storage import FLOAT32, StorageOptions, format_specs, fp32_reason, slot_quantizers

__all__ = ["Options", "RuleOptimizer"]

PARAM_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STORAGE_KEYS = ("state", "rounding", "reset", "param_rounding", "seed")


class Options(TypedDict, total=False):
    """Keyword arguments that every optimizer of the library takes; the first five are per-group keys too."""

    state: Any
    rounding: Any
    reset: Any
    param_rounding: str
    seed: int
    scale: str
    block_size: int
    min_size: int
    keep_fp32: Sequence[str]
    zero_floor: bool
    bound_update: bool
    nonfinite: str
    backend: str | None
    maximize: bool


_DEFAULTS: Options = {
    "state": "8bit",
    "rounding": "stochastic",
    "reset": None,
    "param_rounding": "nearest",
    "seed": 0,
    "bound_update": True,
    "maximize": False,
}
_NOT_GROUP = ("scale", "block_size", "min_size", "keep_fp32", "zero_floor", "nonfinite", "backend")


class RuleOptimizer(Optimizer):
    """Base of every optimizer here: a rule, run on states in any format.

    Parameters
    ----------
    params
        Parameters, named parameters or groups, as for ``torch.optim``. float32, bfloat16 or float16, dense.
    hyper
        The rule's hyper-parameters, which become group keys.
    state
        How states are stored: ``"fp32" "bf16" "fp16" "fp8" "fp4" "int8" "int4"`` as published, ``"8bit"`` (default)
        and ``"4bit"`` as measured best, a dtype name, a :class:`~halfulp.formats.Format`, a
        :class:`~halfulp.quantizer.Quantizer`, or a mapping from slot names to these. Per group.
    rounding
        ``"stochastic"`` (default) or ``"nearest"``, or a mapping from slot names. Per group.
    reset
        ``None``, a period in steps, ``"auto"`` (the planner), a :class:`~halfulp.resets.ResetSchedule` or a function.
        Per group.
    param_rounding
        How 16-bit parameters are rounded: ``"nearest"`` (default) or ``"stochastic"``. Per group.
    seed
        Of the random bits; part of the checkpoint.
    scale, block_size, min_size, keep_fp32, zero_floor
        See :class:`~halfulp.storage.StorageOptions`.
    bound_update
        Limit each coordinate of an update to what exact arithmetic allows (Adam family); does nothing where all states
        are fp32.
    nonfinite
        ``"skip"`` (default): a stretch of a row (128 elements, or the blocks of the states) whose gradient or new
        state is not finite is left untouched, counted in :attr:`skipped` and logged once. ``"raise"``: every gradient
        is looked at before the step, and ``FloatingPointError`` leaves everything untouched; costs one more pass.
    backend
        ``None`` picks the fastest that serves; ``"reference"``, ``"cpu"`` or ``"triton"`` insists.
    maximize
        Ascend.
    """

    rule: ClassVar[Rule]

    def __init__(self, params: Any, hyper: dict[str, Any], **options: Any) -> None:
        unknown = set(options) - set(Options.__annotations__)
        if unknown:
            known = [*hyper, *Options.__annotations__]
            near = difflib.get_close_matches(sorted(unknown)[0], known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{type(self).__name__} got unknown arguments {sorted(unknown)}.{hint}")
        extra = {k: options.pop(k) for k in _NOT_GROUP if k in options}
        self.nonfinite: str = extra.pop("nonfinite", "skip")
        self.backend: str | None = extra.pop("backend", None)
        if self.nonfinite not in ("skip", "raise"):
            raise ValueError(f"nonfinite is 'skip' or 'raise', got {self.nonfinite!r}")
        dispatch.check_backend(self.backend)
        self.storage = StorageOptions(**extra)
        self._start_caches()
        super().__init__(params, {**hyper, **_DEFAULTS, **options})
        if self.storage.keep_fp32 and not any("param_names" in g for g in self.param_groups):
            raise ValueError("keep_fp32 patterns need names: pass model.named_parameters() instead of parameters()")

    def _start_caches(self) -> None:
        self._works: dict[Tensor, Work] = {}
        self._index: dict[Tensor, int] = {}
        self._schedules: dict[int, tuple[Any, ResetSchedule | None]] = {}
        self.reset_log: deque[tuple[int, int, tuple[str, ...]]] = deque(maxlen=100_000)
        """Resets made: (step after which, parameter number, slots)."""
        self.skipped: dict[int, int] = {}
        """Elements left untouched because something was not finite: parameter number -> count over all steps."""

    def __getstate__(self) -> dict[str, Any]:
        """As torch, with our own attributes; caches are left out."""
        own = {k: getattr(self, k) for k in ("nonfinite", "backend", "storage")}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As torch; caches start anew."""
        super().__setstate__(state)
        self._start_caches()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch; its keys, formats and parameters are checked here."""
        for key in param_group:
            near = difflib.get_close_matches(key, [*self.defaults, "params", "param_names"], n=1, cutoff=0.8)
            if near and near[0] != key:
                raise ValueError(f"unknown key {key!r} in a parameter group. Did you mean {near[0]!r}?")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for param in group["params"]:
                _check_param(param)
            self._check_group(group)
        except Exception:
            self.param_groups.pop()
            raise
        self._works.clear()

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise ``ValueError`` for values of a group that cannot work; rules extend it."""
        if float(group["lr"]) < 0:
            raise ValueError(f"lr must not be negative, got {group['lr']}")
        if group["param_rounding"] not in ("nearest", "stochastic"):
            raise ValueError(f"param_rounding is 'nearest' or 'stochastic', got {group['param_rounding']!r}")
        as_schedule(group["reset"])
        self._quantizers(group)

    def _quantizers(self, group: dict[str, Any]) -> tuple[Quantizer, ...]:
        return slot_quantizers(self.rule.slots(group), group["state"], group["rounding"], self.storage)

    # ---------------------------------------------------------------- the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient.

        Parameters
        ----------
        closure
            Re-evaluates the model and returns the loss, which is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [(g, [p for p in g["params"] if p.grad is not None]) for g in self.param_groups]
        self._check_grads(p for _, params in groups for p in params)
        for group, params in groups:
            if params:
                works = self._prepare(group, params)
                dispatch.step(self.rule, works, self.backend)
                self._note_skipped(works)
        return loss

    def _check_grads(self, params: Iterable[Tensor]) -> None:
        for p in params:
            assert p.grad is not None
            if p.grad.is_sparse:
                raise RuntimeError(f"{type(self).__name__} takes dense gradients; got a sparse one: use sparse=False")
            if self.nonfinite == "raise" and p.numel() and not bool(torch.isfinite(p.grad).all()):
                raise FloatingPointError(
                    f"the gradient of {self._label(p)} is not finite; nothing was changed. Skip this step, or use "
                    "nonfinite='skip' to leave out the stretches concerned"
                )

    def _prepare(self, group: dict[str, Any], params: list[Tensor]) -> list[Work]:
        """Resets, ages, scalars and random streams: everything of a step but the arithmetic."""
        works = [self._works.get(p) or self._create_work(group, p) for p in params]
        schedule = self._schedule(group)
        scalars: dict[tuple[int, ...], Scalars] = {}
        all_fp32 = all(q.format.is_float32 for q in self._quantizers(group))
        hyper = {**group, "bound_update": group["bound_update"] and not all_fp32}
        steps = []
        for p, work in zip(params, works, strict=True):
            assert p.grad is not None
            entries = self.state[p]
            if schedule is not None:
                self._reset_due(schedule, work, entries["step"])
            entries["step"] += 1
            steps.append(entries["step"])
            ages = []
            for state in work.states:
                state.age += 1
                ages.append(state.age)
            key = tuple(ages)
            if key not in scalars:
                scalars[key] = {k: fp32(v) for k, v in self.rule.scalars(hyper, key).items()}
            work.scalars, work.grad = scalars[key], p.grad
            work.maximize, work.param_rounding, work.skipped = group["maximize"], group["param_rounding"], 0
        self._set_keys(group, works, steps)
        return works

    def _set_keys(self, group: dict[str, Any], works: list[Work], steps: list[int]) -> None:
        names = [s.name for s in self.rule.slots(group)] + ["param"]
        index = [[self._index[w.param]] for w in works]
        keys = stream_keys(group["seed"], index, [[slot_id(n) for n in names]], [[s] for s in steps]).tolist()
        for work, of_work in zip(works, keys, strict=True):
            work.keys = [(a, b) for a, b in of_work]

    def _create_work(self, group: dict[str, Any], param: Tensor) -> Work:
        """Create (or, after loading, find) the states of a parameter."""
        if not self._index or param not in self._index:
            self._index = {p: i for i, p in enumerate(p for g in self.param_groups for p in g["params"])}
        entries = self.state[param]
        fresh = "step" not in entries
        if fresh:
            entries["step"] = 0
        states = tuple(
            EmaState(slot, quantizer, param.shape, entries) for slot, quantizer in self.slot_storage(group, param)
        )
        for state in states if fresh else ():
            state.create(param.device)
        assert param.grad is not None
        work = Work(self.rule, param, param.grad, states, {}, group["param_rounding"], [])
        self._works[param] = work
        return work

    def slot_storage(self, group: dict[str, Any], param: Tensor) -> list[tuple[Any, Quantizer]]:
        """(slot, quantizer) of each state of a parameter, fp32 where it is kept so."""
        slots, quantizers = self.rule.slots(group), self._quantizers(group)
        reason = fp32_reason(param, self._name(param), self.storage)
        if reason is not None and any(not q.format.is_float32 for q in quantizers):
            log_once(f"states of {self._label(param)} stay in float32: {reason}")
            quantizers = (FLOAT32,) * len(slots)
        return list(zip(slots, quantizers, strict=True))

    def _note_skipped(self, works: list[Work]) -> None:
        for work in works:
            if work.skipped:
                index = self._index[work.param]
                self.skipped[index] = self.skipped.get(index, 0) + work.skipped
                log_once(
                    f"{self._label(work.param)}: gradient or state not finite; the stretches concerned were left "
                    "untouched (see optimizer.skipped)",
                    level=30,
                )

    # ---------------------------------------------------------------- resets

    def _schedule(self, group: dict[str, Any]) -> ResetSchedule | None:
        reset = group["reset"]
        cached = self._schedules.get(id(group))
        if cached is None or cached[0] is not reset:
            cached = self._schedules[id(group)] = (reset, as_schedule(reset))
        return cached[1]

    def _reset_due(self, schedule: ResetSchedule, work: Work, step: int) -> None:
        group = self._group_of(work.param)
        sites = tuple(
            SlotSite(
                s.slot.name, s.quantizer.format, s.quantizer.rounding, s.slot.signed, s.slot.drive,
                s.slot.decay(group), s.age,
            )
            for s in work.states
        )  # fmt: skip
        due = schedule.due(Site(step, self._index[work.param], len(self._index), sites))
        unknown = set(due) - {s.name for s in sites}
        if unknown:
            raise ValueError(f"the reset schedule names {sorted(unknown)}; slots are {[s.name for s in sites]}")
        if due:
            self._reset(work, step, due)

    def _reset(self, work: Work, step: int, names: tuple[str, ...]) -> None:
        for state in work.states:
            if state.slot.name in names:
                state.reset_()
        self.reset_log.append((step, self._index[work.param], names))
        log_once(f"{type(self).__name__}: states reset (first at step {step}; all in optimizer.reset_log)")

    def reset_state(self, names: Sequence[str] | None = None, params: Iterable[Tensor] | None = None) -> None:
        """Set states and their ages to zero now.

        Parameters
        ----------
        names
            Slots; all without. Unknown names are a ``ValueError``.
        params
            Parameters; all without.
        """
        chosen = None if params is None else set(params)
        for group in self.param_groups:
            known = {s.name for s in self.rule.slots(group)}
            if names is not None and not set(names) <= known:
                raise ValueError(f"no states {sorted(set(names) - known)}; there are {sorted(known)}")
            for p in group["params"]:
                if (chosen is None or p in chosen) and self.state.get(p):
                    states = self.states(p)
                    self._reset(self._works[p], self.state[p]["step"], tuple(names or (s.slot.name for s in states)))

    # ---------------------------------------------------------------- queries

    def states(self, param: Tensor) -> tuple[EmaState, ...]:
        """States of a parameter that has made a step; ``KeyError`` for any other."""
        if not self.state.get(param):
            raise KeyError(f"{self._label(param)} has no state yet: it has made no step")
        work = self._works.get(param)
        if work is None:
            entries, group = self.state[param], self._group_of(param)
            return tuple(EmaState(s, q, param.shape, entries) for s, q in self.slot_storage(group, param))
        return work.states

    def state_tensor(self, param: Tensor, name: str) -> Tensor:
        """A state decoded to fp32, of the parameter's shape."""
        for state in self.states(param):
            if state.slot.name == name:
                return state.read()
        raise KeyError(f"no state {name!r}; there are {[s.slot.name for s in self.states(param)]}")

    def memory(self) -> MemoryReport:
        """Bytes of state of each tensor and in all, by format; and what stays in fp32, and why.

        Counts what the states take once every parameter has made a step.
        """
        rows = []
        for group in self.param_groups:
            wanted = self._quantizers(group)
            for p in group["params"]:
                reason = fp32_reason(p, self._name(p), self.storage)
                lowered = reason if any(not q.format.is_float32 for q in wanted) else None
                for slot, q in self.slot_storage(group, p):
                    rows.append(MemoryRow(self._label(p), slot.name, tuple(p.shape), q.spec, q.bytes(p.shape), lowered))
        count = sum(p.numel() for g in self.param_groups for p in g["params"])
        return MemoryReport(tuple(rows), count)

    def _group_of(self, param: Tensor) -> dict[str, Any]:
        return next(g for g in self.param_groups if any(p is param for p in g["params"]))

    def _name(self, param: Tensor) -> str | None:
        for group in self.param_groups:
            for i, p in enumerate(group["params"]):
                if p is param:
                    return group["param_names"][i] if "param_names" in group else None
        return None

    def _label(self, param: Tensor) -> str:
        name = self._name(param)
        if name is not None:
            return name
        flat = [p for g in self.param_groups for p in g["params"]]
        return f"parameter {next(i for i, p in enumerate(flat) if p is param)}"

    # ---------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """As torch; plain tensors and numbers only, formats by their full names."""
        packed: dict[str, Any] = super().state_dict()
        for saved, group in zip(packed["param_groups"], self.param_groups, strict=True):
            slots, quantizers = self.rule.slots(group), self._quantizers(group)
            saved["state"] = format_specs(slots, quantizers)
            saved["rounding"] = ",".join(f"{s.name}={q.rounding}" for s, q in zip(slots, quantizers, strict=True))
            reset = group["reset"]
            saved["reset"] = reset if reset is None or isinstance(reset, (int, str)) else repr(reset)
        return packed

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave, into an optimizer built with the same formats.

        Hyper-parameters and the seed come from the checkpoint, formats and rounding from this optimizer. Everything is
        checked before anything is changed; tensors keep their dtype and move to the parameter's device.

        Raises
        ------
        ValueError
            Another library's, format's or model's checkpoint; the message says what differs and how to convert.
        """
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        states, groups = checkpoint.validate(self, state_dict)
        for param, entries in states.items():
            self.state[param] = entries
        for group, values in zip(self.param_groups, groups, strict=True):
            group.update(values)
        self._works.clear()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)


def _check_param(param: Tensor) -> None:
    if param.dtype not in PARAM_DTYPES:
        raise ValueError(
            f"parameters are float32, bfloat16 or float16 (the arithmetic is fp32); got {param.dtype} of shape "
            f"{tuple(param.shape)}"
        )
