"""The center of asynchronous workers, and its service."""

from __future__ import annotations

import json
import math
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from halfulp.averaging.store import AverageStore
from halfulp.engine.loading import count, reading
from halfulp.engine.sharding import local_part
from halfulp.engine.storage import StorageOptions
from halfulp.numbers.log import warn_once
from halfulp.workers.message import Layout, MessageOptions
from halfulp.workers.pieces import as_bytes, forget, get, put
from halfulp.workers.pulling import inverse_shares

__all__ = ["HEAD", "Centre"]

HEAD = struct.Struct("<qqdq")
"""Header of a push: worker, version, share, and how many gradient norms follow it."""
KEPT = 4
"""Number of versions of the center kept for readers."""


class Centre:
    """The center of asynchronous workers, and the process that serves it.

    Parameters
    ----------
    params
        Named tensors to start from: ``dict(model.named_parameters())``.
    store
        A store of ``torch.distributed``: ``TCPStore(host, port, is_master=True)``.
    centre, message
        Names of two formats: the center is stored and sent in the first, and workers send differences in the second.
    staleness
        Number of pushes that may be applied between a worker's read and its push. Older differences are refused.
    rounding, seed
        As for the optimizers.
    storage
        See :class:`~halfulp.engine.storage.StorageOptions`.

    Raises
    ------
    TypeError
        If the store is not one of ``torch.distributed``.
    ValueError
        If there are no tensors, they are not finite, or an option is wrong.

    Examples
    --------
    >>> from halfulp.workers import AsyncEASGD
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
        if not isinstance(store, dist.Store):
            raise TypeError(f"store is a store of torch.distributed, such as a TCPStore; got {store!r}")
        if isinstance(staleness, bool) or not isinstance(staleness, int) or staleness < 0:
            raise ValueError(f"staleness is a number of pushes, not negative; got {staleness!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise ValueError(f"seed must be an integer from 0 to 2**64 - 1; got {seed!r}")
        wrong = [name for name, param in params.items() if not bool(torch.isfinite(param).all())]
        if wrong or not params:
            raise ValueError(f"a center starts from one tensor or more, all finite; got {wrong or 'none'}")
        if not isinstance(centre, str) or not isinstance(message, str):
            raise ValueError(f"formats are given by name here, got centre={centre!r} and message={message!r}")
        own = {name: param.detach().clone() for name, param in params.items()}
        options = StorageOptions(**storage)
        self.values = AverageStore(own, state=centre, rounding=rounding, seed=seed, storage=options, label="centre")
        self.store, self.staleness = store, staleness
        self.version = 0
        """Number of pushes applied."""
        self.refused = 0
        """Number of pushes refused, as too stale or damaged."""
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
        message = as_bytes(self._out.encode(values, torch.zeros(0, device="cpu"), 0, 0))
        self._published.append(put(self.store, "centre", HEAD.pack(0, self.version, 0.0, 0) + message))
        if len(self._published) > KEPT:
            forget(self.store, self._published.popleft())

    @torch.no_grad()
    def take_in(self, patience: float = 10.0) -> int:
        """Apply the pushes that have arrived since the last call, and publish the new center.

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
                self._apply(get(self.store, key))
                forget(self.store, self.store.get(key))
                self.store.delete_key(key)
                seen += 1
            elif now - since < patience:
                continue
            del self._missing[number]
        if seen:
            self._publish()
        return seen

    def _apply(self, sent: bytes) -> None:
        if wrong := self._damaged(sent):
            self.refused += 1
            warn_once(f"a push was refused: {wrong}")
            return
        worker, version, share, norms = HEAD.unpack_from(sent)
        behind = self.version - version
        if behind > self.staleness:
            self.refused += 1
            warn_once(f"a push of worker {worker} was refused: it is {behind} pushes behind the center")
            return
        self.norms[worker] = struct.unpack_from(f"<{norms}d", sent, HEAD.size)
        message = torch.frombuffer(bytearray(sent[HEAD.size + 8 * norms :]), dtype=torch.uint8)
        live = {name: self.values.read(name) + self._in.decode(message, name) for name in self.values}
        shares = self._shares(worker) if norms else [share]
        self.version += 1
        by_tensor = {name: 1.0 - x for name, x in zip(live, shares, strict=True)} if len(shares) > 1 else None
        self.values.update(live, by_tensor or 1.0 - shares[0], self.version)

    def _damaged(self, sent: bytes) -> str:
        """Return what is wrong with a push that no worker with these tensors sends, or an empty string."""
        norms = HEAD.unpack_from(sent)[3] if len(sent) >= HEAD.size else -1
        expected = [HEAD.size + 8 * n + self._in.bytes for n in (0, 1, len(self.values))]
        if norms not in (0, 1, len(self.values)) or len(sent) != HEAD.size + 8 * norms + self._in.bytes:
            return f"it has {len(sent)} bytes, and one of {expected} is expected"
        worker, _, share, _ = HEAD.unpack_from(sent)
        numbers = (share, *struct.unpack_from(f"<{norms}d", sent, HEAD.size))
        return "" if all(0.0 <= x < math.inf for x in numbers) else f"worker {worker} sent the numbers {numbers}"

    def _shares(self, worker: int) -> list[float]:
        """GRAWA's shares, by the norms of this worker and of all others that sent as many."""
        own = self.norms[worker]
        others = [norms for w, norms in self.norms.items() if w != worker and len(norms) == len(own)]
        return inverse_shares(torch.tensor([own, *others], dtype=torch.float64, device="cpu"))[0].tolist()

    def serve(
        self, idle: float = 60.0, patience: float = 10.0, until: Callable[[], bool] | None = None, workers: int = 1
    ) -> None:
        """Serve until every worker has left, or nothing is pushed for `idle` seconds. Later visits are refused.

        Parameters
        ----------
        idle
            Seconds without a push after which serving ends.
        patience
            As for :meth:`take_in`.
        until
            Function that ends serving when it returns true. It is called after every poll.
        workers
            Minimum number of workers. Serving does not end before that many have left. Needed if one may leave before
            another has arrived.
        """
        last = time.monotonic()
        self.store.delete_key("ended")
        while not (until is not None and until()):
            if self.take_in(patience):
                last = time.monotonic()
                continue
            came, left = self.store.add("came", 0), self.store.add("left", 0)
            if came == left and left >= workers and self.store.add("pushes", 0) < self._next:
                break
            if time.monotonic() - last >= idle:
                warn_once(f"the center's service ends: nothing was pushed for {idle} seconds")
                break
            time.sleep(0.002)
        self.store.set("ended", "")

    def state_dict(self) -> dict[str, Any]:
        """Return the center and its version."""
        return {"version": self.version, "centre": self.values.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the result of :meth:`state_dict`, and publish it.

        Raises
        ------
        ValueError
            If it holds other tensors or another format.
        """
        with reading("the center's checkpoint"):
            version, entries = state_dict["version"], self.values.validate(state_dict["centre"])
        self.version = count("the center", "version", version)
        self.values.load(entries)
        self._publish()
