"""Backends: the same step, bit for bit, on different machinery. :func:`step` picks one for each parameter.

A backend is one module with ``supports(rule, work) -> str | None`` (the reason why not) and
``step(rule, works) -> None``. The reference supports everything; the others are tried before it.
"""

from __future__ import annotations

from halfulp.kernels.work import Work

__all__ = ["Work"]
