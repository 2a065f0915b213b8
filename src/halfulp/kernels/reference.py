"""The definition of a step, in torch operations: decode, apply the rule, encode. It is slow, and runs on any device.

A segment of a row (:func:`~halfulp.kernels.binding.step_tile`) with a non-finite gradient or new state is skipped: its
parameters and states keep their bits. The whole tensor is skipped by a rule that is not elementwise, also if a matrix
decomposition fails, and if a state that is one number for the tensor is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from halfulp.kernels.binding import Binding, SlotKey, Step, Stored, step_tile
from halfulp.kernels.pieces import pieces
from halfulp.numbers.formats import get_format
from halfulp.numbers.quantizer import Quantizer
from halfulp.numbers.remainder import split
from halfulp.numbers.rng import part_bits
from halfulp.numbers.rounding import encode, pack4, unpack4
from halfulp.numbers.scaling import Layout, rows_and_cols
from halfulp.rules.base import Rule
from halfulp.rules.program import is_number

__all__ = ["Codec", "measure", "status", "step", "store", "supports"]


def supports(rule: Rule, step: Step) -> str | None:
    """Return the reason why this backend cannot do a step. There is never one."""
    return None


def status() -> str:
    """Return the state of this backend, which is always available."""
    return "available"


@dataclass(frozen=True)
class Codec:
    """How states are decoded and encoded: by torch operations, or by another backend's functions.

    Parameters
    ----------
    read
        A function that returns a state as fp32.
    quantize
        A function that returns the codes and scales of a state's new values (finite fp32), with the key of its random
        stream.
    """

    read: Callable[[Stored], Tensor]
    quantize: Callable[[Stored, Tensor, SlotKey, Step], tuple[Tensor, Tensor | None]]


def _quantize(state: Stored, x: Tensor, key: SlotKey, step: Step) -> tuple[Tensor, Tensor | None]:
    return state.quantizer.quantize(x, _words(key, step, x) if state.quantizer.stochastic else None)


TORCH = Codec(Stored.read, _quantize)


def step(rule: Rule, steps: list[Step], codec: Codec = TORCH) -> None:
    """Do the step of every binding."""
    for one in steps:
        with exact(one.binding.device.type):
            for part in pieces(one):
                _step_one(rule, part, codec)


def measure(rule: Rule, steps: list[Step]) -> list[dict[str, float]]:
    """Return what the rule measures of each binding. All sums are launched before waiting for the first."""
    assert rule.measure is not None
    found = []
    for one in steps:
        param, inputs = one.wide()
        with exact(one.binding.device.type):
            found.append(rule.measure(param, *inputs, one.binding.read(), one.scalars))
    return [{name: float(value) for name, value in parts.items()} for parts in found]


@contextmanager
def exact(device: str) -> Iterator[None]:
    """Keep torch from operations with other bits: products in 16 bits under autocast, and inverses on a GPU."""
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    autocast = torch.autocast(device, enabled=False) if on else nullcontext()
    with autocast, nullcontext() if device == "cpu" else TrueDivision():
        yield


class TrueDivision(TorchFunctionMode):
    """Divide by numbers as by tensors. On a GPU, torch multiplies by the rounded inverse of a number instead."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace the divisor of a float tensor by a tensor."""
        if func in _DIVISIONS and len(args) == 2 and isinstance(args[0], Tensor) and isinstance(args[1], (int, float)):
            x, divisor = args
            args = (x, x.new_full((), divisor)) if x.is_floating_point() else args
        return func(*args, **(kwargs or {}))


_DIVISIONS = (
    torch.div, torch.true_divide, Tensor.div, Tensor.true_divide, Tensor.__truediv__,
    Tensor.div_, Tensor.true_divide_, Tensor.__itruediv__,
)  # fmt: skip


