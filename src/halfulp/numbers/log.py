"""The library's logger, which reports each event once instead of staying silent."""

from __future__ import annotations

import logging

__all__ = ["log", "log_once", "warn_once"]

log = logging.getLogger("halfulp")
_said: set[str] = set()


def log_once(message: str, level: int = logging.INFO) -> None:
    """Log a message the first time it occurs in this process."""
    if message not in _said:
        _said.add(message)
        log.log(level, message)


def warn_once(message: str) -> None:
    """Log a warning the first time it occurs in this process, for what costs the user something."""
    log_once(message, logging.WARNING)
