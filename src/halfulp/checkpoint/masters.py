"""What checkpoints keep beside 16-bit weights, as fp32 weights and back.

halfulp and Transformer Engine keep a remainder or the fp32 weight, optimi a Kahan compensation that is added to the
weight. FlashOptim keeps error bits: the difference to the fp32 weight as a signed share of half the spacing at the
16-bit weight, in units of 1/127 (8 bits) or 1/32767 (16 bits).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from halfulp.engine.master import MASTER, MasterState
from halfulp.engine.sharding import is_sharded
from halfulp.engine.slot_state import master_codes
from halfulp.libraries.base import Entries
from halfulp.numbers.log import warn_once
from halfulp.numbers.remainder import MASTERS, weights

__all__ = ["BESIDE", "ERROR_BITS", "KAHAN", "error_bits", "fp32_weights_of", "from_error_bits", "master_entry"]

KAHAN = "kahan_comp"
"""optimi's key for what is added to a 16-bit weight."""
ERROR_BITS = "error_bits"
"""FlashOptim's key for its error bits."""
BESIDE = (MASTER, KAHAN, ERROR_BITS)
"""Keys of what is kept beside 16-bit weights."""


def _half_spacing(visible: Tensor) -> Tensor:
    """Return half the spacing of the 16-bit floats at each value, in fp32."""
    info = torch.finfo(visible.dtype)
    exponent = torch.frexp(visible.double().abs().clamp_min(info.smallest_normal)).exponent
    return torch.ldexp(torch.full_like(visible, info.eps / 4, dtype=torch.float64), exponent).float()


def from_error_bits(visible: Tensor, bits: Tensor) -> Tensor:
    """Return the fp32 weights of 16-bit weights with FlashOptim's error bits, int8 or int16.

    Weights that are not finite are returned as they are.

    Examples
    --------
    >>> from_error_bits(torch.ones(2, dtype=torch.bfloat16), torch.tensor([127, -127], dtype=torch.int8))
    tensor([1.0039, 0.9961])
    """
    share = bits.float() / torch.iinfo(bits.dtype).max
    return torch.where(visible.isfinite(), visible.float() + share * _half_spacing(visible), visible.float())


def error_bits(visible: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return FlashOptim's error bits of fp32 weights beside their 16-bit weights, in int8 or int16.

    Differences above half a spacing are cut off.
    """
    share = ((values - visible.float()) / _half_spacing(visible)).clamp(-1.0, 1.0).nan_to_num(0.0)
    scaled = share * torch.iinfo(dtype).max
    return torch.copysign((scaled.abs() + 0.5).floor(), scaled).to(dtype)


def fp32_weights_of(param: Tensor, entries: Entries) -> Tensor | None:
    """Return the fp32 weights that a checkpoint's entries give with a 16-bit parameter; ``None`` if they give none."""
    found = {k: x.to(param.device) for k in BESIDE if isinstance(x := entries.get(k), Tensor) and not is_sharded(x)}
    visible = param.detach()
    if MASTER in found:
        given, shape = found[MASTER], param.shape
        if given.dtype == torch.uint8 and given.shape == (*shape, 2):
            given = master_codes(given.contiguous(), shape)
        if given.shape != shape or given.dtype not in MASTERS.values():
            return None
        return weights(visible, given) if given.dtype == torch.float32 or visible.dtype == torch.bfloat16 else None
    if KAHAN in found and found[KAHAN].shape == param.shape:
        return visible.float() + found[KAHAN].float()
    bits = found.get(ERROR_BITS)
    if bits is None or bits.shape != param.shape or bits.dtype not in (torch.int8, torch.int16):
        return None
    return from_error_bits(visible, bits)


def master_entry(master: MasterState, param: Tensor, label: str, entries: Entries) -> dict[str, Any]:
    """Return the master weights of a parameter that correspond to a checkpoint's entries; empty if they have none.

    `master` says how the target keeps them. Entries of the same kind are copied bit for bit. Others are converted by
    the fp32 weights that they give with the present 16-bit weights.
    """
    given = entries.get(MASTER)
    if isinstance(given, Tensor) and given.dtype == torch.int16 and given.shape == param.shape:  # Transformer Engine's
        given = given.contiguous().view(torch.uint8).view(*given.shape, 2)
    if not isinstance(given, Tensor) or given.dtype == torch.float32 or not _fits(given, master):
        values = None if master.sharded else fp32_weights_of(param, entries)
        given = given if values is None else master.beside(param, values)
    present = [key for key in BESIDE if isinstance(entries.get(key), Tensor)]
    if isinstance(given, Tensor) and _fits(given, master):
        master.loaded(label, {MASTER: given}, param.device)
    elif present:
        warn_once(
            f"{label}: {present[0]} of the state_dict cannot become master_weights={master.kind!r} and is left out: "
            "load fp32 weights with halfulp.load_fp32_state_dict"
        )
    return {k: v for k, v in master.entries.items() if k == MASTER}


def _fits(given: Tensor, master: MasterState) -> bool:
    return (given.dtype, tuple(given.shape)) == master.stored_as
