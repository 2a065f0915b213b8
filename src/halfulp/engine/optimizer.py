"""The optimizer that runs a rule: a ``torch.optim.Optimizer`` whose states have any format.

A step binds each parameter to the entries of ``optimizer.state``, resets the slots that are due, and increments the
ages. It then computes the rule's scalars, after sums over the model if the rule needs them. Finally it passes each
parameter to a backend as a :class:`~halfulp.kernels.binding.Step`. The backend decodes the states, applies the rule,
and encodes them again.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.optimizer import Optimizer

from halfulp.engine import checks, compiled, loading
from halfulp.engine.bindings import Bindings
from halfulp.engine.capture import Recording, capturing
from halfulp.engine.lineup import Share
from halfulp.engine.master import MASTER, MasterState, storage_of
from halfulp.engine.memory import MemoryReport, MemoryRow
from halfulp.engine.options import GROUP_DEFAULTS, NOT_GROUP, Options, without_torch_switches
from halfulp.engine.plan import GroupPlan, StatePlan, check_options, plan_group, plan_states, values_of
from halfulp.engine.registry import Place, Registry
from halfulp.engine.rows import reset_rows_, row_index
from halfulp.engine.sharding import is_sharded, local
from halfulp.engine.slot_state import SlotState
from halfulp.engine.states import version_of
from halfulp.engine.storage import StorageOptions, fp32_reason
from halfulp.engine.sums import combine
from halfulp.kernels import dispatch
from halfulp.kernels.binding import Step
from halfulp.kernels.skipped import Skipped
from halfulp.numbers.log import log_once
from halfulp.numbers.quantizer import Quantizer
from halfulp.rules.base import Rule
from halfulp.rules.hyper import is_rate
from halfulp.rules.slots import StateSlot
from halfulp.rules.transforms import check_transforms, compose

__all__ = ["Options", "RuleOptimizer", "evaluated"]

Groups = list[tuple[dict[str, Any], list[Tensor]]]


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """Return the loss of a closure, called with gradients enabled; ``None`` without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class RuleOptimizer(Optimizer):
    """The base class of every optimizer here: it runs a rule on states in any format.

    Parameters
    ----------
    params
        Parameters, named parameters or groups, as for ``torch.optim``. They are dense float32, bfloat16 or float16
        tensors; frozen ones may be anything.
    hyper
        The rule's hyper-parameters. They become group keys.
    state
        The format of the states: ``"8bit"`` (default), ``"bf16"``, ``"4bit"``, ``"fp32"``, ``"fp16"``, ``"fp8"``,
        ``"fp4"``, ``"int8"``, ``"int4"`` or a full name; a dtype; a :class:`~halfulp.numbers.formats.Format`; or a
        :class:`~halfulp.numbers.quantizer.Quantizer`, whose rounding and ``zero_floor`` take precedence. A mapping from
        slot names to these sets each state by itself; missing slots get the default. Can be set per group.
    rounding
        ``"stochastic"`` (default) or ``"nearest"``, or a mapping from slot names, where missing slots get the default.
        Can be set per group.
    reset
        ``None``, a period in steps, ``"auto"`` (the planner), a :class:`~halfulp.engine.resets.ResetSchedule` or a
        function. Can be set per group.
    param_rounding
        How 16-bit parameters are rounded: ``"stochastic"`` (default) preserves updates below half a unit on average,
        ``"nearest"`` drops them. Can be set per group.
    master_weights
        What is stored in addition to 16-bit parameters, so that the rule updates fp32 weights: ``None`` (default);
        ``"fp32"`` (4 bytes per parameter); ``"remainder16"`` (2 bytes: the bits that bfloat16 cuts off; training is
        bit-identical to fp32 weights); or ``"remainder8"`` (1 byte: weights of 15 fraction bits, rounded by
        `param_rounding`). Remainders need bfloat16 parameters. Can be set per group.
    seed
        The seed of the random bits. Saved in checkpoints.
    scale, block_size, min_size, keep_fp32, zero_floor
        See :class:`~halfulp.engine.storage.StorageOptions`.
    bound_update
        Limit each coordinate of an update to what exact arithmetic allows (Adam family). No effect if all states are
        fp32.
    capturable
        Allow :meth:`step` to be recorded in a CUDA graph, with the Triton kernels. See :meth:`advance`.
    nonfinite
        What to do with non-finite values. ``"skip"`` (default) leaves the affected tile (128 elements of a row, or the
        blocks of the states) unchanged, counts it in :attr:`skipped`, and logs it once. A rule that is not
        elementwise skips the whole parameter, and a rule that needs a sum over the model (SWATS, AMSGD,
        :func:`~halfulp.clip_global`) skips all parameters. ``"raise"`` checks every gradient before the step and raises
        ``FloatingPointError`` with nothing changed, at the cost of one more pass.
    backend
        ``None`` picks the fastest backend that supports the step. ``"reference"``, ``"cpu"`` or ``"triton"`` picks that
        one or raises an error.
    maximize
        Step along the gradient, to maximize.
    transforms
        Functions from a rule to a rule, applied to the gradient in this order. See :mod:`halfulp.rules.transforms`.
    """

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
            raise ValueError(f"nonfinite must be 'skip' or 'raise', got {self.nonfinite!r}")
        dispatch.check_backend(self.backend)
        self.storage = StorageOptions(**extra)
        self._start_caches()
        super().__init__(params, {**hyper, **GROUP_DEFAULTS, **options})
        if self.storage.keep_fp32 and not any("param_names" in g for g in self.param_groups):
            raise ValueError("keep_fp32 patterns need names: pass model.named_parameters() instead of parameters()")
        names = [name for g in self.param_groups for name in g.get("param_names", ())]
        for pattern in self.storage.keep_fp32:
            if not fnmatch.filter(names, pattern):
                log_once(
                    f"keep_fp32 pattern {pattern!r} matches no parameter name ({', '.join(names[:3])} ...)", level=30
                )

    def _start_caches(self) -> None:
        self._registry: Registry | None = None
        self._plans: dict[int, tuple[dict[str, Any], GroupPlan]] = {}
        self._bindings = Bindings(self)
        self._followed: list[str] = []
        """The group keys that determine a plan. lr is not one, since schedules change it every step."""
        self.reset_log: deque[tuple[int, int, tuple[str, ...]]] = deque(maxlen=100_000)
        """The resets so far, as (step after which, parameter number, slots)."""
        self._skipped = Skipped(self._say_skipped)
        self._recording: Recording | None = None
        self._idle = 0
        """Steps in a row in which no parameter had a gradient."""
        self._number = compiled.number_of(self)

    def __getstate__(self) -> dict[str, Any]:
        """Return torch's state and the attributes of this class, without caches."""
        own = {
            k: getattr(self, k)
            for k in ("nonfinite", "backend", "capturable", "transforms", "storage", "reset_log", "skipped")
        }
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what ``__getstate__`` saved, with empty caches."""
        super().__setstate__(state)
        reset_log, skipped = state.get("reset_log"), state.get("skipped")
        self.__dict__.pop("skipped", None)
        self.__dict__.setdefault("capturable", False)
        self._start_caches()
        self.reset_log = self.reset_log if reset_log is None else reset_log
        self._skipped = Skipped(self._say_skipped, skipped)

    # ---------------------------------------------------------------- groups and their plans

    @property
    def registry(self) -> Registry:
        """The number, name and group of every parameter."""
        known = self._registry
        if known is None or not known.describes(self.param_groups):
            self._registry = Registry(self.param_groups)
            if known is not None:
                checks.tell_replaced(known, self._registry, self.state)
            self._bindings.follow(self._registry)
        assert self._registry is not None
        return self._registry

    def place(self, param: Tensor) -> Place:
        """Return the number, name and group of a parameter, in constant time."""
        known = self._registry
        return known[param] if known is not None and known.stands(param, self.param_groups) else self.registry[param]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch. Its keys, formats and parameters are checked here."""
        for key in param_group:
            if key in NOT_GROUP:
                raise ValueError(f"{key} applies to the whole optimizer: pass it as an argument, not in a group")
            near = difflib.get_close_matches(key, [*self.defaults, "params", "param_names"], n=1, cutoff=0.8)
            if near and near[0] != key:
                raise ValueError(f"unknown key {key!r} in a parameter group. Did you mean {near[0]!r}?")
        super().add_param_group(param_group)
        try:
            checks.check_group(self.param_groups)
            self.plan(self.param_groups[-1])
        except Exception:
            self.param_groups.pop()
            raise
        finally:
            self._registry = None

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise ``ValueError`` for invalid values of a group. Optimizers extend this."""
        check_options(group)

    def rules(self, group: dict[str, Any]) -> tuple[Rule, ...]:
        """Return every rule that a parameter of a group may have: :attr:`rule` alone, unless a subclass has several."""
        return (self.rule,)

    def rule_for(self, group: dict[str, Any], param: Tensor) -> Rule:
        """Return the rule of one parameter, one of :meth:`rules`."""
        return self.rules(group)[0]

    def active_rules(self, group: dict[str, Any]) -> tuple[Rule, ...]:
        """Return the rules of a group, with the optimizer's transforms."""
        return tuple(compose(rule, self.transforms) for rule in self.rules(group))

    def active_rule(self, group: dict[str, Any], param: Tensor) -> Rule:
        """Return the rule of one parameter, with the optimizer's transforms."""
        return compose(self.rule_for(group, param), self.transforms)

    def active_params(self, group: dict[str, Any]) -> list[Tensor]:
        """Return the parameters of a group that take part in this step: all, unless a subclass takes turns."""
        params: list[Tensor] = group["params"]
        return params

    def plan(self, group: dict[str, Any]) -> GroupPlan:
        """Resolve the arguments of a group, or of a mapping like one."""
        known = self._plans.get(id(group))
        before = known[1] if known is not None and known[0] is group else None
        keys = self._followed = self._followed or [k for k in self.defaults if k not in ("lr", "differentiable")]
        if before is not None and is_rate(group["lr"]) and values_of(group, keys) == before.seen:
            return before
        self._check_group(group)
        made = plan_group(self.active_rules(group), group, self.storage, keys, before)
        if any(group is g for g in self.param_groups):
            self._plans[id(group)] = group, made
        return made

    def group_slots(self, group: dict[str, Any]) -> tuple[StateSlot, ...]:
        """Return the slots that parameters of a group may have, each name once."""
        return tuple(self.plan(group).all_slots.values())

    def group_quantizers(self, group: dict[str, Any]) -> dict[str, Quantizer]:
        """Return the storage of each slot of a group, for parameters whose states do not stay in fp32."""
        return self.plan(group).quantizers

    def slot_storage(self, group: dict[str, Any], param: Tensor) -> list[StatePlan]:
        """Return the (slot, shape, quantizer) of each state of a parameter, including those kept in fp32."""
        rule = self.active_rule(group, param)
        return plan_states(self.plan(group), rule, param, self.place(param), self.storage)

    def memory(self) -> MemoryReport:
        """Return the bytes of each state tensor and in total, by format, and which states stay in fp32 and why.

        The report counts the states that exist once every parameter has made a step. For sharded parameters, it counts
        this rank's part. It omits frozen parameters of other dtypes, which no step can update.
        """
        rows = []
        for group in self.param_groups:
            low = any(not q.format.is_float32 for q in self.group_quantizers(group).values())
            for p in self.active_params(group):
                if p.dtype not in checks.PARAM_DTYPES:
                    continue
                place = self.place(p)
                reason = fp32_reason(p, place.name, self.storage) if low else None
                for slot, shape, q in self.slot_storage(group, p):
                    rows.append(MemoryRow(place.label, slot.name, tuple(shape), q.spec, q.bytes(shape), reason))
                kind, rule = group["master_weights"], self.active_rule(group, p)
                if p.dtype == torch.float16 and not p.requires_grad and kind != "fp32":
                    continue  # remainders need bfloat16; a step would raise
                master = MasterState.of(p, kind, {}, rule, place.label)
                if master is not None:
                    storage = storage_of(master.kind)
                    rows.append(MemoryRow(place.label, MASTER, tuple(master.shape), storage, master.bytes(), None))
        count = sum(local(p).numel() for g in self.param_groups for p in g["params"])
        return MemoryReport(tuple(rows), count)

    # ---------------------------------------------------------------- the step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every parameter that has a gradient.

        Parameters
        ----------
        closure
            A function that re-evaluates the model and returns the loss. Its result is returned.
        """
        loss = evaluated(closure)
        with torch.no_grad():
            if torch.compiler.is_compiling() and type(self).active_params is RuleOptimizer.active_params:
                self._step_in_graph()
            else:
                self._step([(g, [p for p in self.active_params(g) if p.grad is not None]) for g in self.param_groups])
        return loss

    def _step_in_graph(self) -> None:
        """Add the step as an operator to the graph that ``torch.compile`` is tracing."""
        every = [p for group in self.param_groups for p in group["params"]]
        places = [i for i, p in enumerate(every) if p.grad is not None]
        params = [every[i] for i in places]
        compiled.step(params, [p.grad for p in params], places, self._number)

    @torch.no_grad()
    def step_parameters(self, params: Iterable[Tensor]) -> None:
        """Step only some parameters, with the same bits as in :meth:`step`. Those without a gradient are skipped.

        Hooks of the optimizer are not called. A rule that sums over the model sums over these parameters.
        """
        groups: dict[int, tuple[dict[str, Any], list[Tensor]]] = {}
        for p in params:
            if p.grad is not None:
                group = self.place(p).group
                groups.setdefault(id(group), (group, []))[1].append(p)
        self._step(list(groups.values()))

    def _step(self, groups: Groups) -> None:
        if torch.compiler.is_compiling():  # outside of the graph
            torch.compiler.disable(self.make_step)(groups)
        elif capturing():
            self._recording = Recording(self, groups)
        else:
            self.make_step(groups)

    @torch.no_grad()
    def advance(self) -> None:
        """Do the host's part of the next step, before a CUDA graph that recorded :meth:`step` is replayed.

        This counts the step, resets states that are due, and uploads what the recorded kernels read: random keys and
        the rule's scalars, at the groups' current learning rates. A replay without it repeats the last step.

        Raises
        ------
        RuntimeError
            If no step was recorded, or its parameters or states have changed since.

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
            raise RuntimeError("advance() prepares a replay of a recorded step, but none was recorded: call step()")
        self._recording.advance()

    def make_step(
        self, groups: Groups, act: Callable[[Rule, list[Step]], None] | None = None, *, recording: bool = False
    ) -> None:
        """Do one step. Nothing changes before the resets, so that an earlier error leaves everything as it was.

        Parameters
        ----------
        groups
            The groups, and the parameters of each to step.
        act
            What to do with the steps of each rule instead of running them.
        recording
            Whether the step is recorded into a graph, which resets nothing.
        """
        checks.check_gradients(self, [p for _, params in groups for p in params])
        registry = self.registry
        shares = [Share(group, self.plan(group), params) for group, params in groups if params]
        self._idle = 0 if shares else self._idle + 1
        if not shares:
            checks.tell_idle(self._idle, len(registry))
            return
        lineup = self._bindings.line_up(shares)
        if not recording and checks.is_dry_run(groups, (b.entries["step"] for b in lineup.bounds)):
            return
        bounds_of = lineup.of_shares(shares) if any(share.plan.reset for share in shares) and not recording else []
        for share, bounds in zip(shares, bounds_of, strict=False):
            if share.plan.reset is not None:
                share.due = [b.due(share.plan.reset, share.group, len(registry)) for b in bounds]
        for share, bounds in zip(shares, bounds_of, strict=False):
            for bound, names in zip(bounds, share.due, strict=False):
                if names:
                    self._reset(bound.param, bound.states, names)
        if not recording:
            for bound in lineup.mastered:
                bound.follow_weights()
        try:
            lineup.prepare(shares)
            for rule, bounds, steps in lineup.by_rule:
                if act is not None:
                    act(rule, steps)
                else:
                    able = steps if rule.measure is None else combine(rule, steps, self.backend)
                    dispatch.step(rule, able, self.backend)
                    # kernels write without autograd's knowledge
                    increment_version(lineup.in_place[id(rule)])
                for bound, step in zip(bounds, steps, strict=True):
                    bound.scalars = step.scalars  # includes scalars that depend on sums
                    if not bound.lasting:
                        bound.take_back(step.binding)
        finally:
            lineup.release()
        for bound in lineup.mastered:
            bound.version = version_of(bound.param)
        if not recording:
            self._skipped.look()

    @property
    def skipped(self) -> dict[int, int]:
        """The number of elements skipped because of non-finite values over all steps, by parameter number.

        The counts are on the parameter's device. Reading them waits for the work queued there.
        """
        return self._skipped.read()

    def _say_skipped(self, number: int) -> None:
        labels = [self.place(p).label for group in self.param_groups for p in group["params"]]
        label = labels[number] if number < len(labels) else f"parameter {number}"
        log_once(
            f"{label}: gradient or state not finite; the tiles concerned were left unchanged (see optimizer.skipped)",
            level=30,
        )

    # ---------------------------------------------------------------- states

    def _reset(self, param: Tensor, states: Sequence[SlotState], names: tuple[str, ...]) -> None:
        step = self.state[param]["step"]
        for state in states:
            if state.slot.name in names:
                state.reset_(param)
        self.reset_log.append((step, self.place(param).index, names))
        log_once(f"{type(self).__name__}: states reset (first at step {step}; all in optimizer.reset_log)")

    @torch.no_grad()
    def reset_state(
        self, names: Sequence[str] | None = None, params: Iterable[Tensor] | None = None, rows: Any = None
    ) -> None:
        """Reset states to their initial value (zero, for moments) and their ages to zero, now.

        Master weights are reset only if ``"master_param"`` is among the names. They then take the values of weights
        that were set from outside.

        Parameters
        ----------
        names
            The slots to reset; by default all. Unknown names raise ``ValueError``.
        params
            The parameters to reset; by default all.
        rows
            Numbers of rows (dimension 0), a mask or a slice. Only the states of these rows are reset, for example for
            neurons that are initialized again. The age belongs to the whole parameter and is kept, so bias correction
            does not restart.
        """
        if isinstance(names, str):
            names = (names,)
        chosen = None if params is None else set(params)
        registry = self.registry
        strangers = [tuple(p.shape) for p in chosen or () if p not in registry]
        if strangers:
            raise ValueError(f"reset_state got tensors of shape {strangers} that are not parameters of this optimizer")
        known = {s.name for group in self.param_groups for s in self.group_slots(group)}
        known |= {MASTER for group in self.param_groups if self.plan(group).master}
        if names is not None and not set(names) <= known:
            raise ValueError(f"unknown states {sorted(set(names) - known)}; there are {sorted(known)}")
        for p in self.registry:
            if (chosen is None or p in chosen) and self.state.get(p):
                states = [s for s in self.states(p) if names is None or s.slot.name in names]
                master, index = self.master(p), None
                if rows is not None:
                    with self.place(p).naming():
                        index = row_index(rows, p)
                        reset_rows_(states, p, index)
                elif states:
                    self._reset(p, states, tuple(s.slot.name for s in states))
                if master is not None and names is not None and MASTER in names:
                    master.reset_(p, index)

    @torch.no_grad()
    def forget(self, params: Iterable[Tensor]) -> None:
        """Delete the states of parameters and free their memory. A later step starts with new ones.

        Their step counts are kept, since the random bits depend on them.
        """
        for p in params:
            entries = self.state.get(p)
            if entries:
                for key in set(entries) - {"step"}:
                    del entries[key]
            self._bindings.drop(p)

    def states(self, param: Tensor) -> tuple[SlotState, ...]:
        """Return the states of a parameter that has made a step. Raise ``KeyError`` for any other."""
        place, entries, bound = self.place(param), self.state.get(param), self._bindings.get(param)
        if not entries:
            raise KeyError(f"{place.label} has no state before its first step")
        if bound is not None and bound.current(entries, self.plan(place.group).quantizers) and bound.intact():
            return bound.states
        found = self._states_over(entries, param)
        if all(state.slot.name in entries for state in found):
            return self._bindings.bind(place.group, param).states
        return tuple(state for state in found if state.slot.name in entries)  # some may have been forgotten

    def master(self, param: Tensor) -> MasterState | None:
        """Return the master weights of a parameter that has made a step, or ``None`` if it has none."""
        place, entries = self.place(param), self.state.get(param)
        if not entries or MASTER not in entries:
            return None
        rule = self.active_rule(place.group, param)
        return MasterState.of(param, place.group["master_weights"], entries, rule, place.label)

    def _states_over(self, entries: dict[str, Any], param: Tensor) -> tuple[SlotState, ...]:
        """Return the planned states of a parameter, over entries that may lack some."""
        place = self.place(param)
        rule = self.active_rule(place.group, param)
        planned = plan_states(self.plan(place.group), rule, param, place, self.storage)
        sharded = is_sharded(param) and rule.shardable
        return tuple(SlotState(s.slot, s.quantizer, s.shape, entries, sharded) for s in planned)

    def _replace(self, group: dict[str, Any], at: int, param: Tensor) -> None:
        """Replace a parameter of a group by another one without states."""
        old, group["params"][at] = group["params"][at], param
        self.state.pop(old, None)
        self._bindings.drop(old)
        self._registry = None

    def state_tensor(self, param: Tensor, name: str) -> Tensor:
        """Return a state decoded to fp32, in its own shape (the parameter's, unless it is factored).

        For ``"master_param"``, return the fp32 weights.
        """
        master = self.master(param) if name == MASTER else None
        if master is not None:
            return master.read(param)
        for state in self.states(param):
            if state.slot.name == name:
                return state.read()
        known = [s.slot.name for s in self.states(param)]
        raise KeyError(f"{self.place(param).label} has no state {name!r}; it has {known}")

    def coefficients(self, param: Tensor) -> dict[str, tuple[float, float]]:
        """Return ``(beta, gain)`` of each state of a parameter in its last step."""
        bound = self._bindings.get(param)
        hyper = {**self.place(param).group, **(bound.scalars if bound is not None else {})}
        return {s.slot.name: s.slot.coefficients(hyper) for s in self.states(param)}

    # ---------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return a state dictionary like torch's, of plain tensors and numbers. Formats have their full names."""
        return loading.packed(self)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a :meth:`state_dict` into an optimizer with the same formats.

        Hyper-parameters and the seed come from the checkpoint, formats and rounding from this optimizer. Everything is
        checked before anything is changed. Tensors keep their dtype and move to the parameter's device. Named
        parameters are matched by name.

        Raises
        ------
        ValueError
            If the checkpoint belongs to another library, format or model. The message says what differs and how to
            convert it.
        """
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        states, groups = loading.validate(self, state_dict)
        self.state.clear()
        self.state.update(states)
        for group, values in zip(self.param_groups, groups, strict=True):
            group.update(values)
        self._bindings.clear()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)
