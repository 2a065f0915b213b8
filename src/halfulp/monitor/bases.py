"""What callbacks need from a trainer: its base classes, and the trainer object, which callbacks are not passed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

__all__ = ["calling", "lightning_base", "transformers_base"]


def calling(fits: Callable[[Any], bool]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Yield objects whose methods are being called, innermost first, and the local variables of those methods.

    Parameters
    ----------
    fits
        Predicate that selects the objects.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if owner is not None and fits(owner):
            yield owner, frame.f_locals
        frame = frame.f_back


def transformers_base() -> Any:
    """Return ``transformers.TrainerCallback``."""
    try:
        from transformers import TrainerCallback
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the Trainer callback needs transformers: pip install 'halfulp[lab]'") from error
    return TrainerCallback


def lightning_base() -> Any:
    """Return ``Callback`` from ``lightning`` or ``pytorch_lightning``."""
    for package in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return importlib.import_module(package).Callback
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError("the Lightning callback needs Lightning: pip install lightning")
