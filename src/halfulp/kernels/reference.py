"""The definition of a step, in torch operations: decode, apply the rule, encode. Runs on any device; slow.

A stretch of a row (:func:`~halfulp.kernels.work.step_tile`) in which the gradient or a new state is not finite is left
as it was, parameter and states alike, bit for bit; under a rule that is not elementwise, the whole tensor is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from halfulp.kernels.pieces import pieces
from halfulp.kernels.stored import EmaState
from halfulp.kernels.work import SlotKey, Work, step_tile
from halfulp.numbers.formats import get_format
from halfulp.numbers.quantizer import Quantizer
from halfulp.numbers.rng import hash_elements, random_bits
from halfulp.numbers.rounding import encode, pack4, unpack4
from halfulp.numbers.scaling import Layout, rows_and_cols
from halfulp.rules.base import Rule

__all__ = ["Codec", "status", "step", "supports"]


def supports(rule: Rule, work: Work) -> str | None:
    """Reason why this backend cannot do a piece of work: never any."""
    return None


def status() -> str:
    """Whether this backend can run here: always."""
    return "available"


@dataclass(frozen=True)
class Codec:
    """How states are decoded and encoded: by torch operations here, by another backend's under the same step.

    Parameters
    ----------
    read
        A state as fp32.
    quantize
        Codes and scales of a state's new values (finite fp32), with the key of its random stream.
    """

    read: Callable[[EmaState], Tensor]
    quantize: Callable[[EmaState, Tensor, SlotKey, Work], tuple[Tensor, Tensor | None]]


def _quantize(state: EmaState, x: Tensor, key: SlotKey, work: Work) -> tuple[Tensor, Tensor | None]:
    return state.quantizer.quantize(x, _words(key, work, x) if state.quantizer.stochastic else None)


TORCH = Codec(EmaState.read, _quantize)


def step(rule: Rule, works: list[Work], codec: Codec = TORCH) -> None:
    """Do the step of every parameter."""
    for work in works:
        parts = pieces(work)
        for part in parts:
            _step_one(rule, part, codec)
        work.skipped = sum(part.skipped for part in parts)


def _step_one(rule: Rule, work: Work, codec: Codec) -> None:
    count = work.param.numel()
    if count == 0:
        return
    grad = work.grad.float()
    grad = -grad if work.maximize else grad
    old = {s.slot.name: codec.read(s) for s in work.states}
    param, updated = rule.update(work.param.float(), grad, old, work.scalars)
    states = [updated[s.slot.name] for s in work.states]
    if rule.elementwise:
        keep = _tiles_to_keep(work, grad, states)
        work.skipped = 0 if keep is None else int(keep.sum())
    elif all(_finite(x) for x in (grad, *states)):
        keep = None
    else:
        work.skipped = count
        return
    for k, (state, new) in enumerate(zip(work.states, states, strict=True)):
        finite = new if keep is None else torch.where(keep, 0.0, new)
        codes, scale = codec.quantize(state, finite, work.keys[k], work)
        if keep is not None:
            codes, scale = _restore(state.quantizer, keep, codes, scale, state.codes, state.scale)
        state.codes.copy_(codes)
        if scale is not None and state.scale is not None:
            state.scale.copy_(scale)
        if work.counts is not None:
            before = old[state.slot.name]
            due = new != before if keep is None else (new != before) & ~keep
            work.counts[k] += torch.stack([due.sum(), (due & (codec.read(state) == before)).sum()])
    param = _round_param(param, work)
    work.param.copy_(param if keep is None else torch.where(keep, work.param, param))


def _finite(x: Tensor) -> bool:
    """Whether all of a tensor is: its extremes are, which takes a tenth of the time of a look at each element."""
    return x.numel() == 0 or all(math.isfinite(float(extreme)) for extreme in torch.aminmax(x))


def _tiles_to_keep(work: Work, grad: Tensor, states: list[Tensor]) -> Tensor | None:
    """Mask of the elements that a step leaves as they were, of the parameter's shape; ``None`` for none."""
    if all(_finite(x) for x in (grad, *states)):
        return None
    tiles = Layout(*step_tile(work.param.shape, work.quantizers))
    bad = torch.stack([tiles.split(~torch.isfinite(x)).any(-1) for x in (grad, *states)]).any(0)
    expanded = bad.unsqueeze(-1).expand(tiles.rows, tiles.blocks, max(tiles.block, 1))
    return tiles.join(expanded).reshape(work.param.shape)


def _words(key: SlotKey, work: Work, like: Tensor) -> Tensor:
    if work.row_stride is None:
        return random_bits(key, work.first_element, like.numel(), like.device).reshape(like.shape)
    rows, cols = rows_and_cols(like.shape)
    starts = work.first_element + work.row_stride * torch.arange(rows, device=like.device)
    return hash_elements(key, starts.unsqueeze(1) + torch.arange(cols, device=like.device)).reshape(like.shape)


def _round_param(param: Tensor, work: Work) -> Tensor:
    if work.param.dtype == torch.float32 or work.param_rounding == "nearest":
        return param.to(work.param.dtype)
    fmt = get_format(str(work.param.dtype).removeprefix("torch."))
    rounded = encode(param, fmt, _words(work.keys[-1], work, param))
    return torch.where(torch.isfinite(param), rounded, param.to(work.param.dtype))


def _restore(
    quantizer: Quantizer,
    keep: Tensor,
    codes: Tensor,
    scale: Tensor | None,
    old_codes: Tensor,
    old_scale: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Put the old codes and scales back where `keep` is set (whole blocks, since a tile is made of blocks)."""
    if quantizer.format.packed:
        rows, cols = rows_and_cols(keep.shape)
        mixed = torch.where(keep.reshape(rows, cols), unpack4(old_codes, cols), unpack4(codes, cols))
        codes = pack4(mixed)
    else:
        codes = torch.where(keep, old_codes, codes)
    if scale is None or old_scale is None:
        return codes, scale
    kept = quantizer.scaling.layout(keep.shape).split(keep).any(-1)
    return codes, torch.where(kept, old_scale, scale)
