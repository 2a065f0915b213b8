"""Optimizers around an optimizer, ours or any other: Lookahead, low-pass filtering."""

from halfulp.training.lookahead import Lookahead
from halfulp.training.low_pass import LowPass
from halfulp.training.wrapper import Wrapper

__all__ = ["Lookahead", "LowPass", "Wrapper"]
