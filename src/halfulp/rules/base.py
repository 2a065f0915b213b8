"""Rules: the declarations of optimizers.

A rule is one pure function ``update(param, grad, states, c) -> (new param, new states)`` on fp32 tensors, beside the
declaration of its states and the scalars ``c`` that a step needs. States go in and come out by name. It never sees a
format: the engine decodes the states, calls it, and encodes what it returns.

Every tensor operation of an elementwise rule must round separately, since a kernel has to reproduce it bit by bit:
plain ``+ - * /``, the functions of this module, ``torch.clamp``, comparisons and ``torch.where``. Not ``lerp``,
``addcmul``, ``addcdiv`` or ``add(alpha=)``, which fuse or reorder. Scalars are computed once in Python floats and
rounded to fp32. Sums over a tensor go through :func:`total`, whose bits do not depend on the number of threads. From
such a rule kernels are generated (:mod:`halfulp.rules.program`).

A rule that needs a figure of the whole model (a global norm, an inner product) gives ``measure``: sums of each
parameter, which the engine adds up over all parameters of the optimizer, and ``combine``, which turns them into
further scalars before any parameter is updated. A rule that needs sums within its update takes them with :func:`norm`,
:func:`rms`, :func:`row_means` and the like, and is not elementwise (:mod:`halfulp.rules.stages`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from halfulp.numbers.scaling import rows_and_cols
from halfulp.rules.hyper import HyperBase
from halfulp.rules.slots import Hyper, StateSlot

__all__ = [
    "FROM_SUMS", "Ages", "Rule", "Scalars", "States", "all_fp32", "all_of_fp32", "bits", "by_column", "by_row", "cbrt",
    "clamp", "column_means", "exp", "fold_columns", "fold_rows", "fp32", "from_bits", "larger", "largest", "maximum",
    "mean", "minimum", "norm", "rms", "rounded", "row_means", "sigmoid", "smaller", "sqrt", "total",
]  # fmt: skip

Scalars = dict[str, float]
States = dict[str, Tensor]
Ages = Mapping[str, int]
Update = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Rule:
    """An update rule, and the declaration of the optimizer that follows it.

    :func:`halfulp.optimizer` makes the class. A rule that is not an optimizer by itself, such as an average of weights,
    leaves `hyper` and all that follows it out.

    Parameters
    ----------
    name
        Its name; a fused kernel is looked up by it.
    slots
        States under given hyper-parameters (SGD without momentum has none).
    scalars
        Numbers that a step needs, from the hyper-parameters and the age of each slot *in* this step (1 in the first),
        by slot name, and ``"step"``, which no reset touches. In Python floats; the engine rounds them to fp32.
    update
        The rule: parameter, gradient, states by name, scalars; returns the new parameter and every state that it was
        given. Without a parameter it returns the states alone.
    elementwise
        Whether each element of the parameter depends on the same element of the inputs and the states alone. Only
        then is a stretch with a value that is not finite left out by itself; otherwise the whole tensor is.
    measure
        Sums over one parameter, as float64 tensors without dimensions, by name.
    combine
        Further scalars, from the sums over all parameters and the scalars of the parameter at hand.
    per_tensor
        The sums that ``combine`` gets are those of the parameter alone. (Computed before the update, so that its
        scalars, from which slots take a varying decay, are known outside.)
    inputs
        What `update` reads besides, by name and in its order: the gradient, for an optimizer. A weight average reads
        weights, and has no parameter.
    has_param
        Whether `update` takes a parameter first, and returns it changed.
    hyper
        Class of the hyper-parameters: the arguments of the optimizer, their defaults, checks and descriptions.
    title
        Name of the optimizer's class.
    summary
        What sets the optimizer apart, in half a line, without a full stop.
    source
        Who published it, and where.
    notes
        What a user must know beside that; part of the docstring.
    example
        Arguments of the example in the docstring, the learning rate and ``state="8bit"`` unless given; or the whole
        example, which starts with ``>>>``.
    tier
        ``"core"``: recommended, and kept for good. ``"contributed"``: implemented and tested like the others, and not
        advertised.
    """

    name: str
    slots: Callable[[Hyper], tuple[StateSlot, ...]]
    scalars: Callable[[Hyper, Ages], Scalars]
    update: Update
    elementwise: bool = True
    measure: Callable[..., Mapping[str, Tensor]] | None = None
    combine: Callable[[Mapping[str, float], Scalars], Scalars] | None = None
    per_tensor: bool = False
    inputs: tuple[str, ...] = ("grad",)
    has_param: bool = True
    _: KW_ONLY
    hyper: type[HyperBase] | None = None
    title: str = ""
    summary: str = ""
    source: str = ""
    notes: str = ""
    example: str = ""
    tier: Literal["core", "contributed"] = "contributed"

    def apply(
        self, param: Tensor | None, inputs: Sequence[Tensor], states: States, scalars: Scalars
    ) -> tuple[Tensor | None, States]:
        """:attr:`update` of fp32 tensors; the parameter, taken and returned, is ``None`` where the rule has none."""
        if not self.has_param:
            return None, self.update(*inputs, states, scalars)
        new, updated = self.update(param, *inputs, states, scalars)
        return new, updated

    @property
    def shardable(self) -> bool:
        """Whether a rank can update its part of a sharded parameter without the others' elements."""
        return self.elementwise and self.measure is None


