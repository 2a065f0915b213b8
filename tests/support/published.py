"""Published measurements for comparison with the theory.

Stalled fraction of second-moment updates in training at ``beta2 = 0.999``, from Topollai & Choromanska, *Understanding
Quantization of Optimizer States in LLM Pre-training* (arXiv 2603.16731): seven models, two formats, both roundings.
"""

from __future__ import annotations

__all__ = ["BETA", "CELLS", "STALLED"]

BETA = 0.999
"""Decay of the second moment in all measurements."""

CELLS = (("bf16", "nearest"), ("bf16", "stochastic"), ("fp8", "nearest"), ("fp8", "stochastic"))
"""Format and rounding of each of a model's values."""

STALLED: dict[str, tuple[int, tuple[float, float, float, float]]] = {
    "LLaMA 60M": (20_000, (0.969, 0.812, 0.999, 0.986)),
    "LLaMA 100M": (20_000, (0.967, 0.814, 0.998, 0.983)),
    "LLaMA 1B": (30_000, (0.974, 0.825, 0.997, 0.986)),
    "LLaMA 7B": (25_000, (0.970, 0.823, 0.998, 0.988)),
    "GPT-NeoX 160M": (20_000, (0.971, 0.817, 0.999, 0.989)),
    "GPT-NeoX 410M": (20_000, (0.971, 0.820, 0.999, 0.988)),
    "MoE 520M": (25_000, (0.970, 0.822, 0.993, 0.982)),
}
"""Length of run at which a model is compared (our choice, not published), and its stalled fractions, one per cell."""
