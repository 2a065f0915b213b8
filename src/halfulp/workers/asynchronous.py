"""Asynchronous workers: one process serves a centre, which each worker visits at its own pace.

Messages go through a key-value store of ``torch.distributed`` (``TCPStore``, in the serving process):

* ``centre``: the weights of the centre, and their version, which counts the pushes applied;
* ``push/N``: the difference between a worker's weights and the version it has seen. The store assigns the numbers.

A worker that ends or is late delays nobody. A worker that joins or returns starts from the centre.
"""

from __future__ import annotations

import inspect
import json
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import Optimizer

from halfulp.averaging.store import AverageStore
from halfulp.engine.sharding import is_sharded, local_part
from halfulp.engine.storage import StorageOptions
from halfulp.numbers.log import log_once
from halfulp.optim.described import parameters, with_section
from halfulp.rules.base import total
from halfulp.training.wrapper import Wrapper
from halfulp.workers.group import WorkerLostError
from halfulp.workers.message import Layout, MessageOptions
from halfulp.workers.pull import Pull, aliases, go
from halfulp.workers.pulling import inverse_shares

__all__ = ["AsyncEASGD", "AsyncLGRAWA", "AsyncMGRAWA", "Centre"]

PIECE = 4 << 20
"""Bytes per value. The store accepts at most 8 MiB."""
HEAD, LIST = struct.Struct("<qqdq"), struct.Struct("<qq")
"""Header of a push: worker, version, share, and how many gradient norms follow it. List of pieces: number of the first,
and count.
"""
KEPT = 4
"""Number of versions of the centre kept for readers."""


