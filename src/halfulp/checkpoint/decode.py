"""Decoding of the states of a saved optimizer, ours or another library's, without the optimizer.

Supported are our own state dictionaries, those of ``torch.optim`` and of libraries that keep plain tensors,
bitsandbytes (8 bits in blocks, and 32) and torchao (8 bit, 4 bit, fp8).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halfulp.libraries.base import Codec, Entries, Group, Plain
from halfulp.libraries.bitsandbytes import bitsandbytes_state
from halfulp.libraries.ours import QuantizerCodec
from halfulp.libraries.torch_optim import plain_format
from halfulp.libraries.torchao import KINDS, inner, torchao_state
from halfulp.numbers.quantizer import Quantizer

__all__ = ["SavedState", "saved_states"]

BNB_WRAPPED = "__bnb_optimizer_quant_state__"


@dataclass(frozen=True)
class SavedState:
    """One saved state: its codec, its tensors, and its age if the library keeps one."""

    codec: Codec
    tensors: tuple[Tensor, ...]
    shape: torch.Size
    age: int | None

    def values(self, index: Tensor | None = None) -> Tensor:
        """Return the state in fp32, in its shape, or its elements at flat indices."""
        if index is None and isinstance(self.codec, Plain):
            return self.tensors[0].detach().float()
        at = torch.arange(math.prod(self.shape), device=self.tensors[0].device) if index is None else index
        located = self.codec.locate(self.shape, at)
        parts = [t.detach().reshape(-1)[i] for t, i in zip(self.tensors, located.indices, strict=True)]
        values = self.codec.decode(parts, located.extra)[0].float()
        return values if index is not None else values.reshape(self.shape)


def _by_slot(text: Any) -> dict[str, str]:
    """Return what a group of ours says of each slot, as ``"exp_avg=...,exp_avg_sq=..."``; empty for other libraries."""
    return dict(part.split("=", 1) for part in text.split(",") if "=" in part) if isinstance(text, str) else {}


def saved_states(
    entries: Entries, group: Group, shapes: Mapping[str, torch.Size] | None = None
) -> dict[str, SavedState]:
    """Return the states of one parameter by slot, from its entries and its group in the state dictionary.

    Where the shape of a state is not known, packed codes are assumed to have an even number of columns.

    Raises
    ------
    ValueError
        If a spec is invalid, or codes and scales do not fit together.
    """
    if BNB_WRAPPED in entries:
        entries = {**entries, **entries[BNB_WRAPPED]}
    if "state1" in entries:
        return _bitsandbytes(entries)
    specs, roundings = _by_slot(group.get("state")), _by_slot(group.get("rounding"))
    found: dict[str, SavedState] = {}
    for key, value in entries.items():
        if not isinstance(value, Tensor) or not isinstance(key, str):
            continue
        if value.ndim == 0 and key not in specs and (shapes is None or key not in shapes):
            continue  # a step counter
        state = inner(value)
        if type(state).__name__ in KINDS:
            found[key] = SavedState(*torchao_state(state), state.shape, _age(entries, key))
        elif key in specs:
            shape = None if shapes is None else shapes.get(key)
            found[key] = _ours(key, value, entries, specs[key], roundings.get(key, "nearest"), shape)
        elif value.is_floating_point() and not (key.endswith("_scale") and key.removesuffix("_scale") in specs):
            found[key] = SavedState(Plain(plain_format(value)), (value,), value.shape, _age(entries, key))
    return found


def _ours(key: str, codes: Tensor, entries: Entries, spec: str, rounding: str, shape: torch.Size | None) -> SavedState:
    scale = entries.get(f"{key}_scale")
    if scale is None:  # stored in fp32, or in a format without scales
        fmt = plain_format(codes)
        return SavedState(
            Plain(fmt, "nearest" if fmt == "float32" else rounding), (codes,), codes.shape, _age(entries, key)
        )
    quantizer = Quantizer.from_spec(spec).with_rounding(rounding)  # type: ignore[arg-type]
    if shape is None:
        shape = torch.Size((codes.shape[0], 2 * codes.shape[1])) if quantizer.format.packed else codes.shape
    if tuple(codes.shape) != quantizer.codes_shape(shape) or tuple(scale.shape) != quantizer.scale_shape(shape):
        raise ValueError(
            f"{key}: codes {tuple(codes.shape)} and scales {tuple(scale.shape)} are not those of a state of shape "
            f"{tuple(shape)} in {spec}"
        )
    return SavedState(QuantizerCodec(quantizer), (codes, scale), shape, _age(entries, key))


def _bitsandbytes(entries: Entries) -> dict[str, SavedState]:
    two = entries.get("state2") is not None
    names = {"state1": "exp_avg" if two else "state1", "state2": "exp_avg_sq"}
    found = {}
    for key, slot in names.items():
        if entries.get(key) is not None:
            state = bitsandbytes_state(entries, key)
            if isinstance(state, str):
                raise ValueError(f"{key} of bitsandbytes is {state}")
            found[slot] = SavedState(*state, entries[key].shape, _age(entries, slot))
    return found


def _age(entries: Entries, slot: str) -> int | None:
    age = entries.get(f"{slot}_age", entries.get("step"))
    return int(age) if isinstance(age, (int, float)) or (isinstance(age, Tensor) and age.numel() == 1) else None
