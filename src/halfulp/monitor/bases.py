"""What callbacks need of a trainer: its base classes, and the trainer itself, which callbacks are not told of."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

__all__ = ["calling", "lightning_base", "transformers_base"]


def calling(fits: Callable[[Any], bool]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Objects whose methods are being called, innermost first, and the local variables of those methods.

    Parameters
    ----------
    fits
        Which objects are meant.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if owner is not None and fits(owner):
            yield owner, frame.f_locals
        frame = frame.f_back


def transformers_base() -> Any:
    """``transformers.TrainerCallback``."""
    try:
        from transformers import TrainerCallback
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the Trainer callback needs transformers: pip install 'halfulp[lab]'") from error
    return TrainerCallback


def lightning_base() -> Any:
    """``Callback`` of ``lightning`` or ``pytorch_lightning``."""
    for package in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return importlib.import_module(package).Callback
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError("the Lightning callback needs Lightning: pip install lightning")
