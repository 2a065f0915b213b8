"""Sending a monitor's measurements to a logger: a callable, TensorBoard, Weights & Biases or MLflow.

A sink is a function ``sink(figures, step)`` of a dictionary of floats. :func:`as_sink` builds one from a logger.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from halfulp.monitor.watch import StallMonitor

__all__ = ["Sink", "as_sink", "figures", "log_to"]

Sink = Callable[[dict[str, float], int], None]


def figures(watch: StallMonitor, prefix: str = "halfulp") -> dict[str, float]:
    """Return the measurements of the last counted step as a flat dictionary: ``halfulp/exp_avg_sq/stalled`` and so on.

    Values that are not finite (no prediction, an empty shadow) are left out.
    """
    found: dict[str, float] = {}
    for m in watch.measure():
        for name in ("stalled", "predicted", "lag", "ratio", "off_2x", "factor", "residual"):
            value = getattr(m, name)
            if value is not None and math.isfinite(value):
                found[f"{prefix}/{m.slot}/{name}"] = float(value)
    for name, value in (("stalled", watch.weights_stalled()), ("moved", watch.weights_moved())):
        if value is not None:
            found[f"{prefix}/weights/{name}"] = value
    return found


def as_sink(logger: Any) -> Sink:
    """Return the sink of a logger. Raise ``TypeError`` if it is none of the following.

    A logger is a function of (figures, step), or an object with ``add_scalar`` (TensorBoard's ``SummaryWriter``),
    ``log`` (a Weights & Biases run or the module ``wandb``) or ``log_metrics`` (the module ``mlflow`` or a Lightning
    logger).
    """
    if hasattr(logger, "add_scalar"):

        def to_tensorboard(values: dict[str, float], step: int) -> None:
            for name, value in values.items():
                logger.add_scalar(name, value, step)

        return to_tensorboard
    if hasattr(logger, "log_metrics"):
        return lambda values, step: logger.log_metrics(values, step=step)
    if hasattr(logger, "log"):
        return lambda values, step: logger.log(values, step=step)
    if callable(logger):
        sink: Sink = logger
        return sink
    raise TypeError(
        "a logger must be a function of (figures, step), a TensorBoard SummaryWriter, a wandb run, mlflow "
        f"or a Lightning logger; got {type(logger).__name__}"
    )


def log_to(watch: StallMonitor, logger: Any, *, every: int = 1, prefix: str = "halfulp") -> None:
    """Send the measurements of a monitor to a logger after every counted step, or every `every`-th.

    Parameters
    ----------
    watch
        The monitor. The logger receives its number of steps.
    logger
        See :func:`as_sink`.
    every
        Number of counted steps between logs.
    prefix
        Prefix of the names.

    Examples
    --------
    >>> import torch, halfulp
    >>> from halfulp.monitor import log_to
    >>> weight = torch.nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16))
    >>> optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    >>> seen = {}
    >>> with halfulp.StallMonitor(optimizer, every=1) as watch:
    ...     log_to(watch, lambda figures, step: seen.update({step: sorted(figures)}))
    ...     weight.grad = torch.ones_like(weight)
    ...     optimizer.step()
    >>> seen[1][:2]
    ['halfulp/momentum_buffer/lag', 'halfulp/momentum_buffer/off_2x']
    """
    if every < 1:
        raise ValueError(f"every must be positive, got {every}")
    sink = as_sink(logger)

    def report(step: int) -> None:
        if step // watch.every % every == 0:
            sink(figures(watch, prefix), step)

    watch.on_step(report)
