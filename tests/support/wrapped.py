"""A tensor subclass around a plain tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Wrapper(torch.Tensor):
    """A subclass around a plain tensor, without memory of its own, as torchao's float8 weights are."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = torch.utils._pytree.tree_map_only(Wrapper, lambda x: x.inner, (args, kwargs or {}))
        found = func(*args, **kwargs)
        return Wrapper(found) if func is torch.ops.aten.detach.default else found
