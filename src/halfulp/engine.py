"""The engine under every optimizer: steps, resets, states and checkpoints around a pure rule.

A step goes: reset the slots that are due, add one to the ages, compute the rule's scalars (after sums over the whole
model, if the rule asks for them), and hand each parameter as a piece of :class:`~halfulp.kernels.work.Work` to a
backend, which decodes the states, applies the rule, and encodes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from halfulp._log import log_once
from halfulp.distributed import agree, copy_back_, gathered, is_sharded, local, window
from halfulp.groups import PARAM_DTYPES, RuleGroups, check_param, followed
from halfulp.kernels import dispatch
from halfulp.kernels.work import Work
from halfulp.options import Options
from halfulp.resets import ResetSchedule, Site, SlotSite, as_schedule
from halfulp.rng import lanes, slot_id, stream_keys
from halfulp.rules.base import Rule, Scalars, fp32
from halfulp.rules.hyper import is_rate
from halfulp.state import EmaState
from halfulp.storage import format_specs
from halfulp.validate import validate

__all__ = ["Options", "RuleOptimizer"]


class RuleOptimizer(RuleGroups):
    """Base of every optimizer here: a rule, run on states in any format.

    Parameters
    ----------
    params
        Parameters, named parameters or groups, as for ``torch.optim``. float32, bfloat16 or float16, dense.
    hyper
        The rule's hyper-parameters, which become group keys.
    state
        How states are stored: ``"fp32" "bf16" "fp16" "fp8" "fp4" "int8" "int4"`` as published, ``"8bit"`` (default)
        and ``"4bit"`` as measured best, a dtype or its name, a :class:`~halfulp.formats.Format`, a
        :class:`~halfulp.quantizer.Quantizer` (with a rounding and a ``zero_floor`` of its own, which win), or a mapping
        from slot names to these. Per group.
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
    transforms
        Functions from a rule to a rule, the first closest to the gradient: :mod:`halfulp.rules.transforms`.
    """

    def _start_caches(self) -> None:
        super()._start_caches()
        self._works: dict[Tensor, Work] = {}
        self._stored_as: dict[int, tuple[Any, Any, tuple[str, ...]]] = {}
        self._checked: dict[int, list[Any]] = {}
        self._schedules: dict[int, tuple[Any, ResetSchedule | None]] = {}
        self.reset_log: deque[tuple[int, int, tuple[str, ...]]] = deque(maxlen=100_000)
        """Resets made: (step after which, parameter number, slots)."""
        self.skipped: dict[int, int] = {}
        """Elements left untouched because something was not finite: parameter number -> count over all steps."""

    def __getstate__(self) -> dict[str, Any]:
        """As torch, with our own attributes; caches are left out."""
        own = {k: getattr(self, k) for k in ("nonfinite", "backend", "transforms", "storage", "reset_log", "skipped")}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As torch; caches start anew."""
        super().__setstate__(state)
        kept: dict[str, Any] = {k: state[k] for k in ("reset_log", "skipped") if k in state}
        self._start_caches()
        self.__dict__.update(kept)

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
        self._step([(g, [p for p in self.active_params(g) if p.grad is not None]) for g in self.param_groups])
        return loss

    @torch.no_grad()
    def step_parameters(self, params: Iterable[Tensor]) -> None:
        """One step of some parameters alone, with the bits it has in :meth:`step`; those without gradient are left out.

        Hooks of the optimizer are not called. A rule that sums over the model sums over these parameters.
        """
        groups: dict[int, tuple[dict[str, Any], list[Tensor]]] = {}
        for p in params:
            if p.grad is not None:
                group = self.registry[p].group
                groups.setdefault(id(group), (group, []))[1].append(p)
        self._step(list(groups.values()))

    @torch._disable_dynamo  # as torch does for its own: a compiled training step calls this as it is
    def _step(self, groups: list[tuple[dict[str, Any], list[Tensor]]]) -> None:
        self._check_grads([p for _, params in groups for p in params])
        for group, _ in groups:
            self._follow(group)
        by_rule: dict[Rule, list[Work]] = {}
        due = [self._due(group, params) for group, params in groups]  # if one fails, nothing has changed
        for (group, params), resets in zip(groups, due, strict=True):
            if params:
                for work in self._prepare(group, params, resets):
                    by_rule.setdefault(work.rule, []).append(work)
        for rule, works in by_rule.items():
            if rule.measure is not None:
                dispatch.combine(rule, works)
            dispatch.step(rule, works, self.backend)
            self._note_skipped(works)
            for work in works:
                if work.param is not work.owner and not work.rule.shardable:
                    copy_back_(work.owner, work.param)

    def _check_grads(self, params: list[Tensor]) -> None:
        bad = None
        for p in params:
            assert p.grad is not None
            if p.grad.layout != torch.strided:
                raise RuntimeError(f"{type(self).__name__} takes dense gradients; got a sparse one: use sparse=False")
            if p.dtype not in PARAM_DTYPES:
                check_param(p)  # model.double() after the optimizer was built
            if p.is_meta:
                raise RuntimeError(
                    f"{self.registry[p].label} is on the meta device: give the model memory first "
                    "(model.to_empty(device=...)), and build the optimizer then"
                )
            if self.nonfinite == "raise" and bad is None and not bool(torch.isfinite(local(p.grad)).all()):
                bad = self.registry[p].label
        if self.nonfinite == "raise" and agree(bad is not None, params):
            raise FloatingPointError(
                f"the gradient of {bad or 'a parameter on another rank'} is not finite; nothing was changed. Skip this "
                "step, or use nonfinite='skip' to leave out the stretches concerned"
            )

    def _prepare(self, group: dict[str, Any], params: list[Tensor], due: list[tuple[str, ...]]) -> list[Work]:
        """Resets, ages, scalars and random streams: everything of a step but the arithmetic."""
        works = [self._works.get(p) or self._create_work(group, p) for p in params]
        scalars: dict[tuple[Any, ...], Scalars] = {}
        steps = []
        for i, (p, work) in enumerate(zip(params, works, strict=True)):
            entries = self.state[p]
            if due and due[i]:
                self._reset(p, work.states, entries["step"], due[i])
            step = entries["step"] = entries["step"] + 1
            steps.append(step)
            key: tuple[Any, ...] = (work.rule, work.low, step)
            for state in work.states:
                age = entries[state.age_key] = entries[state.age_key] + 1
                key = (*key, age)
            found = scalars.get(key)
            if found is None:
                found = scalars[key] = self._scalars(group, work, step)
            work.scalars, work.grad = found, p.grad  # type: ignore[assignment]
            if is_sharded(p):
                self._localize(work)
            work.maximize, work.param_rounding, work.skipped = group["maximize"], group["param_rounding"], 0
        self._set_keys(group, works, steps)
        return works

    def _localize(self, work: Work) -> None:
        """Give a sharded parameter's work the local parts, or the whole where the rule needs it."""
        fetch = local if work.rule.shardable else gathered
        work.param = fetch(work.owner.detach())
        work.grad = fetch(work.grad.redistribute(placements=work.owner.placements))  # type: ignore[attr-defined]

    def _scalars(self, group: dict[str, Any], work: Work, step: int) -> Scalars:
        hyper = {**group, "bound_update": group["bound_update"] and work.low}
        ages = {"step": step, **{s.slot.name: s.age for s in work.states}}
        return {k: fp32(v) for k, v in work.rule.scalars(hyper, ages).items()}

    def _set_keys(self, group: dict[str, Any], works: list[Work], steps: list[int]) -> None:
        registry, lane = self.registry, lanes(tuple(s.name for s in self.group_slots(group)))
        index = [registry[w.owner].index for w in works]
        keys = stream_keys(group["seed"], index, slot_id("optimizer"), steps).tolist()
        for work, (key0, key1) in zip(works, keys, strict=True):
            work.keys = [(key0, key1, lane[name]) for name in work.names]

    def _create_work(self, group: dict[str, Any], param: Tensor) -> Work:
        """Find the states of a parameter; create those that are not there, and drop those of no slot any more."""
        entries = self.state[param]
        entries.setdefault("step", 0)
        states = self._states_over(entries, group, param)
        for key in set(entries) - {"step", *(k for s in states for k in s.keys)}:
            del entries[key]
        for state in states:
            if state.slot.name not in entries:
                state.create(param)
        assert param.grad is not None
        work = Work(self.active_rule(group, param), param, param.grad, states, {}, group["param_rounding"], [])
        if self._on_shards(group, param):
            here = window(param)
            work.first_element = here.first_element
            if here.shape[1:] != tuple(param.shape[1:]):
                work.row_stride = here.row_stride
        self._works[param] = work
        return work

    def _states_over(self, entries: dict[str, Any], group: dict[str, Any], param: Tensor) -> tuple[EmaState, ...]:
        sharded = self._on_shards(group, param)
        return tuple(EmaState(slot, q, shape, entries, sharded) for slot, shape, q in self.slot_storage(group, param))

    def _note_skipped(self, works: list[Work]) -> None:
        for work in works:
            if work.skipped:
                place = self.registry[work.owner]
                self.skipped[place.index] = self.skipped.get(place.index, 0) + work.skipped
                log_once(
                    f"{place.label}: gradient or state not finite; the stretches concerned were left untouched (see "
                    "optimizer.skipped)",
                    level=30,
                )

    def _follow(self, group: dict[str, Any]) -> None:
        """Check what was changed between steps as the constructor does, and take over a rounding, or other slots.

        Slots follow from hyper-parameters: SGD's buffer comes with a momentum, and goes without. Formats cannot change.
        """
        values = followed(group)
        if values == self._checked.get(id(group)) and is_rate(group["lr"]):
            return
        self._check_group(group)
        now = (group["state"], group["rounding"], tuple(slot.name for slot in self.group_slots(group)))
        before = self._stored_as.setdefault(id(group), now)
        if now[0] != before[0]:
            raise ValueError(
                f"the states of a group are stored as {before[0]!r} and cannot become {now[0]!r} between steps; "
                "build a new optimizer"
            )
        self._checked[id(group)], self._stored_as[id(group)] = values, now
        if now == before:
            return
        for param in group["params"]:
            self._works.pop(param, None)

    # ---------------------------------------------------------------- resets

    def _schedule(self, group: dict[str, Any]) -> ResetSchedule | None:
        reset = group["reset"]
        cached = self._schedules.get(id(group))
        if cached is None or cached[0] is not reset:
            cached = self._schedules[id(group)] = (reset, as_schedule(reset))
        return cached[1]

    def _due(self, group: dict[str, Any], params: list[Tensor]) -> list[tuple[str, ...]]:
        """Slots to reset of each parameter before its next step; an empty list without a schedule."""
        schedule = self._schedule(group)
        if schedule is None:
            return []
        return [self._due_slots(schedule, group, self._works.get(p) or self._create_work(group, p)) for p in params]

    def _due_slots(self, schedule: ResetSchedule, group: dict[str, Any], work: Work) -> tuple[str, ...]:
        hyper = {**group, **work.scalars}
        sites = tuple(SlotSite.of(s, hyper, work.owner.shape) for s in work.states)
        step: int = self.state[work.owner]["step"]
        due = schedule.due(Site(step, self.registry[work.owner].index, len(self.registry), sites))
        unknown = set(due) - {s.name for s in sites}
        if unknown:
            raise ValueError(f"the reset schedule names {sorted(unknown)}; slots are {[s.name for s in sites]}")
        return due

    def _reset(self, param: Tensor, states: tuple[EmaState, ...], step: int, names: tuple[str, ...]) -> None:
        for state in states:
            if state.slot.name in names:
                state.reset_(param)
        self.reset_log.append((step, self.registry[param].index, names))
        log_once(f"{type(self).__name__}: states reset (first at step {step}; all in optimizer.reset_log)")

    @torch.no_grad()
    def reset_state(self, names: Sequence[str] | None = None, params: Iterable[Tensor] | None = None) -> None:
        """Set states to their initial value (zero, for moments) and their ages to zero now.

        Parameters
        ----------
        names
            Slots; all without. Unknown names are a ``ValueError``.
        params
            Parameters; all without.
        """
        if isinstance(names, str):
            names = (names,)
        chosen = None if params is None else set(params)
        strangers = [tuple(p.shape) for p in chosen or () if p not in self.registry]
        if strangers:
            raise ValueError(f"reset_state got tensors of shape {strangers} that are no parameters of this optimizer")
        known = {s.name for group in self.param_groups for s in self.group_slots(group)}
        if names is not None and not set(names) <= known:
            raise ValueError(f"no states {sorted(set(names) - known)}; there are {sorted(known)}")
        for group in self.param_groups:
            for p in group["params"]:
                if (chosen is None or p in chosen) and self.state.get(p):
                    states = self.states(p)
                    due = tuple(s.slot.name for s in states if names is None or s.slot.name in names)
                    if due:
                        self._reset(p, states, self.state[p]["step"], due)

    @torch.no_grad()
    def forget(self, params: Iterable[Tensor]) -> None:
        """Drop the states of parameters, and their memory; a later step begins with new ones.

        Their count of steps goes on: the random bits follow it.
        """
        for p in params:
            entries = self.state.get(p)
            if entries:
                for key in set(entries) - {"step"}:
                    del entries[key]
            self._works.pop(p, None)

    # ---------------------------------------------------------------- queries

    def states(self, param: Tensor) -> tuple[EmaState, ...]:
        """States of a parameter that has made a step; ``KeyError`` for any other."""
        entries = self.state.get(param)
        if not entries:
            raise KeyError(f"{self.registry[param].label} has no state yet: it has made no step")
        work = self._works.get(param)
        if work is not None:
            return work.states
        found = self._states_over(entries, self.registry[param].group, param)
        return tuple(state for state in found if state.slot.name in entries)

    def state_tensor(self, param: Tensor, name: str) -> Tensor:
        """A state decoded to fp32, of its own shape (the parameter's, unless it is factored)."""
        for state in self.states(param):
            if state.slot.name == name:
                return state.read()
        raise KeyError(f"no state {name!r}; there are {[s.slot.name for s in self.states(param)]}")

    def coefficients(self, param: Tensor) -> dict[str, tuple[float, float]]:
        """``(beta, gain)`` of each state of a parameter, as they were in its last step."""
        work = self._works.get(param)
        hyper = {**self.registry[param].group, **(work.scalars if work is not None else {})}
        return {s.slot.name: s.slot.coefficients(hyper) for s in self.states(param)}

    # ---------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """As torch; plain tensors and numbers only, formats by their full names."""
        packed: dict[str, Any] = super().state_dict()
        for saved, group in zip(packed["param_groups"], self.param_groups, strict=True):
            quantizers = self.group_quantizers(group)
            saved["state"] = format_specs(quantizers)
            saved["rounding"] = ",".join(f"{name}={q.rounding}" for name, q in quantizers.items())
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
        states, groups = validate(self, state_dict)
        self.state.clear()
        self.state.update(states)
        for group, values in zip(self.param_groups, groups, strict=True):
            group.update(values)
        self._works.clear()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)
