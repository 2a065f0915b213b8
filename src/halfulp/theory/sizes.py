"""Gradient sizes within blocks, spread evenly over an ensemble.

The few largest elements of a block determine its scale, what underflows, and which element dominates the sum. If they
were drawn at random, they would cause most of the sampling error of underflow, and nearly all of that of the lag where
the largest element determines the scale. So they come from a sequence that fills the cube (Kronecker's, with the ratios
of Roberts, *The unreasonable effectiveness of quasirandom sequences*, 2018), by the spacings of order statistics
(Renyi, 1953).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["draw_sizes"]

LARGEST = 8
"""Number of elements per block whose sizes are spread evenly."""


def draw_sizes(paths: int, block_size: int, spread: float, seed: int = 0, *, first: int = 0) -> npt.NDArray[np.float64]:
    """Return the log-normal ``sigma`` of the elements of blocks, ``(paths, block_size)``, at all phases of an octave.

    Evenly spread sizes come first in each block, in falling order. `spread` is the standard deviation of the logarithm.
    `first` is the number of blocks that the ensemble already has, which the result continues.

    Examples
    --------
    >>> draw_sizes(64, 128, 1.0).shape
    (64, 128)
    """
    rng = np.random.default_rng((seed, first))
    ordered = min(LARGEST, block_size) if spread else 0
    root = 2.0
    for _ in range(40):  # the root of x**(d + 1) = x + 1 gives the least regular ratios in d dimensions
        root = (1 + root) ** (1 / (ordered + 2))
    steps = root ** -np.arange(1.0, ordered + 2)
    points = (np.random.default_rng(seed).random(ordered + 1) + (first + np.arange(paths))[:, None] * steps) % 1.0
    phases = np.exp2(points[:, :1])
    if not spread:
        return np.asarray(np.repeat(phases, block_size, axis=1))
    from scipy.special import ndtri

    ranks = np.cumsum(np.log1p(-points[:, 1:]) / (block_size - np.arange(ordered)), axis=1)  # logs, largest first
    below = np.exp(ranks[:, -1:]) * rng.random((paths, block_size - ordered))
    quantiles = ndtri(np.hstack([np.exp(ranks), below]).clip(1e-300, 1 - 1e-16))
    return np.asarray(phases * np.exp(spread * quantiles))
