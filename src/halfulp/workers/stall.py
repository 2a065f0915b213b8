"""Predicted effects of low precision on workers: stalled pulls, and the error of messages.

A pull moves a weight by a share ``w`` of its distance ``d`` from the center, while the worker takes steps: ``d <- d - w
d + step``. These are the dynamics of a weight average of decay ``1 - w``, seen from the live weight. So the theory of
:mod:`halfulp.theory.walk` applies to pulled weights, and to a center that follows the workers.
:class:`halfulp.StallMonitor` on ``optimizer.pull`` counts the stalled pulls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from halfulp.engine.sharding import Part
from halfulp.engine.storage import StorageOptions
from halfulp.numbers.formats import Format
from halfulp.numbers.quantizer import Rounding
from halfulp.theory.walk import WalkStall, walk_stall
from halfulp.workers.message import Layout, MessageOptions

__all__ = ["MessageError", "message_error", "pull_stall"]


def pull_stall(
    fmt: Format | str, share: float, step: float, rounding: Rounding = "stochastic", *, every: int = 1,
    workers: int = 1, meetings: int | None = None, absmax_ratio: float | None = None,
) -> WalkStall:  # fmt: skip
    """Predict the share of pulls that stall, for weights or a center in a given format.

    Parameters
    ----------
    fmt
        Format of the 16-bit weights or of the center.
    share
        Share of the distance that a pull moves: ``beta / workers`` for the workers of EASGD, ``beta`` for its center.
    step
        Standard deviation of a weight's training step, relative to the weight.
    rounding
        ``"stochastic"`` or ``"nearest"``.
    every
        Training steps between pulls.
    workers
        1 for a worker's weights. For a center, the number of workers whose mean it follows.
    meetings
        Number of meetings from a common start to average over. Default: the long run.
    absmax_ratio
        For formats with an even grid: largest magnitude in the block divided by that of the weight.

    Examples
    --------
    >>> pull = pull_stall("bf16", share=0.01, step=1e-4, rounding="nearest", every=16)
    >>> round(pull.stalled, 3) > 0.95  # a hundredth of the way is nearly always less than half a unit
    True
    >>> pull_stall("bf16", share=0.01, step=1e-4, every=16).gone  # stochastic: none is lost on average
    1.0
    """
    if not 0.0 < share < 1.0 or every < 1 or workers < 1:
        raise ValueError(
            f"a pull goes a share of the way in (0, 1), every 1 step or more, of 1 worker or more; got share={share}, "
            f"every={every}, workers={workers}"
        )
    walk = step * math.sqrt(every / workers)
    return walk_stall(fmt, 1.0 - share, walk, rounding, absmax_ratio, meetings)


@dataclass(frozen=True)
class MessageError:
    """Error of messages and the bits they need.

    Parameters
    ----------
    bits
        Bits sent per element, including scales.
    error
        Root mean square error of a message, relative to the root mean square of the values sent.
    of_mean
        The same for the mean of all workers' messages.

    Examples
    --------
    >>> MessageError(8.25, 0.01, 0.005).bits
    8.25
    """

    bits: float
    error: float
    of_mean: float


def message_error(
    message: Any = "8bit", rounding: str = "stochastic", *, workers: int = 4, similar: bool = True, **storage: Any
) -> MessageError:
    """Return the error of messages of normally distributed values, measured on a sample of 2**16.

    Parameters
    ----------
    message, rounding, storage
        As for the methods.
    workers
        Number of senders.
    similar
        Whether all send the same values. This is the worst case: under nearest rounding their errors are equal, and the
        mean is no better than one message. Otherwise values are independent.

    Examples
    --------
    >>> eight, four = message_error("8bit"), message_error("4bit")
    >>> eight.bits, four.bits
    (8.25, 4.25)
    >>> eight.error < 0.02 < four.error
    True
    """
    if workers < 1:
        raise ValueError(f"workers is a number of senders, at least 1; got {workers}")
    options = StorageOptions(**{"scale": "fp32", "min_size": 0, **storage})
    generator, shape = torch.Generator().manual_seed(0), (128, 512)
    layout = Layout({"x": Part(torch.zeros(shape, device="cpu"))}, 0, MessageOptions(message, rounding, 0, options))
    x = torch.randn(shape, generator=generator, device="cpu")
    errors = []
    for sender in range(workers):
        values = x if similar else torch.randn(shape, generator=generator, device="cpu")
        sent = layout.encode({"x": values}, torch.zeros(0, device="cpu"), sender, 1)
        errors.append(layout.decode(sent, "x") - values)
    single = float(torch.stack(errors).square().mean().sqrt())
    mean = float(torch.stack(errors).mean(dim=0).square().mean().sqrt())
    return MessageError(8 * layout.bytes / x.numel(), single, mean)
