"""halfulp: low-precision optimizer states that do not lose updates.

Everything public is a name of this module; each is imported when first used, so that ``import halfulp`` costs
little more than ``import torch``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halfulp import averaging as averaging
    from halfulp.checkpoint.convert import convert_state_dict as convert_state_dict
    from halfulp.checkpoint.files import load_optimizer as load_optimizer
    from halfulp.checkpoint.files import save_optimizer as save_optimizer
    from halfulp.checkpoint.selftest import check_roundtrip as check_roundtrip
    from halfulp.formats import Format as Format
    from halfulp.formats import get_format as get_format
    from halfulp.monitor import StallMonitor as StallMonitor
    from halfulp.optim import SGD as SGD
    from halfulp.optim import Adam as Adam
    from halfulp.optim import AdamW as AdamW
    from halfulp.optim import Lion as Lion
    from halfulp.quantizer import Quantizer as Quantizer
    from halfulp.resets import Every as Every
    from halfulp.resets import Planned as Planned
    from halfulp.resets import ResetSchedule as ResetSchedule
    from halfulp.resets import Staggered as Staggered
    from halfulp.rounding import round_to as round_to
    from halfulp.scaling import Scaling as Scaling
    from halfulp.theory.planner import plan_reset as plan_reset
    from halfulp.theory.stall import stall_curve as stall_curve
    from halfulp.theory.stall import stall_probability as stall_probability

__version__ = "0.1.0"

_HOME = {
    "check_roundtrip": "checkpoint.selftest",
    "convert_state_dict": "checkpoint.convert",
    "load_optimizer": "checkpoint.files",
    "save_optimizer": "checkpoint.files",
    "SGD": "optim",
    "Adam": "optim",
    "AdamW": "optim",
    "Every": "resets",
    "Format": "formats",
    "Lion": "optim",
    "Planned": "resets",
    "Quantizer": "quantizer",
    "ResetSchedule": "resets",
    "Scaling": "scaling",
    "StallMonitor": "monitor",
    "Staggered": "resets",
    "get_format": "formats",
    "plan_reset": "theory.planner",
    "round_to": "rounding",
    "stall_curve": "theory.stall",
    "stall_probability": "theory.stall",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name == "averaging":
        return importlib.import_module("halfulp.averaging")
    if name not in _HOME:
        raise AttributeError(f"module 'halfulp' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"halfulp.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
