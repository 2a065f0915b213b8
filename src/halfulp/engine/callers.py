"""The objects whose methods are being called. Trainers do not pass themselves to optimizers and callbacks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

__all__ = ["calling"]


def calling(fits: Callable[[Any], bool]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Yield objects that fit and whose methods are being called, innermost first, with the local variables of those."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if owner is not None and fits(owner):
            yield owner, frame.f_locals
        frame = frame.f_back
