"""Averages of weights in low precision: exponential, uniform, windowed, and what is built on them.

Every average stores its weights with the formats, rounding, random bits and kernels of the optimizer states.
"""

from halfulp.averaging.base import WeightAverage
from halfulp.averaging.bema import BEMA
from halfulp.averaging.callbacks import lightning_callback, trainer_callback
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
from halfulp.averaging.dropin import AveragedModel
from halfulp.averaging.dropin_diffusers import EMAModel
from halfulp.averaging.dropin_ema_pytorch import EMAPytorch
from halfulp.averaging.ema import EMA, SWA, TemporalEnsemble
from halfulp.averaging.merge import liti, slerp, warp
from halfulp.averaging.pair import check_pair
from halfulp.averaging.posthoc import PostHocEMA, Reconstruction, profile_product, reconstruct_weights
from halfulp.averaging.stall import predict, watch
from halfulp.averaging.store import AverageStore
from halfulp.averaging.switch import ElasticReset, SlowWeights, SwitchEMA
from halfulp.averaging.teacher import Teacher, TemporaryTeachers
from halfulp.averaging.window import LAWA
from halfulp.engine.sharding import whole
from halfulp.theory.walk import WalkStall, walk_stall

__all__ = [
    "BEMA", "EMA", "LAWA", "SWA", "AverageStore", "AveragedModel", "Cosine", "EMAModel", "EMAPytorch", "ElasticReset",
    "Linear", "MeanTeacher", "PostHocEMA", "PowerLaw", "Ramp", "Reconstruction", "SlowWeights", "SwitchEMA", "Teacher",
    "TemporalEnsemble", "TemporaryTeachers", "Uniform", "WalkStall", "Warmup", "WeightAverage", "check_pair",
    "half_life", "lightning_callback", "liti", "power_exponent", "power_width", "predict", "profile_product",
    "reconstruct_weights", "scale_decay", "slerp", "trainer_callback", "walk_stall", "warp", "watch", "whole",
]  # fmt: skip
