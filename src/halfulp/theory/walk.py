"""Predicted stalling of a weight average, driven by the random walk of the weights.

Let ``d`` be the distance of a live weight from its stored average, ``u`` the local grid spacing, ``s`` the standard
deviation of the weight's (independent) steps, and ``w = 1 - decay``. The update is ``w d``. Nearest rounding drops it
below ``u / 2``, so the average needs a distance of ``D = u / (2 w)`` to move at all.

* Stochastic: ``d`` is normal. Its variance has two parts. The walk's is ``s^2 (1 - (1 - w)^(2 t)) / (2 w)`` after ``t``
  updates from a copy. The rounding noise's follows ``v' = -2 w v + w u E|d|`` from ``v = u^2 / 12``. An update moves
  the average with probability ``E min(1, w |d| / u)``. In the long run, ``d`` has the variance ``s^2 / (2 w) + u sqrt(2
  v / pi) / 2``, where ``v`` is the total.
* Nearest: nothing moves for about ``(D / s)^2`` updates. In the long run ``d`` walks freely between ``-D`` and ``D``.
  Beyond, it drifts back by ``u`` per update. Its density is flat, with exponential tails of length ``s^2 / (2 u)``
  outside. The average moves in the tails: in a share of ``q / (2 D + q)`` of updates, with ``q = s^2 / u``. For a
  finite number of updates the walk is simulated. In floating point ``u`` grows with the average, so it covers about ``1
  / (1 + D / |average|)`` of a long distance: with bf16, a quarter at decay 0.999, a thirtieth at 0.9999.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from halfulp.numbers.formats import Format, get_format
from halfulp.numbers.quantizer import Rounding, check_rounding, float_spacing
from halfulp.theory.arguments import check_beta, check_number, check_steps

__all__ = ["SAMPLE", "WalkStall", "check_walk", "constant_spacing", "expected", "scaled_float_spacing", "walk_stall"]

MANTISSAS = torch.exp2((torch.arange(32, dtype=torch.float64, device="cpu") + 0.5) / 32)
"""Log-uniform mantissas."""
SAMPLE = 4096
"""Number of sampled elements of a tensor, and of walks where those are simulated."""
Spacing = Callable[[Tensor], Tensor]
"""Function that returns the grid spacing at each stored value."""


@dataclass(frozen=True)
class WalkStall:
    """Effect of rounding on a weight average.

    Parameters
    ----------
    stalled
        Share of updates that stall.
    frozen_for
        Steps before the first update gets through, starting from a copy of the weights (nearest; 0 for stochastic).
    distance
        Final root mean square distance to the average in exact arithmetic, relative to the weight for
        :func:`walk_stall`, and to the root mean square weight for :func:`halfulp.averaging.predict`. For the long run
        of nearest rounding, the distance ``D``.
    gone
        Share of the exact average's displacement that the stored one has covered at the end (its projection). 1 for
        stochastic; NaN for the long run of nearest.

    Examples
    --------
    >>> walk_stall("bf16", decay=0.999, step=1e-5, rounding="stochastic").gone
    1.0
    """

    stalled: float
    frozen_for: float
    distance: float
    gone: float


def walk_stall(
    fmt: Format | str,
    decay: float,
    step: float,
    rounding: Rounding = "stochastic",
    absmax_ratio: float | None = None,
    updates: int | None = None,
) -> WalkStall:
    """Predict stalling for weights that take independent steps.

    Parameters
    ----------
    fmt
        Format of the average. Floats have a spacing relative to the weight. Integer formats need `absmax_ratio`.
    decay
        Decay of the average.
    step
        Standard deviation of a weight's step, relative to the weight.
    rounding
        ``"stochastic"`` or ``"nearest"``.
    absmax_ratio
        Largest magnitude in the block divided by that of the weight, for formats with an even grid.
    updates
        Number of updates, starting from a copy of the weights, that the result averages over. Default: the long run.

    Examples
    --------
    >>> walk_stall("bf16", 0.9999, 1e-4, "nearest").stalled > 0.99
    True
    """
    fmt = get_format(fmt)
    check_walk(decay, step, updates)
    check_rounding(rounding)
    ones = torch.ones_like(MANTISSAS)
    if fmt.kind == "float":
        weights, spacing = MANTISSAS, scaled_float_spacing(fmt, ones)
    elif fmt.kind == "int" and absmax_ratio is not None:
        weights, spacing = ones, constant_spacing(MANTISSAS * absmax_ratio / fmt.max)
    else:
        raise ValueError(
            f"the spacing of {fmt.name} is not relative to the weight: give absmax_ratio for integer formats"
        )
    return expected(weights, spacing, step * weights, weights, 1.0 - decay, rounding, updates)


def check_walk(decay: float, step: float, updates: int | None) -> None:
    """Raise ``ValueError`` for invalid arguments."""
    check_beta(decay, "decay")
    check_number("step", step, "a positive, finite size of the weights' steps", lambda x: 0.0 < x < math.inf)
    if updates is not None:
        check_steps(updates, "updates", least=1)


def constant_spacing(units: Tensor) -> Spacing:
    """Return the spacing of an even grid."""
    return lambda values: units.expand_as(values)


def scaled_float_spacing(fmt: Format, scale: Tensor) -> Spacing:
    """Return the spacing of a float format in units of a constant scale."""
    return lambda values: float_spacing(values / scale, fmt) * scale


def expected(
    weights: Tensor, spacing: Spacing, steps: Tensor, size: Tensor, w: float, rounding: Rounding, updates: int | None
) -> WalkStall:
    """Return the effect of rounding on an average of elements. Distances are root mean squares relative to `size`.

    `weights` are the stored values in float64, `spacing` gives the grid spacing at given values, `steps` is the
    standard deviation of a step of each element, and `w` is ``1 - decay``.
    """
    units = spacing(weights)
    if rounding == "stochastic":
        stalled, noise = _stochastic(units, w, steps, updates)
        return WalkStall(float(stalled.mean()), 0.0, _rms(noise / size), 1.0)
    reach = units / (2 * w)
    frozen = float((reach / steps).square().mean())
    if updates is None:
        tail = steps.square() / units
        return WalkStall(float((1 / (1 + tail / (2 * reach))).mean()), frozen, _rms(reach / size), math.nan)
    stalled, gone, distance = _walk(weights, spacing, steps, w, updates)
    return WalkStall(float(stalled.mean()), frozen, _rms(distance / size), gone)


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _walk(weights: Tensor, spacing: Spacing, s: Tensor, w: float, updates: int) -> tuple[Tensor, float, Tensor]:
    """Return the results for an average rounded to nearest: what stalls, the share of displacement, and the distance.

    It walks in at most some thousand strides of many steps. A stride moves by `span` updates of the present size, until
    the next one would stall.
    """
    count = min(updates, int(min(max(20 * updates * w, 500), 4000)))
    span = updates / count
    generator = torch.Generator().manual_seed(0)
    live = weights.expand(max(1, SAMPLE // len(weights)), -1).clone()
    exact, stored, fade, moves = live.clone(), live.clone(), (1 - w) ** span, torch.zeros_like(live)
    for _ in range(count):
        live += s * math.sqrt(span) * torch.randn(live.shape, generator=generator, dtype=torch.float64, device="cpu")
        exact += (live - exact) * (1 - fade)
        u, left = spacing(stored), live - stored
        size = left.abs()
        change = torch.round(w * size / u) * u
        moved = torch.minimum(change * span, (size - u / (2 * w)).relu())
        stored += torch.sign(left) * moved
        moves += moved / change.clamp_min(u)
    way = exact - weights
    gone = ((stored - weights) * way).sum() / way.square().sum()
    return 1 - moves.mean(dim=0) / updates, float(gone), (stored - exact).square().mean(dim=0).sqrt()


def _stochastic(u: Tensor, w: float, s: Tensor, updates: int | None) -> tuple[Tensor, Tensor]:
    """Return the share that stalls, and the standard deviation of the rounding noise at the end."""
    if updates is None:
        half = u / (2 * math.sqrt(2 * math.pi))
        root = half + (half.square() + s.square() / (2 * w)).sqrt()  # standard deviation of d: r^2 = walk + 2 half r
        return _lost(root * w / u), (root * math.sqrt(2 / math.pi) * u / 2).sqrt()
    noise, lost, before = u.square() / 12, torch.zeros_like(u), 0
    for age in sorted({round(updates ** (k / 200)) for k in range(201)}):
        span, middle = age - before, (age + before) / 2
        root = (s.square() * (-math.expm1(-2 * w * middle) / (2 * w)) + noise).sqrt()
        lost += span * _lost(root * w / u)
        fade = math.exp(-2 * w * span)
        noise = noise * fade + (1 - fade) / 2 * u * root * math.sqrt(2 / math.pi)
        before = age
    return lost / updates, noise.sqrt()


def _lost(a: Tensor) -> Tensor:
    """``1 - E min(1, a |z|)`` for a standard normal ``z``."""
    inverse = 1.0 / a
    return 1.0 + a * math.sqrt(2 / math.pi) * torch.expm1(-inverse.square() / 2) - torch.erfc(inverse / math.sqrt(2))
