"""The drive of a run, measured on a sample of its gradients, and predictions from it.

The plain theory assumes independent normal gradients of equal size and constant scale. In a real run the elements of a
block are dependent: a row of a linear layer's gradient is a sum of few outer products, so its elements grow, shrink and
change sign together. A few *patterns* per block, each with an amplitude at every step, describe this. The rest is
normal noise with a size per element and a level per block and step. Patterns and sizes last for some tens of steps and
are measured in stretches. Over a whole run they would be dominated by its loudest steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from halfulp.numbers.formats import Format
from halfulp.rules.drives import Drive, as_drive
from halfulp.theory.blocks import BlockLaw, Blocks, follow_gradients

__all__ = ["RunDrive"]

Array = npt.NDArray[np.float64]

ELEMENTS_A_PATTERN = 8
"""Elements per pattern of a block. This number of patterns gives stalled fractions to within 1.5 points."""


STRETCH = 50
"""Steps over which patterns and sizes are assumed constant."""


@dataclass(frozen=True)
class RunDrive:
    """Description of the gradients of some blocks.

    Parameters
    ----------
    patterns, amplitudes
        Unit vectors of what a block's elements do together, ``(stretches, blocks, patterns, elements)``, and the
        amplitude of each at each step, ``(steps, blocks, patterns)``.
    sizes, levels
        Root mean square of each element's rest, relative to the block's level, ``(stretches, blocks, elements)``, and
        of each block's rest at each step, ``(steps, blocks)``.
    stretch
        Stretch of each block at each step, ``(steps, blocks)``.
    """

    patterns: Array
    amplitudes: Array
    sizes: Array
    levels: Array
    stretch: npt.NDArray[np.intp]

    @classmethod
    def of(cls, gradients: npt.ArrayLike, *, patterns: int | None = None, stretch: int | None = STRETCH) -> RunDrive:
        """Measure the drive of recorded gradients.

        Parameters
        ----------
        gradients
            ``(steps, blocks, elements)``, in blocks as they are stored. The first belongs to the update of a state of
            age 0. All blocks must have one size, so measure layers of other widths separately.
        patterns
            Patterns per block and stretch. 0 makes all elements independent. Default: one for eight elements.
        stretch
            Approximate number of steps that patterns and sizes last. ``None``: all steps.

        Examples
        --------
        >>> rng = np.random.default_rng(0)
        >>> together = rng.standard_normal((200, 8, 1)) * rng.standard_normal((8, 64))
        >>> drive = RunDrive.of(together + rng.standard_normal((200, 8, 64)), patterns=1)
        >>> bool(0.4 < drive.shared < 0.6)
        True
        """
        g = np.asarray(gradients, float)
        if g.ndim != 3 or len(g) < 2 or not np.isfinite(g).all() or not g.any(axis=(0, 2)).all():
            raise ValueError(
                f"gradients are finite, (steps, blocks, elements), of two or more steps and blocks that have some; "
                f"got shape {g.shape}"
            )
        patterns = g.shape[2] // ELEMENTS_A_PATTERN if patterns is None else patterns
        if not 0 <= patterns < g.shape[2]:
            raise ValueError(f"a block of {g.shape[2]} elements has 0 to {g.shape[2] - 1} patterns, got {patterns}")
        if stretch is not None and stretch < 2:
            raise ValueError(f"a stretch is of 2 steps or more, or None for all of them; got {stretch}")
        parts = np.array_split(g, max(1, round(len(g) / stretch)) if stretch else 1)
        kept = min(patterns, *(len(part) for part in parts))
        found = [_part(part, kept) for part in parts]
        number = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return cls(
            np.stack([x[0] for x in found]),
            np.concatenate([x[1] for x in found]),
            np.stack([x[2] for x in found]),
            np.concatenate([x[3] for x in found]),
            np.repeat(number[:, None], g.shape[1], axis=1),
        )

    @property
    def elements(self) -> int:
        """Total number of elements."""
        return self.sizes[0].size

    @property
    def shared(self) -> float:
        """Share of the squared gradients explained by the patterns, averaged over the blocks."""
        together = np.square(self.amplitudes).sum(axis=(0, 2))
        rest = np.square(self.levels).sum(axis=0) * self.sizes.shape[2]
        return float(np.mean(together / (together + rest)))

    def later(self, seed: int = 0, *, together: bool = False) -> RunDrive:
        """Return a drive for other, similar steps: the same sequence, started elsewhere and wrapped around.

        With `together`, all blocks start at the same step, as in a single possible run. Otherwise each block starts at
        its own step, which gives the expectation.
        """
        steps, blocks = self.levels.shape
        starts = np.random.default_rng(seed).integers(steps, size=1 if together else blocks)
        order = (np.arange(steps)[:, None] + np.broadcast_to(starts, blocks)) % steps
        each = np.arange(blocks)
        return RunDrive(
            self.patterns, self.amplitudes[order, each], self.sizes, self.levels[order, each], self.stretch[order, each]
        )

    def together(self) -> Iterator[Array]:
        """Yield the sum of a block's patterns, ``(blocks, elements)`` at each step."""
        each = np.arange(self.levels.shape[1])
        for amplitude, stretch in zip(self.amplitudes, self.stretch, strict=True):
            yield (amplitude[:, None] @ self.patterns[stretch, each])[:, 0]

    def spread(self) -> Iterator[Array]:
        """Yield the standard deviation of the rest, ``(blocks, elements)`` at each step."""
        each = np.arange(self.levels.shape[1])
        for level, stretch in zip(self.levels, self.stretch, strict=True):
            yield level[:, None] * self.sizes[stretch, each]

    def gradients(self, seed: int = 0) -> Iterator[Array]:
        """Yield similar gradients with newly drawn noise, ``(blocks, elements)`` at each step."""
        rng = np.random.default_rng(seed)
        for together, spread in zip(self.together(), self.spread(), strict=True):
            yield together + spread * rng.standard_normal(spread.shape)

    def law(
        self,
        fmt: Format,
        *,
        beta: float,
        rounding: str,
        slot: str | Drive,
        scale_kind: str = "pow2",
        period: int | None = None,
        seed: int = 0,
    ) -> BlockLaw:
        """Return the law of a state under this drive, at every measured age.

        `slot` is ``"exp_avg"``, ``"exp_avg_sq"`` or a drive, and `period` the steps between resets. The rest is as for
        :class:`~halfulp.theory.blocks.Blocks`.
        """
        drive = as_drive(slot)
        blocks = Blocks(fmt, beta, rounding, drive, scale_kind, zero_floor=drive.nonnegative)
        squares = sum(np.square(t) + np.square(s) for t, s in zip(self.together(), self.spread(), strict=True))
        sizes = np.sqrt(squares / len(self.levels))
        return follow_gradients(blocks, self.gradients(seed), sizes, period=period, seed=seed)


def _part(g: Array, patterns: int) -> tuple[Array, Array, Array, Array]:
    """Return the patterns, amplitudes, sizes and levels of one stretch."""
    by_block = g.transpose(1, 0, 2)
    kept = np.linalg.svd(by_block, full_matrices=False)[2][:, :patterns]
    amplitudes = by_block @ kept.transpose(0, 2, 1)
    rest = (by_block - amplitudes @ kept).transpose(1, 0, 2)
    levels = np.sqrt(np.square(rest).mean(axis=2))
    relative = rest / np.where(levels > 0, levels, 1.0)[:, :, None]
    return kept, amplitudes.transpose(1, 0, 2), np.sqrt(np.square(relative).mean(axis=0)), levels