class Centre:
    """The centre of asynchronous workers, and the process that serves it.

    Parameters
    ----------
    params
        Named tensors to start from: ``dict(model.named_parameters())``.
    store
        A store of ``torch.distributed``: ``TCPStore(host, port, is_master=True)``.
    centre, message
        Names of the format in which the centre is stored and sent, and of that in which workers send their differences.
    staleness
        Number of pushes that may be applied between a worker's read and its push. Older differences are refused.
    rounding, seed
        As for the optimizers.
    storage
        See :class:`~halfulp.engine.storage.StorageOptions`.

    Examples
    --------
    >>> model = torch.nn.Linear(4, 4)
    >>> store = dist.HashStore()  # within one process
    >>> centre = Centre(dict(model.named_parameters()), store)
    >>> worker = AsyncEASGD(torch.optim.SGD(model.named_parameters(), lr=0.1), store, every=1)
    >>> model(torch.ones(4)).sum().backward()
    >>> worker.step()
    >>> centre.take_in(), centre.version
    (1, 1)
    """

    def __init__(
        self, params: Mapping[str, Tensor], store: dist.Store, *, centre: str = "fp32", message: str = "fp32",
        staleness: int = 64, rounding: str = "stochastic", seed: int = 0, **storage: Any,
    ) -> None:  # fmt: skip
        if staleness < 0:
            raise ValueError(f"staleness is a number of pushes, not negative; got {staleness}")
        if not isinstance(centre, str) or not isinstance(message, str):
            raise ValueError(f"formats are given by name here, got centre={centre!r} and message={message!r}")
        own = {name: param.detach().clone() for name, param in params.items()}
        options = StorageOptions(**storage)
        self.values = AverageStore(own, state=centre, rounding=rounding, seed=seed, storage=options, label="centre")
        self.store, self.staleness = store, staleness
        self.version = 0
        """Number of pushes applied."""
        self.refused = 0
        """Number of pushes refused as too stale."""
        self.norms: dict[int, tuple[float, ...]] = {}
        """Last gradient norms of each worker: one, or one of each tensor. Empty for methods that need none."""
        self._next, self._missing = 1, dict[int, float]()
        parts = {name: local_part(x) for name, x in own.items()}
        self._out = Layout(parts, 0, MessageOptions(centre, "nearest", seed, options))
        self._in = Layout(parts, 0, MessageOptions(message, rounding, seed, options))
        self._published = deque[bytes]()
        self._publish()
        rules = {"centre": centre, "message": message, "rounding": rounding, "seed": seed, "spec": self._in.spec}
        store.set("rules", json.dumps({**rules, "storage": vars(options)}))  # last, since workers wait for it

    def _publish(self) -> None:
        values = {name: self.values.read(name) for name in self.values}
        message = _bytes(self._out.encode(values, torch.zeros(0, device="cpu"), 0, 0))
        self._published.append(_put(self.store, "centre", HEAD.pack(0, self.version, 0.0, 0) + message))
        if len(self._published) > KEPT:
            _forget(self.store, self._published.popleft())

    @torch.no_grad()
    def take_in(self, patience: float = 10.0) -> int:
        """Apply the pushes that have arrived since the last call, and publish the new centre.

        Parameters
        ----------
        patience
            Seconds to wait for a worker that drew a number but has not pushed.

        Returns
        -------
        int
            Number of pushes handled, including refused ones.
        """
        drawn, now, seen = self.store.add("pushes", 0), time.monotonic(), 0
        self._missing.update(dict.fromkeys(range(self._next, drawn + 1), now))
        self._next = drawn + 1
        for number, since in list(self._missing.items()):
            key = f"push/{number}"
            if self.store.check([key]):
                self._apply(_get(self.store, key))
                _forget(self.store, self.store.get(key))
                self.store.delete_key(key)
                seen += 1
            elif now - since < patience:
                continue
            del self._missing[number]
        if seen:
            self._publish()
        return seen

    def _apply(self, sent: bytes) -> None:
        worker, version, share, count = HEAD.unpack_from(sent)
        behind = self.version - version
        if behind > self.staleness:
            self.refused += 1
            log_once(f"a push of worker {worker} was refused: it is {behind} pushes behind the centre", 30)
            return
        self.norms[worker] = struct.unpack_from(f"<{count}d", sent, HEAD.size)
        message = torch.frombuffer(bytearray(sent[HEAD.size + 8 * count :]), dtype=torch.uint8)
        live = {name: self.values.read(name) + self._in.decode(message, name) for name in self.values}
        shares = self._shares(worker) if count else [share]
        self.version += 1
        by_tensor = {name: 1.0 - x for name, x in zip(live, shares, strict=True)} if len(shares) > 1 else None
        self.values.update(live, by_tensor or 1.0 - shares[0], self.version)

    def _shares(self, worker: int) -> list[float]:
        """GRAWA's shares, by the norms of this worker and of all others that sent as many."""
        own = self.norms[worker]
        others = [norms for w, norms in self.norms.items() if w != worker and len(norms) == len(own)]
        return inverse_shares(torch.tensor([own, *others], dtype=torch.float64, device="cpu"))[0].tolist()

    def serve(self, idle: float = 60.0, patience: float = 10.0, until: Callable[[], bool] | None = None) -> None:
        """Serve until every worker has left, or nothing is pushed for `idle` seconds.

        Parameters
        ----------
        idle
            Seconds without a push after which serving ends.
        patience
            As for :meth:`take_in`.
        until
            Function that ends serving when it returns true. It is called after every poll.
        """
        last = time.monotonic()
        while time.monotonic() - last < idle and not (until is not None and until()):
            if self.take_in(patience):
                last = time.monotonic()
                continue
            came, left = self.store.add("came", 0), self.store.add("left", 0)
            if came and came == left and self.store.add("pushes", 0) < self._next:
                return
            time.sleep(0.002)

    def state_dict(self) -> dict[str, Any]:
        """Return the centre and its version."""
        return {"version": self.version, "centre": self.values.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the result of :meth:`state_dict`, and publish it.

        Raises
        ------
        ValueError
            If it holds other tensors or another format.
        """
        self.values.load(self.values.validate(state_dict["centre"]))
        self.version = int(state_dict["version"])
        self._publish()


class _Asynchronous(Wrapper):
    """Base class of a worker that visits the centre at its own pace. Subclasses inherit the Parameters section.

    Parameters
    ----------
    optimizer
        The ``torch.optim.Optimizer`` that trains this worker, over named parameters.
    store
        The store of the :class:`Centre`: ``TCPStore(host, port, is_master=False)``.
    pull
        Share of the distance to the centre that the worker moves at a visit.
    every
        Steps between visits.
    timeout
        Seconds to wait for the serving process.
    """

    key = "asynchronous"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = parameters(_Asynchronous.__doc__) | parameters(cls.__doc__)
        cls.__doc__ = with_section(inspect.cleandoc(cls.__doc__ or ""), known, known)

    def __init__(
        self, optimizer: Optimizer, store: dist.Store, pull: float = 0.25, every: int = 16, timeout: float = 60.0
    ) -> None:
        super().__init__(optimizer)
        if not 0.0 < pull <= 1.0 or every < 1:
            raise ValueError(f"pull is a share in (0, 1], every a number of steps; got pull={pull}, every={every}")
        self.share, self.every, self.steps, self.visits, self.sent_bytes = pull, every, 0, 0, 0
        self._store, self._timeout, self._params = store, timedelta(seconds=timeout), self.trained
        if any(is_sharded(p) for p in self._params.values()):
            raise ValueError("an asynchronous worker is one process: its parameters are plain tensors")
        self._say(lambda: store.wait(["rules"], self._timeout))
        rules = json.loads(store.get("rules"))
        rounding, seed, storage = rules["rounding"], rules["seed"], StorageOptions(**rules["storage"])
        parts = {name: local_part(p) for name, p in self._params.items()}
        self._in = Layout(parts, 0, MessageOptions(rules["centre"], "nearest", seed, storage))
        self._out = Layout(parts, 0, MessageOptions(rules["message"], rounding, seed, storage))
        if self._out.spec != rules["spec"]:
            own, other = self._out.spec[:300], rules["spec"][:300]
            raise ValueError(f"this worker has the parameters {own}, the centre {other}: name them alike")
        self.pull: Optimizer = Pull(aliases(self._params), param_rounding=rounding, seed=seed)
        self.worker = store.add("came", 1)
        """Unique number of this worker."""
        self.version, start = self._centre()
        go(self.pull, self._params, start, 1.0)

    def _say(self, what: Callable[[], Any]) -> Any:
        try:
            return what()
        except RuntimeError as error:
            raise WorkerLostError(
                "the process that serves the centre does not answer: it ended, or was never started. The weights of "
                "this worker are those of its last step"
            ) from error

    def _centre(self) -> tuple[int, dict[str, Tensor]]:
        """Return the version and the weights of the centre."""
        found = self._say(lambda: _get(self._store, "centre"))
        message = torch.frombuffer(bytearray(found[HEAD.size :]), dtype=torch.uint8).to(self._in.device)
        return HEAD.unpack_from(found)[1], {name: self._in.decode(message, name) for name in self._params}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step the inner optimizer, and visit the centre if it is due."""
        with self._stepping() as inside:
            loss = inside.step() if closure is None else inside.step(closure)
        self.steps += 1
        if self.steps % self.every == 0:
            self.visit()
        return loss

    @torch.no_grad()
    def visit(self) -> None:
        """Push the difference to the centre, and move towards it."""
        self.version, centre = self._centre()
        norms = self.told()
        away = {name: p.detach().float() - centre[name] for name, p in self._params.items()}
        if not all(bool(torch.isfinite(x).all()) for x in away.values()):
            raise FloatingPointError(f"the weights of worker {self.worker} are not finite: nothing was pushed")
        self.visits += 1
        message = self._out.encode(away, torch.zeros(0, device="cpu"), self.worker, self.visits)
        head = HEAD.pack(self.worker, self.version, self.share, len(norms)) + struct.pack(f"<{len(norms)}d", *norms)
        number = self._say(lambda: self._store.add("pushes", 1))
        self._say(lambda: _put(self._store, f"push/{number}", head + _bytes(message)))
        self.sent_bytes += len(message)
        go(self.pull, self._params, centre, self.share)

    def told(self) -> list[float]:
        """Return what the centre is told of the gradient norms: nothing, one number, or one per tensor."""
        return []

    def _norms(self) -> list[float]:
        """The gradient norm of each tensor. It is 0 without a gradient."""
        grads = [None if p.grad is None else p.grad.float() for p in self._params.values()]
        return [0.0 if grad is None else float(total(grad, grad)) ** 0.5 for grad in grads]

    def leave(self) -> None:
        """Announce that this worker is done, so that the centre does not wait for it."""
        self._say(lambda: self._store.add("left", 1))

    def own_state(self) -> dict[str, Any]:
        """Return the number of steps. A returning worker starts from the centre, not from its own weights."""
        return {"steps": self.steps}

    def check_own(self, saved: Mapping[str, Any]) -> Any:
        """See :class:`~halfulp.training.wrapper.Wrapper`."""
        if set(saved) != {"steps"}:
            raise ValueError(f"asynchronous: saved are {sorted(saved)}, expected ['steps']")
        return int(saved["steps"])

    def take_own(self, checked: Any) -> None:
        """See :class:`~halfulp.training.wrapper.Wrapper`."""
        self.steps = checked


class AsyncEASGD(_Asynchronous):
    """Asynchronous EASGD: at each visit, worker and centre move towards each other by the same share.

    Zhang et al., arXiv 1412.6651.

    Parameters
    ----------
    pull
        Share of the distance that both move. The paper uses ``0.9 / workers``.

    Raises
    ------
    WorkerLostError
        If the serving process does not answer. :meth:`step` raises it too.

    Examples
    --------
    >>> import torch, torch.distributed as dist
    >>> from halfulp.workers import AsyncEASGD, Centre
    >>> model, store = torch.nn.Linear(4, 4), dist.HashStore()
    >>> centre = Centre(dict(model.named_parameters()), store, message="8bit")  # in a process of its own: .serve()
    >>> optimizer = AsyncEASGD(torch.optim.SGD(model.named_parameters(), lr=0.1), store)
    """


class AsyncMGRAWA(_Asynchronous):
    """Asynchronous GRAWA: the centre moves towards each visiting worker by a share inverse to its gradient norm.

    A reconstruction of the asynchronous variant of Dimlioglu and Choromanska, arXiv 2403.04206. The shares are those of
    the synchronous method, with each worker's gradient norm at its last visit.

    Examples
    --------
    >>> import torch, torch.distributed as dist
    >>> from halfulp.workers import AsyncMGRAWA, Centre
    >>> model, store = torch.nn.Linear(4, 4), dist.HashStore()
    >>> centre = Centre(dict(model.named_parameters()), store, message="8bit")  # in a process of its own: .serve()
    >>> optimizer = AsyncMGRAWA(torch.optim.SGD(model.named_parameters(), lr=0.1), store, pull=0.5, every=32)
    """

    def told(self) -> list[float]:
        """Return the sum of the norms."""
        return [sum(self._norms())]


class AsyncLGRAWA(_Asynchronous):
    """Asynchronous GRAWA by tensors: every tensor of the centre moves by a share inverse to its own gradient norm.

    As :class:`AsyncMGRAWA`, with the shares of :class:`~halfulp.workers.LGRAWA`.

    Examples
    --------
    >>> import torch, torch.distributed as dist
    >>> from halfulp.workers import AsyncLGRAWA, Centre
    >>> model, store = torch.nn.Linear(4, 4), dist.HashStore()
    >>> centre = Centre(dict(model.named_parameters()), store, message="8bit")  # in a process of its own: .serve()
    >>> optimizer = AsyncLGRAWA(torch.optim.SGD(model.named_parameters(), lr=0.1), store, pull=0.5, every=32)
    """

    def told(self) -> list[float]:
        """Return all norms."""
        return self._norms()


def _bytes(message: Tensor) -> bytes:
    return message.cpu().numpy().tobytes()


def _put(store: dist.Store, key: str, value: bytes) -> bytes:
    """Set a value of any length: first pieces under fresh names, then the key, which lists them."""
    pieces = [value[at : at + PIECE] for at in range(0, len(value), PIECE)]
    first = store.add("pieces", len(pieces)) - len(pieces)
    for i, piece in enumerate(pieces):
        store.set(f"piece/{first + i}", piece)  # type: ignore[arg-type]
    listed = LIST.pack(first, len(pieces))
    store.set(key, listed)  # type: ignore[arg-type]
    return listed


def _get(store: dist.Store, key: str) -> bytes:
    while True:
        names = _pieces(store.get(key))
        if store.check(names):  # not replaced in the meantime
            return b"".join(store.get(name) for name in names)


def _forget(store: dist.Store, listed: bytes) -> None:
    for name in _pieces(listed):
        store.delete_key(name)


def _pieces(listed: bytes) -> list[str]:
    first, count = LIST.unpack(listed)
    return [f"piece/{first + i}" for i in range(count)]
