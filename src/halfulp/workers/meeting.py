"""An optimizer whose worker meets others periodically."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from halfulp.averaging.store import AverageStore
from halfulp.engine.loading import count
from halfulp.engine.sharding import agree, is_sharded, local, local_part, shard_like
from halfulp.engine.storage import StorageOptions
from halfulp.rules.base import total
from halfulp.training.wrapper import Wrapper
from halfulp.workers.centre import OuterStep
from halfulp.workers.described import described
from halfulp.workers.graphs import Graphs, as_graphs
from halfulp.workers.group import as_peers
from halfulp.workers.message import Layout, MessageOptions
from halfulp.workers.method import FIXED, Method, Seen, checked
from halfulp.workers.pull import Pull, aliases, go, place

__all__ = ["Meeting", "meeting"]

COUNTED = ("steps", "meetings", "sent_bytes", "period", "last")
_STORAGE = tuple(field.name for field in fields(StorageOptions))


class Meeting(Wrapper):
    """Base class of an optimizer around another one, whose worker meets others at regular intervals.

    Parameters
    ----------
    optimizer
        The ``torch.optim.Optimizer`` that trains this worker.
    every
        Steps between meetings, or a function of the step count that says whether a meeting follows. It must be the same
        on every worker.
    graph
        For methods in which workers meet only their neighbours: ``"ring"``, ``"complete"``, ``"pairs"`` (random pairs),
        a :class:`~halfulp.workers.Graph`, a list of graphs to alternate, or :class:`~halfulp.workers.Matchings`.
    message
        Format of the tensors sent: ``"fp32"``, ``"bf16"``, ``"8bit"``, ``"4bit"``, or any other of the library. If all
        workers meet, formats of at most 8 bits encode the differences to the last common weights.
    centre
        Format of the common weights of all workers, if the method keeps them.
    state
        Format of the states of the outer optimizer, if the method has one.
    rounding
        Rounding of messages, centre, states and 16-bit weights: ``"stochastic"`` or ``"nearest"``.
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
        centre: Any = "fp32",
        state: Any = "fp32",
        rounding: str = "stochastic",
        seed: int = 0,
        group: Any = None,
        timeout: float | None = None,
        **more: Any,
    ) -> None:
        super().__init__(optimizer)
        method = self.method
        storage = {k: more.pop(k) for k in _STORAGE if k in more}
        self.hyper = method.hyper(*arguments, **more)
        self.hyper.check()
        self.every = _schedule(method.every if every is None else every)
        self.rounding, self.seed = rounding, seed
        self.steps = self.meetings = self.sent_bytes = self._last = 0
        self.period = method.every
        """Steps between the last two meetings."""
        self.distance: float | None = None
        """Euclidean distance of this worker from the target of the last meeting, before the pull."""
        self.met = False
        """Whether a meeting followed the last step, which makes it a good moment for a checkpoint."""
        self.loss, self.samples = float("nan"), 0.0
        self._peers = as_peers(group, timeout)
        if graph is not None and not method.gossip:
            raise ValueError(f"{method.title} has all workers meet: leave graph= out")
        self.graphs: Graphs = as_graphs(method.graph if graph is None else graph, self._peers.size)
        params = self._params = self.trained
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
                params, state=centre, rounding=rounding, seed=seed, storage=kept, label="centre"
            )
        self.pull: Optimizer = Pull(aliases(params), param_rounding=rounding, seed=seed)
        """Optimizer whose steps pull the weights. A :class:`halfulp.StallMonitor` on it counts stalled pulls."""
        self._outer: OuterStep | None = None
        if (outer := method.outer) is not None:
            assert self.reference is not None
            states = {"state": state, "rounding": rounding, "seed": seed, **vars(kept)}
            self._outer = OuterStep(lambda named: outer(named, self.hyper, states), params, self.reference)
        self._agree()

    # ---------------------------------------------------------------- steps

    def report(self, loss: Any = None, samples: float | None = None) -> None:
        """Report this worker's loss and sample count for its next meeting.

        Parameters
        ----------
        loss
            The training loss: a number or a one-element tensor. The result of ``step(closure)`` is used automatically.
        samples
            Number of samples since the last meeting. They are the weights in FedAvg and related methods.
        """
        if loss is not None:
            self.loss = float(loss.detach() if isinstance(loss, Tensor) else loss)
        if samples is not None:
            self.samples = float(samples)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step the inner optimizer, and meet if it is due."""
        with self._stepping() as inside:
            loss = inside.step() if closure is None else inside.step(closure)
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
        """Optimizer whose steps move the centre, if the method has one."""
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
        """
        number, method, peers = self.meetings + 1, self.method, self._peers
        circle = self.graphs.graph(number).circle(peers.rank) if method.gossip else tuple(range(peers.size))
        own = self._own()
        norms, figures = self._figures(own, number)
        message = self.layout.encode(own, figures, peers.rank, number)
        received = peers.exchange(message, circle if method.gossip else None)
        table = torch.stack([self.layout.figures(each) for each in received]).cpu()
        seen = checked(table, method, peers.rank, circle, number, self.graphs, self.seed)
        mixed = self._mixed(own, received, seen)
        distance = self._distance(own, mixed)
        self.meetings, self.norms = number, norms
        self.sent_bytes += self.layout.bytes * (len(circle) - 1)
        self.period, self._last = max(1, self.steps - self._last), self.steps
        self.distance, self.samples = distance, 0.0
        self._move(mixed, method.pull(self.hyper, distance, peers.size))

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
        norms = self.norms * decay + self._grad_norms() * (1 - decay)
        finite = all(bool(torch.isfinite(x).all()) for x in own.values())
        finite = not agree(not finite, list(self._params.values()))
        digest = 0 if number > 1 or self.reference is None else self._digest()
        fixed = [digest, number, finite, self.loss, self.samples or max(1, self.steps - self._last)]
        return norms, torch.cat([torch.tensor(fixed, dtype=torch.float64, device="cpu"), norms / (1 - decay**number)])

    def _grad_norms(self) -> Tensor:
        """Return the norm of each gradient of the last step, or zeros if the method does not need them."""
        found = torch.zeros_like(self.norms)
        if "grad_norms" not in self.method.needs:
            return found
        for at, (name, param) in enumerate(self._params.items()):
            grad = None if param.grad is None else local(param.grad).float()
            found[at] = self._whole(name, 0.0 if grad is None else float(total(grad, grad))) ** 0.5
        if not bool(found.any()):
            raise ValueError(
                f"{self.method.title} weighs workers by their gradients, and there are none after the step: call "
                "zero_grad() before the backward pass, not within the step"
            )
        return found

    def _digest(self) -> int:
        """Return a checksum of the common weights, which must be equal on all workers."""
        crc = 0
        assert self.reference is not None
        for name in self._params:
            crc = zlib.crc32(self.reference.read(name).cpu().numpy().tobytes(), crc)
        return crc

    def _mixed(self, own: Mapping[str, Tensor], received: list[Tensor], seen: Seen) -> dict[str, Tensor]:
        """Return the weighted sum of the messages, in the order of the workers, with the same bits on all of them."""
        rows = self.method.mix(self.hyper, seen)
        rows = rows if rows.ndim == 2 else rows.unsqueeze(1).expand(-1, len(own))
        found = {}
        for at, (name, mine) in enumerate(own.items()):
            sent = [self.layout.decode(message, name) for message in received]
            mixed = torch.zeros_like(mine)
            for part, share in zip(sent, rows[:, at].tolist(), strict=True):
                if share:
                    mixed = mixed + part * share
            if self.method.gossip:  # add back what rounding dropped from the message, to preserve the mean over workers
                mixed = mixed + (mine - sent[seen.circle.index(seen.rank)])
            if self.method.finish is not None:
                base = torch.zeros_like(mine) if self.reference is None else self.reference.read(name)
                parts, whole = [base + part for part in sent], partial(self._whole, name)
                mixed = self.method.finish(self.hyper, base + mixed, parts, whole) - base
            found[name] = mixed
        return found

    def _distance(self, own: Mapping[str, Tensor], mixed: Mapping[str, Tensor]) -> float:
        """Return the Euclidean distance of the whole model from the target."""
        away = ((name, x - mixed[name]) for name, x in own.items())
        return sum(self._whole(name, float(total(x, x))) for name, x in away) ** 0.5

    def _whole(self, name: str, value: float) -> float:
        """Return the sum over the ranks that hold parts of a parameter."""
        param: Any = self._params[name]
        if not is_sharded(param):
            return value
        sums = torch.tensor([value], dtype=torch.float64, device=param.device_mesh.device_type)
        for axis, placement in enumerate(param.placements):
            if placement.is_shard():
                torch.distributed.all_reduce(sums, group=param.device_mesh.get_group(axis))
        return float(sums)

    def _move(self, mixed: dict[str, Tensor], share: float) -> None:
        """Move weights and centre. What was mixed are weights, or changes to the common weights if there are some."""
        reference, params = self.reference, self._params
        if reference is None:
            targets = mixed
        elif self._outer is not None:  # its gradient is not taken from rounded targets, which lose small changes
            targets = self._outer.step(mixed, float(self.param_groups[0]["lr"]))
        else:
            targets = {name: reference.read(name) + change for name, change in mixed.items()}
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

    # ---------------------------------------------------------------- agreement and checkpoints

    def _agree(self) -> None:
        """Raise ``ValueError`` unless all workers have the same configuration."""
        hyper = {f.name: str(v) for f in fields(self.hyper) if not callable(v := getattr(self.hyper, f.name))}
        text = f"{self.method.title} {hyper} {self.layout.spec} {self.layout.bytes} {self.seed} {self.rounding}"
        own = torch.tensor([zlib.crc32(text.encode())], dtype=torch.int64, device=self.layout.device).view(torch.uint8)
        others = [int(x.view(torch.int64)) for x in self._peers.exchange(own, None)]
        wrong = [worker for worker, x in enumerate(others) if x != others[0]]
        if wrong:
            raise ValueError(
                f"workers {wrong} have another method, other arguments, or parameters of other names and shapes than "
                f"worker 0; here, of worker {self._peers.rank}: {text[:400]}"
            )

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

    def check_own(self, saved: Mapping[str, Any]) -> Any:
        """See :class:`~halfulp.training.wrapper.Wrapper`."""
        own = self.own_state()
        if set(saved) != set(own):
            raise ValueError(f"workers: saved are {sorted(saved)}, expected {sorted(own)}")
        for name, hint in (
            ("method", "build the same one"), ("workers", "start as many"), ("storage", "give the same centre="),
            ("rank", "each worker loads the checkpoint that it saved"),
        ):  # fmt: skip
            if saved[name] != own[name]:
                raise ValueError(
                    f"workers: the checkpoint has {name} {saved[name]!r}, here it is {own[name]!r}: {hint}"
                )
        if saved["norms"].shape != self.norms.shape:
            raise ValueError(f"workers: the checkpoint is of {len(saved['norms'])} tensors, here are {len(self.norms)}")
        counts = [count("workers", name, saved[name]) for name in COUNTED]
        entries = {} if self.reference is None else self.reference.validate(saved["reference"])
        return counts, entries, saved

    def take_own(self, checked: Any) -> None:
        """See :class:`~halfulp.training.wrapper.Wrapper`."""
        (self.steps, self.meetings, self.sent_bytes, self.period, self._last), entries, saved = checked
        self.norms = saved["norms"].double().clone()
        self.pull.state.clear()
        if saved["pull"]:
            self.pull.load_state_dict(saved["pull"])
        if self.reference is not None:
            self.reference.load(entries)
        if self._outer is not None:
            self._outer.load_state_dict(saved["outer"])


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


def _schedule(every: int | Callable[[int], bool]) -> Callable[[int], bool]:
    if callable(every):
        return every
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every is a number of steps, at least 1, or a function of the steps made; got {every!r}")
    return lambda steps: steps % every == 0
