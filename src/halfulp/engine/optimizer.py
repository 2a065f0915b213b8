"""The optimizer that runs a rule: a ``torch.optim.Optimizer`` whose states have any format.

A step binds each parameter to the entries of ``optimizer.state``, resets the slots that are due, and increments the
ages. It then computes the rule's scalars, after sums over the model if the rule needs them. Finally it passes each
parameter to a backend as a :class:`~halfulp.kernels.binding.Step`. The backend decodes the states, applies the rule,
and encodes them again.
"""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from halfulp.engine import checks, compiled, loading
from halfulp.engine.bindings import Bindings
from halfulp.engine.capture import Recording, capturing
from halfulp.engine.master import MASTER, MasterState
from halfulp.engine.memory import MemoryReport, memory_report
from halfulp.engine.options import GROUP_DEFAULTS, NOT_GROUP, Options, checked_options
from halfulp.engine.plan import GroupPlan, StatePlan, check_options, plan_group, plan_states, values_of
from halfulp.engine.registry import Place, Registry
from halfulp.engine.reset_state import reset_state
from halfulp.engine.slot_state import SlotState
from halfulp.engine.stepping import Groups, make_step
from halfulp.engine.storage import StorageOptions
from halfulp.kernels import dispatch
from halfulp.kernels.skipped import Skipped
from halfulp.numbers.log import warn_once
from halfulp.numbers.quantizer import Quantizer
from halfulp.rules.base import Rule
from halfulp.rules.hyper import is_rate
from halfulp.rules.slots import StateSlot
from halfulp.rules.transforms import check_transforms, compose

__all__ = ["Options", "RuleOptimizer", "evaluated"]


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
    options
        See :class:`~halfulp.engine.options.TorchOptions`.
    """

    rule: ClassVar[Rule]

    def __init__(self, params: Any, hyper: dict[str, Any], **options: Any) -> None:
        options = checked_options(type(self).__name__, hyper, options)
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
        checks.check_patterns(self.storage.keep_fp32, self.param_groups)

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
        own = ("nonfinite", "backend", "capturable", "transforms", "storage", "reset_log", "skipped")
        return {**super().__getstate__(), **{key: getattr(self, key) for key in own}}

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
        if known is not None and known.describes(self.param_groups):
            return known
        now = self._registry = Registry(self.param_groups)
        if known is not None:
            checks.tell_replaced(known, now, self.state)
        self._bindings.follow(now)
        return now

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
        return memory_report(self)

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
            torch.compiler.disable(make_step)(self, groups)
        elif capturing():
            self._recording = Recording(self, groups)
        else:
            make_step(self, groups)

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

    @property
    def skipped(self) -> dict[int, int]:
        """The number of elements skipped because of non-finite values over all steps, by parameter number.

        The counts are on the parameter's device. Reading them waits for the work queued there.
        """
        return self._skipped.read()

    def _say_skipped(self, number: int) -> None:
        labels = [self.place(p).label for group in self.param_groups for p in group["params"]]
        label = labels[number] if number < len(labels) else f"parameter {number}"
        warn_once(
            f"{label}: gradient or state not finite; the tiles concerned were left unchanged (see optimizer.skipped)"
        )

    # ---------------------------------------------------------------- states

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
        reset_state(self, names, params, rows)

    @torch.no_grad()
    def forget(self, params: Iterable[Tensor]) -> None:
        """Delete the states of parameters and free their memory. A later step starts with new ones.

        Their step counts are kept, since the random bits depend on them.
        """
        for p in params:
            for key in set(self.state.get(p, ())) - {"step"}:
                del self.state[p][key]
            self._bindings.drop(p)

    def states(self, param: Tensor) -> tuple[SlotState, ...]:
        """Return the states of a parameter that has made a step. Raise ``KeyError`` for any other."""
        return self._bindings.states(param)

    def master(self, param: Tensor) -> MasterState | None:
        """Return the master weights of a parameter that has made a step, or ``None`` if it has none."""
        place, entries = self.place(param), self.state.get(param)
        if not entries or MASTER not in entries:
            return None
        rule = self.active_rule(place.group, param)
        return MasterState.of(param, place.group["master_weights"], entries, rule, place.label)

    def state_tensor(self, param: Tensor, name: str) -> Tensor:
        """Return a state decoded to fp32, in its own shape (the parameter's, unless it is factored).

        For ``"master_param"``, return the fp32 weights.
        """
        master = self.master(param) if name == MASTER else None
        if master is not None:
            return master.read(param)
        found = {state.slot.name: state for state in self.states(param)}
        if name not in found:
            raise KeyError(f"{self.place(param).label} has no state {name!r}; it has {list(found)}")
        return found[name].read()

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
