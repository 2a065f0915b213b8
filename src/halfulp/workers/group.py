"""The workers and how they exchange messages: a process group of torch, or threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Alone", "Peers", "Processes", "WorkerLostError", "as_peers", "check_timeout", "simulate"]

T = TypeVar("T")


class WorkerLostError(RuntimeError):
    """A worker did not take part in a meeting: it ended, or exceeded the timeout.

    Parameters
    ----------
    message
        What happened.

    Examples
    --------
    >>> raise WorkerLostError("worker 0: exchange 7 with workers [1, 2] failed")
    Traceback (most recent call last):
    ...
    halfulp.workers.group.WorkerLostError: worker 0: exchange 7 with workers [1, 2] failed
    """

    def __init__(self, message: str) -> None:  # gives the class a signature
        super().__init__(message)


class Peers(Protocol):
    """Interface of the group of workers, as a meeting needs it.

    Examples
    --------
    >>> def of_two(peers: Peers) -> tuple[int, int]:
    ...     return peers.rank, peers.size
    >>> simulate(2, of_two)
    [(0, 2), (1, 2)]
    """

    rank: int
    """Number of this worker, starting at 0."""
    size: int
    """Number of workers."""

    def exchange(self, message: Tensor, circle: Sequence[int] | None) -> list[Tensor]:
        """Return the messages of the workers of a circle, in its order. All have the same length.

        Parameters
        ----------
        message
            What this worker sends, as bytes.
        circle
            Numbers of the workers that exchange, including this one, in increasing order; ``None`` for all. If worker
            `i` has `j` in its circle, `j` must have `i` in its own.

        Raises
        ------
        WorkerLostError
            If one of them does not answer.
        """
        ...


def as_peers(group: Any, timeout: float | None) -> Peers:
    """Return the workers for ``group=``: a process group of torch or ``None``, or :class:`Peers` unchanged."""
    if timeout is not None:
        check_timeout(timeout)
    peers: Peers = group if callable(getattr(group, "exchange", None)) else Processes(group, timeout)
    return peers


def check_timeout(timeout: Any) -> None:
    """Raise ``ValueError`` unless a timeout is a positive number of seconds."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < float("inf"):
        raise ValueError(f"timeout is a number of seconds above 0; got {timeout!r}")


class Alone:
    """A single worker without others to meet.

    Examples
    --------
    >>> Alone().exchange(torch.zeros(2, dtype=torch.uint8), None)
    [tensor([0, 0], dtype=torch.uint8)]
    """

    rank, size = 0, 1

    def exchange(self, message: Tensor, circle: Sequence[int] | None) -> list[Tensor]:
        """See :class:`Peers`."""
        return [message]


