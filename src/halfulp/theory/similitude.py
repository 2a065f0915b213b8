"""Scale models of training: short runs that stall like long ones.

A long run cannot be repeated on a laptop, but its stalling can. The stalling of an average depends on only four groups
of numbers:

* ``(1 - beta) / eps``: an update relative to the grid spacing, where ``eps`` is the format's relative spacing;
* ``steps * (1 - beta)``: the length of the run, in windows of the average;
* ``(1 - beta1) / (1 - beta2)``: the ratio of the windows of the two moments;
* how far the scale of the gradient falls per window.

If every window is shortened by a factor ``k`` and the grid is made coarser by the same factor, all four are unchanged,
and the run needs ``1 / k`` of the steps. For example, bf16 at betas .9 and .999 over 20 000 steps is modelled, at
``k = 8``, by a float with four fraction bits at betas .2 and .992 over 2500 steps.

A model does not preserve the following:

* The first moment of the model averages few gradients (1.25 at .2), so its updates are noisier. Compare arms within a
  model, never a model with its original.
* The first steps after a reset are noisy, and a model has fewer of them. In both runs, bias correction starts from one
  gradient.
* Block scales and underflow do not scale. The model idealizes the format as a float with unlimited exponent range.
* Warm-up, weight decay and the rate schedule are kept as shares of the run. The noise of the batches is not scaled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from halfulp.numbers.formats import Format, get_format
from halfulp.theory.arguments import check_steps

__all__ = ["ScaleModel", "free_float", "scale_model"]

Array = npt.NDArray[np.float64]


def free_float(fraction_bits: int) -> Format:
    """Return a signed float format of 0 to 7 fraction bits (7 is bfloat16) for laws with an unlimited exponent range.

    Examples
    --------
    >>> free_float(4).epsilon
    0.0625
    """
    if not 0 <= fraction_bits <= 7:
        raise ValueError(f"a scale model has 0 to 7 fraction bits, got {fraction_bits}")
    if fraction_bits == 7:
        return get_format("bfloat16")
    exponent = 7 - fraction_bits
    name = f"float8_e{exponent}m{fraction_bits}_free"
    return Format(name, "float", 8, True, exponent, fraction_bits, (1 << (exponent - 1)) - 1)


@dataclass(frozen=True)
class ScaleModel:
    """A run and its scale model, which is shorter by a factor.

    `first` and `second` are the formats of the original's moments, `betas` and `steps` its decays and length.
    """

    first: Format
    second: Format
    betas: tuple[float, float]
    steps: int
    factor: int

    @property
    def formats(self) -> tuple[Format, Format]:
        """Formats of the model's moments: the original's with ``log2(factor)`` fewer fraction bits."""
        less = self.factor.bit_length() - 1
        return free_float(self.first.mantissa_bits - less), free_float(self.second.mantissa_bits - less)

    @property
    def model_betas(self) -> tuple[float, float]:
        """Decays of the model, whose windows are shorter by the factor."""
        return self._short(self.betas[0]), self._short(self.betas[1])

    @property
    def model_steps(self) -> int:
        """Number of steps of the model."""
        return self.steps // self.factor

    def _short(self, beta: float) -> float:
        return round(1 - self.factor * (1 - beta), 12)

    def period(self, original: int | None) -> int | None:
        """Convert the steps between resets of the original to those of the model."""
        if original is None:
            return None
        check_steps(original, "original", least=1)
        return max(1, round(original / self.factor))

    def stalled(self, rounding: str, points: int = 50) -> tuple[Array, Array, Array]:
        """Return the predicted stalled second-moment fractions of original and model, at equal shares of their runs.

        The result is three arrays of shape ``(points,)``: the shares, evenly spaced up to the whole run, and the
        stalled fractions of the original and of the model.
        """
        from halfulp.theory.predict import stall_curve

        shares = np.arange(1, points + 1) / points
        curves = []
        for fmt, beta, steps in (
            (free_float(self.second.mantissa_bits), self.betas[1], self.steps),
            (self.formats[1], self.model_betas[1], self.model_steps),
        ):
            curve = stall_curve(fmt, beta=beta, rounding=rounding, steps=steps)
            curves.append(curve[np.maximum(np.round(shares * steps).astype(int), 1) - 1])
        return shares, curves[0], curves[1]


def scale_model(
    fmt: str | Format, *, betas: tuple[float, float] = (0.9, 0.999), steps: int = 20_000, factor: int = 8
) -> ScaleModel:
    """Return the scale model of a run: shorter windows on a coarser grid. Raise ``ValueError`` if there is none.

    Parameters
    ----------
    fmt
        Format of the original's states. It must be a float.
    betas, steps
        Decays and length of the original run.
    factor
        A power of two. The shortest window must stay longer than a step (``factor * (1 - beta) < 1``), and the format
        must have as many fraction bits as the factor takes away.

    Examples
    --------
    >>> model = scale_model("bf16", factor=8)
    >>> model.formats[1].mantissa_bits, model.model_betas, model.model_steps
    (4, (0.2, 0.992), 2500)
    """
    first, second = get_format(fmt, signed=True), get_format(fmt, signed=False)
    coarser = min(first, second, key=lambda f: f.mantissa_bits)
    if any(f.kind != "float" or f.is_float32 for f in (first, second)):
        raise ValueError(f"a scale model needs a low-precision float format, got {second.name}")
    if factor < 1 or factor & (factor - 1):
        raise ValueError(f"the factor of a scale model is a power of two, got {factor}")
    if factor.bit_length() - 1 > coarser.mantissa_bits:
        raise ValueError(
            f"{coarser.name} has {coarser.mantissa_bits} fraction bits: its scale models go to a factor of "
            f"{1 << coarser.mantissa_bits}, got {factor}"
        )
    if not all(0 < b < 1 for b in betas) or factor * (1 - min(betas)) >= 1:
        raise ValueError(f"a factor of {factor} leaves no window of betas {betas}: factor * (1 - beta) must be below 1")
    check_steps(steps)
    if steps < factor:
        raise ValueError(f"a run of {steps} steps has no model that is {factor} times shorter")
    return ScaleModel(first, second, betas, steps, factor)
