"""An optimizer whose worker meets others periodically."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from halfulp.averaging.store import AverageStore
from halfulp.engine.loading import count, reading
from halfulp.engine.sharding import agree, local, local_part, shard_like
from halfulp.engine.storage import StorageOptions
from halfulp.workers.agreement import FIXED, agree_on, checked, digest, settings
from halfulp.workers.described import described
from halfulp.workers.graphs import Graphs, as_graphs
from halfulp.workers.group import as_peers
from halfulp.workers.message import Layout, MessageOptions
from halfulp.workers.method import Method
from halfulp.workers.mixing import distance, grad_norms, mixed
from halfulp.workers.outer_step import OuterStep
from halfulp.workers.pull import Pull, aliases, go, place
from halfulp.workers.worker import Worker

__all__ = ["Meeting", "meeting"]

COUNTED = ("steps", "meetings", "sent_bytes", "period", "last")
_STORAGE = tuple(field.name for field in fields(StorageOptions))


class Meeting(Worker):
    """Base class of an optimizer around another one, whose worker meets others at regular intervals.

    Parameters
    ----------
    optimizer
        The ``torch.optim.Optimizer`` that trains this worker.
    every
        Steps between meetings, or a function of the step count that says whether a meeting follows. It must be the same
        on every worker.
    graph
        For methods in which workers meet only their neighbors: ``"ring"``, ``"rings"`` (two that alternate),
        ``"complete"``, ``"pairs"`` (random pairs), a :class:`~halfulp.workers.Graph`, a list of graphs to alternate,
        or :class:`~halfulp.workers.Matchings`.
    message
        Format of the tensors sent: ``"fp32"``, ``"bf16"``, ``"8bit"``, ``"4bit"``, or any other of the library. If all
        workers meet, formats of at most 8 bits encode the differences from the last common weights.
    centre
        Format of the common weights of all workers, if the method keeps them. Default: ``"fp32"``.
    state
        Format of the states of the outer optimizer, if the method has one. Default: ``"fp32"``.
    rounding
        Rounding of messages, center, states and 16-bit weights: ``"stochastic"`` or ``"nearest"``.
    seed
        Seed of the random bits. It must be the same on every worker.
    group
        The workers: a process group of ``torch.distributed`` (default: all ranks), or the
        :class:`~halfulp.workers.Peers` from :func:`~halfulp.workers.simulate`. If a worker has several processes (DDP,
        FSDP2), the group holds the ranks with the same part of the model in each worker.
    timeout
        Seconds that a meeting waits for the others. Default: the timeout of the process group.
    arguments
        Arguments of the method, by position or by name.
    more
        ``block_size``, ``scale``, ``min_size``, ``keep_fp32``: see :class:`~halfulp.engine.storage.StorageOptions`.

    Examples
    --------
    >>> from halfulp.workers import Alone, LocalSGD
    >>> optimizer = LocalSGD(torch.optim.SGD(torch.nn.Linear(2, 2).parameters()), every=2, group=Alone())
    >>> isinstance(optimizer, Meeting), optimizer.meetings
    (True, 0)
    """

    key = "workers"
    method: ClassVar[Method]

    def __init__(
        self,
        optimizer: Optimizer,
        *arguments: Any,
        every: int | Callable[[int], bool] | None = None,
        graph: Any = None,
        message: Any = "fp32",
        centre: Any = None,
        state: Any = None,
        rounding: str = "stochastic",
        seed: int = 0,
        group: Any = None,
        timeout: float | None = None,
        **more: Any,
    ) -> None:
        super().__init__(optimizer)
        method = self.method
        storage = {k: more.pop(k) for k in _STORAGE if k in more}
        self.hyper = _hyper(method, arguments, more)
        every = method.every if every is None else every
        self.every = _schedule(every)
        self.rounding, self.seed = rounding, seed
        self.meetings = self._last = 0
        self.period = method.every
        """Steps between the last two meetings."""
        self.distance: float | None = None
        """Euclidean distance of this worker from the target of the last meeting, before the pull."""
        self.met = False
        """Whether a meeting followed the last step, which makes it a good moment for a checkpoint."""
        self.loss: float | None = None
        self.samples: float | None = None
        self._peers = as_peers(group, timeout)
        if graph is not None and not method.gossip:
            raise ValueError(f"{method.title} has all workers meet: leave graph= out")
        self.graphs: Graphs = as_graphs(method.graph if graph is None else graph, self._peers.size)
        params = self._params
        self.norms = torch.zeros(len(params), dtype=torch.float64, device="cpu")
        """Average of the gradient norms, if the method sends one."""
        options, kept = StorageOptions(**{"scale": "fp32", **storage}), StorageOptions(**storage)
        parts = {name: local_part(param) for name, param in params.items()}
        sent = MessageOptions(message, rounding, seed, options)
        self.layout = Layout(parts, len(FIXED) + len(params), sent, params)
        low = self.layout.options.quantizer.format.bits < 16
        self.reference: AverageStore | None = None
        """Common weights of all workers."""
        if method.centre or method.between(self.hyper) > 0 or (low and not method.gossip):
            self.reference = AverageStore(
                params, state=centre or "fp32", rounding=rounding, seed=seed, storage=kept, label="centre"
            )
        elif centre is not None:
            raise ValueError(f"{method.title} keeps no common weights with these messages: leave centre= out")
        self.pull: Optimizer = Pull(aliases(params), param_rounding=rounding, seed=seed)
        """Optimizer whose steps pull the weights. A :class:`halfulp.StallMonitor` on it counts stalled pulls."""
        self._outer: OuterStep | None = None
        if (outer := method.outer) is not None:
            assert self.reference is not None
            states = {"state": state or "fp32", "rounding": rounding, "seed": seed, **vars(kept)}
            self._outer = OuterStep(lambda named: outer(named, self.hyper, states), params, self.reference)
        elif state is not None:
            raise ValueError(f"{method.title} has no outer optimizer: leave state= out")
        values = vars(self.hyper) | {
            "every": every, "seed": seed, "rounding": rounding, "bytes": self.layout.bytes, "sent": self.layout.spec,
            "stored": "" if self.reference is None else self.reference.quantizer.spec,
            "dtypes": [str(param.dtype) for param in params.values()],
        }  # fmt: skip
        text = settings(values, self.graphs if method.gossip else None, self.outer)
        agree_on(f"{method.title} {text}", self._peers, self.layout.device)

    # ---------------------------------------------------------------- steps

    def report(self, loss: Any = None, samples: float | None = None) -> None:
        """Report this worker's loss and sample count for its next meeting. Each meeting needs a new report.

        Parameters
        ----------
        loss
            The training loss: a number or a one-element tensor. The result of ``step(closure)`` is used automatically.
        samples
            Number of samples since the last meeting. They are the weights in FedAvg and related methods.

        Raises
        ------
        ValueError
            If `samples` is negative or not finite.
        """
        if loss is not None:
            self.loss = float(loss.detach() if isinstance(loss, Tensor) else loss)
        if samples is not None:
            if not 0.0 <= float(samples) < math.inf:
                raise ValueError(f"samples is a number of samples since the last meeting, got {samples}")
            self.samples = float(samples)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step the inner optimizer, and meet if it is due."""
        loss = self._step_inside(closure)
        if loss is not None:
            self.report(loss)
        self.steps += 1
        self.met = bool(self.every(self.steps))
        between = self.method.between(self.hyper)
        if self.met:
            self.meet()
        elif between > 0 and self.meetings and self.reference is not None:
            targets = {name: self.reference.read(name) for name in self._params}
            go(self.pull, self._params, targets, between / self.period)
        return loss

    @property
    def outer(self) -> Optimizer | None:
        """Optimizer whose steps move the center, if the method has one."""
        return None if self._outer is None else self._outer.optimizer

    @torch.no_grad()
    def meet(self) -> None:
        """Meet the other workers now. Every worker must call this.

        Raises
        ------
        WorkerLostError
            If a worker does not take part. Nothing is changed then.
        FloatingPointError
            On every worker, if the weights of one are not finite. Nothing is changed then.
        ValueError
            If the workers do not match, or the trained parameters have changed since the start.
        """
        self._follow()
        number, method, peers = self.meetings + 1, self.method, self._peers
        circle = self.graphs.graph(number).circle(peers.rank) if method.gossip else tuple(range(peers.size))
        own = self._own()
        norms, figures = self._figures(own, number)
        message = self.layout.encode(own, figures, peers.rank, number)
        received = peers.exchange(message, circle if method.gossip else None)
        table = torch.stack([self.layout.figures(each) for each in received]).cpu()
        seen = checked(table, method, peers.rank, circle, number, self.graphs, self.seed)
        targets = mixed(method, self.hyper, self._params, own, received, self.layout, self.reference, seen)
        away = distance(self._params, own, targets)
        self.meetings, self.norms = number, norms
        self.sent_bytes += self.layout.bytes * (len(circle) - 1)
        self.period, self._last = max(1, self.steps - self._last), self.steps
        self.distance, self.loss, self.samples = away, None, None
        self._move(targets, method.pull(self.hyper, away, peers.size))

    @property
    def takes_part(self) -> bool:
        """Whether the next meeting includes this worker. Methods that draw clients let workers rest."""
        drawn = self.method.clients
        return drawn is None or self._peers.rank in drawn(self.hyper, self.seed, self.meetings + 1, self._peers.size)

    def _own(self) -> dict[str, Tensor]:
        """Return what this worker sends: its fp32 weights, or their difference to the reference if there is one."""
        values = {name: local(param.detach()).float() for name, param in self._params.items()}
        if self.reference is not None:
            return {name: x - self.reference.read(name) for name, x in values.items()}
        return values

    def _figures(self, own: Mapping[str, Tensor], number: int) -> tuple[Tensor, Tensor]:
        """Return the averaged gradient norms, and all numbers of a message."""
        decay = self.method.smooth(self.hyper)
        norms = self.norms
        if "grad_norms" in self.method.needs:
            found = torch.tensor(grad_norms(self.method.title, self._params), dtype=torch.float64, device="cpu")
            norms = norms * decay + found * (1 - decay)
        finite = all(bool(torch.isfinite(x).all()) for x in own.values())
        finite = not agree(not finite, list(self._params.values()))
        loss = math.nan if self.loss is None else self.loss
        samples = max(1, self.steps - self._last) if self.samples is None else self.samples
        due = self.steps if self.met else math.nan
        fixed = [digest(self._params, self.reference), number, due, finite, loss, samples]
        return norms, torch.cat([torch.tensor(fixed, dtype=torch.float64, device="cpu"), norms / (1 - decay**number)])

    def _move(self, targets: dict[str, Tensor], share: float) -> None:
        """Move weights and center. Targets are weights, or changes to the common weights if there are some."""
        reference, params = self.reference, self._params
        if self._outer is not None:  # its gradient is not taken from rounded weights, which lose small changes
            targets = self._outer.step(targets, float(self.param_groups[0]["lr"]))
        elif reference is not None:
            targets = {name: reference.read(name) + change for name, change in targets.items()}
        whole = {name: shard_like(params[name], target) for name, target in targets.items()}
        if self.method.centre == "average":
            assert reference is not None
            go(self.pull, params, {name: reference.read(name) for name in params}, share)
            reference.update(whole, 1.0 - self.method.centre_share(self.hyper), self.meetings)
            return
        if reference is not None:
            reference.write(whole, self.meetings)
        if share == 1.0 and not self.method.gossip:
            at = targets if reference is None else {name: reference.read(name) for name in params}
            place(params, at, self.layout.options.quantizer.rounding, self.seed, self.meetings)
        else:
            go(self.pull, params, targets, share)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(f"{type(self).__name__} is tied to its workers and cannot be copied: save its state_dict()")

    # ---------------------------------------------------------------- checkpoints

    def own_state(self) -> dict[str, Any]:
        """Return this worker's own state, without that of the inner optimizer."""
        return {
            "method": self.method.title, "workers": self._peers.size, "rank": self._peers.rank, "steps": self.steps,
            "meetings": self.meetings, "sent_bytes": self.sent_bytes, "period": self.period, "last": self._last,
            "norms": self.norms,
            "reference": {} if self.reference is None else self.reference.state_dict(),
            "storage": "" if self.reference is None else self.reference.quantizer.spec,
            "pull": self.pull.state_dict() if self.pull.state else {},
            "outer": {} if self._outer is None else self._outer.state_dict(),
        }  # fmt: skip

    def check_own(self, saved: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
        """See :class:`~halfulp.training.wrapper.Wrapper`."""
        for name, hint in (
            ("method", "build the same one"), ("workers", "start as many"), ("storage", "give the same centre="),
            ("rank", "each worker loads the checkpoint that it saved"),
        ):  # fmt: skip
            if saved[name] != own[name]:
                raise ValueError(
                    f"workers: the checkpoint has {name} {saved[name]!r}, here it is {own[name]!r}: {hint}"
                )
        counts = [count("workers", name, saved[name]) for name in COUNTED]
        with reading("the workers' part of the checkpoint"):
            norms, entries = saved["norms"].double().clone(), {}
            if norms.shape != self.norms.shape:
                raise ValueError(f"workers: the checkpoint is of {len(norms)} tensors, here are {len(self.norms)}")
            if self.reference is not None:
                entries = self.reference.validate(saved["reference"])
            for part, state in ((self._outer, saved["outer"]), (self.pull, saved["pull"])):
                if part is not None and state:
                    before = part.state_dict()
                    part.load_state_dict(state)
                    self._undo.append(partial(part.load_state_dict, before))
        return counts, norms, entries, not saved["pull"]

    def take_own(self, checked: Any) -> None:
        """See :class:`~halfulp.training.wrapper.Wrapper`."""
        (self.steps, self.meetings, self.sent_bytes, self.period, self._last), self.norms, entries, new = checked
        if new:
            self.pull.state.clear()
        if self.reference is not None:
            self.reference.load(entries)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the result of :meth:`state_dict` on the same worker.

        Raises
        ------
        ValueError
            If it belongs to another worker, method or optimizer. Nothing is changed then.
        """
        self._undo: list[Callable[[], None]] = []
        try:
            super().load_state_dict(state_dict)
        except BaseException:
            for undo in self._undo:
                undo()
            raise
        finally:
            self._undo = []


def meeting(method: Method) -> type[Meeting]:
    """Return the optimizer class that a method declares.

    Parameters
    ----------
    method
        The declaration.

    Returns
    -------
    type
        A subclass of :class:`Meeting`, named by the method's ``title`` in the calling module. Assign it to that name,
        so that its instances can be pickled.

    Examples
    --------
    >>> from dataclasses import replace
    >>> import torch
    >>> from halfulp.workers.averaging import LOCAL_SGD
    >>> Mine = meeting(replace(LOCAL_SGD, title="Mine", pull=lambda hyper, distance, workers: 0.5))
    >>> from halfulp.workers import Alone
    >>> optimizer = Mine(torch.optim.SGD(torch.nn.Linear(2, 2).parameters()), group=Alone())
    """
    body = {"method": method, "__module__": sys._getframe(1).f_globals.get("__name__", "__main__")}
    made = type(method.title, (Meeting,), body)
    described(made, Meeting)
    return made


def _hyper(method: Method, arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
    names = method.hyper.names()
    unknown = sorted(set(more) - set(names))
    if unknown or len(arguments) > len(names):
        given = unknown or f"{len(arguments)} arguments by position"
        raise TypeError(
            f"{method.title} does not take {given}: its own arguments are {list(names)}, besides those of every method "
            f"and {sorted(_STORAGE)}"
        )
    hyper = method.hyper(*arguments, **more)
    hyper.check()
    return hyper


def _schedule(every: int | Callable[[int], bool]) -> Callable[[int], bool]:
    if callable(every):
        return every
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every is a number of steps, at least 1, or a function of the steps made; got {every!r}")
    return lambda steps: steps % every == 0