# ---------------------------------------------------------------- functions of values, the same bits everywhere


def sqrt(x: Tensor) -> Tensor:
    """Correctly rounded square root of an fp32 tensor (torch's own is off by one unit in a fifth of the values).

    Of a float64 tensor, with which the monitor runs a rule, in float64.
    """
    if has_torch_function((x,)):
        return handle_torch_function(sqrt, (x,), x)
    if type(x) is Tensor and x.is_cpu and x.dtype == torch.float32 and not x.requires_grad:
        return torch.from_numpy(np.asarray(np.sqrt(x.numpy())))  # correctly rounded, and in an eighth of the time
    root = x.double().sqrt()
    return root if x.dtype == torch.float64 else root.float()


def larger(a: Tensor, b: Tensor) -> Tensor:
    """``a`` where it is larger, else ``b``: also where either is a NaN."""
    if has_torch_function((a, b)):
        return handle_torch_function(larger, (a, b), a, b)
    return torch.where(a > b, a, b)


def smaller(a: Tensor, b: Tensor) -> Tensor:
    """``a`` where it is smaller, else ``b``: also where either is a NaN."""
    if has_torch_function((a, b)):
        return handle_torch_function(smaller, (a, b), a, b)
    return torch.where(a < b, a, b)


def maximum(a: Tensor, b: Tensor) -> Tensor:
    """``torch.maximum``, of two zeros the second; a NaN in either is one in the result."""
    return torch.where(a != a, a, larger(a, b))


def minimum(a: Tensor, b: Tensor) -> Tensor:
    """``torch.minimum``, of two zeros the second; a NaN in either is one in the result."""
    return torch.where(a != a, a, smaller(a, b))


def clamp(x: Tensor, bound: float) -> Tensor:
    """Limit to ``[-bound, bound]``; a NaN stays."""
    return torch.clamp(x, -bound, bound)


def bits(x: Tensor) -> Tensor:
    """Patterns of fp32 values (float64 ones are rounded), as int32."""
    if has_torch_function((x,)):
        return handle_torch_function(bits, (x,), x)
    return x.float().view(torch.int32)


def from_bits(x: Tensor) -> Tensor:
    """fp32 values of patterns."""
    if has_torch_function((x,)):
        return handle_torch_function(from_bits, (x,), x)
    return x.view(torch.float32)


def rounded(x: Tensor) -> Tensor:
    """Nearest integers, ties to even, as int32."""
    if has_torch_function((x,)):
        return handle_torch_function(rounded, (x,), x)
    return x.round().to(torch.int32)


