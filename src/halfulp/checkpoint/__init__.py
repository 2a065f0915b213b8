"""Checkpoints: checking one before it is used, moving it between formats and libraries, files, and a self-test."""

from __future__ import annotations

from halfulp.checkpoint.validate import validate

__all__ = ["validate"]
