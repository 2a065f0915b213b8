"""Which part of a tensor this process holds, where it stands in the whole, and the whole again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from halfulp.engine.sharding import gathered, is_sharded, local, window

__all__ = ["Part", "local_part", "whole"]


@dataclass(frozen=True)
class Part:
    """What a process holds of a tensor.

    Parameters
    ----------
    tensor
        The local values: a view that shares memory with the tensor, without its autograd history.
    first_element, row_stride
        Its place in the whole, see :class:`~halfulp.engine.sharding.Window`; random bits follow it.
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


def whole(state_dict: Any) -> Any:
    """A state dictionary with every DTensor gathered, one after the other, into the host's memory.

    Every rank must call it; a state without DTensors is returned as it is. Averages load either form.

    Parameters
    ----------
    state_dict
        Of an average, or any nest of mappings.

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
