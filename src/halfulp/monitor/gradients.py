"""Recorded gradients of sampled blocks, used to predict how a state in any format stalls in this run.

:class:`~halfulp.monitor.StallMonitor` measures the stalled fraction and shows the theory for independent normal
gradients of equal size. If the two differ, the gradients are not of that kind. A recorded sample describes them
(:class:`halfulp.theory.measured.RunDrive`) and so explains the difference, also for formats that the run does not use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from halfulp.engine.sharding import local
from halfulp.libraries import unwrap
from halfulp.monitor.hooked import Hooked, harmless
from halfulp.numbers.formats import Format, get_format
from halfulp.numbers.log import log_once
from halfulp.numbers.scaling import Scaling
from halfulp.rules.drives import Drive, as_drive

if TYPE_CHECKING:
    from halfulp.theory.measured import RunDrive

__all__ = ["GradientSample"]


class GradientSample(Hooked):
    """Record the gradients of a sample of blocks after each step of an optimizer. Training is unchanged.

    Parameters
    ----------
    optimizer
        Any ``torch.optim.Optimizer``, or a wrapper that keeps one as ``.optimizer``. The sample is drawn from its
        present parameters.
    blocks
        Total number of blocks, divided among the parameters by size, at least one for each. A prediction from 64 blocks
        has a standard error of 1 to 2 points at one age, and 3.5 for a first moment in 4 bits. Four times as many
        blocks halve it.
    steps
        Number of steps recorded. They take at most ``4 * blocks * block_size * steps`` bytes of CPU memory.
    min_size
        Smaller parameters are skipped, since their states stay in fp32.
    block_size
        Elements that share a scale.

    Examples
    --------
    >>> import halfulp
    >>> weight = torch.nn.Parameter(torch.zeros(64, 64))
    >>> optimizer = torch.optim.AdamW([weight])
    >>> with halfulp.GradientSample(optimizer, blocks=32) as sample:
    ...     for _ in range(50):
    ...         weight.grad = torch.randn(64, 64)
    ...         optimizer.step()
    >>> stalled = sample.stalled("fp8", beta=0.999, rounding="nearest")  # of the update of each step
    >>> bool(0.75 < stalled[49] < 0.9)
    True
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        blocks: int = 128,
        steps: int = 1000,
        min_size: int = 4096,
        block_size: int = 128,
    ) -> None:
        if blocks < 1 or steps < 2 or min_size < 0:
            raise ValueError(
                f"blocks must be at least 1, steps 2 and min_size 0; got blocks={blocks}, steps={steps}, "
                f"min_size={min_size}"
            )
        self.optimizer, self.blocks, self.steps, self.min_size = unwrap(optimizer), blocks, steps, min_size
        self.scaling = Scaling(block_size=block_size)
        self._places = list(self._choose())
        self._seen: dict[int, list[Tensor]] = {}
        self._drives: tuple[int, dict[int, RunDrive]] | None = None
        self._hooks = [self.optimizer.register_step_post_hook(self._after)]

    # ---------------------------------------------------------------- recording

    @property
    def recorded(self) -> int:
        """Number of steps recorded so far."""
        return len(next(iter(self._seen.values()), []))

    @torch.no_grad()
    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self.stopped:
            return
        if self.recorded >= self.steps:
            self.stop()
            log_once(f"GradientSample: {self.steps} steps are recorded; it records no more")
            return
        with harmless("GradientSample", self.stop):
            self._record()

    def _record(self) -> None:
        found: dict[int, list[Tensor]] = {}
        for param, width, index in self._places:
            grad = param.grad
            values = (
                torch.zeros(index.shape, dtype=torch.float32, device="cpu")
                if grad is None
                else torch.take(local(grad), index).float().cpu()
            )
            found.setdefault(width, []).append(values)
        for width, parts in found.items():
            self._seen.setdefault(width, []).append(torch.cat(parts))

    def _choose(self) -> Iterator[tuple[Tensor, int, Tensor]]:
        """Yield each parameter, the width of its blocks, and the flat indices of the sampled ones."""
        params = [p for g in self.optimizer.param_groups for p in g["params"] if local(p).numel() >= self.min_size]
        if not params:
            raise ValueError(f"no parameter has min_size={self.min_size} elements; pass a smaller one")
        total = sum(local(p).numel() for p in params)
        for number, param in enumerate(params):
            layout = self.scaling.layout(local(param).shape)
            whole = layout.rows * (layout.cols // layout.block)  # short blocks at the ends of rows are skipped
            count = min(max(1, round(self.blocks * local(param).numel() / total)), whole)
            picked = np.sort(np.random.default_rng(number).choice(whole, count, replace=False))
            row, block = np.divmod(picked, layout.cols // layout.block)
            start = torch.from_numpy(row * layout.cols + block * layout.block)
            yield param, layout.block, (start[:, None] + torch.arange(layout.block, device="cpu")).to(param.device)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the recorded gradients by block width, so that a run can be continued."""
        return {str(width): torch.stack(seen) for width, seen in self._seen.items()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Continue the recording of another sample of the same model."""
        self._drives = None
        self._seen = {int(width): list(seen) for width, seen in state_dict.items()}

    # ---------------------------------------------------------------- what it says

    def gradients(self) -> dict[int, npt.NDArray[np.float32]]:
        """Return the recorded gradients, ``(steps, blocks, elements)``, by block width."""
        return {width: torch.stack(seen).numpy() for width, seen in self._seen.items()}

    def drives(self) -> dict[int, RunDrive]:
        """Return a description of the gradients, by block width.

        Blocks that never had a gradient are skipped, since none of their updates is due. Needs at least two steps.
        """
        from halfulp.theory.measured import RunDrive

        if self.recorded < 2:
            raise RuntimeError(f"a drive needs two steps or more, {self.recorded} were recorded")
        if self._drives is None or self._drives[0] != self.recorded:
            alive = {width: g[:, g.any(axis=(0, 2))] for width, g in self.gradients().items()}
            self._drives = self.recorded, {width: RunDrive.of(g) for width, g in alive.items() if g.shape[1]}
        return self._drives[1]

    def stalled(
        self,
        fmt: str | Format,
        *,
        beta: float,
        rounding: Literal["nearest", "stochastic"],
        slot: str | Drive = "exp_avg_sq",
        scale_kind: Literal["pow2", "fp32"] = "pow2",
        period: int | None = None,
    ) -> npt.NDArray[np.float64]:
        """Predict the stalled fraction at each recorded step, for a state that was zero before the first.

        Parameters
        ----------
        fmt, beta, rounding, slot
            As for :func:`halfulp.stall_curve`.
        scale_kind
            See :class:`halfulp.numbers.scaling.Scaling`. With fp32 scales, codes are counted, as in the monitor.
        period
            Steps between resets of the state.
        """
        stored = get_format(fmt, signed=not as_drive(slot).nonnegative)
        return _lost(self.drives().values(), stored, beta, rounding, slot, scale_kind, period)

    def foretell(
        self,
        fmt: str | Format,
        *,
        beta: float,
        rounding: Literal["nearest", "stochastic"],
        slot: str | Drive = "exp_avg_sq",
        scale_kind: Literal["pow2", "fp32"] = "pow2",
        period: int | None = None,
        courses: int = 8,
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Forecast the same number of future steps from a zero state, assuming gradients like those recorded.

        The forecast is of the average, not of single steps, which differ from it by about the deviation. It does not
        hold while gradients still grow or shrink, as in the first hundred steps of a run.

        Parameters
        ----------
        fmt, beta, rounding, slot, scale_kind, period
            As for :meth:`stalled`.
        courses
            Number of passes through the recorded steps, each from another starting step, to estimate the deviation.

        Returns
        -------
        expected, deviation
            Stalled fraction at each future step, and its standard deviation over the passes.
        """
        if courses < 2:
            raise ValueError(f"a deviation needs two courses or more, got courses={courses}")
        stored = get_format(fmt, signed=not as_drive(slot).nonnegative), beta, rounding, slot, scale_kind, period
        drives = self.drives().values()
        found = [_lost([d.later(k, together=True) for d in drives], *stored) for k in range(courses)]
        return _lost([d.later() for d in drives], *stored), np.std(found, axis=0, ddof=1)


def _lost(
    drives: Iterable[RunDrive], fmt: Format, beta: float, rounding: str, slot: str | Drive, scale_kind: str,
    period: int | None,
) -> npt.NDArray[np.float64]:  # fmt: skip
    """Return the stalled fraction at each step over the elements of several drives."""
    codes = scale_kind == "fp32" and fmt.scaled
    updates, shares = [], []
    for drive in drives:
        law = drive.law(fmt, beta=beta, rounding=rounding, slot=slot, scale_kind=scale_kind, period=period)
        updates.append(law.due * drive.elements)
        shares.append(law.codes_stalled if codes else law.stalled)
    return np.asarray(np.multiply(updates, shares).sum(axis=0) / np.maximum(np.sum(updates, axis=0), 1.0))
