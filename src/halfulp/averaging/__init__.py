"""Averages of weights in low precision: exponential, uniform, windowed, and what is built on them.

Every average stores its weights with the formats, rounding, random bits and kernels of the optimizer states.
"""

from halfulp.averaging.base import WeightAverage
from halfulp.averaging.decay import (
    Cosine,
    Linear,
    MeanTeacher,
    PowerLaw,
    Ramp,
    Uniform,
    Warmup,
    half_life,
    power_exponent,
    power_width,
    scale_decay,
)
from halfulp.averaging.ema import EMA, SWA
from halfulp.averaging.store import AverageStore

__all__ = [
    "EMA", "SWA", "AverageStore", "Cosine", "Linear", "MeanTeacher", "PowerLaw", "Ramp", "Uniform", "Warmup",
    "WeightAverage", "half_life", "power_exponent", "power_width", "scale_decay",
]  # fmt: skip
