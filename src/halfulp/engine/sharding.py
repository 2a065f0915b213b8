"""Sharded parameters (``DTensor``, as in FSDP2 and tensor parallelism) and the part that a rank holds.

The states of a sharded parameter are DTensors, sharded like it, so that ``torch.distributed.checkpoint`` saves and
loads them on any number of ranks. Random bits depend on the element's index in the whole tensor, and blocks never cross
a row. A shard therefore has the same bits as the whole tensor.

Elementwise rules run on the local shard. Rules that are not elementwise, or need sums over the model, also need other
ranks' elements. Their parameters are gathered before the step, every rank does the same step on the whole, and keeps
its own part of the result. The states are then whole on every rank.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from halfulp.numbers.log import log_once
from halfulp.numbers.rng import part_bits
from halfulp.numbers.scaling import rows_and_cols

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

    from halfulp.numbers.quantizer import Quantizer

__all__ = [
    "Part", "Window", "agree", "copy_back_", "cut", "gathered", "has_memory", "is_flat", "is_sharded", "is_wrapper",
    "local", "local_part", "local_state_shape", "placed_on", "shard_like", "whole", "whole_values", "window",
]  # fmt: skip


def is_sharded(x: object) -> bool:
    """Whether a tensor is a DTensor. ``torch.distributed.tensor`` is not imported for this."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local(x: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds, sharing its memory. A plain tensor is returned as it is."""
    if not is_sharded(x):
        return x
    part: Tensor = x.to_local()  # type: ignore[attr-defined]
    return part.wait() if hasattr(part, "wait") else part


def is_wrapper(x: Tensor) -> bool:
    """Whether a tensor is a subclass that wraps others (torchao's float8 weights) and so has no memory of its own."""
    return type(x).__torch_dispatch__ != Tensor.__torch_dispatch__ and not is_sharded(x)


def is_flat(x: Tensor) -> bool:
    """Whether a parameter is a flat part of others, as in FSDP1 (``FullyShardedDataParallel``)."""
    return bool(getattr(x, "_fsdp_flattened", False)) and x.ndim == 1


def has_memory(x: Tensor) -> bool:
    """Whether the elements of a plain tensor lie within its storage, which may have been freed or shrunk."""
    if x.numel() == 0:
        return True
    last = x.storage_offset() + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    return x.untyped_storage().nbytes() >= (last + 1) * x.element_size()


def whole_values(x: Tensor) -> Tensor:
    """Return the values as a plain tensor on every rank. Sharded tensors are gathered, wrappers copied."""
    if not is_wrapper(x):
        return gathered(x)
    values = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return values.copy_(x)


def gathered(x: Tensor) -> Tensor:
    """Return the whole tensor on every rank. A plain tensor is returned as it is."""
    whole: Tensor = x.full_tensor() if is_sharded(x) else x  # type: ignore[attr-defined]
    return whole


@dataclass(frozen=True)
class Window:
    """The part of a tensor that a rank holds: its shape, and its offset in the whole.

    Parameters
    ----------
    first_element
        The flat index of its first element in the whole.
    row_stride
        The distance, in elements of the whole, between the starts of consecutive rows.
    """

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    first_element: int
    row_stride: int

    def of(self, whole: Tensor) -> Tensor:
        """Return this part of a whole tensor, as a view."""
        for dim, (start, size) in enumerate(zip(self.offset, self.shape, strict=True)):
            whole = whole.narrow(dim, min(start, whole.shape[dim]), size)
        return whole


def window(param: Tensor) -> Window:
    """Return the part of a parameter that this rank holds.

    Raise ``ValueError`` if a dimension after the second is sharded, since the local rows would then not be contiguous.
    """
    whole = tuple(param.shape)
    stride = rows_and_cols(whole)[1]
    if not is_sharded(param):
        return Window(whole, (0,) * len(whole), 0, stride)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sharded: DTensor = param  # type: ignore[assignment]
    shape, offset = compute_local_shape_and_global_offset(whole, sharded.device_mesh, sharded.placements)
    if any(n != m for n, m in zip(shape[2:], whole[2:], strict=True)):
        raise ValueError(
            f"a parameter of shape {whole} is sharded as {sharded.placements}; halfulp supports shards along the "
            "first two dimensions"
        )
    first, inner = 0, 1
    for size, start in zip(reversed(whole), reversed(offset), strict=True):
        first, inner = first + start * inner, inner * size
    return Window(tuple(shape), tuple(offset), 0 if 0 in shape else first, stride)


@dataclass(frozen=True)
class Part:
    """The part of a tensor that this rank holds: a view without autograd history, and its position in the whole.

    Random bits depend on the position, which is as in a :class:`~halfulp.kernels.binding.Binding`.
    """

    tensor: Tensor
    first_element: int = 0
    row_stride: int | None = None

    def random_bits(self, key: Sequence[int]) -> Tensor:
        """Return random words for the elements. See :func:`~halfulp.numbers.rng.part_bits`."""
        return part_bits(key, self.tensor.shape, self.first_element, self.row_stride, self.tensor.device)


def local_part(tensor: Tensor) -> Part:
    """Return the local part of a DTensor, or all of a plain tensor."""
    if not is_sharded(tensor):
        return Part(tensor.data)
    here = window(tensor)
    stride = None if here.shape[1:] == tuple(tensor.shape[1:]) else here.row_stride
    return Part(local(tensor).data, here.first_element, stride)


