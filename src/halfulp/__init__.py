"""halfulp: low-precision optimizer states that do not lose updates.

Everything public is a name of this module; each is imported when first used, so that ``import halfulp`` costs
little more than ``import torch``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halfulp import averaging as averaging
    from halfulp import checkpoint as checkpoint
    from halfulp import formats as formats
    from halfulp import kernels as kernels
    from halfulp import monitor as monitor
    from halfulp import optim as optim
    from halfulp import schedules as schedules
    from halfulp import theory as theory
    from halfulp import wrappers as wrappers
    from halfulp.autodrop import AutoDrop as AutoDrop
    from halfulp.checkpoint.convert import convert_state_dict as convert_state_dict
    from halfulp.checkpoint.files import load_optimizer as load_optimizer
    from halfulp.checkpoint.files import save_optimizer as save_optimizer
    from halfulp.checkpoint.selftest import check_roundtrip as check_roundtrip
    from halfulp.formats import Format as Format
    from halfulp.formats import get_format as get_format
    from halfulp.monitor import GradientSample as GradientSample
    from halfulp.monitor import StallMonitor as StallMonitor
    from halfulp.optim import ADOPT as ADOPT
    from halfulp.optim import AMSGD as AMSGD
    from halfulp.optim import CAME as CAME
    from halfulp.optim import FRUGAL as FRUGAL
    from halfulp.optim import LAMB as LAMB
    from halfulp.optim import LARS as LARS
    from halfulp.optim import MADGRAD as MADGRAD
    from halfulp.optim import SGD as SGD
    from halfulp.optim import SMMF as SMMF
    from halfulp.optim import SOAP as SOAP
    from halfulp.optim import SPAM as SPAM
    from halfulp.optim import SWATS as SWATS
    from halfulp.optim import AdaBelief as AdaBelief
    from halfulp.optim import AdaBound as AdaBound
    from halfulp.optim import Adafactor as Adafactor
    from halfulp.optim import AdaLomo as AdaLomo
    from halfulp.optim import Adam as Adam
    from halfulp.optim import AdaMod as AdaMod
    from halfulp.optim import AdaMomentum as AdaMomentum
    from halfulp.optim import AdamP as AdamP
    from halfulp.optim import AdamW as AdamW
    from halfulp.optim import AdEMAMix as AdEMAMix
    from halfulp.optim import AMAdamW as AMAdamW
    from halfulp.optim import BAdam as BAdam
    from halfulp.optim import ComplexMomentum as ComplexMomentum
    from halfulp.optim import Conda as Conda
    from halfulp.optim import CoRe as CoRe
    from halfulp.optim import DiffGrad as DiffGrad
    from halfulp.optim import EXAdam as EXAdam
    from halfulp.optim import Gravity as Gravity
    from halfulp.optim import HyperOptimizer as HyperOptimizer
    from halfulp.optim import Lion as Lion
    from halfulp.optim import MicroAdam as MicroAdam
    from halfulp.optim import Muon as Muon
    from halfulp.optim import SubsetNorm as SubsetNorm
    from halfulp.optim import SubspaceMomentum as SubspaceMomentum
    from halfulp.quantizer import Quantizer as Quantizer
    from halfulp.resets import Every as Every
    from halfulp.resets import Planned as Planned
    from halfulp.resets import ResetSchedule as ResetSchedule
    from halfulp.resets import Staggered as Staggered
    from halfulp.rounding import round_to as round_to
    from halfulp.rules.transforms import adagc as adagc
    from halfulp.rules.transforms import clip_coordinates as clip_coordinates
    from halfulp.rules.transforms import clip_global as clip_global
    from halfulp.rules.transforms import master_weights as master_weights
    from halfulp.scaling import Scaling as Scaling
    from halfulp.schedules import linear_to_zero as linear_to_zero
    from halfulp.schedules import refined as refined
    from halfulp.schedules import scale_adam as scale_adam
    from halfulp.schedules import warmup_stable_decay as warmup_stable_decay
    from halfulp.theory.closed_loop import Measured as Measured
    from halfulp.theory.planner import plan_reset as plan_reset
    from halfulp.theory.stall import stall_curve as stall_curve
    from halfulp.theory.stall import stall_probability as stall_probability
    from halfulp.wrappers import Lookahead as Lookahead
    from halfulp.wrappers import LowPass as LowPass

__version__ = "0.1.0"

_HOME = {
    "warmup_stable_decay": "schedules",
    "scale_adam": "schedules",
    "linear_to_zero": "schedules",
    "refined": "schedules",
    "AutoDrop": "autodrop",
    "ADOPT": "optim",
    "AMAdamW": "optim",
    "AMSGD": "optim",
    "AdEMAMix": "optim",
    "AdaBelief": "optim",
    "AdaBound": "optim",
    "AdaLomo": "optim",
    "AdaMod": "optim",
    "AdaMomentum": "optim",
    "Adafactor": "optim",
    "Adam": "optim",
    "AdamP": "optim",
    "AdamW": "optim",
    "BAdam": "optim",
    "CAME": "optim",
    "CoRe": "optim",
    "ComplexMomentum": "optim",
    "Conda": "optim",
    "DiffGrad": "optim",
    "EXAdam": "optim",
    "Every": "resets",
    "FRUGAL": "optim",
    "Format": "formats",
    "Gravity": "optim",
    "HyperOptimizer": "optim",
    "LAMB": "optim",
    "LARS": "optim",
    "Lion": "optim",
    "Lookahead": "wrappers",
    "LowPass": "wrappers",
    "MADGRAD": "optim",
    "MicroAdam": "optim",
    "Measured": "theory.closed_loop",
    "Muon": "optim",
    "Planned": "resets",
    "Quantizer": "quantizer",
    "ResetSchedule": "resets",
    "SGD": "optim",
    "SMMF": "optim",
    "SOAP": "optim",
    "SPAM": "optim",
    "SWATS": "optim",
    "Scaling": "scaling",
    "Staggered": "resets",
    "GradientSample": "monitor",
    "StallMonitor": "monitor",
    "SubsetNorm": "optim",
    "SubspaceMomentum": "optim",
    "adagc": "rules.transforms",
    "check_roundtrip": "checkpoint.selftest",
    "clip_coordinates": "rules.transforms",
    "clip_global": "rules.transforms",
    "convert_state_dict": "checkpoint.convert",
    "get_format": "formats",
    "load_optimizer": "checkpoint.files",
    "master_weights": "rules.transforms",
    "plan_reset": "theory.planner",
    "round_to": "rounding",
    "save_optimizer": "checkpoint.files",
    "stall_curve": "theory.stall",
    "stall_probability": "theory.stall",
}

_PACKAGES = ("averaging", "checkpoint", "formats", "kernels", "monitor", "optim", "schedules", "theory", "wrappers")
"""Modules that are there after ``import halfulp`` alone; an import of them binds their name."""

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"halfulp.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'halfulp' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"halfulp.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_PACKAGES})
