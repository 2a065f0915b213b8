"""halfulp: optimizer states in 16, 8 or 4 bits that stay right on average.

Every public name is an attribute of this module. Each is imported on first use, so that ``import halfulp`` costs little
more than ``import torch``.
"""

from __future__ import annotations

import gc
import importlib.machinery
import sys
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "warmup_stable_decay": "training.schedules",
    "scale_adam": "training.schedules",
    "linear_to_zero": "training.schedules",
    "refined": "training.schedules",
    "AutoDrop": "training.autodrop",
    "Every": "engine.resets",
    "Format": "numbers.formats",
    "Lookahead": "training",
    "LowPass": "training",
    "Measured": "theory.closed_loop",
    "Planned": "engine.resets",
    "Quantizer": "numbers.quantizer",
    "ResetSchedule": "engine.resets",
    "Scaling": "numbers.scaling",
    "Staggered": "engine.resets",
    "GradientSample": "monitor",
    "StallMonitor": "monitor",
    "adagc": "rules.transforms",
    "check_roundtrip": "checkpoint.selftest",
    "clip_coordinates": "rules.transforms",
    "clip_global": "rules.transforms",
    "convert_state_dict": "checkpoint.convert",
    "fp32_params": "checkpoint.fp32",
    "fp32_state_dict": "checkpoint.fp32",
    "fp32_weights": "checkpoint.fp32",
    "get_format": "numbers.formats",
    "load_fp32_state_dict": "checkpoint.fp32",
    "load_optimizer": "checkpoint.files",
    "plan_reset": "theory.planner",
    "register_format": "numbers.formats",
    "resize_states": "engine.rows",
    "round_to": "numbers.rounding",
    "save_optimizer": "checkpoint.files",
    "stall_curve": "theory.predict",
    "stall_probability": "theory.predict",
}
"""The modules of public names. All other names are optimizers, listed in :mod:`halfulp.optim`."""

_MODULES = {
    "averaging": "averaging",
    "checkpoint": "checkpoint",
    "formats": "numbers.formats",
    "kernels": "kernels",
    "monitor": "monitor",
    "numbers": "numbers",
    "optim": "optim",
    "schedules": "training.schedules",
    "testing": "testing",
    "theory": "theory",
    "trainers": "training.trainers",
    "training": "training",
    "workers": "workers",
    "wrappers": "training",
}
"""The modules available after ``import halfulp``, by their names here, some of which are shorter."""


class _ShortNames:
    """An importer of ``halfulp.trainers`` and the other short names."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        package, _, short = name.partition(".")
        known = package == __name__ and _MODULES.get(short, short) != short
        return importlib.machinery.ModuleSpec(name, _ShortNames) if known else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: Any) -> Any:
        module = importlib.import_module(f"{__name__}.{_MODULES[spec.name.partition('.')[2]]}")
        spec.loader_state = module.__spec__
        return module

    @staticmethod
    def exec_module(module: Any) -> None:
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.append(_ShortNames)  # type: ignore[arg-type]


def _imported(name: str) -> Any:
    """Import a module with the garbage collector off. One pass over torch's objects takes longer than the import."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        if collects:
            gc.enable()


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return _imported(f"{__name__}.{name}")
    if name == "__all__":
        return [*_HOME, *_imported("halfulp.optim").__all__]
    home = None if name.startswith("_") else _imported(f"halfulp.{_HOME.get(name, 'optim')}")
    if name not in getattr(home, "__all__", ()):
        raise AttributeError(f"module 'halfulp' has no attribute {name!r}")
    value = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *__getattr__("__all__")})