def whole(state_dict: Any) -> Any:
    """Gather every DTensor of a state dictionary, one after the other, into the host's memory.

    Every rank must call this. A state without DTensors is returned as it is. Averages load either form.

    Parameters
    ----------
    state_dict
        The state dictionary of an average, or any nested mappings.

    Examples
    --------
    >>> import torch, halfulp.averaging
    >>> ema = halfulp.averaging.EMA(torch.nn.Linear(4, 4))
    >>> halfulp.averaging.whole(ema.state_dict())["updates"]
    0
    """
    if isinstance(state_dict, Mapping):
        return {key: whole(value) for key, value in state_dict.items()}
    return gathered(state_dict).cpu() if is_sharded(state_dict) else state_dict


def shard_like(param: Tensor, part: Tensor) -> Tensor:
    """Return a DTensor with a parameter's placements, whose local part is `part`; `part` itself for a plain parameter.

    Dimension 0 of the parts is that of the parameter. Along the others (bytes of packed codes, scales of blocks), a
    shard of the parameter corresponds to a shard of the state.
    """
    if not is_sharded(param):
        return part
    from torch.distributed.tensor import DTensor, Replicate, Shard

    sharded: DTensor = param  # type: ignore[assignment]
    mesh = sharded.device_mesh
    if not all(isinstance(p, (Shard, Replicate)) for p in sharded.placements):
        raise ValueError(f"a parameter is placed as {sharded.placements}; halfulp supports Shard and Replicate")
    if any(isinstance(p, Shard) and p.dim > 0 for p in sharded.placements):
        whole = _summed_shape(sharded, part)
    else:
        whole = (param.shape[0], *part.shape[1:])
    stride: list[int] = []
    step = 1
    for size in reversed(whole):
        stride.insert(0, step)
        step *= size
    return DTensor.from_local(
        part, mesh, sharded.placements, run_check=False, shape=torch.Size(whole), stride=tuple(stride)
    )


def placed_on(device: str, like: Tensor, part: Tensor) -> Tensor:
    """Return a DTensor sharded like another one over the same ranks, whose parts are in another memory (``"cpu"``).

    `part` is this rank's part there. It is returned as it is if `like` is a plain tensor.
    """
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    sharded: DTensor = like  # type: ignore[assignment]
    mesh = _mesh_on(device, sharded.device_mesh)
    return DTensor.from_local(part, mesh, sharded.placements, run_check=False, shape=like.shape, stride=like.stride())


@cache
def _mesh_on(device: str, mesh: DeviceMesh) -> DeviceMesh:
    """Return a mesh of the same ranks for another kind of memory."""
    from torch.distributed.device_mesh import DeviceMesh

    return mesh if mesh.device_type == device else DeviceMesh(device, mesh.mesh, mesh_dim_names=mesh.mesh_dim_names)


def cut(like: Tensor, whole: Tensor) -> Tensor:
    """Return a DTensor placed like another one, holding this rank's part of a whole tensor. Nothing is communicated.

    Raise ``ValueError`` if the shape of the whole differs from that of `like`, or the parts of `like` are not those of
    the whole because shards cut blocks of a scaled state. See :func:`local_state_shape`.
    """
    here = window(like)
    if tuple(whole.shape) != tuple(like.shape) or here.shape != tuple(local(like).shape):
        raise ValueError(
            f"a whole of shape {tuple(whole.shape)} cannot be cut into the parts of {tuple(like.shape)}, of which this "
            f"rank holds {tuple(local(like).shape)}"
        )
    return shard_like(like, here.of(whole.to(like.device)).contiguous().clone())


def _summed_shape(param: DTensor, part: Tensor) -> tuple[int, ...]:
    """Return the shape of the whole tensor, from the sizes of all ranks' parts along each sharded dimension."""
    from torch.distributed.tensor import Shard

    shape = list(part.shape)
    for axis, placement in enumerate(param.placements):
        if isinstance(placement, Shard):
            size = torch.tensor([shape[placement.dim]], device=part.device)
            torch.distributed.all_reduce(size, group=param.device_mesh.get_group(axis))
            shape[placement.dim] = int(size)
    return tuple(shape)


def copy_back_(param: Tensor, whole: Tensor) -> None:
    """Copy this rank's part of a whole tensor into a sharded parameter."""
    local(param).copy_(window(param).of(whole))


def agree(flag: bool, params: list[Any]) -> bool:
    """Whether a flag is set on any rank that holds a part of the parameters."""
    meshes = {p.device_mesh for p in params if is_sharded(p)}
    for mesh in meshes:
        for axis in range(mesh.ndim):
            seen = torch.tensor([int(flag)], device=mesh.device_type)
            torch.distributed.all_reduce(seen, op=torch.distributed.ReduceOp.MAX, group=mesh.get_group(axis))
            flag = bool(seen)
    return flag


def local_state_shape(param: Tensor, quantizer: Quantizer) -> tuple[int, ...]:
    """Return the shape of this rank's part of a state that has the shape of its sharded parameter."""
    here = window(param)
    if quantizer.format.scaled and here.shape != tuple(param.shape):
        if quantizer.scaling.per == "tensor":
            raise ValueError(
                f"a scale per tensor cannot be kept on a parameter that is sharded as {param.placements}: use blocks "  # type: ignore[attr-defined]
                "or rows"
            )
        block = quantizer.scaling.layout(tuple(param.shape)).block
        inner = torch.Size(param.shape[2:]).numel()
        cut = [n * inner for n in (here.offset[1:2] + here.shape[1:2]) if here.shape[1:] != tuple(param.shape[1:])]
        if any(n % block for n in cut):
            log_once(
                f"a parameter of shape {tuple(param.shape)} is sharded within its blocks of {block}: its states differ "
                "from those of an unsharded run"
            )
    return here.shape
