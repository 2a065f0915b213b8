"""Width of the valley that the workers span."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from halfulp.rules.base import total

__all__ = ["inverse_mean_valley", "ray_to_boundary"]

Weights = Mapping[str, Tensor]


def ray_to_boundary(
    loss: Callable[[Weights], float], centre: Weights, worker: Weights, kappa: float = 2.0, furthest: float = 1e3
) -> float:
    """Return the distance from the center, towards a worker, at which the loss is `kappa` times that of the center.

    It is infinite if the loss does not reach that value within `furthest` times the distance from center to worker.

    Raises
    ------
    ValueError
        If `kappa` is at most 1, the loss is not positive at the center, or the worker is at the center.
    """
    way = {name: worker[name].float() - x.float() for name, x in centre.items()}
    length = math.sqrt(sum(float(total(d, d)) for d in way.values()))
    base = loss(centre)
    if not kappa > 1 or not base > 0 or not length > 0:
        raise ValueError(
            f"a valley needs kappa > 1, a positive loss at the center and a worker elsewhere; got kappa={kappa}, a "
            f"loss of {base}, and a distance of {length}"
        )

    def beyond(times: float) -> bool:
        return loss({name: x + way[name].to(x.dtype) * times for name, x in centre.items()}) > kappa * base

    low, high = 0.0, 1.0
    while not beyond(high):
        low, high = high, high * 2
        if high > furthest:
            return math.inf
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if beyond(middle) else (middle, high)
    return high * length


@torch.no_grad()
def inverse_mean_valley(
    loss: Callable[[Weights], float], workers: Sequence[Weights], kappa: float = 2.0, furthest: float = 1e3
) -> float:
    """Inverse Mean Valley: one over the mean distance from the workers' mean at which the loss has grown by `kappa`.

    The measure of arXiv 2507.20424, reconstructed (`kappa` is from memory). A narrower valley has a larger value.

    Parameters
    ----------
    loss
        Loss as a function of weights. It must be positive at the mean.
    workers
        Weights of each worker, by name. At least two.
    kappa
        Factor, above 1.
    furthest
        Largest distance to search, in units of the distance from the mean to a worker.

    Examples
    --------
    >>> def bowl(weights, h=2.0):
    ...     return float(h / 2 * weights["x"].square().sum() + 1.0)
    >>> workers = [{"x": torch.tensor([0.1, 0.0])}, {"x": torch.tensor([-0.1, 0.0])}]
    >>> round(inverse_mean_valley(bowl, workers), 3)  # boundary at sqrt(2 (kappa - 1) c / h) = 1
    1.0
    """
    if len(workers) < 2:
        raise ValueError(f"a valley needs at least two workers, got {len(workers)}")
    if not all(worker.keys() == workers[0].keys() for worker in workers):
        raise ValueError(f"workers have weights of the same names; got {[sorted(worker)[:8] for worker in workers]}")
    centre = {name: torch.stack([w[name].float() for w in workers]).mean(dim=0) for name in workers[0]}
    distances = [ray_to_boundary(loss, centre, worker, kappa, furthest) for worker in workers]
    return len(distances) / sum(distances)
