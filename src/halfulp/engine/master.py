"""Master weights, which keep small updates of 16-bit parameters from being rounded away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halfulp.engine.sharding import copy_back_, is_sharded, local, shard_like, whole_values, window
from halfulp.engine.slot_state import MASTER, loaded, master_codes, usable
from halfulp.kernels.binding import plain
from halfulp.numbers.remainder import MASTERS, beside, split, weights
from halfulp.rules.base import Rule

__all__ = ["MASTER", "MasterState", "check_master", "master_kind", "storage_of"]


def check_master(kind: Any) -> None:
    """Raise ``ValueError`` for an unknown kind of master weights."""
    if kind is not None and (not isinstance(kind, str) or kind not in MASTERS):
        raise ValueError(f"master_weights must be None, {', '.join(map(repr, MASTERS))}; got {kind!r}")


def master_kind(kind: str | None, param: Tensor, label: str) -> str | None:
    """Return the kind of master weights of a parameter in a group; ``None`` for float32 parameters.

    Raise ``ValueError`` if the parameter is float16 and the kind is a remainder.
    """
    if kind is None or param.dtype == torch.float32:
        return None
    if param.dtype == torch.float16 and kind != "fp32":
        raise ValueError(
            f"{label} is float16, and master_weights={kind!r} is for bfloat16 weights, which are the upper half of an "
            "fp32 weight: use master_weights='fp32', or model.bfloat16()"
        )
    return kind


def storage_of(kind: str) -> str:
    """The name of the storage, as in :attr:`~halfulp.numbers.quantizer.Quantizer.spec`."""
    return "float32" if kind == "fp32" else kind


@dataclass(eq=False)
class MasterState:
    """The master weights of one parameter, stored in its entries of ``optimizer.state``.

    `shape` is that of the parameter, or of this rank's part. If they are `sharded`, they are stored as a DTensor with
    the parameter's placements.
    """

    kind: str
    shape: torch.Size
    entries: dict[str, Any]
    sharded: bool = False

    @classmethod
    def of(cls, param: Tensor, kind: str | None, entries: dict[str, Any], rule: Rule, label: str) -> MasterState | None:
        """Return the master weights of a parameter under a rule, or ``None``. See :func:`master_kind`."""
        kind = master_kind(kind, param, label)
        if kind is None:
            return None
        sharded = is_sharded(param) and rule.shardable
        shape = window(param).shape if sharded else param.shape
        return cls(kind, torch.Size(shape), entries, sharded)

    @property
    def stored_as(self) -> tuple[torch.dtype, tuple[int, ...]]:
        """The dtype and shape of the entry (of this rank's part)."""
        if self.kind == "remainder16":
            return torch.uint8, (*self.shape, 2)
        return MASTERS[self.kind], tuple(self.shape)

    @property
    def codes(self) -> Tensor:
        """The stored tensor (this rank's part) in the parameter's shape, as a view."""
        entry: Tensor = self.entries[MASTER]
        return master_codes(local(entry) if self.sharded else entry, self.shape)

    def bytes(self) -> int:
        """The number of bytes stored."""
        return self.shape.numel() * MASTERS[self.kind].itemsize

    def visible(self, param: Tensor) -> Tensor:
        """The 16-bit values that belong to these master weights."""
        return local(param.detach()) if self.sharded else plain(whole_values(param.detach()))

    def read(self, param: Tensor) -> Tensor:
        """Return the fp32 weights."""
        return weights(self.visible(param), self.codes)

    @torch.inference_mode(False)
    def initial(self, param: Tensor) -> dict[str, Any]:
        """Return new entries, whose fp32 weights equal the 16-bit weights."""
        dtype, shape = self.stored_as
        made = torch.zeros(shape, dtype=dtype, device=param.device)
        if self.kind == "fp32":
            made.copy_(self.visible(param))
        return {MASTER: shard_like(param, made) if self.sharded else made}

    def reset_(self, param: Tensor, rows: Tensor | None = None) -> None:
        """Set the fp32 weights to the 16-bit weights, in place. `rows` selects rows."""
        values = self.visible(param).float() if self.kind == "fp32" else torch.zeros_like(self.codes)
        if rows is None:
            self.codes.copy_(values)
        else:
            self.codes[rows] = values[rows]

    def follow_(self, param: Tensor) -> bool:
        """Update fp32 master weights where the 16-bit weight is more than a unit away. Return whether there were any.

        Remainders need no update: setting a weight sets the upper half of the pair.
        """
        if self.kind != "fp32" or (is_sharded(param) and not self.sharded):
            return False
        visible, master = self.visible(param), self.codes
        if torch.equal(visible, master.to(visible.dtype)):  # as a step leaves them
            return False
        wide, info = visible.float(), torch.finfo(visible.dtype)
        unit = (torch.maximum(wide.abs(), master.abs()) * info.eps).clamp_min(info.smallest_normal * info.eps)
        moved = ~((wide - master).abs() <= unit)
        if not bool(moved.any()):
            return False
        master.copy_(torch.where(moved, wide, master))
        return True

    def carry(self, source: MasterState, rows: Tensor) -> None:
        """Copy rows of another parameter's master weights. Rows with a negative index in `rows` are left unchanged."""
        self.codes[rows >= 0] = source.codes[rows[rows >= 0]]

    def write_(self, param: Tensor, values: Tensor) -> None:
        """Set the fp32 weights (of this rank's part) and the 16-bit weights. 8-bit remainders round to nearest."""
        low = self.visible(param)
        visible, master = (values.to(low.dtype), values) if self.kind == "fp32" else split(values, self.kind)
        self.codes.copy_(master)
        if is_sharded(param) and not self.sharded:
            copy_back_(param.detach(), visible)
        else:
            local(param.detach()).copy_(visible)

    def beside(self, param: Tensor, values: Tensor) -> Tensor:
        """Return the entry that stores these fp32 weights while the parameter itself stays unchanged."""
        if self.kind == "fp32":
            return values
        return beside(self.visible(param), values, self.kind).view(torch.uint8).view(self.stored_as[1])

    @torch.inference_mode(False)
    def fitted(self, param: Tensor, label: str) -> dict[str, Any]:
        """Return the entries in a form that a backend can use, whatever was put there since the last step.

        Raise ``ValueError`` for a tensor of another dtype or shape.
        """
        if self.entries.get(MASTER) is None:
            return self.initial(param)
        found = usable(self.entries[MASTER], MASTER, label, param, self.sharded, WAY_OUT)
        here, (dtype, shape) = local(found), self.stored_as
        if here.dtype != dtype or tuple(here.shape) != shape:
            raise ValueError(
                f"{label}: {MASTER} in optimizer.state is {here.dtype} of shape {tuple(here.shape)}; "
                f"master_weights={self.kind!r} has {dtype} of shape {shape}: {WAY_OUT}"
            )
        return {MASTER: found if here.data_ptr() % MASTERS[self.kind].itemsize == 0 else found.clone()}

    @torch.inference_mode(False)
    def loaded(self, label: str, saved: Mapping[str, Any], device: torch.device) -> None:
        """Load from a state dictionary either the entry itself or fp32 weights (FSDP1's flat parameters).

        Raise ``ValueError`` if the saved tensor does not fit.
        """
        tensor, (dtype, shape) = saved[MASTER], self.stored_as
        if self.kind != "fp32" and isinstance(tensor, Tensor) and tensor.dtype == torch.float32:
            tensor = split(tensor, self.kind)[1].view(torch.uint8).reshape(shape)
        found = loaded(tensor, f"{label}: {MASTER}", dtype, shape, device)
        if dtype.is_floating_point and not bool(torch.isfinite(local(found)).all()):
            raise ValueError(f"{label}: {MASTER} has values that are not finite; the checkpoint is damaged")
        self.entries[MASTER] = found


WAY_OUT = f"delete {MASTER} of optimizer.state[param] to continue from the 16-bit weights"
