"""Check which states of a saved optimizer can still move, from the stored values and their grid.

Let ``up`` and ``down`` be the gaps from a stored value to its neighbours. An update ``d`` survives nearest rounding if
``d >= up / 2`` or ``-d >= down / 2``. It survives stochastic rounding with probability ``d / up`` or ``-d / down``. Two
questions are answered for each state, on a sample of its elements:

* **can fall**: would a zero gradient (``d = -(1 - beta) v``) change it? Under stochastic rounding: could it?
* **gets through**: the share of updates that change it, if gradients continue as before. For a second moment, ``g**2``
  is chi-square around the stored value. For a first moment, ``g`` is normal with the spread that the state implies.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from halfulp.checkpoint.decode import SavedState, saved_states
from halfulp.engine.loading import reading
from halfulp.libraries.base import Codebook, Codec, Plain
from halfulp.libraries.ours import QuantizerCodec
from halfulp.libraries.torch_optim import NOT_AVERAGES, betas_of
from halfulp.numbers.formats import FORMATS
from halfulp.numbers.quantizer import float_spacing

__all__ = ["Movable", "left_out", "movable"]

SAMPLE = 4096
DEFAULTS = {"exp_avg": 0.9, "exp_avg_sq": 0.999, "momentum_buffer": 0.9, "square_avg": 0.99, "exp_avg_slow": 0.9999}
PART = re.compile("_scale$|^(state|absmax|qmap)[12]$|^quant_map$")
"""Tensors that are part of another state."""
SECOND = ("exp_avg_sq", "square_avg", "max_exp_avg_sq")


@dataclass(frozen=True)
class Movable:
    """States of one slot and format in a saved optimizer.

    Parameters
    ----------
    slot, format, rounding
        Slot and storage.
    beta
        Decay. `assumed` says that the checkpoint does not hold it.
    tensors, elements
        Number of tensors, and of their elements.
    zero
        Share of stored zeros.
    can_fall, gets_through
        See the module's docstring.
    scale_moves
        Whether blocks have an fp32 scale that follows their largest element, so that values move while codes do not.
    valid
        Whether all values are finite, and second moments not negative. Codes are sampled for this.
    """

    slot: str
    format: str
    rounding: str
    beta: float
    assumed: bool
    tensors: int
    elements: int
    zero: float
    can_fall: float
    gets_through: float
    scale_moves: bool = False
    valid: bool = True

    @property
    def verdict(self) -> str:
        """What is wrong, in a few words."""
        if not self.valid:
            return "damaged, or diverged"
        if self.format == "float32":
            return "moves"
        if self.gets_through >= 0.5:
            return "moves" if self.can_fall > 0.5 else "moves, but cannot fall"
        if self.rounding == "stochastic":
            return "moves, without bias"
        if self.scale_moves:
            return "codes stand, block scales move"
        if self.can_fall < 0.5 and self.slot in SECOND:
            return "stuck: rises at best, cannot fall"
        return "stuck: most updates stall"


@reading("the state_dict")
def movable(state_dict: Mapping[str, Any]) -> list[Movable]:
    """Judge every state of a saved optimizer; see the module's docstring.

    Raises
    ------
    ValueError
        If there are no states, or they do not fit together.
    """
    groups = {}
    for group in state_dict["param_groups"]:
        for key in group.get("params", ()):
            groups[str(key)] = group  # torch.distributed.checkpoint turns numbers into strings
    tallies: dict[tuple[str, str, str, float, bool, bool], list[tuple[int, bool, float, float, float]]] = {}
    for key, entries in state_dict["state"].items():
        if not isinstance(entries, Mapping):
            raise ValueError(f"the states of {key!r} are a {type(entries).__name__}, not a dictionary")
        group = groups.get(str(key), {})
        for slot, state in saved_states(entries, group).items():
            slot = "exp_avg" if slot == "state1" else slot
            if slot not in DEFAULTS or math.prod(state.shape) == 0:
                continue
            beta, assumed = _decay(slot, group)
            moves = len(state.tensors) > 1 and state.tensors[1].is_floating_point()
            kind = (slot, state.codec.format, state.codec.rounding, beta, assumed, moves)
            tallies.setdefault(kind, []).append((math.prod(state.shape), *_judge(state, slot, beta)))
    if not tallies:
        others = "".join(f"; {slot}: {why}" for slot, why in left_out(state_dict).items())
        raise ValueError(f"the optimizer has made no step, or keeps no averages that are known here{others}")
    rows = []
    for (slot, fmt, rounding, beta, assumed, moves), found in sorted(tallies.items(), key=lambda item: item[0][:2]):
        total = sum(n for n, *_ in found)
        zero, fall, through = (sum(f[0] * f[i] for f in found) / total for i in (2, 3, 4))
        valid = all(f[1] for f in found)
        rows.append(Movable(slot, fmt, rounding, beta, assumed, len(found), total, zero, fall, through, moves, valid))
    return rows


def left_out(state_dict: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of saved states that :func:`movable` does not judge, and why."""
    found: dict[str, str] = {}
    for entries in state_dict["state"].values():
        for key, value in entries.items() if isinstance(entries, Mapping) else ():
            if not isinstance(value, Tensor) or value.ndim == 0 or not value.is_floating_point():
                continue
            reason = NOT_AVERAGES.get(key, "no average that is known here")
            if reason is not None and key not in DEFAULTS and not PART.search(str(key)):
                found[str(key)] = reason
    return found


