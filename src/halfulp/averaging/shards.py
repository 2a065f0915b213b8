"""Which part of a tensor this process holds, and where it stands in the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Part", "local_part"]


@dataclass(frozen=True)
class Part:
    """What a process holds of a tensor.

    Parameters
    ----------
    tensor
        The local values: a view that shares memory with the tensor, without its autograd history.
    first_element
        Flat index of the first of them in the whole tensor: random bits follow it.
    """

    tensor: Tensor
    first_element: int = 0


def local_part(tensor: Tensor) -> Part:
    """Local part of a plain tensor (all of it) or of a DTensor that is replicated or cut along dimension 0.

    Raises
    ------
    ValueError
        A DTensor that is cut along another dimension, or holds partial sums.
    """
    if not hasattr(tensor, "to_local"):
        return Part(tensor.data)
    sharded: Any = tensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    for placement in sharded.placements:
        if not (placement.is_replicate() or placement.is_shard(0)):
            raise ValueError(
                f"an average takes tensors that are replicated or sharded along dimension 0 (as FSDP2 does); got "
                f"placements {sharded.placements}"
            )
    shape = tuple(sharded.shape)
    _, offset = compute_local_shape_and_global_offset(shape, sharded.device_mesh, sharded.placements)
    first = offset[0] * torch.Size(shape[1:]).numel() if shape else 0
    return Part(sharded.to_local().data, int(first))
