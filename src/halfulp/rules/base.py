"""Rules: the declarations of optimizers.

A rule declares its states and the scalars ``c`` that a step needs, and has one pure function
``update(param, grad, states, c) -> (new param, new states)`` on fp32 tensors. States are passed and returned by name.
The function never sees a format: the engine decodes the states, calls it, and encodes the new states.

Every tensor operation of an elementwise rule must round separately, since a kernel has to reproduce it bit by bit.
Allowed are plain ``+ - * /``, the functions of this module, ``torch.clamp``, comparisons and ``torch.where``. ``lerp``,
``addcmul``, ``addcdiv`` and ``add(alpha=)`` are not, since they fuse or reorder. Scalars are computed once in Python
floats and rounded to fp32. Sums over a tensor use :func:`total`, whose bits do not depend on the number of threads.
Kernels are generated from such a rule (:mod:`halfulp.rules.program`).

A rule that needs a quantity of the whole model (a global norm, an inner product) has ``measure`` and ``combine``.
``measure`` returns sums over each parameter, which the engine adds up over all parameters of the optimizer. ``combine``
turns the totals into more scalars before any parameter is updated. A rule that needs sums within its update uses
:func:`norm`, :func:`rms`, :func:`row_means` and the like, and is not elementwise (:mod:`halfulp.rules.stages`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from halfulp.numbers.scaling import rows_and_cols
from halfulp.numbers.single import fp32
from halfulp.rules.checks import check_result, check_untouched, versions
from halfulp.rules.hyper import HyperBase
from halfulp.rules.slots import Hyper, StateSlot

__all__ = [
    "DIVISORS", "Ages", "Rule", "Scalars", "States", "bits", "by_column", "by_row", "cbrt", "clamp", "column_means",
    "ema", "exp", "fold_columns", "fold_rows", "from_bits", "from_sums", "larger", "largest", "maximum", "mean",
    "minimum", "norm", "rms", "rounded", "row_means", "sides", "sigmoid", "smaller", "sqrt", "total",
]  # fmt: skip

Scalars = dict[str, float]
States = dict[str, Tensor]
Ages = Mapping[str, int]
Update = Callable[..., Any]
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Rule:
    """An update rule, and the declaration of its optimizer.

    :func:`halfulp.optimizer` makes the class. A rule that is not an optimizer, such as an average of weights, omits
    `hyper` and everything after it.

    Parameters
    ----------
    name
        The name of the rule, by which its fused kernel is found.
    slots
        A function that returns the states under given hyper-parameters (SGD without momentum has none).
    scalars
        A function that returns the numbers a step needs, as Python floats, which the engine rounds to fp32. It gets the
        hyper-parameters and the ages: by slot name, the age of the slot *in* this step (1 in the first), and
        ``"step"``, which resets do not change.
    update
        The update function, called with the parameter, the gradient, the states by name and the scalars. It returns the
        new parameter and all states; without a parameter, only the states.
    elementwise
        Whether each element of the parameter depends only on the same element of the inputs and the states. Then a
        segment with a non-finite value is skipped by itself; otherwise the whole tensor is.
    measure
        A function that returns sums over one parameter, as 0-dimensional float64 tensors by name.
    combine
        A function that returns more scalars, from the sums over all parameters and the scalars of this parameter.
    per_tensor
        Whether ``combine`` gets the sums of this parameter alone. (They are computed before the update, so that slots
        may take a varying decay from the new scalars.)
    inputs
        The names of the other tensors that `update` reads, in order: the gradient, for an optimizer. A weight average
        reads weights and has no parameter.
    has_param
        Whether `update` takes a parameter first and returns the new one.
    hyper
        The class of the hyper-parameters: the arguments of the optimizer with defaults, checks and descriptions.
    title
        The name of the optimizer's class.
    summary
        What distinguishes the optimizer, in half a line without a full stop.
    source
        The authors and the publication.
    notes
        What else a user must know. It becomes part of the docstring.
    example
        The arguments of the example in the docstring, by default the learning rate and ``state="8bit"``; or the whole
        example, starting with ``>>>``.
    tier
        ``"core"`` optimizers are recommended and stay in the library. ``"contributed"`` ones are implemented and tested
        like the others, but not advertised.
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
        """Call :attr:`update` on fp32 tensors. The parameter passed and returned is ``None`` if the rule has none."""
        shapes = {name: state.shape for name, state in states.items()}
        arguments = dict(zip(self.inputs, inputs, strict=True))
        if self.has_param:
            assert param is not None
            arguments = {"param": param, **arguments}
        given = {**arguments, **states}
        before, dtype = versions(given.values()), next(iter(given.values())).dtype
        result = self.update(*arguments.values(), states, scalars)
        checked = check_result(self.name, arguments.get("param"), shapes, result, dtype)
        check_untouched(self.name, given, before)
        return checked

    @property
    def shardable(self) -> bool:
        """Whether a rank can update its part of a sharded parameter without the other elements."""
        return self.elementwise and self.measure is None