def exp(x: Tensor) -> Tensor:
    """``e**x``, within 1 unit in the last place.

    A power of two times a polynomial of degree 6 on ``[-ln 2 / 2, ln 2 / 2]``, with Cephes' coefficients.
    """
    x = torch.clamp(x, -104.0, 89.0)  # 0 below, infinity above
    whole = rounded(x * 1.44269504)
    times = whole.float()
    rest = x - times * 0.693359375 - times * -2.12194440e-4
    y = rest * 1.9875691500e-4 + 1.3981999507e-3
    for coefficient in (8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = y * rest + coefficient
    y = y * (rest * rest) + rest + 1.0
    half = whole >> 1  # two powers, since one would be beyond fp32 at the ends
    return y * from_bits((half + 127) << 23) * from_bits(((whole - half) + 127) << 23)


def sigmoid(x: Tensor) -> Tensor:
    """``1 / (1 + e**-x)``, within 2.5 units in the last place."""
    power = exp(-x.abs())
    return torch.where(x < 0, power, 1.0) / (power + 1.0)


def cbrt(x: Tensor) -> Tensor:
    """Cube root, within 1 unit in the last place: two of Halley's steps from a third of the pattern."""
    size = x.abs()
    tiny, huge = size < 1e-30, size > 1e30  # whose cubes would leave fp32
    inner = torch.where(tiny, size * 2.0**72, torch.where(huge, size * 2.0**-72, size))
    y = from_bits(rounded(bits(inner).float() * (1 / 3)) + 0x2A5137A0)
    for _ in range(2):
        cube = y * y * y
        y = y - y * ((cube - inner) / (cube + cube + inner))
    y = torch.where(tiny, y * 2.0**-24, torch.where(huge, y * 2.0**24, y))
    y = torch.where(x < 0, -y, y)
    return torch.where((size > 0) & (size < math.inf), y, x)  # zeros, infinities and NaN are their own


ROW = 1024
"""Elements whose sum is taken at once."""


def total(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Sum over all elements of ``x``, or of ``x * y``, in float64; the same bits everywhere.

    The tensor is rows (dimension 0) of columns. Stretches of 1024 elements of a row, the last filled up with zeros, are
    halved until one number is left: element i is added to element i + 512, then i to i + 256, and so on. The sums of
    all stretches, in their order, are added up in the same way, until one is left.

    Parameters
    ----------
    x, y
        fp32 tensors of one shape. Their products are exact.

    Returns
    -------
    A tensor without dimensions.

    Examples
    --------
    >>> total(torch.ones(3000)).item()
    3000.0
    """
    if has_torch_function((x, y)):
        return handle_torch_function(total, (x, y), x, y)
    wide = x.double() if y is None else x.double() * y.double()
    if not wide.numel():
        return wide.new_zeros(())
    sums = _stretches(wide.reshape(rows_and_cols(wide.shape)))
    return fold_rows(sums.reshape(1, -1))[0]


def _stretches(x: Tensor) -> Tensor:
    """Sum of each stretch of each row."""
    rows, cols = x.shape
    width = ROW if cols > ROW else 1 << max(cols - 1, 0).bit_length()  # zeros beyond change nothing
    x = torch.nn.functional.pad(x, (0, -cols % width)).reshape(rows, -1, width)
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x.squeeze(-1)


def fold_rows(x: Tensor) -> Tensor:
    """Sum of each row of a float64 matrix: stretches are halved as in :func:`total`, until one number is left."""
    while x.shape[1] > 1:
        x = _stretches(x)
    return x.sum(1) + 0.0


def fold_columns(x: Tensor) -> Tensor:
    """Sum of each column of a float64 matrix: rows 2 i and 2 i + 1 are added, until one is left."""
    while len(x) > 1:
        even = x[: len(x) // 2 * 2].unflatten(0, (-1, 2))
        x = torch.cat([even[:, 0] + even[:, 1], x[len(x) // 2 * 2 :]])
    return x.sum(0) + 0.0


def largest(x: Tensor) -> Tensor:
    """Largest magnitude of all elements, as a float64 tensor without dimensions; 0 without any, NaN where one is."""
    if has_torch_function((x,)):
        return handle_torch_function(largest, (x,), x)
    return x.abs().max().double() if x.numel() else x.new_zeros((), dtype=torch.float64)


FROM_SUMS: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "norm": lambda sums, rows, cols: sums.sqrt().float(),
    "rms": lambda sums, rows, cols: sums.sqrt().float() / fp32(math.sqrt(max(rows * cols, 1))),
    "row_means": lambda sums, rows, cols: (sums / cols).float(),
    "column_means": lambda sums, rows, cols: (sums / rows).float(),
}
"""What functions make of float64 sums over a matrix of so many rows and columns."""


def norm(x: Tensor) -> Tensor:
    """Euclidean norm, by :func:`total`, as an fp32 tensor without dimensions."""
    if has_torch_function((x,)):
        return handle_torch_function(norm, (x,), x)
    return FROM_SUMS["norm"](total(x, x), *rows_and_cols(x.shape))


def rms(x: Tensor) -> Tensor:
    """Root mean square, by :func:`total`, as an fp32 tensor without dimensions."""
    if has_torch_function((x,)):
        return handle_torch_function(rms, (x,), x)
    return FROM_SUMS["rms"](total(x, x), *rows_and_cols(x.shape))


def mean(x: Tensor) -> Tensor:
    """Mean of a vector, by :func:`total`, as an fp32 tensor without dimensions."""
    if has_torch_function((x,)):
        return handle_torch_function(mean, (x,), x)
    return (total(x) / x.numel()).float()


def row_means(x: Tensor) -> Tensor:
    """Mean of each row (dimension 0 by all others) as an fp32 vector, its sum in the order of :func:`total`."""
    if has_torch_function((x,)):
        return handle_torch_function(row_means, (x,), x)
    rows, cols = rows_and_cols(x.shape)
    return FROM_SUMS["row_means"](fold_rows(x.double().reshape(rows, cols)), rows, cols)


def column_means(x: Tensor) -> Tensor:
    """Mean of each column as an fp32 vector; neighbouring rows are added in pairs, until one is left."""
    if has_torch_function((x,)):
        return handle_torch_function(column_means, (x,), x)
    rows, cols = rows_and_cols(x.shape)
    return FROM_SUMS["column_means"](fold_columns(x.double().reshape(rows, cols)), rows, cols)


def by_row(x: Tensor, like: Tensor) -> Tensor:
    """A vector of a value for each row of `like`, in a shape that spreads over its columns."""
    if has_torch_function((x, like)):
        return handle_torch_function(by_row, (x, like), x, like)
    return x.reshape(-1, *[1] * (like.ndim - 1))


def by_column(x: Tensor, like: Tensor) -> Tensor:
    """A vector of a value for each column of `like`, in a shape that spreads over its rows."""
    if has_torch_function((x, like)):
        return handle_torch_function(by_column, (x, like), x, like)
    return x.reshape(like.shape[1:])


# ---------------------------------------------------------------- scalars


def fp32(value: Any) -> float:
    """A Python float rounded to single precision; overflow becomes infinity."""
    return all_of_fp32((value,))[0]


def all_of_fp32(values: Collection[Any]) -> tuple[float, ...]:
    """:func:`fp32` of each."""
    form = f"{len(values)}f"
    try:
        return struct.unpack(form, struct.pack(form, *values))
    except OverflowError:
        return tuple(map(_rounded, values))


def _rounded(value: Any) -> float:
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def all_fp32(scalars: Scalars) -> dict[str, float]:
    """Scalars rounded to single precision; overflow becomes infinity."""
    return dict(zip(scalars, all_of_fp32(scalars.values()), strict=True))
