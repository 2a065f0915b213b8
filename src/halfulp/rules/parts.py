"""Parameters that consist of several matrices: stacked experts, fused projections, convolutions.

A rule that treats a parameter as one matrix mixes all elements of a tensor. :func:`in_parts` makes a rule that treats
each part as a parameter of its own.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from halfulp.numbers.log import warn_once
from halfulp.rules.base import Rule, Scalars, States
from halfulp.rules.hyper import HyperParameters
from halfulp.rules.slots import Hyper, Shape, StateSlot

__all__ = ["MatrixHyper", "Split", "in_parts", "tell_ambiguous"]

FUSED = ("*qkv*", "*c_attn*", "*in_proj_weight", "*query_key_value*", "*gate_up*", "*w13*", "*kv_proj*", "*Wqkv*")
"""Names that models give to several matrices stored side by side in one tensor."""
ALLOWED = (
    "split is None, 'flat' (dimension 0 by all others, as for convolutions), 'stacked' (the last two dimensions are "
    "those of a matrix, as for experts), 'rows:3' or 'rows:2048,512,512' (parts along the rows, as of a fused QKV), "
    "'columns:3' (GPT-2's), or 'stacked rows:2' (fused experts)"
)


@dataclass(frozen=True, kw_only=True)
class MatrixHyper(HyperParameters):
    """Hyper-parameters of rules that treat a parameter as a matrix.

    Parameters
    ----------
    split
        How to split a parameter of the group into matrices that are updated separately. ``None`` takes it as one
        matrix, dimension 0 by all others, and logs parameters that look like several. ``"flat"`` does the same without
        logging. ``"stacked"`` takes the last two dimensions as a matrix (experts). ``"rows:3"`` and
        ``"rows:2048,512,512"`` split the rows into equal parts or parts of these sizes (a fused QKV). ``"columns:3"``
        splits the columns. ``"stacked rows:2"`` does both. Set it in the group of the parameters concerned.
    """

    split: str | None = None

    def check(self) -> None:
        """See :class:`~halfulp.rules.hyper.HyperParameters`."""
        super().check()
        if self.split is not None and not isinstance(self.split, str):
            raise ValueError(f"{ALLOWED}; got {self.split!r}")
        if self.split is not None:
            Split.of(self.split)


@dataclass(frozen=True)
class Split:
    """How a tensor of two or more dimensions is split into matrices.

    Parameters
    ----------
    stacked
        Whether the dimensions before the last two index matrices. Otherwise, the matrix is dimension 0 by all others.
    dim
        The dimension along which each matrix is split: 0 for rows, 1 for columns.
    sizes
        The number of equal parts, or the size of each part.

    Examples
    --------
    >>> Split.of("stacked rows:2").shapes((4, 6, 5))[:2]
    [(3, 5), (3, 5)]
    """

    stacked: bool = False
    dim: int = 0
    sizes: int | tuple[int, ...] = 1

    @classmethod
    def of(cls, text: str) -> Split:
        """Parse the text of a group. Raise ``ValueError`` for invalid text."""
        found = re.fullmatch(r"(flat|stacked)?(?:(?:^| )(rows|columns):(\d+(?:,\d+)*))?", text) if text else None
        if found is None:
            raise ValueError(f"{ALLOWED}; got {text!r}")
        kind, along, numbers = found.groups()
        sizes = tuple(map(int, (numbers or "1").split(",")))
        if 0 in sizes:
            raise ValueError(f"{ALLOWED}; got {text!r}")
        return cls(kind == "stacked", int(along == "columns"), sizes[0] if len(sizes) == 1 else sizes)

    def _matrices(self, shape: Shape) -> Shape:
        """Return the number of matrices before splitting, and their sides."""
        if self.stacked:
            return (math.prod(shape[:-2]), *shape[-2:])
        return (1, shape[0], math.prod(shape[1:]))

    def _sizes(self, shape: Shape) -> list[int]:
        whole = self._matrices(shape)[1 + self.dim]
        if isinstance(self.sizes, tuple):
            if sum(self.sizes) != whole:
                raise ValueError(f"split= gives parts of {self.sizes} to the {whole} {self._side} of {shape}")
            return list(self.sizes)
        if whole % self.sizes:
            raise ValueError(f"split= gives {self.sizes} equal parts to the {whole} {self._side} of {shape}")
        return [whole // self.sizes] * self.sizes

    @property
    def _side(self) -> str:
        return ("rows", "columns")[self.dim]

    def shapes(self, shape: Shape) -> list[Shape]:
        """Return the shape of each matrix of a tensor of this shape. Raise ``ValueError`` if the sizes do not fit."""
        count, rows, columns = self._matrices(shape)
        cut: list[Shape] = [(n, columns) if self.dim == 0 else (rows, n) for n in self._sizes(shape)]
        return cut * count

    def parts(self, x: Tensor) -> list[Tensor]:
        """Return each matrix, as a view if the memory layout allows it."""
        sizes = self._sizes(tuple(x.shape))
        return [part for whole in x.reshape(self._matrices(tuple(x.shape))) for part in whole.split(sizes, self.dim)]

    def joined(self, parts: Sequence[Tensor], shape: Shape) -> Tensor:
        """Join matrices to a tensor of this shape."""
        each = len(self._sizes(shape))
        whole = [torch.cat(list(parts[i : i + each]), self.dim) for i in range(0, len(parts), each)]
        return torch.stack(whole).reshape(shape)


@lru_cache(maxsize=256)
def in_parts(rule: Rule, split: Split) -> Rule:
    """Return a rule that treats each matrix of a parameter as its own parameter. Vectors are treated as before.

    States of the parameter's shape keep that shape. Other states have one entry per matrix, along a new first
    dimension, and need matrices of the same shape.
    """

    def slots(hyper: Hyper) -> tuple[StateSlot, ...]:
        return tuple(replace(slot, shape=partial(_shape, slot, split)) for slot in rule.slots(hyper))

    def update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
        shape = tuple(param.shape)
        if len(shape) < 2:
            return rule.update(param, grad, states, c)
        count = len(split.shapes(shape))
        whole = {name: [x] if count == 1 else list(x) for name, x in states.items() if x.shape != shape}
        own = {name: whole[name] if name in whole else split.parts(x) for name, x in states.items()}
        done = [
            rule.update(p, g, {name: x[i] for name, x in own.items()}, c)
            for i, (p, g) in enumerate(zip(split.parts(param), split.parts(grad), strict=True))
        ]
        new = {}
        for name in states:
            parts = [updated[name] for _, updated in done]
            if name not in whole:
                new[name] = split.joined(parts, shape)
            else:
                new[name] = parts[0] if count == 1 else torch.stack(parts)
        return split.joined([p for p, _ in done], shape), new

    return replace(rule, slots=slots, update=update)


def _shape(slot: StateSlot, split: Split, shape: Shape) -> Shape | None:
    if len(shape) < 2:
        return slot.shape(shape)
    parts = split.shapes(shape)
    inner = [slot.shape(part) for part in parts]
    if inner == parts:
        return shape
    if len(set(inner)) > 1:
        raise ValueError(f"split= cuts {shape} into matrices of {parts}; {slot.name} needs them of one shape")
    return inner[0] if inner[0] is None or len(parts) == 1 else (len(parts), *inner[0])


def tell_ambiguous(title: str, name: str | None, label: str, shape: Shape) -> None:
    """Warn that a parameter without ``split=`` may be several matrices, or none."""
    fused = next((p for p in FUSED if name is not None and fnmatch.fnmatchcase(name, p)), None)
    if len(shape) == 3:
        why = f"has shape {shape}: a stack of {shape[0]} matrices ('stacked'), or a convolution ('flat')?"
    elif fused is not None and len(shape) == 2:
        why = f"is named like several matrices side by side ({fused!r}: 'rows:3', 'rows:2' or 'columns:3')"
    else:
        return
    warn_once(
        f"{title}: {label} {why} It is taken as one matrix of {shape[0]} by {math.prod(shape[1:])}; say "
        "which it is with split= in its parameter group"
    )
