"""The stationary law of the chain."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from halfulp.theory.chain import Chain

__all__ = ["Stationary", "can_decrease", "stationary"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Stationary:
    """The law of an infinitely old state, averaged over phases. Values are in units of the drive's scale.

    `law` holds the probabilities, of shape ``(phases, points)``.
    """

    stalled: float
    mean: float
    deviation: float
    law: Array


def can_decrease(chain: Chain) -> bool:
    """Whether a stored value can ever fall under nearest rounding. Floats cannot if ``1 - beta <= 2**-(p + 2)``.

    With a zero gradient a state falls by ``(1 - beta) v``. It must fall by more than half the spacing below it. That
    half is at least ``2**-(p + 2) v``, reached just above a power of two, where a tie rounds back up.
    """
    return chain.rounding == "stochastic" or 1 - chain.beta > 2.0 ** -(chain.format.mantissa_bits + 2)


def stationary(chain: Chain) -> Stationary:
    """Return the stationary law of a chain, from its balance equations. Raise ``ValueError`` if there is none.

    Under nearest rounding a free grid has no stationary law if values cannot fall (see :func:`can_decrease`). Close to
    that case, no law is reached in practical time. Use :func:`~halfulp.theory.transient.transient` instead.

    Examples
    --------
    >>> from halfulp.numbers.formats import get_format
    >>> law = stationary(Chain(get_format("fp8"), 0.999, "stochastic"))
    >>> round(law.mean, 3), round(law.stalled, 3)
    (1.0, 0.988)
    """
    from scipy.sparse import eye_array
    from scipy.sparse.linalg import spsolve

    if chain.scale is None and not can_decrease(chain):
        raise ValueError(
            f"{chain.format.name} at beta {chain.beta:g} has no stationary law under nearest rounding: a stored value "
            "can rise but not fall. Ask for the transient at an age instead"
        )
    grid, step = chain.grid, chain.step
    n = len(grid)
    laws, figures = [], []
    for scale in chain.scales:
        balance = (step.matrix(scale, 0, n).T - eye_array(n)).tolil()
        anchor = grid.index(chain.drive.mean * scale)
        balance[anchor, :] = 1.0
        right = np.zeros(n)
        right[anchor] = 1.0
        law = np.maximum(spsolve(balance.tocsc(), right), 0.0)
        law /= law.sum()
        value = grid.points / scale
        figures.append((law @ step.stalls(scale), law @ value, law @ value**2))
        laws.append(law)
    stalled, mean, square = (float(f) for f in np.mean(figures, axis=0))
    return Stationary(stalled, mean, math.sqrt(max(square - mean**2, 0.0)), np.stack(laws) / len(laws))
