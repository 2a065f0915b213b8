"""Which part of a tensor this process holds, and where it stands in the whole."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from halfulp.distributed import is_sharded, local, window

__all__ = ["Part", "local_part"]


@dataclass(frozen=True)
class Part:
    """What a process holds of a tensor.

    Parameters
    ----------
    tensor
        The local values: a view that shares memory with the tensor, without its autograd history.
    first_element, row_stride
        Its place in the whole, see :class:`~halfulp.distributed.Window`; random bits follow it.
    """

    tensor: Tensor
    first_element: int = 0
    row_stride: int | None = None


def local_part(tensor: Tensor) -> Part:
    """Local part of a plain tensor (all of it) or of a DTensor."""
    if not is_sharded(tensor):
        return Part(tensor.data)
    here = window(tensor)
    return Part(local(tensor).data, here.first_element, here.row_stride)
