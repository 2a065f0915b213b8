"""Optimizers around an optimizer, ours or any other: Lookahead, low-pass filtering; gradient release."""

from halfulp.training.lookahead import Lookahead
from halfulp.training.low_pass import LowPass
from halfulp.training.release import GradientRelease, release_gradients
from halfulp.training.wrapper import Wrapper

__all__ = ["GradientRelease", "Lookahead", "LowPass", "Wrapper", "release_gradients"]
