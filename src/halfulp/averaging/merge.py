"""Model merging: spherical interpolation of task vectors, and interpolation towards the start (WARP).

Ramé et al., WARP: On the Benefits of Weight Averaged Rewarded Policies, arXiv 2406.16768. All functions take and return
tensors by name (``dict(model.named_parameters())``, ``dict(ema.named_parameters())``). They compute in fp32 and return
the dtype of the start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["liti", "slerp", "warp"]

Named = Mapping[str, Tensor]


def slerp(start: Named, first: Named, second: Named, t: float = 0.5) -> dict[str, Tensor]:
    """Spherical interpolation of two task vectors ``model - start``, tensor by tensor.

    ``start + sin((1 - t) w) / sin(w) * d1 + sin(t w) / sin(w) * d2``, where ``w`` is the angle between ``d1`` and
    ``d2``. Parallel vectors use the limit, linear interpolation.

    Parameters
    ----------
    start, first, second
        Three models of the same form.
    t
        0 gives `first`, 1 gives `second`.

    Raises
    ------
    ValueError
        If names or shapes differ, or the task vectors are opposite, so that there is no shortest path.

    Examples
    --------
    >>> import torch
    >>> zero, x, y = (dict(w=torch.tensor(v)) for v in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]))
    >>> slerp(zero, x, y)["w"]
    tensor([0.7071, 0.7071])
    """
    _same_form(start, first, second)
    merged = {}
    for name, base in start.items():
        origin = base.detach().double()
        d1, d2 = first[name].detach().double() - origin, second[name].detach().double() - origin
        lengths = d1.norm() * d2.norm()
        cosine = float((d1 * d2).sum() / lengths) if lengths > 0 else 1.0
        angle = torch.acos(torch.tensor(min(max(cosine, -1.0), 1.0), dtype=torch.float64, device="cpu"))
        sine = torch.sin(angle)
        if cosine < 0 and float(sine) < 1e-6:
            raise ValueError(f"{name}: the task vectors are opposite; they cannot be merged on a sphere")
        if float(sine) < 1e-6:
            move = (1 - t) * d1 + t * d2
        else:
            move = torch.sin((1 - t) * angle) / sine * d1 + torch.sin(t * angle) / sine * d2
        merged[name] = (origin + move).to(base.dtype)
    return merged


def liti(start: Named, model: Named, eta: float = 0.3) -> dict[str, Tensor]:
    """Linear interpolation towards the start: ``(1 - eta) * start + eta * model``.

    Parameters
    ----------
    start, model
        Named tensors of the same form.
    eta
        Weight of `model`.

    Raises
    ------
    ValueError
        If names or shapes differ.

    Examples
    --------
    >>> import torch
    >>> liti({"w": torch.zeros(1)}, {"w": torch.ones(1)})["w"]
    tensor([0.3000])
    """
    _same_form(start, model)
    return {
        n: (b.detach().double() * (1 - eta) + model[n].detach().double() * eta).to(b.dtype) for n, b in start.items()
    }


def warp(start: Named, runs: Sequence[Named], eta: float = 0.3) -> dict[str, Tensor]:
    """Stages two and three of WARP: merge the runs by :func:`slerp`, then apply :func:`liti`, to start the next round.

    Two runs are merged half and half, as published. Each further run is merged into the result with weight ``1 / m``
    (our choice: equal weights in the linear limit).

    Parameters
    ----------
    start
        The weights that every run started from.
    runs
        The weights of the runs, such as their averages.
    eta
        See :func:`liti`.

    Raises
    ------
    ValueError
        As for :func:`slerp`, and if there are no runs.

    Examples
    --------
    >>> import torch
    >>> zero, x, y = (dict(w=torch.tensor(v)) for v in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]))
    >>> warp(zero, [x, y], eta=0.5)["w"]
    tensor([0.3536, 0.3536])
    """
    if not runs:
        raise ValueError("there are no runs to merge")
    merged: Named = runs[0]
    for m, run in enumerate(runs[1:], 2):
        merged = slerp(start, merged, run, 1 / m)
    return liti(start, merged, eta)


def _same_form(start: Named, *others: Named) -> None:
    for other in others:
        if set(other) != set(start):
            raise ValueError(f"models of different form: names that only one has are {sorted(set(start) ^ set(other))}")
        for name, base in start.items():
            if other[name].shape != base.shape:
                raise ValueError(f"{name} has shapes {tuple(base.shape)} and {tuple(other[name].shape)}")