class Processes:
    """Workers that are the ranks of a ``torch.distributed`` process group, by default all.

    An exchange may take `timeout` seconds, by default the timeout of the group.

    Raises
    ------
    RuntimeError
        If ``torch.distributed`` has not been initialized.
    TypeError
        If the group is not a process group, or this process is not in it.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, timeout: float | None = None) -> None:
        if not dist.is_initialized():
            raise RuntimeError(
                "workers are the ranks of a process group: call torch.distributed.init_process_group() and start the "
                "program with torchrun, or give group=; halfulp.workers.simulate runs workers as threads"
            )
        if group is not None and not isinstance(group, dist.ProcessGroup):
            raise TypeError(
                f"group= is a process group of torch.distributed that has this process, or Peers; got {group!r}"
            )
        self.group = dist.group.WORLD if group is None else group
        self.timeout = None if timeout is None else timedelta(seconds=timeout)
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.exchanges = 0

    def exchange(self, message: Tensor, circle: Sequence[int] | None) -> list[Tensor]:
        """See :class:`Peers`."""
        self.exchanges += 1
        numbers = range(self.size) if circle is None else circle
        received = [message if peer == self.rank and circle else torch.empty_like(message) for peer in numbers]
        try:
            for work in self._start(message, received, circle):
                if self.timeout is None:
                    work.wait()
                else:
                    work.wait(self.timeout)
        except (RuntimeError, ValueError) as error:
            others = [peer for peer in numbers if peer != self.rank]
            raise WorkerLostError(
                f"worker {self.rank}: exchange {self.exchanges} with workers {others} failed: one of them ended or "
                "took longer than the time-out, or the process group was destroyed. Weights are those of the last "
                "step, no meeting was begun. Start all workers again from their checkpoints of the last meeting"
            ) from error
        return received

    def _start(self, message: Tensor, received: list[Tensor], circle: Sequence[int] | None) -> list[Any]:
        if circle is None:
            return [dist.all_gather(received, message, group=self.group, async_op=True)]
        number = dist.get_global_rank
        operations = []
        for peer, buffer in zip(circle, received, strict=True):
            if peer != self.rank:
                there = number(self.group, peer)  # type: ignore[arg-type]
                operations.append(dist.P2POp(dist.isend, message, there, self.group))
                operations.append(dist.P2POp(dist.irecv, buffer, there, self.group))
        return dist.batch_isend_irecv(operations) if operations else []


class _Threads:
    """One of several workers that are threads of one process.

    Only one of them runs at a time, between two exchanges.
    """

    def __init__(self, rank: int, tables: list[list[Any]], barrier: threading.Barrier, turn: threading.Lock) -> None:
        self.rank, self.size = rank, len(tables[0])
        self._tables, self._barrier, self._turn, self._exchanges = tables, barrier, turn, 0

    def exchange(self, message: Tensor, circle: Sequence[int] | None) -> list[Tensor]:
        """See :class:`Peers`."""
        table = self._tables[self._exchanges % 2]  # alternating, since some workers may still read the last one
        self._exchanges += 1
        table[self.rank] = (self._exchanges, message)
        self._turn.release()
        try:
            self._barrier.wait()
        except threading.BrokenBarrierError:  # maybe only after every message had come
            if any(found is None or found[0] != self._exchanges for found in table):
                raise WorkerLostError(f"worker {self.rank}: another worker ended, or was too slow") from None
        finally:
            self._turn.acquire()
        return [table[peer][1] for peer in (range(self.size) if circle is None else circle)]


def simulate(workers: int, function: Callable[[Peers], T], timeout: float = 60.0) -> list[T]:
    """Run workers as threads of this process. The results equal those of processes, bit for bit.

    Every worker must make the same number of exchanges.

    Parameters
    ----------
    workers
        Number of workers.
    function
        Function that each worker runs. It receives the :class:`Peers` to pass as ``group=``.
    timeout
        Seconds that a worker waits for the others.

    Returns
    -------
    list
        The results of the function, by worker.

    Raises
    ------
    ValueError
        If there are no workers.
    Exception
        The first error of a worker. The other workers get a :class:`WorkerLostError`.

    Examples
    --------
    >>> def work(peers):
    ...     own = torch.tensor([peers.rank], dtype=torch.uint8)
    ...     return [int(x) for x in peers.exchange(own, None)]
    >>> simulate(3, work)
    [[0, 1, 2], [0, 1, 2], [0, 1, 2]]
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers is a number of workers, at least 1; got {workers!r}")
    barrier, turn = threading.Barrier(workers, timeout=timeout), threading.Lock()
    tables: list[list[Any]] = [[None] * workers, [None] * workers]
    results: list[Any] = [None] * workers
    errors: list[BaseException | None] = [None] * workers

    def run(rank: int) -> None:
        with turn:
            try:
                results[rank] = function(_Threads(rank, tables, barrier, turn))
            except BaseException as error:
                errors[rank] = error
                barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = [error for error in errors if error is not None]
    if failed:
        raise next((error for error in failed if not isinstance(error, WorkerLostError)), failed[0])
    return results
