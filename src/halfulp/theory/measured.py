"""The drive of a run, measured on a sample of its gradients, and what is predicted from it.

The plain theory takes independent normal gradients without mean, of one size and a constant scale. Gradients of real
runs differ from that in ways that a sample of blocks shows: elements of a block differ in size, a block as a whole has
larger and smaller steps, and the gradient of an element keeps some of its sign for as long as the sample lasts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from halfulp.formats import Format
from halfulp.theory.blocks import BlockLaw, Blocks, follow
from halfulp.theory.drive import GRADIENT, SQUARE

__all__ = ["RunDrive"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RunDrive:
    """Sizes of a run's gradients.

    Parameters
    ----------
    sizes
        Root mean square of each element's gradient over its block's level, ``(blocks, elements)``.
    levels
        Root mean square of each block's gradients at each step, ``(steps, blocks)``.
    ratios
        Mean over root mean square of each element's gradient.
    """

    sizes: Array
    levels: Array
    ratios: Array

    @classmethod
    def of(cls, gradients: npt.ArrayLike) -> RunDrive:
        """Measure it.

        Parameters
        ----------
        gradients
            ``(steps, blocks, elements)``, in blocks as they are stored; the first is that of the step that a state of
            age 0 meets. Some hundred blocks are enough.

        Examples
        --------
        >>> drive = RunDrive.of(np.random.default_rng(0).standard_normal((200, 8, 64)) + 0.5)
        >>> round(float(drive.ratios.mean()), 1)
        0.4
        """
        g = np.asarray(gradients, float)
        if g.ndim != 3 or len(g) < 2 or not np.isfinite(g).all() or not g.any(axis=(0, 2)).all():
            raise ValueError(
                f"gradients are finite, (steps, blocks, elements), of two or more steps and blocks that have some; "
                f"got shape {g.shape}"
            )
        levels = np.sqrt(np.square(g).mean(axis=2))
        relative = g / np.where(levels > 0, levels, 1.0)[:, :, None]
        sizes = np.sqrt(np.square(relative).mean(axis=0))
        ratios = relative.mean(axis=0) / np.where(sizes > 0, sizes, 1.0)
        # a mean over so many steps is not zero by chance alone
        kept = np.sqrt(np.maximum(np.square(ratios) - 1 / len(g), 0.0))
        return cls(sizes, levels, np.sign(ratios) * np.minimum(kept, 1.0))

    def law(self, fmt: Format, *, beta: float, rounding: str, slot: str, scale_kind: str = "pow2") -> BlockLaw:
        """Law of a state under this drive, at every age that was measured.

        Parameters
        ----------
        fmt, beta, rounding, scale_kind
            As of :class:`~halfulp.theory.blocks.Blocks`.
        slot
            ``"exp_avg"`` or ``"exp_avg_sq"``.
        """
        from halfulp.theory.stall import check_slot

        check_slot(slot)
        drive = SQUARE if slot == "exp_avg_sq" else GRADIENT
        blocks = Blocks(fmt, beta, rounding, drive, scale_kind, zero_floor=drive.nonnegative)
        return follow(blocks, self.sizes, self.levels, ratios=self.ratios)
