"""A small byte-level decoder that trains several replicas at once, with explicit gradients.

Every weight has a leading dimension of replicas. For a model of 0.1 million parameters a step is dominated by
per-operation overhead and memory, not by arithmetic. Explicit gradients need a third of autograd's operations, and
write each weight's gradient where the optimizer reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from halfulp.theory.arguments import check_steps

__all__ = ["ARCHITECTURES", "Decoder"]

ARCHITECTURES = ("llama", "neox")
Back = Callable[[Tensor], Tensor]
"""Function from the gradient of an output to that of the input. It stores the gradients of weights."""


@dataclass(frozen=True)
class Decoder:
    """The model, with shared input and output embeddings and rotary positions.

    ``"llama"`` has RMS norms and a SwiGLU of twice the width. ``"neox"`` has layer norms without bias, a GELU of four
    times the width, and attention and feed-forward in parallel. Invalid sizes raise ``ValueError``.
    """

    architecture: str
    vocab: int
    hidden: int
    layers: int
    heads: int

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"a replicated model is one of {', '.join(ARCHITECTURES)}; got {self.architecture!r}")
        for name in ("vocab", "hidden", "layers", "heads"):
            check_steps(getattr(self, name), name, least=1)
        if self.hidden % (2 * self.heads):
            raise ValueError(f"each head needs an even width, got {self.hidden} over {self.heads} heads")

    @property
    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Shapes of the weights, by group. Norms come last."""
        h = self.hidden
        inner = {"llama": {"gate_up": (4 * h, h), "down": (h, 2 * h)}, "neox": {"up": (4 * h, h), "down": (h, 4 * h)}}
        matrices = {"query_key_value": (3 * h, h), "output": (h, h), **inner[self.architecture]}
        groups: dict[str, dict[str, tuple[int, ...]]] = {"embedding": {"embedding": (self.vocab, h)}}
        for i in range(self.layers):
            groups[f"layer {i}"] = {f"{i}.{name}": shape for name, shape in matrices.items()}
        norms = [f"{i}.{name}" for i in range(self.layers) for name in ("attention_norm", "feed_norm")]
        return {**groups, "norms": dict.fromkeys([*norms, "norm"], (h,))}

    def losses(self, weights: dict[str, Tensor], tokens: Tensor, grads: dict[str, Tensor] | None = None) -> Tensor:
        """Return the mean cross entropy of each replica, fp32 of shape ``(replicas,)``, and write its gradients.

        Parameters
        ----------
        weights
            fp32 weights by name, each ``(replicas, *shape)``. The last dimensions are contiguous.
        tokens
            int64, ``(replicas, sequences, context + 1)``.
        grads
            Tensors for the gradients, in the shapes of the weights; ``None`` for no gradients.
        """
        return _Pass(self, weights, grads, tokens).losses()


