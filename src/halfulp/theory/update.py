"""Effect of a stored moment on AdamW's update, for the gradients of uneven blocks.

Blocks are followed for some hundred steps. One moment is stored and rounded at each step, the other is exact, and the
update is the library's, including its bound (:func:`halfulp.rules.adam.max_ratio`). So a second moment of zero costs
what it costs in training: the next update divides by the root of ``(1 - beta2) g**2``, of the last gradient alone, and
is far too large. If a floor has stored the smallest code instead, the update is too small.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from halfulp.rules.adam import max_ratio
from halfulp.theory.blocks import Blocks
from halfulp.theory.sizes import draw_sizes
from halfulp.theory.stepper import StoredAverage, successor
from halfulp.theory.storing import Storing

__all__ = ["UpdateError", "update_law"]

Single = npt.NDArray[np.float32]
EPS = np.float32(1e-8)


@dataclass(frozen=True)
class UpdateError:
    """Averages over blocks, and over steps after the first quarter.

    `error` is the mean squared difference from the exact update, relative to its mean square; `stalled` the share of
    the stored moment's updates that stalled; and `zeros` the share of stored values that are zero.
    """

    error: float
    stalled: float
    zeros: float


@dataclass(frozen=True)
class _Exact:
    """Gradients ``(steps, blocks, elements)``, and the exact moments' results."""

    sizes: npt.NDArray[np.float64]
    gradients: Single
    first: Single
    inverse_root: Single
    updates: Single


@lru_cache(maxsize=4)
def _exact(betas: tuple[float, float], spread: float, paths: int, block_size: int, steps: int, seed: int) -> _Exact:
    """Return bias-corrected first moments, inverse roots of second moments, and updates."""
    sizes = draw_sizes(paths, block_size, spread, seed)
    rng = np.random.Generator(np.random.SFC64(seed))
    gradients = rng.standard_normal((steps, *sizes.shape), dtype=np.float32) * sizes.astype(np.float32)
    first, second = np.empty_like(gradients), np.empty_like(gradients)
    m = np.zeros(sizes.shape)
    v = np.zeros(sizes.shape)
    for t, g in enumerate(gradients.astype(np.float64)):
        m, v = successor(betas[0], m, g), successor(betas[1], v, g * g)
        first[t] = m / (1 - betas[0] ** (t + 1))
        second[t] = 1 / (np.sqrt(v / (1 - betas[1] ** (t + 1))) + EPS)
    return _Exact(sizes, gradients, first, second, first * second)


def update_law(blocks: Blocks, beta_other: float, steps: int = 400, *, paths: int = 16, seed: int = 0) -> UpdateError:
    """Return the error of AdamW's update with one stored moment, which is a second one if its drive is a square.

    Gradients are independent and normal. `beta_other` is the decay of the other moment, and `paths` the number of
    blocks.

    Examples
    --------
    >>> from halfulp.numbers.formats import get_format
    >>> e4m0 = Blocks(get_format("ufloat4_e4m0"), 0.999, "stochastic", spread=1.0)
    >>> law = update_law(e4m0, 0.9)
    >>> bool(law.zeros < 0.05), bool(law.error > 1)  # few zeros, and they cost more than all else
    (True, True)
    """
    if steps < 4 or paths < 1:
        raise ValueError(f"steps is at least 4 and paths 1, got steps={steps}, paths={paths}")
    square = blocks.drive.nonnegative
    betas = (beta_other, blocks.beta) if square else (blocks.beta, beta_other)
    exact = _exact(betas, blocks.spread, paths, blocks.block_size, steps, seed)
    storing = Storing(blocks, np.random.Generator(np.random.SFC64(seed + 1)))
    average = StoredAverage(blocks.beta, storing.store, np.zeros(exact.sizes.shape, dtype=np.float32))
    wrong = right = 0.0
    lost = due = zeros = 0
    for t in range(steps):
        gradient = exact.gradients[t]
        step = average.step(gradient * gradient if square else gradient)
        if t >= steps // 4:
            bound = max_ratio(*betas, t + 1)
            correction = np.float32(1 - blocks.beta ** (t + 1))
            if square:
                update = exact.first[t] / (np.sqrt(step.exact / correction) + EPS)
            else:
                update = step.exact / correction * exact.inverse_root[t]
            np.clip(update, -bound, bound, out=update)
            update -= exact.updates[t]
            wrong += float(np.vdot(update, update))
            right += float(np.vdot(exact.updates[t], exact.updates[t]))
            due += np.count_nonzero(step.due)
            lost += np.count_nonzero(step.lost)
            zeros += np.count_nonzero(step.after == 0)
    return UpdateError(wrong / right, lost / max(due, 1), zeros / (exact.sizes.size * (steps - steps // 4)))
