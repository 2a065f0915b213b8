"""Check whether a saved weight average can still move, from its values, its grid and the live weights.

An update is ``(1 - decay) (live - average)``. Nearest rounding applies it if it is at least half the local spacing of
the grid. Stochastic rounding applies it with the probability of their ratio, so that nothing is lost on average.
"""

from __future__ import annotations

import math
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
"""Keys under which checkpoints keep a model."""
PREFIXES = ("ema_model.", "online_model.")


@dataclass(frozen=True)
class PairRow:
    """One tensor of a saved average, compared with the live one.

    Parameters
    ----------
    name, dtype
        Name of the tensor, and its storage: torch's dtype, or the format of an average of this library.
    rounding
        Rounding of an average of this library. ``None`` if the file does not say, which counts as nearest.
    elements
        Number of elements that differ from the live ones.
    movable
        Share of those elements whose next update changes the stored value.
    gap
        Root mean square difference of average and live weights, relative to the live weights.
    """

    name: str
    dtype: str
    rounding: str | None
    elements: int
    movable: float
    gap: float

    @property
    def invalid(self) -> bool:
        """Whether a value of either is not finite."""
        return not math.isfinite(self.gap)

    @property
    def verdict(self) -> str:
        """``"moves"``, ``"frozen"`` or ``"half frozen"``; ``"equal"`` if there is nothing to average.

        Values that are not finite are ``"damaged, or diverged"``.

        Under stochastic rounding an average moves in the mean, however few updates get through.
        """
        if self.invalid:
            return "damaged, or diverged"
        if not self.elements:
            return "equal"
        if self.rounding == "stochastic":
            return "moves"
        return "moves" if self.movable > 0.9 else "frozen" if self.movable < 0.1 else "half frozen"


def check_pair(average: Mapping[str, Any], live: Mapping[str, Any], decay: float = 0.9999) -> list[PairRow]:
    """Check whether a saved average can still move, for each tensor that both models have.

    Parameters
    ----------
    average
        State dictionary of an averaged model, of an average of this library, or a checkpoint that holds either
        (``ema``, ``state_dict_ema`` ...; ``ema_model.*`` of ema-pytorch). Prefixes such as ``module.`` are ignored.
    live
        State dictionary of the live model, or a checkpoint that holds it. It may be the same file.
    decay
        Decay of the average.

    Raises
    ------
    ValueError
        If the models have nothing in common, or the average is stored as a difference, which is rewritten at each step.

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
    """Compare one tensor. `quantizer` is that of an average of this library; without it, torch's cast is assumed."""
    twin = theirs.get(name)
    if twin is None or twin.shape != stored.shape or not stored.numel():
        return None
    e, x = stored.double(), twin.double()
    due, update = e != x, (x - e) * (1 - decay)
    if quantizer is None or quantizer.format.is_float32:
        moved = ((e + update).to(stored.dtype) != stored).double()
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
    """Return the state dictionary of an average of this library, at the top or one level down."""
    if not isinstance(saved, Mapping):
        return None
    for candidate in (saved, *(v for v in saved.values() if isinstance(v, Mapping))):
        if {"storage", "rounding", "averages"} <= set(candidate):
            return candidate
    return None


def _tensors(saved: Any, keys: tuple[str, ...], prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a saved model: those with a prefix, those under one of the keys, or the whole tree."""
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