# ---------------------------------------------------------------- functions with the same bits on every backend


def overridable(function: Callable[P, T]) -> Callable[P, T]:
    """Let arguments with ``__torch_function__``, such as the symbols of a traced rule, override a function."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if has_torch_function(args):
            return handle_torch_function(call, args, *args, **kwargs)
        return function(*args, **kwargs)

    return call


@overridable
def sqrt(x: Tensor) -> Tensor:
    """Return the correctly rounded square root of an fp32 tensor (torch's is one unit off for a fifth of all values).

    A float64 tensor, as in the monitor, gives a float64 root.
    """
    if type(x) is Tensor and x.is_cpu and x.dtype == torch.float32 and not x.requires_grad:
        with np.errstate(invalid="ignore"):  # as torch: NaN for a negative number
            return torch.from_numpy(np.asarray(np.sqrt(x.numpy())))  # correctly rounded, and eight times faster
    root = x.double().sqrt()
    return root if x.dtype == torch.float64 else root.float()


@overridable
def larger(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a`` where it is larger, else ``b``, also if either is NaN."""
    return torch.where(a > b, a, b)


@overridable
def smaller(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a`` where it is smaller, else ``b``, also if either is NaN."""
    return torch.where(a < b, a, b)


def maximum(a: Tensor, b: Tensor) -> Tensor:
    """Return ``torch.maximum``. Of two zeros, return the second; NaN in either argument gives NaN."""
    return torch.where(a != a, a, larger(a, b))


def minimum(a: Tensor, b: Tensor) -> Tensor:
    """Return ``torch.minimum``. Of two zeros, return the second; NaN in either argument gives NaN."""
    return torch.where(a != a, a, smaller(a, b))


def clamp(x: Tensor, bound: float) -> Tensor:
    """Limit a tensor to ``[-bound, bound]``. NaN stays NaN."""
    return torch.clamp(x, -bound, bound)


def ema(average: Tensor, x: Tensor, weight: float) -> Tensor:
    """Return an average moved by a weight towards a new value."""
    return average + (x - average) * weight


@overridable
def bits(x: Tensor) -> Tensor:
    """Return the bit patterns of fp32 values as int32. float64 values are first rounded to fp32."""
    return x.float().view(torch.int32)


@overridable
def from_bits(x: Tensor) -> Tensor:
    """Return the fp32 values of bit patterns."""
    return x.view(torch.float32)


@overridable
def rounded(x: Tensor) -> Tensor:
    """Return the nearest integers, ties to even, as int32."""
    return x.round().to(torch.int32)


def exp(x: Tensor) -> Tensor:
    """Return ``e**x``, within 1 unit in the last place.

    It is computed as a power of two times a polynomial of degree 6 on ``[-ln 2 / 2, ln 2 / 2]``, with Cephes'
    coefficients.
    """
    x = torch.clamp(x, -104.0, 89.0)  # 0 below and infinity above this range
    whole = rounded(x * 1.44269504)
    times = whole.float()
    rest = x - times * 0.693359375 - times * -2.12194440e-4
    y = rest * 1.9875691500e-4 + 1.3981999507e-3
    for coefficient in (8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = y * rest + coefficient
    y = y * (rest * rest) + rest + 1.0
    half = whole >> 1  # two powers, since a single one would leave the fp32 range at the ends
    return y * from_bits((half + 127) << 23) * from_bits(((whole - half) + 127) << 23)


def sigmoid(x: Tensor) -> Tensor:
    """Return ``1 / (1 + e**-x)``, within 2.5 units in the last place."""
    power = exp(-x.abs())
    return torch.where(x < 0, power, 1.0) / (power + 1.0)


def cbrt(x: Tensor) -> Tensor:
    """Return the cube root, within 1 unit in the last place, by two Halley steps from a third of the bit pattern."""
    size = x.abs()
    tiny, huge = size < 1e-30, size > 1e30  # their cubes would leave the fp32 range
    inner = torch.where(tiny, size * 2.0**72, torch.where(huge, size * 2.0**-72, size))
    y = from_bits(rounded(bits(inner).float() * (1 / 3)) + 0x2A5137A0)
    for _ in range(2):
        cube = y * y * y
        y = y - y * ((cube - inner) / (cube + cube + inner))
    y = torch.where(tiny, y * 2.0**-24, torch.where(huge, y * 2.0**24, y))
    y = torch.where(x < 0, -y, y)
    return torch.where((size > 0) & (size < math.inf), y, x)  # zeros, infinities and NaN are their own root


Matrix = TypeVar("Matrix", Tensor, npt.NDArray[np.float64])
ROW = 1024
"""The number of elements of a segment in :func:`total`."""


@overridable
def total(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Return the sum over all elements of ``x``, or of ``x * y``, in float64, with the same bits everywhere.

    The tensor is taken as rows (dimension 0) of columns. Each row is cut into segments of 1024 elements, the last
    padded with zeros. A segment is halved until one number is left: element i is added to element i + 512, then i to i
    + 256, and so on. The sums of all segments, in order, are then added up in the same way until one is left. The
    tensors are fp32, so that their products are exact.

    Examples
    --------
    >>> total(torch.ones(3000)).item()
    3000.0
    """
    wide = x.double() if y is None else x.double() * y.double()
    if not wide.numel():
        return wide.new_zeros(())
    sums = _stretches(wide.reshape(rows_and_cols(wide.shape)))
    return fold_rows(sums.reshape(1, -1))[0]


def _stretches(x: Matrix) -> Matrix:
    """Return the sum of each segment of each row."""
    rows, cols = x.shape
    width = ROW if cols > ROW else 1 << max(cols - 1, 0).bit_length()  # padding with zeros changes nothing
    if cols % width:
        beyond = (0, -cols % width)
        x = torch.nn.functional.pad(x, beyond) if isinstance(x, Tensor) else np.pad(x, ((0, 0), beyond))
    x = x.reshape(rows, -1, width)
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


def fold_rows(x: Matrix) -> Matrix:
    """Return the sum of each row of a float64 matrix of torch or numpy. Segments are added up as in :func:`total`."""
    while x.shape[1] > 1:
        x = _stretches(x)
    return x.sum(1) + 0.0


def fold_columns(x: Tensor) -> Tensor:
    """Return the sum of each column of a float64 matrix, adding rows 2 i and 2 i + 1 until one is left."""
    while len(x) > 1:
        even = x[: len(x) // 2 * 2].unflatten(0, (-1, 2))
        x = torch.cat([even[:, 0] + even[:, 1], x[len(x) // 2 * 2 :]])
    return x.sum(0) + 0.0


@overridable
def largest(x: Tensor) -> Tensor:
    """Return the largest magnitude as a 0-dimensional float64 tensor: 0 if there are no elements, NaN if any is NaN."""
    return x.abs().max().double() if x.numel() else x.new_zeros((), dtype=torch.float64)


DIVISORS: dict[str, Callable[[int, int], float]] = {
    "norm": lambda rows, cols: 1.0,
    "rms": lambda rows, cols: fp32(math.sqrt(max(rows * cols, 1))),
    "mean": lambda rows, cols: rows * cols,
    "row_means": lambda rows, cols: cols,
    "column_means": lambda rows, cols: rows,
}
"""What each function divides by, from the numbers of rows and columns of a matrix."""


def from_sums(name: str, sums: Tensor, divisor: Tensor) -> Tensor:
    """Return the results of a function from float64 sums and what each is divided by (:data:`DIVISORS`), in float64.

    The divisor is a tensor, since on a GPU torch multiplies by the rounded inverse of a Python number.
    """
    if name in ("norm", "rms"):
        return sums.sqrt().float() / divisor.float()
    return (sums / divisor).float()


def _result(name: str, sums: Tensor, shape: torch.Size) -> Tensor:
    return from_sums(name, sums, sums.new_full((), DIVISORS[name](*rows_and_cols(shape))))


@overridable
def norm(x: Tensor) -> Tensor:
    """Return the Euclidean norm, by :func:`total`, as a 0-dimensional fp32 tensor."""
    return _result("norm", total(x, x), x.shape)


@overridable
def rms(x: Tensor) -> Tensor:
    """Return the root mean square, by :func:`total`, as a 0-dimensional fp32 tensor."""
    return _result("rms", total(x, x), x.shape)


@overridable
def mean(x: Tensor) -> Tensor:
    """Return the mean of a vector, by :func:`total`, as a 0-dimensional fp32 tensor."""
    return _result("mean", total(x), x.shape)


@overridable
def row_means(x: Tensor) -> Tensor:
    """Return the mean of each row (dimension 0 by all others) as an fp32 vector, added up as in :func:`total`."""
    return _result("row_means", fold_rows(x.double().reshape(rows_and_cols(x.shape))), x.shape)


@overridable
def column_means(x: Tensor) -> Tensor:
    """Return the mean of each column as an fp32 vector. Neighbouring rows are added in pairs until one is left."""
    return _result("column_means", fold_columns(x.double().reshape(rows_and_cols(x.shape))), x.shape)


@overridable
def sides(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the numbers of rows (dimension 0) and columns (the others together) as fp32 tensors without dimensions."""
    rows, cols = (torch.tensor(float(n), dtype=torch.float32, device=x.device) for n in rows_and_cols(x.shape))
    return rows, cols


@overridable
def by_row(x: Tensor, like: Tensor) -> Tensor:
    """Reshape a vector with one value per row of `like` so that it broadcasts over the columns."""
    return x.reshape(-1, *[1] * (like.ndim - 1))


@overridable
def by_column(x: Tensor, like: Tensor) -> Tensor:
    """Reshape a vector with one value per column of `like` so that it broadcasts over the rows."""
    return x.reshape(like.shape[1:])
