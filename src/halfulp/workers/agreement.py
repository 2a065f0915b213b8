"""What workers check of each other, so that none of them goes on with other settings or other common weights."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from halfulp.averaging.store import AverageStore
from halfulp.workers.graphs import Graphs
from halfulp.workers.group import Peers
from halfulp.workers.method import Method, Seen

__all__ = ["FIXED", "agree_on", "checked", "digest", "settings"]

FIXED = ("digest", "meeting", "due", "finite", "loss", "samples")
"""Numbers at the start of a message. The gradient norms follow."""
MEETINGS = 8
"""Number of meetings whose graphs are compared at the start."""


def agree_on(text: str, peers: Peers, device: torch.device) -> None:
    """Raise ``ValueError`` on every worker unless the text is the same on all of them."""
    own = torch.tensor([zlib.crc32(text.encode())], dtype=torch.int64, device=device).view(torch.uint8)
    others = [int(x.view(torch.int64)) for x in peers.exchange(own, None)]
    wrong = [worker for worker, x in enumerate(others) if x != others[0]]
    if wrong:
        raise ValueError(
            f"workers {wrong} have another method, other arguments, or parameters of other names, shapes and dtypes "
            f"than worker 0; here, of worker {peers.rank}: {text[:800]}"
        )


def settings(values: Mapping[str, Any], graphs: Graphs | None, outer: Optimizer | None) -> str:
    """Return settings by name, graphs and the outer optimizer as text, without functions, which cannot be compared."""
    parts = [f"{name}={value}" for name, value in values.items() if not callable(value)]
    if outer is not None:
        plain = (int, float, str, tuple, type(None))
        groups = [{k: v for k, v in group.items() if isinstance(v, plain)} for group in outer.param_groups]
        parts.append(f"outer={type(outer).__name__}{groups}")
    if graphs is not None:
        turns = [(sorted(graphs.graph(n).edges), graphs.share(n)) for n in range(1, MEETINGS + 1)]
        parts.append(f"graphs={turns}")
    return " ".join(parts)


def digest(params: Mapping[str, Tensor], common: AverageStore | None) -> int:
    """Return a checksum of the dtypes, and of the common weights, whose bits must be the same on all workers.

    It is exact in float64.
    """
    found = zlib.crc32(" ".join(str(param.dtype) for param in params.values()).encode())
    if common is not None:
        sums = [common.read(name).contiguous().view(torch.int32).sum() for name in params]
        for value in torch.stack(sums).tolist():
            found = (31 * found + value) % 2**52
    return found


def checked(
    figures: Tensor, method: Method, rank: int, circle: tuple[int, ...], number: int, graphs: Graphs, seed: int
) -> Seen:
    """Return what a worker sees at meeting `number`, from the numbers that begin the messages of its circle.

    Raises
    ------
    ValueError
        If workers are at different meetings or steps, or have different common weights, or a report that is needed is
        missing.
    FloatingPointError
        If the weights of a worker are not finite.
    """
    column = dict(zip(FIXED, figures[:, : len(FIXED)].T, strict=True))

    def those(wrong: Tensor) -> list[int]:
        return [worker for worker, found in zip(circle, wrong.tolist(), strict=True) if found]

    for name, what, hint in (
        ("meeting", "are at another meeting", "load checkpoints of the same meeting on every worker"),
        (
            "digest", "have other common weights, or other dtypes,",
            "start all from the same weights (the same seed, or a checkpoint), with the same outer optimizer",
        ),
    ):  # fmt: skip
        if other := those(column[name] != column[name][0]):
            raise ValueError(f"meeting {number}: workers {other} {what} than worker {circle[0]}: {hint}")
    due = column["due"]  # the steps after which it is, or not a number if meet() was called
    if (scheduled := due[~due.isnan()]).unique().numel() > 1:
        raise ValueError(
            f"meeting {number}: it is due after different numbers of steps, {scheduled.int().tolist()}: every= must "
            "say the same on all workers"
        )
    if wrong := those(column["finite"] == 0):
        raise FloatingPointError(
            f"weights of workers {wrong} are not finite at meeting {number}; no weights were changed"
        )
    if "loss" in method.needs and (wrong := those(column["loss"].isnan())):
        raise ValueError(
            f"{method.title} follows the worker of least loss, and workers {wrong} reported none since the last "
            "meeting, or NaN: pass the closure to step(), or call optimizer.report(loss=loss) before each step"
        )
    norms, graph, share = figures[:, len(FIXED) :], graphs.graph(number), graphs.share(number)
    return Seen(rank, circle, number, column["loss"], column["samples"], norms, graph, share, seed)
