"""Surrogates of a run's gradients for theory_training.py: each keeps some of their properties and destroys the others.

All functions take and return ``(steps, blocks, elements)``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from training_run import BETAS, Cell

from halfulp import get_format
from halfulp.rules.drives import GRADIENT, SQUARE
from halfulp.theory.blocks import Blocks, follow_gradients
from halfulp.theory.measured import RunDrive

Array = np.ndarray


def stored(gradients: list[Array], cell: Cell) -> Array:
    """Return the stalled fraction at every age of a state that averages these gradients."""
    state, rounding, slot = cell
    square = slot == "exp_avg_sq"
    blocks = Blocks(
        get_format(state, signed=not square), BETAS[slot], rounding, SQUARE if square else GRADIENT, zero_floor=square
    )
    laws = [follow_gradients(blocks, g, np.ones(g.shape[1:])).stalled for g in gradients]
    return np.average(laws, axis=0, weights=[g[0].size for g in gradients])


def levels(g: Array) -> Array:
    """Return the root mean square of each block at each step."""
    return np.sqrt(np.square(g).mean(axis=2, keepdims=True))


def noise(g: Array) -> Array:
    return np.random.default_rng(2).standard_normal(g.shape)


def flipped(g: Array, *, together: bool) -> Array:
    """Flip signs at random, for each element or for each block as a whole."""
    signs = np.random.default_rng(1).choice([-1.0, 1.0], (*g.shape[:2], 1) if together else g.shape)
    return g * signs


def exchanged(g: Array, *, window: int | None, together: bool) -> Array:
    """Permute steps within windows and keep the levels in place, for each element or for each block as a whole."""
    level = levels(g)
    relative = g / level
    rng, window = np.random.default_rng(1), window or len(g)
    for start in range(0, len(g), window):
        part = relative[start : start + window]
        order = rng.random((len(part), g.shape[1], 1 if together else g.shape[2])).argsort(axis=0)
        relative[start : start + window] = np.take_along_axis(part, order, axis=0)
    return relative * level


def independent(g: Array, *, window: int | None = None, mean: bool = False) -> Array:
    """Draw normal elements with their sizes (by windows) and means, and the levels of their blocks."""
    level = levels(g)
    relative, window = g / level, window or len(g)
    out = np.empty_like(g)
    for start in range(0, len(g), window):
        part = relative[start : start + window]
        size = np.sqrt(np.square(part).mean(axis=0))
        ratio = part.mean(axis=0) / size if mean else np.zeros_like(size)
        ratio = np.sign(ratio) * np.sqrt(np.maximum(ratio**2 - 1 / len(part), 0.0))  # minus the expectation by chance
        drawn = noise(g)[start : start + window]
        out[start : start + window] = size * (ratio + np.sqrt(np.maximum(1 - ratio**2, 0.0)) * drawn)
    return out * level


def constant(g: Array) -> Array:
    """Remove the levels of the blocks from the gradients."""
    return g / levels(g)


def patterned(g: Array, *, elements: int, stretch: int | None = None) -> Array:
    """Draw from the measured drive, with one pattern per `elements` elements."""
    return np.stack(list(RunDrive.of(g, patterns=g.shape[2] // elements, stretch=stretch).gradients()))


def rest(g: Array, *, tails: bool) -> Array:
    """Draw from the measured drive of all steps, with the true rest instead of noise, changed in each element.

    With `tails`, the rest has its values at other steps: the tails are kept and the order is lost. Without, it has
    normal values of the same ranks: the order is kept and the tails are lost.
    """
    drive = RunDrive.of(g, stretch=None)
    together, spread = np.stack(list(drive.together())), np.stack(list(drive.spread()))
    values = (g - together) / np.where(spread > 0, spread, 1.0)
    if tails:
        order = np.random.default_rng(1).random(g.shape).argsort(axis=0)
        return together + spread * np.take_along_axis(values, order, axis=0)
    normal = np.sort(noise(g), axis=0)
    return together + spread * np.take_along_axis(normal, values.argsort(axis=0).argsort(axis=0), axis=0)


SURROGATES: dict[str, Callable[[Array], Array]] = {
    "signs at random, each element": partial(flipped, together=False),
    "signs at random, whole blocks": partial(flipped, together=True),
    "every step of one level": constant,
    **{
        f"steps exchanged within {window or 'all'}, each element": partial(exchanged, window=window, together=False)
        for window in (10, 30, 100, None)
    },
    **{
        f"steps exchanged within {window or 'all'}, whole blocks": partial(exchanged, window=window, together=True)
        for window in (10, None)
    },
    "normal: sizes, levels": independent,
    "normal: sizes by 30 steps, levels": partial(independent, window=30),
    "normal: sizes, levels, means": partial(independent, mean=True),
    **{f"a pattern for {n} elements": partial(patterned, elements=n) for n in (64, 32, 16, 8, 4)},
    "one for 8, true rest without its order": partial(rest, tails=True),
    "one for 8, true rest without its tails": partial(rest, tails=False),
    **{f"one for 8, in stretches of {n}": partial(patterned, elements=8, stretch=n) for n in (100, 50, 25)},
}
