"""Predicted stalled fractions of stored averages: the single entry point to this theory.

The method depends on the storage and on what is averaged:

- **floats**, including blocks with power-of-two scales: the exact chain on their grid
  (:mod:`halfulp.theory.transient`), averaged over equally likely first inputs if the first input is taken whole;
- **integers and codebooks** in such blocks: an ensemble of blocks, several steps at a time
  (:mod:`halfulp.theory.sampled_blocks`);
- **any format in blocks with fp32 scales**: an ensemble of blocks, step by step (:mod:`halfulp.theory.blocks`);
- **weights**: their random walk (:mod:`halfulp.theory.walk`);
- **the planner**, which needs moments of the stored value under a falling gradient scale: the chain for floats, the
  chain with a rising unit (:mod:`halfulp.theory.rising_unit`) for integers and codebooks;
- on request, for comparison: the closed forms (:mod:`halfulp.theory.closed_form`).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from halfulp.numbers.formats import Format, get_format
from halfulp.numbers.quantizer import check_rounding
from halfulp.rules.drives import Drive, as_drive
from halfulp.theory.arguments import check_beta, check_number, check_signed, check_steps

if TYPE_CHECKING:
    from halfulp.theory.transient import Transient

__all__ = ["predict", "second_moment_laws", "stall_curve", "stall_probability"]

Model = Literal["chain", "build-up", "one-step"]
MODELS = ("chain", "build-up", "one-step")
Array = npt.NDArray[np.float64]
OLDEST = 1e12
"""Largest age of a state."""
LONGEST = 10_000_000
"""Largest length of a curve."""
FIRSTS = 8
"""Number of equally likely first inputs for an average that takes its first input whole."""


def predict(
    fmt: Format | str,
    rounding: str,
    drive: Drive,
    beta: float,
    age: float,
    *,
    scale_kind: str = "pow2",
    step: float | None = None,
) -> float | None:
    """Return the predicted stalled fraction of the update of a state of a given age, or ``None`` if there is no theory.

    Parameters
    ----------
    age
        Updates since the state was zero (for weights, since it was a copy), up to 10^12. It need not be an integer.
    scale_kind
        ``"pow2"`` or ``"fp32"``, for blocks of 128; see :class:`halfulp.numbers.scaling.Scaling`.
    step
        For averages of weights: standard deviation of a step, relative to the weight.

    Examples
    --------
    >>> round(predict("bf16", "nearest", Drive("square"), 0.999, 300), 2)
    0.68
    >>> round(predict("bf16", "nearest", Drive("square", shared=64), 0.999, 300), 2)
    0.63
    """
    _check_age(age)
    resolved = get_format(fmt, signed=not drive.nonnegative)
    if drive.kind == "weight":
        from halfulp.theory.walk import walk_stall

        if step is None:
            raise ValueError("the walk of weights has no scale of its own: give step=")
        return walk_stall(resolved, beta, step, rounding, updates=max(round(age), 1)).stalled  # type: ignore[arg-type]
    if resolved.is_float32:
        return 0.0
    if not 0.0 <= beta < 1.0 or (resolved.kind != "float" and drive.whole_first):
        return None
    if not drive.nonnegative and not resolved.signed:
        return None
    ages, stalled = _curve(resolved, rounding, drive, max(beta, 1e-6), scale_kind, _length(age))
    return float(np.interp(age, ages, stalled))


def stall_probability(
    fmt: str | Format,
    *,
    beta: float,
    rounding: str,
    slot: str | Drive = "exp_avg_sq",
    age: float | None = None,
    model: Model = "chain",
) -> float:
    """Return the probability that an update of one coordinate stalls: it leaves the stored value unchanged.

    Parameters
    ----------
    fmt
        A format or its name. Integers and codebooks (``"chain"`` only) are assumed to be in blocks of 128 with a
        power-of-two scale.
    beta
        Decay of the EMA, in (0, 1).
    rounding
        ``"nearest"`` or ``"stochastic"``.
    slot
        ``"exp_avg_sq"``: second moment; ``"exp_avg"``: first moment; or any other
        :class:`~halfulp.rules.drives.Drive`.
    age
        Number of updates since the state was zero, up to 10^12. Default: ``3 / (1 - beta)``.
    model
        ``"chain"``: the exact law at that age; ``"build-up"``: the closed form at that age; ``"one-step"``: the
        published closed form, for an infinite age.

    Returns
    -------
    float
        In [0, 1]; 0 for float32. Results of the chain are cached, so another age of the same state is cheap.

    Examples
    --------
    >>> round(stall_probability("fp8", beta=0.999, rounding="stochastic"), 3)
    0.988
    >>> round(stall_probability("bf16", beta=0.999, rounding="nearest", model="one-step"), 4)
    0.9458
    """
    resolved, drive = _check(fmt, beta, rounding, slot, model)
    age = 3 / (1 - beta) if age is None else age
    if model != "one-step":
        _check_age(age)
    if model == "chain":
        found = predict(resolved, rounding, drive, beta, age)
        if found is None:
            raise ValueError(f"there is no law of {drive} stored as {resolved.name}")
        return found
    if resolved.is_float32:
        return 0.0
    from halfulp.theory.closed_form import closed_form

    ages = np.array([math.inf if model == "one-step" else age])
    return float(closed_form(resolved, rounding, drive, beta, ages)[0])


def stall_curve(
    fmt: str | Format,
    *,
    beta: float,
    rounding: str,
    steps: int,
    slot: str | Drive = "exp_avg_sq",
    model: Model = "chain",
) -> npt.NDArray[np.float64]:
    """Return the stalled fraction by step after a reset. Entry ``t - 1`` belongs to the update of step ``t``.

    That update meets a state of age ``t - 1``.

    Parameters
    ----------
    fmt, beta, rounding, slot, model
        As for :func:`stall_probability`.
    steps
        Length of the curve, up to 10^7.

    Returns
    -------
    numpy.ndarray
        float64, of shape ``(steps,)``.

    Examples
    --------
    >>> curve = stall_curve("fp8", beta=0.999, rounding="nearest", steps=1000)
    >>> curve[10].round(2), curve[-1] > 0.99
    (np.float64(0.49), np.True_)
    """
    resolved, drive = _check(fmt, beta, rounding, slot, model)
    check_steps(steps, most=LONGEST)
    if resolved.is_float32 or steps == 0:
        return np.zeros(steps)
    wanted = np.arange(steps, dtype=np.float64)
    if model == "chain":
        return np.interp(wanted, *_curve(resolved, rounding, drive, beta, "pow2", _length(steps - 1)))
    from halfulp.theory.closed_form import closed_form

    return closed_form(resolved, rounding, drive, beta, wanted if model == "build-up" else np.full(steps, math.inf))


def second_moment_laws(
    fmt: Format, beta: float, rounding: str, drifts: tuple[float, ...], steps: int
) -> tuple[Transient, ...]:
    """Return the laws of a second moment under a falling gradient scale, one per drift, for the planner.

    Few phases and points suffice, since the cost is flat around the best period, the more so the finer the format.
    """
    if fmt.kind != "float":
        from halfulp.theory.rising_unit import block_transients

        return block_transients(fmt, beta, rounding, drifts, steps)
    from halfulp.theory.chain import Chain
    from halfulp.theory.transient import transients

    phases = 8 if fmt.mantissa_bits < 6 else 4 if fmt.mantissa_bits < 10 else 3
    return transients(Chain(fmt, beta, rounding, phases=phases, fineness=2), drifts, steps)


def _check_age(age: float) -> None:
    check_number("age", age, "a number of steps from 0 to 10^12", lambda x: 0.0 <= x <= OLDEST)


def _length(age: float) -> int:
    """Round a length up to a power of two. Curves are cached by length, one per octave."""
    return 1 << max(math.ceil(age), 63).bit_length()


@lru_cache(maxsize=256)
def _curve(fmt: Format, rounding: str, drive: Drive, beta: float, scale_kind: str, steps: int) -> tuple[Array, Array]:
    """Return ages up to `steps`, and the stalled fraction at each.

    Ensembles are followed for some windows. A signed state has settled by then. A second moment rounded to nearest
    never settles, but its curve has become flat.
    """
    if fmt.kind != "float" or (fmt.scaled and scale_kind == "fp32"):
        least, windows = (1 << 14, 8) if drive.nonnegative else (64, 16)
        steps = min(steps, _length(max(least, int(windows / (1 - beta))) - 1))
    if fmt.scaled and scale_kind == "fp32":
        from halfulp.theory.blocks import Blocks, block_law

        blocks = block_law(Blocks(fmt, beta, rounding, drive, scale_kind, zero_floor=drive.nonnegative), steps)
        return blocks.ages.astype(np.float64), blocks.stalled
    if fmt.kind != "float":
        from halfulp.theory.sampled_blocks import sampled_law

        ages, stalled = sampled_law(fmt, beta, rounding, drive, steps - 1)
        return ages.astype(np.float64), stalled
    from halfulp.theory.chain import Chain
    from halfulp.theory.transient import old_state

    starts = _first_inputs(drive) if drive.whole_first else [0.0]
    laws = [old_state(Chain(fmt, beta, rounding, drive), steps, start=start) for start in starts]
    stalled = np.asarray(np.mean([law.stalled for law in laws], axis=0))
    if drive.whole_first:  # a state of age 1 equals its first input
        stalled = np.append(stalled[:1], stalled[:-1])
    return laws[0].ages.astype(np.float64), stalled


def _first_inputs(drive: Drive) -> list[float]:
    """Return equally likely inputs, the medians of equal parts of the drive's law."""
    from scipy.special import gammaincinv, ndtri

    shares = (np.arange(FIRSTS) + 0.5) / FIRSTS
    if drive.kind == "square":
        return [float(w) for w in 2 / drive.shared * gammaincinv(drive.shared / 2, shares)]
    return [float(w) for w in drive.ratio + ndtri(shares)]


def _check(fmt: str | Format, beta: float, rounding: str, slot: str | Drive, model: str) -> tuple[Format, Drive]:
    if model not in MODELS:
        raise ValueError(f"model is one of {', '.join(map(repr, MODELS))}, got {model!r}")
    drive = as_drive(slot)
    if drive.kind == "weight":
        raise ValueError("a weight average is predicted by halfulp.averaging.walk_stall, which takes its steps")
    check_beta(beta)
    check_rounding(rounding)
    resolved = get_format(fmt, signed=not drive.nonnegative)
    check_signed(resolved, drive)
    if model != "chain" and resolved.kind != "float":
        raise ValueError(f"the closed form needs a relative spacing, which {resolved.name} does not have")
    return resolved, drive
