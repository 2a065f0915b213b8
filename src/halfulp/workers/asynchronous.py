"""Asynchronous workers: one process serves a center, which each worker visits at its own pace.

Messages go through a key-value store of ``torch.distributed`` (``TCPStore``, in the serving process):

* ``centre``: the weights of the center, and their version, which counts the pushes applied;
* ``push/N``: the difference between a worker's weights and the version it has seen. The store assigns the numbers.

A worker that ends or is late delays nobody. A worker that joins or returns starts from the center.
"""

from __future__ import annotations

import inspect
import json
import struct
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import Optimizer

from halfulp.engine.loading import count
from halfulp.engine.sharding import is_sharded, local_part
from halfulp.engine.storage import StorageOptions
from halfulp.optim.described import parameters, with_section
from halfulp.rules.hyper import as_number
from halfulp.workers.group import WorkerLostError, check_timeout
from halfulp.workers.message import Layout, MessageOptions
from halfulp.workers.mixing import grad_norms
from halfulp.workers.pieces import as_bytes, get, put
from halfulp.workers.pull import Pull, aliases, go
from halfulp.workers.service import HEAD
from halfulp.workers.worker import Worker

__all__ = ["AsyncEASGD", "AsyncLGRAWA", "AsyncMGRAWA"]


class _Asynchronous(Worker):
    """Base class of a worker that visits the center at its own pace. Subclasses inherit the Parameters section.

    Parameters
    ----------
    optimizer
        The ``torch.optim.Optimizer`` that trains this worker, over named parameters.
    store
        The store of the :class:`Centre`: ``TCPStore(host, port, is_master=False)``.
    pull
        Share of the distance to the center that the worker moves at a visit.
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
        if not isinstance(store, dist.Store):
            raise TypeError(f"store is a store of torch.distributed, such as a TCPStore; got {store!r}")
        if not 0.0 < as_number("pull", pull) <= 1.0:
            raise ValueError(f"pull is a share of the distance, in (0, 1]; got {pull}")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every is a number of steps, at least 1; got {every!r}")
        check_timeout(timeout)
        self.share, self.every, self.visits, self._left = pull, every, 0, False
        self._store, self._timeout = store, timedelta(seconds=timeout)
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
            raise ValueError(f"this worker has the parameters {own}, the center {other}: name them alike")
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
                "the process that serves the center does not answer: it ended, or was never started. The weights of "
                "this worker are those of its last step"
            ) from error

    def _centre(self) -> tuple[int, dict[str, Tensor]]:
        """Return the version and the weights of the center."""
        if self._say(lambda: self._store.check(["ended"])):
            raise WorkerLostError("the center is not served any more. Weights are those of this worker's last step")
        found = self._say(lambda: get(self._store, "centre"))
        message = torch.frombuffer(bytearray(found[HEAD.size :]), dtype=torch.uint8).to(self._in.device)
        return HEAD.unpack_from(found)[1], {name: self._in.decode(message, name) for name in self._params}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step the inner optimizer, and visit the center if it is due."""
        loss = self._step_inside(closure)
        self.steps += 1
        if self.steps % self.every == 0:
            self.visit()
        return loss

    @torch.no_grad()
    def visit(self) -> None:
        """Push the difference to the center, and move towards it.

        Raises
        ------
        WorkerLostError
            If the center is not served any more.
        """
        self._follow()
        self.version, centre = self._centre()
        if self._left:
            raise RuntimeError("this worker has left the center: build another one to come back")
        norms = self.told()
        away = {name: p.detach().float() - centre[name] for name, p in self._params.items()}
        if not all(bool(torch.isfinite(x).all()) for x in away.values()):
            raise FloatingPointError(f"the weights of worker {self.worker} are not finite: nothing was pushed")
        self.visits += 1
        message = self._out.encode(away, torch.zeros(0, device="cpu"), self.worker, self.visits)
        head = HEAD.pack(self.worker, self.version, self.share, len(norms)) + struct.pack(f"<{len(norms)}d", *norms)
        number = self._say(lambda: self._store.add("pushes", 1))
        self._say(lambda: put(self._store, f"push/{number}", head + as_bytes(message)))
        self.sent_bytes += len(message)
        go(self.pull, self._params, centre, self.share)

    def told(self) -> list[float]:
        """Return what the center is told of the gradient norms: nothing, one number, or one per tensor."""
        return []

    def leave(self) -> None:
        """Announce that this worker is done, so that the center does not wait for it."""
        if not self._left:
            self._say(lambda: self._store.add("left", 1))
        self._left = True

    def own_state(self) -> dict[str, Any]:
        """Return the number of steps. A returning worker starts from the center, not from its own weights."""
        return {"steps": self.steps}

    def check_own(self, saved: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
        """See :class:`~halfulp.training.wrapper.Wrapper`."""
        return count("asynchronous", "steps", saved["steps"])

    def take_own(self, checked: Any) -> None:
        """See :class:`~halfulp.training.wrapper.Wrapper`."""
        self.steps = checked


class AsyncEASGD(_Asynchronous):
    """Asynchronous EASGD: at each visit, worker and center move towards each other by the same share.

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
    """Asynchronous GRAWA: the center moves towards each visiting worker by a share inverse to its gradient norm.

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
        return [sum(grad_norms(type(self).__name__, self._params))]


class AsyncLGRAWA(_Asynchronous):
    """Asynchronous GRAWA by tensors: every tensor of the center moves by a share inverse to its own gradient norm.

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
        return grad_norms(type(self).__name__, self._params)
