"""The lab's small decoder in plain form, for one replica, with torch's own operations and autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["decoder_loss"]


def decoder_loss(weights: dict[str, Tensor], tokens: Tensor, architecture: str, heads: int) -> Tensor:
    """Return the mean cross entropy of sequences of shape ``(sequences, context + 1)``."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    x = weights["embedding"][inputs]
    hidden, context = x.shape[-1], x.shape[1]
    width = hidden // heads
    angles = torch.outer(torch.arange(context), 10_000.0 ** (-torch.arange(0, width, 2) / width)).to(x.dtype)

    def norm(x: Tensor, name: str) -> Tensor:
        if architecture == "neox":
            return F.layer_norm(x, (hidden,), weights[name], None, 1e-6)
        return F.rms_norm(x, (hidden,), weights[name], 1e-6)

    def rotate(x: Tensor) -> Tensor:
        even, odd = x[..., 0::2], x[..., 1::2]
        cos, sin = angles.cos(), angles.sin()
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)

    def attend(x: Tensor, i: int) -> Tensor:
        each = F.linear(x, weights[f"{i}.query_key_value"]).unflatten(-1, (3, heads, width))
        q, k, v = each.permute(2, 0, 3, 1, 4)
        scores = rotate(q) @ rotate(k).transpose(-1, -2) / width**0.5
        scores = scores.masked_fill(torch.ones(context, context, dtype=torch.bool).triu(1), float("-inf"))
        return F.linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2), weights[f"{i}.output"])

    for i in range(sum(name.endswith(".output") for name in weights)):
        attended = attend(norm(x, f"{i}.attention_norm"), i)
        if architecture == "neox":
            wide = F.gelu(F.linear(norm(x, f"{i}.feed_norm"), weights[f"{i}.up"]))
            x = x + attended + F.linear(wide, weights[f"{i}.down"])
        else:
            x = x + attended
            gate, up = F.linear(norm(x, f"{i}.feed_norm"), weights[f"{i}.gate_up"]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, weights[f"{i}.down"])
    return F.cross_entropy((norm(x, "norm") @ weights["embedding"].T).flatten(0, 1), targets.flatten())