def _step_one(rule: Rule, step: Step, codec: Codec) -> None:
    binding = step.binding
    count = binding.shape.numel()
    if count == 0:
        return
    wide, inputs = step.wide()
    if not rule.elementwise and not _finite(inputs[0]):
        step.skipped += count
        return
    old = {s.slot.name: codec.read(s) for s in binding.states}
    try:
        param, updated = rule.apply(wide, inputs, old, step.scalars)
    except torch.linalg.LinAlgError:  # of a matrix that has overflowed
        step.skipped += count
        return
    states = [_own(updated[s.slot.name], k, binding) for k, s in enumerate(binding.states)]
    param = param if param is None else _own(param, None, binding)
    numbers = [is_number(s.slot) or s.shape != binding.shape for s in binding.states]
    if rule.elementwise and all(_finite(x) for x, number in zip(states, numbers, strict=True) if number):
        wide_states = [x for x, number in zip(states, numbers, strict=True) if not number]
        keep = _tiles_to_keep(binding, [inputs[0], *wide_states])
        if keep is not None:
            step.skipped += keep.sum()
    elif not rule.elementwise and all(map(_finite, states)):
        keep = None
    else:
        step.skipped += count
        return
    for k, (state, new) in enumerate(zip(binding.states, states, strict=True)):
        kept = None if rule.elementwise and numbers[k] else keep
        store(step, k, old[state.slot.name], new, kept, codec)
    if param is not None and binding.param is not None:
        visible, master = _rounded(param, step)
        binding.param.copy_(visible if keep is None else torch.where(keep, binding.param, visible))
        if master is not None and binding.master is not None:
            binding.master.copy_(master if keep is None else torch.where(keep, binding.master, master))


def _own(new: Tensor, of: int | None, binding: Binding) -> Tensor:
    """Return a new value that does not share memory with other states. An fp32 state is read without a copy."""
    at = new.untyped_storage().data_ptr()
    taken = any(k != of and s.codes.untyped_storage().data_ptr() == at for k, s in enumerate(binding.states))
    return new.clone() if taken else new


def store(step: Step, k: int, before: Tensor, new: Tensor, keep: Tensor | None, codec: Codec) -> None:
    """Store new values of the k-th state except where `keep` is set, and count stalled updates since `before`."""
    state = step.binding.states[k]
    finite = new if keep is None else torch.where(keep, 0.0, new)
    codes, scale = codec.quantize(state, finite, step.keys[k], step)
    if keep is not None:
        codes, scale = _restore(state.quantizer, keep, codes, scale, state.codes, state.scale)
    if step.counts is not None and state.quantizer.format.is_float32:
        before = before.clone()  # it is the stored tensor, which is overwritten now
    state.write_(codes, scale)
    if step.counts is not None:
        due = new != before if keep is None else (new != before) & ~keep
        step.counts[k] += torch.stack([due.sum(), (due & (codec.read(state) == before)).sum()])


def _finite(x: Tensor) -> bool:
    """Whether all elements are finite. Checking the extremes takes a tenth of the time of checking each element."""
    return x.numel() == 0 or all(math.isfinite(float(extreme)) for extreme in torch.aminmax(x))


def _tiles_to_keep(binding: Binding, values: list[Tensor]) -> Tensor | None:
    """Return the mask of the elements that a step skips, in the binding's shape, or ``None`` if there are none."""
    if all(_finite(x) for x in values):
        return None
    tiles = Layout(*step_tile(binding.shape, binding.quantizers))
    bad = torch.stack([tiles.split(~torch.isfinite(x)).any(-1) for x in values]).any(0)
    expanded = bad.unsqueeze(-1).expand(tiles.rows, tiles.blocks, max(tiles.block, 1))
    return tiles.join(expanded).reshape(binding.shape)


def _words(key: SlotKey, step: Step, like: Tensor) -> Tensor:
    return part_bits(key, like.shape, step.binding.first_element, step.binding.row_stride, like.device)


def _rounded(new: Tensor, step: Step) -> tuple[Tensor, Tensor | None]:
    """Return new weights as the parameter and its master weights store them."""
    param, master = step.binding.param, step.binding.master
    assert param is not None
    stochastic = step.param_rounding == "stochastic"
    if master is not None and master.dtype != torch.float32:
        eight = master.dtype == torch.uint8
        words = _words(step.keys[-1], step, new) if eight and stochastic else None
        return split(new, "remainder8" if eight else "remainder16", words)
    if param.dtype == torch.float32 or not stochastic:
        return new.to(param.dtype), master if master is None else new
    fmt = get_format(str(param.dtype).removeprefix("torch."))
    rounded = encode(new, fmt, _words(step.keys[-1], step, new))
    return torch.where(torch.isfinite(new), rounded, new.to(param.dtype)), None


def _restore(
    quantizer: Quantizer,
    keep: Tensor,
    codes: Tensor,
    scale: Tensor | None,
    old_codes: Tensor,
    old_scale: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Restore the old codes and scales where `keep` is set (whole blocks, since a tile consists of blocks)."""
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