def _decay(slot: str, group: Mapping[str, Any]) -> tuple[float, bool]:
    betas = betas_of(group)
    places = {"exp_avg": 0, "exp_avg_sq": 1, "exp_avg_slow": 2}
    if slot in places and len(betas) > places[slot]:
        return betas[places[slot]], False
    for key in {"momentum_buffer": ("momentum",), "square_avg": ("alpha", "rho")}.get(slot, ()):
        if key in group:
            return float(group[key]), False
    return DEFAULTS[slot], True


def _judge(state: SavedState, slot: str, beta: float) -> tuple[bool, float, float, float]:
    """Return whether values are valid, and the shares of zeros, elements that can fall, and updates that arrive."""
    count = math.prod(state.shape)
    index = torch.arange(min(count, SAMPLE), device="cpu")
    if count > SAMPLE:
        index = index * (count - 1) // (SAMPLE - 1)
    values, up, down = _with_gaps(state, index)
    alive = values != 0
    zero = 1.0 - float(alive.double().mean())
    if not _valid(state, slot, values):
        return False, zero, 0.0, 0.0
    if not bool(alive.any()):
        return True, zero, 1.0, 1.0  # an untouched state is not stuck
    v, up, down = values[alive], up[alive], down[alive]
    stochastic = state.codec.rounding == "stochastic"
    loss = (1 - beta) * v
    toward_zero = torch.where(v > 0, down, up)
    can_fall = (loss.abs() > 0) if stochastic else (loss.abs() >= toward_zero / 2)
    if slot in SECOND:
        updates = (1 - beta) * v.unsqueeze(-1) * (_normal().square() - 1.0)
    else:
        gain = 1.0 if slot == "momentum_buffer" else 1 - beta
        spread = v.square().mean().sqrt() * math.sqrt(1 - beta * beta) / gain if 0 < beta < 1 else v.abs().max()
        updates = gain * spread * _normal() - (1 - beta) * v.unsqueeze(-1)
    room = torch.where(updates > 0, up.unsqueeze(-1), down.unsqueeze(-1))
    moved = (updates.abs() / room).clamp_max(1.0) if stochastic else (updates.abs() >= room / 2).double()
    return True, zero, float(can_fall.double().mean()), float(moved.mean())


def _valid(state: SavedState, slot: str, sample: Tensor) -> bool:
    """Whether a step could have stored these values, of which floats and scales are all looked at."""
    floats = [t for t in state.tensors if t.dtype in (torch.float32, torch.bfloat16, torch.float16)]
    signed = [sample, *(floats if isinstance(state.codec, Plain) else [])]
    return all(bool(torch.isfinite(x).all()) for x in (sample, *floats)) and not (
        slot in SECOND and any(bool((x < 0).any()) for x in signed)
    )


@lru_cache(maxsize=1)
def _normal() -> Tensor:
    """Centers of 128 equally likely intervals of the normal distribution."""
    middles = (torch.arange(128, dtype=torch.float64, device="cpu") + 0.5) / 128
    return math.sqrt(2) * torch.erfinv(2 * middles - 1)


def _with_gaps(state: SavedState, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the values and the distances to the next larger and next smaller stored value, in float64."""
    values = state.values(index).double()
    levels = _levels(state.codec)
    if levels is None:
        fmt = FORMATS.get(state.codec.format, FORMATS["float32"])
        gap = float_spacing(values, fmt)
        return values, gap, gap
    unit = _unit(state, index)
    y = torch.where(unit > 0, values / unit.clamp_min(1e-300), 0.0)
    at = torch.searchsorted((levels[1:] + levels[:-1]) / 2, y)
    up = levels[(at + 1).clamp_max(len(levels) - 1)] - levels[at]
    down = levels[at] - levels[(at - 1).clamp_min(0)]
    # beyond the largest level, an update moves the scale of the block
    up, down = torch.where(up == 0, down, up), torch.where(down == 0, up, down)
    return values, up * unit, down * unit


def _levels(codec: Codec) -> Tensor | None:
    """Return the sorted values of a scaled format, in units of the scale; ``None`` for plain floats."""
    if isinstance(codec, Plain):
        return None
    if isinstance(codec, Codebook):
        return torch.tensor(sorted(set(codec.levels)), dtype=torch.float64, device="cpu")
    fmt = codec.quantizer.format if isinstance(codec, QuantizerCodec) else FORMATS.get(codec.format)
    if fmt is None:
        raise ValueError(f"the grid of {codec.format} is unknown")
    return torch.tensor(fmt.grid(), dtype=torch.float64, device="cpu") if fmt.scaled else None


def _unit(state: SavedState, index: Tensor) -> Tensor:
    """Return the scale of each element, in float64."""
    located = state.codec.locate(state.shape, index)
    scale = state.tensors[1].detach().reshape(-1)[located.indices[1]]
    if isinstance(state.codec, QuantizerCodec):
        return state.codec.quantizer.scaling.values(scale).double()
    return scale.double()
