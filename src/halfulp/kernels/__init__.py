"""Backends that do the same step, bit for bit. :func:`step` picks one for each parameter.

A backend is a module with ``supports(rule, step) -> str | None`` (the reason why not) and
``step(rule, steps) -> None``. The reference supports everything; the others are tried first.
"""

from __future__ import annotations

from halfulp.kernels.binding import Binding, Step, Stored

__all__ = ["Binding", "Step", "Stored", "backends"]


def backends() -> dict[str, str]:
    """Return the state of each backend on this machine: ``"available"`` with details, or the reason why not.

    Examples
    --------
    >>> backends()["reference"]
    'available'
    """
    import importlib

    from halfulp.kernels.dispatch import BACKENDS

    return {name: importlib.import_module(f"halfulp.kernels.{name}").status() for name in BACKENDS}
