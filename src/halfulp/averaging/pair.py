"""Whether a saved weight average can still move: from its values, the grid around them, and the live weights.

An update is ``(1 - decay) (live - average)``. Nearest rounding lets it through if it is at least half the spacing of
the grid there; stochastic rounding with a probability of their ratio, so that nothing is lost in the mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halfulp.averaging.source import clean_name
from halfulp.engine.storage import FLOAT32
from halfulp.numbers.quantizer import Quantizer

__all__ = ["PairRow", "check_pair"]

AVERAGES = ("ema", "ema_model", "model_ema", "state_dict_ema", "ema_state_dict", "average")
"""Keys under which checkpoints keep an averaged model."""
MODELS = ("state_dict", "model", "module", "model_state_dict")
"""Keys under which they keep a model."""
PREFIXES = ("ema_model.", "online_model.")


@dataclass(frozen=True)
class PairRow:
    """One tensor of a saved average beside its live twin.

    Parameters
    ----------
    name, dtype
        Name of the tensor, and how the average stores it: torch's dtype, or the format of an average of this library.
    rounding
        Rounding of an average of this library; ``None`` where the file does not say, which counts as nearest.
    elements
        Elements that differ from the live ones.
    movable
        Share of these whose next update gets through.
    gap
        Root mean square distance of average and live, relative to the live weights.
    """

    name: str
    dtype: str
    rounding: str | None
    elements: int
    movable: float
    gap: float

    @property
    def verdict(self) -> str:
        """``"moves"``, ``"frozen"`` or ``"half frozen"``; ``"equal"`` where there is nothing to average.

        What rounds stochastically moves in the mean, however few updates get through.
        """
        if not self.elements:
            return "equal"
        if self.rounding == "stochastic":
            return "moves"
        return "moves" if self.movable > 0.9 else "frozen" if self.movable < 0.1 else "half frozen"


def check_pair(average: Mapping[str, Any], live: Mapping[str, Any], decay: float = 0.9999) -> list[PairRow]:
    """Whether a saved average can still move: for each tensor that both have, what becomes of its next update.

    Parameters
    ----------
    average
        State dictionary of an averaged model, of an average of this library, or a checkpoint that holds either
        (``ema``, ``state_dict_ema`` ...; ``ema_model.*`` of ema-pytorch). Prefixes such as ``module.`` do not matter.
    live
        State dictionary of the live model, or a checkpoint that holds it. May be the same file.
    decay
        Decay of the average.

    Raises
    ------
    ValueError
        Nothing in common, or an average that is stored as a difference, which is written anew at each step.

    Examples
    --------
    >>> import torch
    >>> live = {"w": torch.full((4, 4), 1.01)}
    >>> [row.verdict for row in check_pair({"module.w": torch.ones(4, 4, dtype=torch.bfloat16)}, live)]
    ['frozen']
    """
    if not 0.0 < decay < 1.0:
        raise ValueError(f"the decay lies between 0 and 1, got {decay}")
    theirs = {_plain(n): t for n, t in _tensors(live, MODELS, "online_model.").items()}
    rows = [row for row in _rows(average, theirs, decay) if row is not None]
    if not rows:
        raise ValueError("the two state dictionaries have no floating-point tensor of the same name and shape")
    return rows


def _rows(average: Any, theirs: Mapping[str, Tensor], decay: float) -> Iterator[PairRow | None]:
    own = _own(average)
    if own is None:
        for name, stored in _tensors(average, (*AVERAGES, *MODELS), "ema_model.").items():
            if stored.is_floating_point():
                yield _row(_plain(name), stored, theirs, decay, None)
        return
    if own.get("difference"):
        raise ValueError("this average is stored as its difference to the live weights, which no rounding freezes")
    low = Quantizer.from_spec(own["storage"]).with_rounding(own["rounding"])
    for name, entries in own["averages"].items():
        codes, scale = entries["average"], entries.get("average_scale")
        twin = theirs.get(name)
        if twin is not None:
            quantizer = FLOAT32 if codes.dtype == torch.float32 else low
            stored = quantizer.dequantize(codes, scale, twin.shape)
            yield _row(name, stored, theirs, decay, quantizer)


def _row(
    name: str, stored: Tensor, theirs: Mapping[str, Tensor], decay: float, quantizer: Quantizer | None
) -> PairRow | None:
    """`quantizer` of an average of this library; torch's cast of anything else."""
    twin = theirs.get(name)
    if twin is None or twin.shape != stored.shape or not stored.numel():
        return None
    e, x = stored.double(), twin.double()
    due, update = e != x, (x - e) * (1 - decay)
    if quantizer is None:
        moved = ((e + update).to(stored.dtype) != stored).double()
    elif quantizer.format.is_float32:
        moved = ((e + update).float() != stored).double()
    else:
        steps = update.abs() / quantizer.spacing(stored).clamp_min(2.0**-1000)
        moved = steps.clamp_max(1.0) if quantizer.stochastic else (steps >= 0.5).double()
    count = int(due.sum())
    gap = float((e - x).norm() / x.norm().clamp_min(1e-300))
    movable = float((moved * due).sum() / count) if count else 0.0
    if quantizer is None:
        return PairRow(name, str(stored.dtype).removeprefix("torch."), None, count, movable, gap)
    return PairRow(name, quantizer.format.name, quantizer.rounding, count, movable, gap)


def _own(saved: Any) -> Mapping[str, Any] | None:
    """State dictionary of an average of this library, at the top or one level down."""
    if not isinstance(saved, Mapping):
        return None
    for candidate in (saved, *(v for v in saved.values() if isinstance(v, Mapping))):
        if {"storage", "rounding", "averages"} <= set(candidate):
            return candidate
    return None


def _tensors(saved: Any, keys: tuple[str, ...], prefix: str) -> dict[str, Tensor]:
    """Tensors of a saved model: what has a prefix, what stands under one of the keys, else the tree itself."""
    while isinstance(saved, Mapping):
        inner = [saved[k] for k in keys if isinstance(saved.get(k), Mapping)]
        if not inner:
            found = {str(n): t for n, t in saved.items() if isinstance(t, Tensor)}
            return {n: t for n, t in found.items() if n.startswith(prefix)} or found
        saved = inner[0]
    raise ValueError(f"no saved model: expected names and tensors, got {type(saved).__name__}")


def _plain(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return clean_name(name)
