"""What surrounds a step: Lookahead, low-pass filtering, gradient release, CPU offload, fp32 gradients."""

from halfulp.training.fp32_gradients import main_grads
from halfulp.training.lookahead import Lookahead
from halfulp.training.low_pass import LowPass
from halfulp.training.offloading import Offload, offload
from halfulp.training.release import GradientRelease, release_gradients
from halfulp.training.wrapper import Wrapper

__all__ = [
    "GradientRelease", "Lookahead", "LowPass", "Offload", "Wrapper", "main_grads", "offload", "release_gradients",
]  # fmt: skip
