"""Copies between host and device that happen as late as allowed, for tests of offload without a device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Late:
    """A stand-in for streams that does each copy only when it is waited for, and counts the copies."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.started = 0

    def host(self, like: Tensor) -> Tensor:
        return torch.full(like.shape, float("nan"), dtype=like.dtype)

    def start(self, target: Tensor, source: Tensor) -> Callable[[], None]:
        done = False

        def wait() -> None:
            nonlocal done
            if not done:
                done = True
                target.copy_(source)

        self.waiting.append(wait)
        self.started += 1
        return wait

    def finish(self) -> None:
        for wait in self.waiting:
            wait()
        self.waiting.clear()
