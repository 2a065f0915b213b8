"""Base classes of the trainers' callbacks."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["lightning_base", "transformers_base"]


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
