"""Gradients of 16-bit parameters, accumulated in fp32."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["main_grads"]


def main_grads(params: Iterable[Tensor]) -> None:
    """Accumulate the gradients of 16-bit parameters in fp32, like the main gradients of Megatron and torchtitan.

    Each backward pass computes a gradient in 16 bits and adds it to ``param.grad`` in fp32, so that small contributions
    are not lost in the sum. A gradient then takes 4 bytes per element from the first backward pass to ``zero_grad()``.
    Without accumulation nothing else changes. In FSDP2, ``MixedPrecisionPolicy(reduce_dtype=torch.float32)`` does the
    same.

    Parameters
    ----------
    params
        Parameters of a model. float32 and frozen ones are skipped.

    Raises
    ------
    RuntimeError
        If torch is older than 2.10, which has no ``grad_dtype``, or a parameter already has a gradient.

    Examples
    --------
    >>> import torch
    >>> from halfulp.training import main_grads
    >>> model = torch.nn.Linear(2, 1).bfloat16()
    >>> main_grads(model.parameters())
    >>> model(torch.ones(1, 2).bfloat16()).sum().backward()
    >>> model.weight.grad.dtype
    torch.float32
    """
    for p in params:
        if p.dtype not in (torch.bfloat16, torch.float16) or not p.requires_grad:
            continue
        if not hasattr(p, "grad_dtype"):
            raise RuntimeError(
                f"torch {torch.__version__} has no grad_dtype: main_grads needs torch 2.10 or newer; FSDP2's "
                "MixedPrecisionPolicy(reduce_dtype=torch.float32) accumulates in fp32 in older versions too"
            )
        if p.grad is not None and p.grad.dtype != torch.float32:
            raise RuntimeError(f"a parameter has a gradient in {p.grad.dtype} already: call zero_grad() first")
        p.grad_dtype = torch.float32
