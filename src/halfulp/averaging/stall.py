"""How many updates of a weight average are lost: measured while it moves, and seen in a saved pair of models.

What to expect is in :mod:`halfulp.averaging.walk`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from halfulp.averaging.ema import EMA

__all__ = ["PairRow", "Watched", "check_pair", "model_tensors", "watch"]


@dataclass(frozen=True)
class Watched:
    """What :func:`watch` measured of one average.

    Parameters
    ----------
    due, stalled
        Updates that would have changed the stored value in exact arithmetic, and those of them that did not.
    """

    due: int
    stalled: int

    @property
    def fraction(self) -> float:
        """Stalled fraction; NaN where nothing was due."""
        return self.stalled / self.due if self.due else math.nan


@contextmanager
def watch(ema: EMA) -> Iterator[dict[str, Watched]]:
    """Count the updates of an average that stall, in the ``with`` block; the kernels count every element.

    Examples
    --------
    >>> import torch, halfulp.averaging
    >>> model = torch.nn.Linear(64, 64)
    >>> ema = halfulp.averaging.EMA(model, 0.9999, state="bf16", rounding="nearest")
    >>> with halfulp.averaging.watch(ema) as stalled:
    ...     _ = model.weight.data.add_(1e-3)
    ...     ema.update()
    >>> stalled["weight"].fraction > 0.9
    True
    """
    found: dict[str, Watched] = {}
    ema.counts = {}
    try:
        yield found
    finally:
        for name, counts in ema.counts.items():
            due, stalled = (int(n) for n in counts[0])
            found[name] = Watched(due, stalled)
        ema.counts = None


@dataclass(frozen=True)
class PairRow:
    """One tensor of a saved average beside its live twin.

    Parameters
    ----------
    name, dtype
        Of the tensor, as saved in the average.
    elements
        Elements that differ from the live ones.
    movable
        Share of these whose next update is at least half a unit in the last place of the average, so that nearest
        rounding lets it through.
    gap
        Root mean square distance of average and live, relative to the live weights.
    """

    name: str
    dtype: str
    elements: int
    movable: float
    gap: float

    @property
    def verdict(self) -> str:
        """``"moves"``, ``"frozen"`` or ``"half frozen"``; ``"equal"`` where there is nothing to average."""
        if not self.elements:
            return "equal"
        return "moves" if self.movable > 0.9 else "frozen" if self.movable < 0.1 else "half frozen"


def model_tensors(saved: Any) -> dict[str, Tensor]:
    """Tensors of a saved model: the tree itself, or what stands under ``state_dict``, ``model`` or ``module`` in it."""
    while isinstance(saved, Mapping):
        inner = [saved[k] for k in ("state_dict", "model", "module") if isinstance(saved.get(k), Mapping)]
        if not inner:
            return {str(n): t for n, t in saved.items() if isinstance(t, Tensor)}
        saved = inner[0]
    raise ValueError(f"no saved model: expected names and tensors, got {type(saved).__name__}")


def check_pair(average: Mapping[str, Any], live: Mapping[str, Any], decay: float = 0.9999) -> list[PairRow]:
    """Whether a saved average can still move: for each tensor that both have, what nearest rounding would do next.

    Parameters
    ----------
    average, live
        State dictionaries of the averaged and the live model; prefixes such as ``module.`` do not matter.
    decay
        Of the average.

    Examples
    --------
    >>> import torch
    >>> live = {"w": torch.full((4, 4), 1.01)}
    >>> [row.verdict for row in check_pair({"module.w": torch.ones(4, 4, dtype=torch.bfloat16)}, live)]
    ['frozen']
    """
    from halfulp.averaging.base import clean_name

    if not 0.0 < decay < 1.0:
        raise ValueError(f"the decay lies between 0 and 1, got {decay}")
    ours = {clean_name(n.removeprefix("ema_model.")): t for n, t in average.items() if isinstance(t, Tensor)}
    theirs = {clean_name(n.removeprefix("online_model.")): t for n, t in live.items() if isinstance(t, Tensor)}
    rows = []
    for name, stored in ours.items():
        twin = theirs.get(name)
        if twin is None or twin.shape != stored.shape or not stored.is_floating_point() or not stored.numel():
            continue
        rows.append(_pair_row(name, stored, twin, decay))
    if not rows:
        raise ValueError("the two state dictionaries have no floating-point tensor of the same name and shape")
    return rows


def _pair_row(name: str, stored: Tensor, twin: Tensor, decay: float) -> PairRow:
    e, x = stored.double(), twin.double()
    due = e != x
    moved = (e + (x - e) * (1 - decay)).to(stored.dtype) != stored
    count = int(due.sum())
    gap = float((e - x).norm() / x.norm().clamp_min(1e-300))
    movable = float((moved & due).sum() / count) if count else 0.0
    return PairRow(name, str(stored.dtype).removeprefix("torch."), count, movable, gap)
