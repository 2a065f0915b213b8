"""Controlled simulations of many EMA coordinates, stored with the library's own quantizers.

Each coordinate draws independent normal gradients whose ``sigma`` follows a scenario. The stored state is decoded,
updated in fp32 and encoded again, as in an optimizer. The same EMA is computed in float64 for comparison.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from halfulp.numbers.quantizer import Quantizer
from halfulp.rules.drives import Drive, as_drive
from halfulp.theory.arguments import check_beta, check_spread, check_steps
from halfulp.theory.stepper import StoredAverage, Update, successor

__all__ = ["SCENARIOS", "Simulated", "Snapshot", "simulate", "simulate_blocks"]

SCENARIOS: dict[str, Callable[[float], float]] = {
    "stationary": lambda x: 1.0,
    "drop": lambda x: 1.0 if x < 0.5 else 0.1,
    "decay": lambda x: 10.0**-x,
    "spike": lambda x: 10.0 if 0.5 <= x < 0.505 else 1.0,
}
"""The gradient's ``sigma`` as a function of progress, from 0 to 1: constant; reduced to a tenth at half time; reduced
to a tenth gradually; ten times as large for half a percent of the run.
"""


@dataclass(frozen=True)
class Snapshot:
    """The coordinates after a step, and the stalled share of its updates.

    Parameters
    ----------
    sigma
        Standard deviation of the gradients in this step.
    ratio
        Ratio of the sums of a row's stored and exact values, averaged over rows (blocks). For signed states, the root
        of the ratio of sums of squares.
    mean, exact
        Mean stored and exact value (root mean square for signed states).
    zeros
        Share of codes that are zero.
    """

    step: int
    sigma: float
    stalled: float
    ratio: float
    mean: float
    exact: float
    zeros: float


def simulate(
    quantizer: Quantizer,
    *,
    beta: float,
    steps: int,
    slot: str | Drive = "exp_avg_sq",
    sigma: Callable[[float], float] = SCENARIOS["stationary"],
    coordinates: int = 16384,
    spread: float = 0.0,
    shared: bool = True,
    sizes: Tensor | None = None,
    reset_every: int | None = None,
    seed: int = 0,
) -> Iterator[Snapshot]:
    """Simulate a state, step by step, stored by a quantizer.

    Parameters
    ----------
    slot
        ``"exp_avg_sq"`` averages squared gradients, ``"exp_avg"`` gradients.
    sigma
        Scale of the gradients as a function of progress (0 to 1); see :data:`SCENARIOS`.
    coordinates
        Total number of coordinates, in rows of one block each (or in one row, without scales).
    spread
        Standard deviation of the logarithm of each coordinate's gradient scale.
    shared
        Whether blocks are those of the quantizer. Otherwise each coordinate has its own scale (a block of one), which
        no real optimizer has.
    sizes
        Gradient scale of each coordinate, ``(rows, block width)``. Replaces `coordinates` and `spread`.
    reset_every
        Steps between resets.
    seed
        Seed of gradients and rounding, up to 2^63. Equal seeds give equal gradients.

    Examples
    --------
    >>> *_, last = simulate(Quantizer("bfloat16"), beta=0.9, steps=50)
    >>> last.step, last.stalled < 0.05
    (50, True)
    """
    check_beta(beta)
    check_steps(steps)
    check_steps(coordinates, "coordinates", least=1)
    check_spread(spread)
    check_steps(seed, "seed", most=1 << 63)
    if reset_every is not None:
        check_steps(reset_every, "reset_every", least=1)
    square = as_drive(slot).nonnegative
    generator = torch.Generator().manual_seed(seed)
    words = torch.Generator().manual_seed(seed + 1)
    width = quantizer.scaling.block_size if shared else 1
    if sizes is None:
        shape = (max(1, coordinates // width), width)
        phases = 2 ** torch.rand((shape[0], 1), generator=generator, dtype=torch.float32, device="cpu")
        sizes = torch.exp(spread * torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")) * phases
    own, shape = sizes.float(), (sizes.shape[0], sizes.shape[1])

    def store(values: Tensor) -> tuple[Tensor, Tensor]:
        rand_bits = torch.randint(1 << 32, shape, generator=words, device="cpu") if quantizer.stochastic else None
        codes, scale = quantizer.quantize(values, rand_bits)
        return quantizer.dequantize(codes, scale, shape), codes

    for step in range(1, steps + 1):
        if step == 1 or (reset_every is not None and (step - 1) % reset_every == 0):
            average = StoredAverage(beta, store, torch.zeros(shape, dtype=torch.float32, device="cpu"))
            exact = torch.zeros(shape, dtype=torch.float64, device="cpu")
        level = sigma((step - 1) / steps)
        grad = level * own * torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        inputs = grad * grad if square else grad
        update = average.step(inputs)
        exact = successor(beta, exact, inputs.double())
        yield _snapshot(step, level, update, exact, square)


class Simulated(NamedTuple):
    """Averages of many simulated blocks. Row ``t - 1`` is for age ``t``.

    `figures` of shape ``(ages, 3)`` are the stalled fraction of the update of a state of this age, and the state's lag
    and share of zeros, defined as in :class:`~halfulp.theory.blocks.BlockLaw`. `errors` are their standard errors, from
    the differences between ensembles of 128 blocks.
    """

    figures: npt.NDArray[np.float64]
    errors: npt.NDArray[np.float64]
    blocks: int


def simulate_blocks(
    quantizer: Quantizer,
    *,
    beta: float,
    steps: int,
    slot: str | Drive = "exp_avg_sq",
    spread: float = 0.0,
    precision: float = 0.005,
    most: int = 8192,
    seed: int = 0,
) -> Simulated:
    """Simulate ensembles of 128 blocks, at least 8 of them, until the standard errors are small at every age.

    `steps` is the last age, `precision` the largest standard error of stalled fraction, lag and share of zeros, and
    `most` the largest number of blocks. The rest is as for :func:`simulate`.

    Examples
    --------
    >>> run = simulate_blocks(Quantizer("float8_e4m3fn"), beta=0.9, steps=5, precision=0.02)
    >>> run.figures.shape, run.blocks
    ((5, 3), 1024)
    """
    degree = 1 if as_drive(slot).nonnegative else 2
    ensembles: list[list[tuple[float, float, float]]] = []
    while True:
        run = simulate(
            quantizer, beta=beta, steps=steps + 1, slot=slot, coordinates=128 * quantizer.scaling.block_size,
            spread=spread, seed=1_000_000 + 7919 * seed + 2 * len(ensembles),
        )  # fmt: skip
        pairs = itertools.pairwise(run)  # a snapshot describes an update and the state after it
        ensembles.append([(update.stalled, state.ratio**degree, state.zeros) for state, update in pairs])
        count = len(ensembles)
        if count < 8:
            continue
        figures = np.mean(ensembles, axis=0)
        errors = np.std(ensembles, axis=0, ddof=1) / math.sqrt(count)
        ratio = np.maximum(figures[:, 1], 1e-12)
        figures[:, 1], errors[:, 1] = np.log(ratio) / degree, errors[:, 1] / ratio / degree
        if errors.max(initial=0.0) <= precision or count * 128 >= most:
            return Simulated(figures, errors, count * 128)


def _snapshot(step: int, level: float, update: Update[Tensor], exact: Tensor, square: bool) -> Snapshot:
    new = update.after
    stored, reference = (x if square else x * x for x in (new.double(), exact))
    stored_sums, sums = stored.sum(dim=1), reference.sum(dim=1)
    figures = (float((stored_sums / sums).mean()), *(float(x.sum()) / new.numel() for x in (stored_sums, sums)))
    ratio, mean, exact_mean = figures if square else (math.sqrt(x) for x in figures)
    return Snapshot(
        step=step,
        sigma=level,
        stalled=update.stalled,
        ratio=ratio,
        mean=mean,
        exact=exact_mean,
        zeros=1 - int(new.count_nonzero()) / new.numel(),
    )