class _Pass:
    """One forward pass, with the data that its backward pass needs."""

    def __init__(
        self, model: Decoder, weights: dict[str, Tensor], grads: dict[str, Tensor] | None, tokens: Tensor
    ) -> None:
        self.model, self.weights, self.grads, self.tokens = model, weights, grads, tokens
        self.replicas, self.batch, self.context = tokens[:, :, :-1].shape
        width = model.hidden // model.heads
        angles = torch.outer(torch.arange(self.context).float(), 10_000.0 ** -(torch.arange(0, width, 2) / width))
        self.turn = torch.polar(torch.ones_like(angles), angles).unsqueeze(1)

    @torch.no_grad()
    def losses(self) -> Tensor:
        table, vocab = self.weights["embedding"], self.model.vocab
        rows = (self.tokens[:, :, :-1] + vocab * torch.arange(self.replicas).view(-1, 1, 1)).flatten()
        x = table.reshape(-1, self.model.hidden)[rows].view(self.replicas, -1, self.model.hidden)
        backs: list[Callable[[Tensor], Tensor]] = []
        for i in range(self.model.layers):
            x, back = self.neox(x, i) if self.model.architecture == "neox" else self.llama(x, i)
            backs.append(back)
        x, back = self.norm(x, "norm")
        backs.append(back)
        scores = torch.bmm(x, table.transpose(1, 2)).log_softmax(-1)
        targets = self.tokens[:, :, 1:].reshape(self.replicas, -1, 1)
        losses = -scores.gather(2, targets).mean((1, 2))
        if self.grads is not None:
            dx = scores.exp_()
            dx.scatter_add_(2, targets, torch.full_like(targets, -1.0, dtype=dx.dtype)).mul_(1 / targets.shape[1])
            grad = torch.bmm(dx.transpose(1, 2), x)
            dx = torch.bmm(dx, table)
            for back in reversed(backs):
                dx = back(dx)
            grad.view(-1, self.model.hidden).index_add_(0, rows, dx.view(-1, self.model.hidden))
            self.grads["embedding"].copy_(grad)
        return losses

    def llama(self, x: Tensor, i: int) -> tuple[Tensor, Back]:
        y, attention_back = self.attention(x, i)
        x = y.add_(x)
        y, feed_back = self.feed(x, i)

        def back(dy: Tensor) -> Tensor:
            dx = feed_back(dy).add_(dy)
            return attention_back(dx).add_(dx)

        return y.add_(x), back

    def neox(self, x: Tensor, i: int) -> tuple[Tensor, Back]:
        y, attention_back = self.attention(x, i)
        z, feed_back = self.feed(x, i)
        return y.add_(z).add_(x), lambda dy: attention_back(dy).add_(feed_back(dy)).add_(dy)

    def linear(self, x: Tensor, name: str) -> tuple[Tensor, Back]:
        def back(dy: Tensor) -> Tensor:
            assert self.grads is not None
            self.grads[name].copy_(torch.bmm(dy.transpose(1, 2), x))
            return torch.bmm(dy, self.weights[name])

        return torch.bmm(x, self.weights[name].transpose(1, 2)), back

    def norm(self, x: Tensor, name: str) -> tuple[Tensor, Back]:
        gain, centred = self.weights[name].unsqueeze(1), self.model.architecture == "neox"
        if centred:
            x = x - x.mean(-1, keepdim=True)
        rate = x.square().mean(-1, keepdim=True).add_(1e-6).rsqrt_()
        unit = x * rate

        def back(dy: Tensor) -> Tensor:
            assert self.grads is not None
            along = dy * unit
            self.grads[name].copy_(along.sum(1))
            mean = along.mul_(gain).mean(-1, keepdim=True)
            dx = (dy * gain).sub_(unit * mean).mul_(rate)
            return dx.sub_(dx.mean(-1, keepdim=True)) if centred else dx

        return unit * gain, back

    def attention(self, x: Tensor, i: int) -> tuple[Tensor, Back]:
        heads, shape = self.model.heads, (self.replicas * self.batch, self.context, 3, self.model.heads, -1)
        x, norm_back = self.norm(x, f"{i}.attention_norm")
        each, in_back = self.linear(x, f"{i}.query_key_value")
        turned = self.rotate_(each.view(*shape[:2], 3 * heads, -1), self.turn).view(shape)
        q, k, v = (part.transpose(1, 2).requires_grad_(self.grads is not None) for part in turned.unbind(2))
        with torch.enable_grad():
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed, out_back = self.linear(y.detach().transpose(1, 2).reshape_as(x), f"{i}.output")

        def back(dy: Tensor) -> Tensor:
            dy = out_back(dy).view(*shape[:2], heads, -1).transpose(1, 2)
            parts = torch.stack([d.transpose(1, 2) for d in torch.autograd.grad(y, (q, k, v), dy)], 2)
            turned = self.rotate_(parts.view(*shape[:2], 3 * heads, -1), self.turn.conj())
            return norm_back(in_back(turned.view(self.replicas, self.batch * self.context, -1)))

        return mixed, back

    def rotate_(self, x: Tensor, turn: Tensor) -> Tensor:
        """Rotate the pairs of the queries and keys, which come first among the heads."""
        torch.view_as_complex(x[:, :, : 2 * self.model.heads].unflatten(-1, (-1, 2))).mul_(turn)
        return x

    def feed(self, x: Tensor, i: int) -> tuple[Tensor, Back]:
        x, norm_back = self.norm(x, f"{i}.feed_norm")
        if self.model.architecture == "neox":
            wide, in_back = self.linear(x, f"{i}.up")
            y, out_back = self.linear(F.gelu(wide), f"{i}.down")
            return y, lambda dy: norm_back(in_back(torch.ops.aten.gelu_backward(out_back(dy), wide)))
        both, in_back = self.linear(x, f"{i}.gate_up")
        gate, up = both.chunk(2, -1)
        opened = F.silu(gate)
        y, out_back = self.linear(opened * up, f"{i}.down")

        def back(dy: Tensor) -> Tensor:
            dy = out_back(dy)
            return norm_back(in_back(torch.cat((torch.ops.aten.silu_backward(dy * up, gate), dy * opened), -1)))

        return y, back
