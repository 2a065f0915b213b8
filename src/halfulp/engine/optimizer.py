"""The engine under every optimizer: steps and checkpoints around a pure rule.

A step goes: reset the slots that are due, add one to the ages, compute the rule's scalars (after sums over the whole
model, if the rule asks for them), and hand each parameter as a :class:`~halfulp.kernels.binding.Step` to a
backend, which decodes the states, applies the rule, and encodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from halfulp.engine import compiled
from halfulp.engine.capture import Recording, capturing
from halfulp.engine.groups import PARAM_DTYPES, check_param, followed
from halfulp.engine.lifetime import Bound, RuleStates
from halfulp.engine.loading import validate
from halfulp.engine.options import Options
from halfulp.engine.sharding import agree, copy_back_, gathered, is_sharded, local
from halfulp.engine.storage import format_specs
from halfulp.engine.sums import combine
from halfulp.kernels import dispatch
from halfulp.kernels.binding import Step
from halfulp.kernels.skipped import Skipped
from halfulp.numbers.log import log_once
from halfulp.numbers.rng import lanes, slot_id, step_keys
from halfulp.rules.base import Rule, Scalars, all_fp32
from halfulp.rules.hyper import is_rate

__all__ = ["Options", "RuleOptimizer"]

STREAM = slot_id("optimizer")


class RuleOptimizer(RuleStates):
    """Base of every optimizer here: a rule, run on states in any format.

    Parameters
    ----------
    params
        Parameters, named parameters or groups, as for ``torch.optim``. float32, bfloat16 or float16, dense.
    hyper
        The rule's hyper-parameters, which become group keys.
    state
        How states are stored: ``"fp32" "bf16" "fp16" "fp8" "fp4" "int8" "int4"`` as published, ``"8bit"`` (default)
        and ``"4bit"`` as measured best, a dtype or its name, a :class:`~halfulp.numbers.formats.Format`, a
        :class:`~halfulp.numbers.quantizer.Quantizer` (with a rounding and a ``zero_floor`` of its own, which win), or
        a mapping from slot names to these. Per group.
    rounding
        ``"stochastic"`` (default) or ``"nearest"``, or a mapping from slot names. Per group.
    reset
        ``None``, a period in steps, ``"auto"`` (the planner), a :class:`~halfulp.engine.resets.ResetSchedule` or a
        function. Per group.
    param_rounding
        How 16-bit parameters are rounded: ``"nearest"`` (default) or ``"stochastic"``. Per group.
    seed
        Of the random bits; part of the checkpoint.
    scale, block_size, min_size, keep_fp32, zero_floor
        See :class:`~halfulp.engine.storage.StorageOptions`.
    bound_update
        Limit each coordinate of an update to what exact arithmetic allows (Adam family); does nothing where all states
        are fp32.
    capturable
        Allow :meth:`step` in a CUDA graph, on GPUs with the Triton kernels; see :meth:`advance`.
    nonfinite
        ``"skip"`` (default): a stretch of a row (128 elements, or the blocks of the states) whose gradient or new
        state is not finite is left untouched, counted in :attr:`skipped` and logged once; the whole parameter under a
        rule that is not elementwise, and all parameters where a rule or transform needs a sum over them that is not
        finite (SWATS, AMSGD, :func:`~halfulp.clip_global`). ``"raise"``: every gradient is looked at before the step,
        and ``FloatingPointError`` leaves everything untouched; costs one more pass.
    backend
        ``None`` picks the fastest that serves; ``"reference"``, ``"cpu"`` or ``"triton"`` insists.
    maximize
        Ascend.
    transforms
        Functions from a rule to a rule, the first closest to the gradient: :mod:`halfulp.rules.transforms`.
    """

    def _start_caches(self) -> None:
        super()._start_caches()
        self._stored_as: dict[int, tuple[Any, Any, tuple[str, ...]]] = {}
        self._checked: dict[int, list[Any]] = {}
        self._skipped = Skipped(self._say_skipped)
        self._recording: Recording | None = None
        self._number = compiled.number_of(self)

    def __getstate__(self) -> dict[str, Any]:
        """As torch, with our own attributes; caches are left out."""
        own = {
            k: getattr(self, k)
            for k in ("nonfinite", "backend", "capturable", "transforms", "storage", "reset_log", "skipped")
        }
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As torch; caches start anew."""
        super().__setstate__(state)
        reset_log, skipped = state.get("reset_log"), state.get("skipped")
        self.__dict__.pop("skipped", None)
        self.__dict__.setdefault("capturable", False)
        self._start_caches()
        self.reset_log = self.reset_log if reset_log is None else reset_log
        self._skipped = Skipped(self._say_skipped, skipped)

    # ---------------------------------------------------------------- the step

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
        with torch.no_grad():
            if torch.compiler.is_compiling() and type(self).active_params is RuleOptimizer.active_params:
                self._step_in_graph()
            else:
                self._step([(g, [p for p in self.active_params(g) if p.grad is not None]) for g in self.param_groups])
        return loss

    def _step_in_graph(self) -> None:
        """One step as an operator in the graph that ``torch.compile`` is making."""
        every = [p for group in self.param_groups for p in group["params"]]
        places = [i for i, p in enumerate(every) if p.grad is not None]
        params = [every[i] for i in places]
        compiled.step(params, [p.grad for p in params], places, self._number)

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

    def _step(self, groups: list[tuple[dict[str, Any], list[Tensor]]]) -> None:
        if torch.compiler.is_compiling():  # outside of the graph
            torch.compiler.disable(self.make_step)(groups)
        elif capturing():
            self._recording = Recording(self, groups)
        else:
            self.make_step(groups)

    @torch.no_grad()
    def advance(self) -> None:
        """The host's part of the next step, before a CUDA graph that recorded :meth:`step` is replayed.

        Counts the step, resets states that are due, and uploads what the recorded kernels read: random keys and the
        rule's scalars, with the rates that the groups have now. A replay without it repeats the last step's.

        Raises
        ------
        RuntimeError
            If no step was recorded, or what it was recorded for has changed.

        Examples
        --------
        >>> import halfulp
        >>> def train(model, batches):
        ...     optimizer = halfulp.AdamW(model.parameters(), capturable=True)
        ...     for _ in range(3):  # ordinary steps first, on a side stream, as torch asks for
        ...         model(next(batches)).mean().backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad(set_to_none=True)
        ...     graph, data = torch.cuda.CUDAGraph(), next(batches).clone()
        ...     with torch.cuda.graph(graph):
        ...         model(data).mean().backward()
        ...         optimizer.step()
        ...     for batch in batches:
        ...         data.copy_(batch)
        ...         optimizer.advance()
        ...         graph.replay()
        """
        if self._recording is None:
            raise RuntimeError("advance() comes before a replay of a recorded step, and none was recorded: call step()")
        self._recording.advance()

    def make_step(
        self,
        groups: list[tuple[dict[str, Any], list[Tensor]]],
        act: Callable[[Rule, list[Step]], None] | None = None,
        *,
        recording: bool = False,
    ) -> None:
        """One step; `act`: what is done with the steps of each rule instead. A recorded step resets nothing."""
        self._check_grads([p for _, params in groups for p in params])
        for group, _ in groups:
            self._follow(group)
        by_rule: dict[Rule, list[tuple[Bound, Step]]] = {}
        # if one fails, nothing has changed
        due = [[] if recording else self._due(group, params) for group, params in groups]
        for (group, params), resets in zip(groups, due, strict=True):
            if params:
                for bound, step in self._prepare(group, params, resets):
                    by_rule.setdefault(bound.rule, []).append((bound, step))
        for rule, pairs in by_rule.items():
            steps = [step for _, step in pairs]
            if act is not None:
                act(rule, steps)
            else:
                dispatch.step(rule, steps if rule.measure is None else combine(rule, steps, self.backend), self.backend)
            for bound, step in pairs:
                if not rule.shardable and is_sharded(bound.owner):
                    assert step.binding.param is not None
                    copy_back_(bound.owner, step.binding.param)
        if not recording:
            self._skipped.look()

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

    def _prepare(
        self, group: dict[str, Any], params: list[Tensor], due: list[tuple[str, ...]]
    ) -> list[tuple[Bound, Step]]:
        """Resets, ages, scalars and random streams: everything of a step but the arithmetic."""
        bounds = [self._bound.get(p) or self._bind(group, p) for p in params]
        scalars: dict[tuple[Any, ...], Scalars] = {}
        steps, numbers = [], []
        for i, (p, bound) in enumerate(zip(params, bounds, strict=True)):
            entries = self.state[p]
            if due and due[i]:
                self._reset(p, bound.states, entries["step"], due[i])
            number = entries["step"] = entries["step"] + 1
            numbers.append(number)
            key: tuple[Any, ...] = (bound.rule, bound.low, number)
            for state in bound.states:
                age = entries[state.age_key] = entries[state.age_key] + 1
                key = (*key, age)
            found = scalars.get(key)
            if found is None:
                found = scalars[key] = self._scalars(group, bound, number)
            bound.scalars, grad = found, p.grad
            assert grad is not None
            if is_sharded(p):
                grad = (local if bound.rule.shardable else gathered)(grad.redistribute(placements=p.placements))  # type: ignore[attr-defined]
            step = Step(bound.bind(), (grad,), found, [], group["param_rounding"], group["maximize"], bound.counts)
            steps.append(step)
        self._set_keys(group, bounds, steps, numbers)
        return list(zip(bounds, steps, strict=True))

    def _scalars(self, group: dict[str, Any], bound: Bound, step: int) -> Scalars:
        hyper = {**group, "bound_update": group["bound_update"] and bound.low}
        ages = {"step": step, **{s.slot.name: s.age for s in bound.states}}
        return all_fp32(bound.rule.scalars(hyper, ages))

    def _set_keys(self, group: dict[str, Any], bounds: list[Bound], steps: list[Step], numbers: list[int]) -> None:
        registry, lane = self.registry, lanes(self._stored_as[id(group)][2])
        index = [registry[b.owner].index for b in bounds]
        keys = step_keys(group["seed"], index, STREAM, numbers)
        for bound, step, (key0, key1), number in zip(bounds, steps, keys, index, strict=True):
            step.keys = [(key0, key1, lane[name]) for name in bound.names]
            step.skipped = self._skipped.counter(number, step.binding.device)

    @property
    def skipped(self) -> dict[int, int]:
        """Elements left untouched because something was not finite: parameter number -> count over all steps.

        Counted on the device of the parameter; reading it waits for what has been started there.
        """
        return self._skipped.read()

    def _say_skipped(self, number: int) -> None:
        labels = [self.registry[p].label for group in self.param_groups for p in group["params"]]
        label = labels[number] if number < len(labels) else f"parameter {number}"
        log_once(
            f"{label}: gradient or state not finite; the stretches concerned were left untouched (see "
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
            self._bound.pop(param, None)

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
        self._bound.clear()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)
