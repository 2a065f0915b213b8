"""The drive of a run, measured on a sample of its gradients, and what is predicted from it.

The plain theory takes independent normal gradients of one size and a constant scale. The elements of a block in a real
run are not independent: a row of a linear layer's gradient is a sum of few outer products, so that its elements grow,
shrink and change their signs together. A few *patterns* a block, each with an amplitude at every step, say how; what is
left is normal noise, with a size for each element and a level for each block and step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from halfulp.formats import Format
from halfulp.theory.blocks import BlockLaw, Blocks, follow_gradients
from halfulp.theory.drive import GRADIENT, SQUARE

__all__ = ["RunDrive"]

Array = npt.NDArray[np.float64]

ELEMENTS_A_PATTERN = 8
"""A block has one pattern for so many elements: as many as it takes for stalled fractions within 1.5 points."""


@dataclass(frozen=True)
class RunDrive:
    """What the gradients of some blocks were like.

    Parameters
    ----------
    patterns
        What the elements of a block do together, of unit length, ``(blocks, patterns, elements)``.
    amplitudes
        Of each pattern at each step, ``(steps, blocks, patterns)``.
    sizes
        Root mean square of the rest of each element, over the block's level, ``(blocks, elements)``.
    levels
        Root mean square of the rest of each block at each step, ``(steps, blocks)``.
    """

    patterns: Array
    amplitudes: Array
    sizes: Array
    levels: Array

    @classmethod
    def of(cls, gradients: npt.ArrayLike, *, patterns: int | None = None) -> RunDrive:
        """Measure it.

        Parameters
        ----------
        gradients
            ``(steps, blocks, elements)``, in blocks as they are stored; the first is that of the step that a state of
            age 0 meets. All blocks are of one size: measure layers of other widths by themselves.
        patterns
            How many to keep a block; 0 makes all elements independent. ``None``: one for eight elements.

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
        by_block = g.transpose(1, 0, 2)
        _, vectors = np.linalg.eigh(by_block.transpose(0, 2, 1) @ by_block)  # largest last
        kept = np.ascontiguousarray(vectors[:, :, g.shape[2] - patterns :].transpose(0, 2, 1))
        amplitudes = by_block @ kept.transpose(0, 2, 1)
        rest = (by_block - amplitudes @ kept).transpose(1, 0, 2)
        levels = np.sqrt(np.square(rest).mean(axis=2))
        relative = rest / np.where(levels > 0, levels, 1.0)[:, :, None]
        return cls(kept, amplitudes.transpose(1, 0, 2), np.sqrt(np.square(relative).mean(axis=0)), levels)

    @property
    def shared(self) -> float:
        """Share of the squared gradients that lies in the patterns, averaged over the blocks."""
        together = np.square(self.amplitudes).sum(axis=(0, 2))
        rest = np.square(self.levels).sum(axis=0) * self.sizes.shape[1]
        return float(np.mean(together / (together + rest)))

    def later(self, seed: int = 0) -> RunDrive:
        """The drive of other steps that are alike: each block begins at a step of its own, and goes round."""
        steps, blocks = self.levels.shape
        starts = np.random.default_rng(seed).integers(steps, size=blocks)
        order, each = (np.arange(steps)[:, None] + starts) % steps, np.arange(blocks)
        return RunDrive(self.patterns, self.amplitudes[order, each], self.sizes, self.levels[order, each])

    def gradients(self, seed: int = 0) -> Iterator[Array]:
        """Gradients alike, ``(blocks, elements)`` at each step: the rest is drawn anew."""
        rng = np.random.default_rng(seed)
        for amplitude, level in zip(self.amplitudes, self.levels, strict=True):
            noise = level[:, None] * self.sizes * rng.standard_normal(self.sizes.shape)
            yield (amplitude[:, None] @ self.patterns)[:, 0] + noise

    def law(
        self,
        fmt: Format,
        *,
        beta: float,
        rounding: str,
        slot: str,
        scale_kind: str = "pow2",
        period: int | None = None,
        seed: int = 0,
    ) -> BlockLaw:
        """Law of a state under this drive, at every age that was measured.

        Parameters
        ----------
        fmt, beta, rounding, scale_kind
            As of :class:`~halfulp.theory.blocks.Blocks`.
        slot
            ``"exp_avg"`` or ``"exp_avg_sq"``.
        period
            Steps between resets.
        seed
            Of noise and rounding.
        """
        from halfulp.theory.stall import check_slot

        check_slot(slot)
        drive = SQUARE if slot == "exp_avg_sq" else GRADIENT
        blocks = Blocks(fmt, beta, rounding, drive, scale_kind, zero_floor=drive.nonnegative)
        together = np.einsum("tbk,bke->be", np.square(self.amplitudes), np.square(self.patterns)) / len(self.levels)
        rest = np.square(self.sizes) * np.square(self.levels).mean(axis=0)[:, None]
        return follow_gradients(blocks, self.gradients(seed), np.sqrt(together + rest), period=period, seed=seed)
