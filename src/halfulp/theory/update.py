"""Effect of a stored moment on AdamW's update, for the gradients of uneven blocks.

Blocks are followed for some hundred steps. One moment is stored and rounded at each step, the other is exact, and the
update is the library's, including its bound (:func:`halfulp.rules.adam.max_ratio`). So a second moment of zero costs
what it costs in training: the next update divides by the root of ``(1 - beta2) g**2``, of the last gradient alone, and
is far too large. If a floor has stored the smallest code instead, the update is too small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from halfulp.rules.adam import max_ratio
from halfulp.theory.blocks import Blocks
from halfulp.theory.sizes import draw_sizes
from halfulp.theory.stepper import StoredAverage, Update
from halfulp.theory.storing import Storing

__all__ = ["Moments", "UpdateError", "update_law"]

Single = npt.NDArray[np.float32]
Keep = Callable[[Single], tuple[Single, Single]]
"""Function that returns the stored values and their codes for new values."""
EPS = np.float32(1e-8)


class Moments:
    """Adam's two moments of some elements, both zero at first, and the updates that follow from them.

    `stores` says how each is rounded (``None`` for not at all), and `periods` how many steps apart it is reset.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        betas: tuple[float, float],
        stores: Sequence[Keep | None] = (None, None),
        periods: tuple[int | None, int | None] = (None, None),
    ) -> None:
        self.betas, self.periods, self.ages = betas, periods, [0, 0]
        self.averages: list[StoredAverage[npt.NDArray[Any]]] = [
            StoredAverage(beta, store or (lambda x: (x, x)), np.zeros(shape, np.float32))
            for beta, store in zip(betas, stores, strict=True)
        ]
        self.last: list[Update[npt.NDArray[Any]]] = []
        """The last step of each moment."""

    def update(self, gradient: Single) -> Single:
        """Return the update for one more gradient, from the moments before they are stored."""
        for i in range(2):
            if self.ages[i] == self.periods[i]:
                self.averages[i].value, self.ages[i] = np.zeros_like(gradient), 0
            self.ages[i] += 1
        self.last = [self.averages[0].step(gradient), self.averages[1].step(gradient * gradient)]
        first, second = (self.last[i].exact / np.float32(1 - self.betas[i] ** self.ages[i]) for i in range(2))
        bound = np.float32(max_ratio(*self.betas, max(self.ages)))
        return np.asarray(np.clip(first / (np.sqrt(second) + EPS), -bound, bound), np.float32)


@dataclass(frozen=True)
class UpdateError:
    """Averages over blocks, and over steps after the first quarter.

    `error` is the mean squared difference from the exact update, relative to its mean square; `stalled` the share of
    the stored moment's updates that stalled; and `zeros` the share of stored values that are zero.
    """

    error: float
    stalled: float
    zeros: float


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
    gradients, exact = _exact(betas, blocks.spread, paths, blocks.block_size, steps, seed)
    store = Storing(blocks, np.random.Generator(np.random.SFC64(seed + 1))).store
    moments = Moments(exact.shape[1:], betas, (None, store) if square else (store, None))
    wrong = right = 0.0
    lost = due = zeros = 0
    for t, (gradient, true) in enumerate(zip(gradients, exact, strict=True)):
        apart = moments.update(gradient) - true
        if t >= steps // 4:
            step = moments.last[square]
            wrong += float(np.vdot(apart, apart))
            right += float(np.vdot(true, true))
            due += np.count_nonzero(step.due)
            lost += np.count_nonzero(step.lost)
            zeros += np.count_nonzero(step.after == 0)
    return UpdateError(wrong / right, lost / max(due, 1), zeros / (exact[0].size * (steps - steps // 4)))


@lru_cache(maxsize=4)
def _exact(
    betas: tuple[float, float], spread: float, paths: int, block_size: int, steps: int, seed: int
) -> tuple[Single, Single]:
    """Return gradients, ``(steps, blocks, elements)``, and the exact updates."""
    sizes = draw_sizes(paths, block_size, spread, seed).astype(np.float32)
    rng = np.random.Generator(np.random.SFC64(seed))
    gradients = rng.standard_normal((steps, *sizes.shape), dtype=np.float32) * sizes
    exact = Moments(sizes.shape, betas)
    return gradients, np.stack([exact.update(gradient) for gradient in gradients])
