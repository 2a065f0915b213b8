"""Optimizers around an optimizer, ours or any other: Lookahead, low-pass filtering."""

from halfulp.wrappers.base import Wrapper
from halfulp.wrappers.lookahead import Lookahead
from halfulp.wrappers.low_pass import LowPass

__all__ = ["Lookahead", "LowPass", "Wrapper"]
