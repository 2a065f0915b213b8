"""AutoDrop: drop the learning rate when the angular velocity of the weights saturates."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from halfulp.averaging.swap import check_keep
from halfulp.engine.sharding import gathered, is_sharded
from halfulp.rules.base import total

__all__ = ["AutoDrop"]


class AutoDrop(LRScheduler):
    """Learning-rate schedule driven by the angular velocity of the parameters. Call :meth:`step` once per epoch.

    Wang et al., *AutoDrop: Training Deep Learning Models with Automatic Learning Rate Drop*, arXiv 2111.15317. The
    angular velocity of an epoch is the angle between its step in weight space and the previous one. At a fixed learning
    rate it rises and then saturates, when the weights only bounce (120 degrees in pure noise around a minimum). When it
    changes by less than `threshold` degrees between epochs, the rate is multiplied by `factor`.

    Parameters
    ----------
    optimizer
        Any optimizer. All its groups drop together.
    factor
        0.2 (CIFAR) or 0.1 (ImageNet) as published.
    threshold, max_threshold
        Thresholds in degrees. The threshold is divided by `factor` at each drop, up to `max_threshold`.
    min_lr
        The lowest rate.
    patience
        Epochs from the first small change to the drop, including that epoch: 20 in the authors' code, 1 in the paper.
    average
        At a drop, set the weights to their average over those epochs, where epoch k has weight k (the authors' variance
        reduction). Needs one more copy of the weights, in fp32.
    keep
        Where the two copies of the weights are kept: ``"device"`` or ``"cpu"``.

    Raises
    ------
    ValueError
        If `factor` is outside (0, 1), a threshold is not positive, `min_lr` is negative, `patience` is below 1, or
        `keep` is unknown.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(4, 4)
    >>> optimizer = halfulp.SGD(model.parameters(), lr=0.1)
    >>> scheduler = halfulp.AutoDrop(optimizer, factor=0.1, patience=1)
    >>> for epoch in range(3):
    ...     for p in model.parameters():
    ...         p.grad = torch.ones_like(p)
    ...     optimizer.step()
    ...     scheduler.step()
    >>> [round(angle, 3) for angle in scheduler.angles]  # straight on, twice: the rate drops
    [0.0, 0.0]
    >>> round(optimizer.param_groups[0]["lr"], 6)
    0.01
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 0.2,
        threshold: float = 0.01,
        *,
        max_threshold: float = 1.0,
        min_lr: float = 1e-4,
        patience: int = 20,
        average: bool = False,
        keep: Literal["device", "cpu"] = "device",
    ) -> None:
        if not (0.0 < factor < 1.0 and threshold > 0.0 and max_threshold > 0.0 and min_lr >= 0.0 and patience >= 1):
            raise ValueError(
                "AutoDrop needs a factor in (0, 1), positive thresholds, min_lr not negative, patience at least 1; got "
                f"factor={factor}, threshold={threshold}, max_threshold={max_threshold}, min_lr={min_lr}, "
                f"patience={patience}"
            )
        check_keep(keep, "device", "cpu")
        self.factor, self.threshold, self.max_threshold, self.min_lr = factor, threshold, max_threshold, min_lr
        self.patience, self.average, self.keep = patience, average, keep
        self.angles: list[float] = []
        """Angular velocity of each epoch from the second on, in degrees; NaN for an epoch without movement."""
        self.drops: list[int] = []
        """Epochs after which the rate dropped."""
        self.waited = 0
        """Epochs since the change became small, including that one; 0 if it is not small."""
        self.snapshots: list[list[Tensor]] = []
        self.mean: list[Tensor] = []
        super().__init__(optimizer)

    def step(self, epoch: int | None = None) -> None:
        """Look at the weights once per epoch, and drop the rates if it is time."""
        self.dropping = self._observe()
        super().step(epoch)
        if self.dropping:
            self.drops.append(self.last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Return the rates after this epoch."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        return [min(r, max(self.min_lr, r * self.factor)) for r in rates] if self.dropping else rates

    @torch.no_grad()
    def _observe(self) -> bool:
        params = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        here = [p.detach().to("cpu" if self.keep == "cpu" else p.device, copy=True) for p in params]
        if len(self.snapshots) == 2:
            self.angles.append(_angle(self.snapshots[0], self.snapshots[1], here))
        self.snapshots = [*self.snapshots[-1:], here]
        settled = len(self.angles) >= 2 and abs(self.angles[-1] - self.angles[-2]) < self.threshold
        if not self.waited and not settled:
            return False
        self.waited += 1
        if self.average:
            weight = 2 / (self.waited + 1)
            before = self.mean or [x.float() for x in here]
            self.mean = [m + (x.float() - m) * weight for m, x in zip(before, here, strict=True)]
        if self.waited < self.patience:
            return False
        for p, value in zip(params, self.mean, strict=bool(self.mean)):
            p.copy_(value)
        self.mean, self.waited = [], 0
        self.threshold = min(self.max_threshold, self.threshold / self.factor)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the optimizer as plain tensors and numbers, including the snapshots of the weights."""
        return {k: v for k, v in super().state_dict().items() if not k.startswith("_get_lr")}


def _angle(first: list[Tensor], second: list[Tensor], third: list[Tensor]) -> float:
    """Return the angle in degrees between the steps from `first` to `second` and from `second` to `third`."""
    dot = before_sq = after_sq = 0.0
    for a, b, c in zip(first, second, third, strict=True):
        before, after = b.double() - a.double(), c.double() - b.double()
        dot, before_sq, after_sq = (
            dot + _sum(before * after), before_sq + _sum(before * before), after_sq + _sum(after * after),
        )  # fmt: skip
    size = math.sqrt(before_sq * after_sq)
    return math.degrees(math.acos(min(1.0, max(-1.0, dot / size)))) if size else math.nan


def _sum(x: Tensor) -> float:
    return float(gathered(x.sum()) if is_sharded(x) else total(x))
