"""From ``state=`` and ``rounding=`` to one quantizer per slot, and which tensors stay in fp32 and why."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from halfulp.engine.options import GROUP_DEFAULTS
from halfulp.engine.sharding import is_flat
from halfulp.numbers.formats import Format, get_format
from halfulp.numbers.log import log_once
from halfulp.numbers.quantizer import Quantizer, Rounding, check_rounding
from halfulp.numbers.scaling import Scaling
from halfulp.rules.hyper import check_switch
from halfulp.rules.slots import StateSlot

__all__ = ["StorageOptions", "format_specs", "fp32_reason", "slot_quantizers"]

FLOAT32 = Quantizer(get_format("float32"))


@dataclass(frozen=True)
class StorageOptions:
    """Storage options of the whole optimizer.

    Parameters
    ----------
    scale, block_size
        The kind of scales (``"pow2"`` or ``"fp32"``), and the number of elements that share one. A :class:`Quantizer`
        passed as a state overrides both.
    min_size
        Vectors and tensors with fewer elements keep fp32 states; 0 quantizes everything. The flat parameters of FSDP1
        are quantized like matrices.
    keep_fp32
        The name pattern or patterns (:mod:`fnmatch`) of parameters whose states stay in fp32. Needs named parameters.
    zero_floor
        Under nearest rounding, never round a positive value of a non-negative state to zero.
    """

    scale: str = "pow2"
    block_size: int = 128
    min_size: int = 4096
    keep_fp32: Sequence[str] = ()
    zero_floor: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.keep_fp32, str):
            object.__setattr__(self, "keep_fp32", (self.keep_fp32,))
        if not isinstance(self.keep_fp32, (tuple, list)) or not all(isinstance(p, str) for p in self.keep_fp32):
            raise ValueError(f"keep_fp32 must be a name pattern or a list of them, got {self.keep_fp32!r}")
        if not isinstance(self.min_size, int) or self.min_size < 0:
            raise ValueError(f"min_size must be a number of elements, 0 to quantize everything; got {self.min_size!r}")
        check_switch("zero_floor", self.zero_floor)


def slot_quantizers(
    slots: Sequence[StateSlot], state: Any, rounding: Any, options: StorageOptions
) -> tuple[Quantizer, ...]:
    """Return the quantizer of each slot, from ``state=`` and ``rounding=`` of a group.

    Slots missing from a mapping get the default. Slots that are not named get at least the bits that they need. The
    rounding and ``zero_floor`` of a :class:`Quantizer` take precedence.

    Raise ``ValueError`` for an unknown format, rounding or slot name, or an unsigned format for a signed slot.
    """
    names = [s.name for s in slots]
    for what, given in (("state", state), ("rounding", rounding)):
        unknown = set(given) - set(names) if isinstance(given, Mapping) else set()
        if unknown and names:
            raise ValueError(f"{what}= names {sorted(unknown)}, but the states of this optimizer are {names}")
    quantizers = []
    for slot in slots:
        by_slot = isinstance(state, Mapping) and slot.name in state
        wanted = _named(state, slot, GROUP_DEFAULTS["state"])
        how = slot.rounding or _named(rounding, slot, GROUP_DEFAULTS["rounding"])
        if isinstance(rounding, Mapping):
            how = rounding.get(slot.name, how)
        check_rounding(how, "rounding (or each value of a mapping from slot names)")
        if isinstance(wanted, Quantizer):
            how = wanted.rounding if by_slot else slot.rounding or wanted.rounding
        quantizer = FLOAT32 if slot.exact else _quantizer(slot, wanted, how, options)
        if quantizer.format.bits < slot.least_bits and not by_slot:
            wider = _quantizer(slot, "8bit", how, options)
            log_once(f"{slot.name} is stored as {wider.format.name}: {quantizer.format.name} is too coarse for it")
            quantizer = wider
        quantizers.append(quantizer)
    return tuple(quantizers)


def _named(given: Any, slot: StateSlot, default: Any) -> Any:
    return given.get(slot.name, default) if isinstance(given, Mapping) else given


def _quantizer(slot: StateSlot, wanted: Any, rounding: Rounding, options: StorageOptions) -> Quantizer:
    if isinstance(wanted, Quantizer):
        quantizer = wanted.with_rounding(rounding)
    elif isinstance(wanted, (str, Format, torch.dtype)):
        fmt, floor = get_format(wanted, signed=slot.signed), options.zero_floor and not slot.signed
        quantizer = Quantizer(fmt, Scaling(options.scale, "block", options.block_size), rounding, floor)  # type: ignore[arg-type]
    else:
        raise ValueError(
            f"a state must be given as a format name, a Format or a Quantizer, or by slot in a mapping; got {wanted!r}"
        )
    if slot.signed and not quantizer.format.signed:
        raise ValueError(f"{slot.name} takes negative values, and {quantizer.format.name} has no sign")
    return quantizer


def fp32_reason(param: torch.Tensor, name: str | None, options: StorageOptions) -> str | None:
    """Return why the states of a parameter stay in fp32; ``None`` if they do not."""
    if param.ndim < 2 and options.min_size > 0 and not is_flat(param):
        return f"{param.ndim}-D tensor"
    if param.numel() < options.min_size:
        return f"{param.numel()} elements, fewer than min_size={options.min_size}"
    pattern = next((p for p in options.keep_fp32 if name is not None and fnmatch.fnmatchcase(name, p)), None)
    return None if pattern is None else f"name matches keep_fp32 pattern {pattern!r}"


def format_specs(quantizers: Mapping[str, Quantizer]) -> str:
    """Return the storage of every slot as one line of text, by the formats' full names, as saved in checkpoints.

    Examples
    --------
    >>> format_specs({"exp_avg": Quantizer("float8_e4m3fn")})
    'exp_avg=float8_e4m3fn:pow2:block128'
    """
    return ",".join(f"{name}={q.spec}" for name, q in quantizers.items())
