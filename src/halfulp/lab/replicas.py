"""Several runs of one small language model as one: every weight has a leading dimension of replicas.

A laptop's cores are idle most of the time on a model of 0.1 M parameters: the operations are too small. Runs that
differ in seed and learning rate only are therefore trained side by side in batched matrix products. A replica depends
on its own seed, rate and text alone: what it trains beside changes nothing but the order of sums inside a matrix
product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from halfulp.numbers.rng import slot_id, stream_keys
from halfulp.rules.adam import ADAM
from halfulp.rules.base import all_fp32

__all__ = ["Replicas", "Storage", "round_fraction"]

ARCHITECTURES = ("llama", "neox")
Storage = Callable[[str, str, Tensor, Callable[[], Tensor]], Tensor]
"""What becomes of a new state when it is stored: (group, slot, value, random words on demand) -> stored value."""


def round_fraction(x: Tensor, fraction_bits: int, rand_bits: Tensor | None = None) -> Tensor:
    """Round fp32 values to so many fraction bits, at any exponent.

    Parameters
    ----------
    x
        fp32, any shape, finite.
    fraction_bits
        0 to 22.
    rand_bits
        int64 words in ``[0, 2**32)`` of the shape of `x` for stochastic rounding; ``None`` rounds to nearest, ties to
        even.

    Examples
    --------
    >>> round_fraction(torch.tensor([1.03, 1.04, -3.0]), 4)
    tensor([ 1.0000,  1.0625, -3.0000])
    """
    bits, drop = x.view(torch.int32), 23 - fraction_bits
    if rand_bits is None:
        bits = bits + ((1 << (drop - 1)) - 1) + ((bits >> drop) & 1)
    else:
        bits = bits + (rand_bits >> (32 - drop)).to(torch.int32)
    return (bits & -(1 << drop)).view(torch.float32)


class Replicas:
    """Replicas of a small decoder on bytes, and AdamW on each of them.

    Parameters
    ----------
    seeds, lrs
        One of each for a replica: seed of its weights and random bits, peak learning rate.
    architecture
        ``"llama"``: RMS norms, SwiGLU of twice the width, rotary positions. ``"neox"``: layer norms without bias, GELU
        of four times the width, attention and feed-forward side by side, rotary positions. Embeddings are shared.
    vocab, hidden, layers, heads, context
        Sizes.
    betas, weight_decay
        Of AdamW; vectors do not decay.
    store
        What rounding does to a state; the update is made from the states before.
    """

    def __init__(
        self,
        seeds: list[int],
        lrs: list[float],
        *,
        architecture: str,
        vocab: int,
        hidden: int,
        layers: int,
        heads: int,
        context: int,
        betas: tuple[float, float],
        weight_decay: float,
        store: Storage,
    ) -> None:
        if architecture not in ARCHITECTURES:
            raise ValueError(f"a replicated model is one of {', '.join(ARCHITECTURES)}; got {architecture!r}")
        if len(seeds) != len(lrs):
            raise ValueError(f"each replica has a seed and a rate, got {len(seeds)} seeds and {len(lrs)} rates")
        self.seeds, self.count, self.architecture = seeds, len(seeds), architecture
        self.layers, self.heads, self.store = layers, heads, store
        self.groups = self._shapes(vocab, hidden)
        self.params = {group: self._initial(shapes) for group, shapes in self.groups.items()}
        self.betas, self.weight_decay = betas, weight_decay
        self.lrs = torch.tensor(lrs, dtype=torch.float64)
        self.states = {
            name: {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)} for name, p in self.params.items()
        }
        self.ages = {name: {"exp_avg": 0, "exp_avg_sq": 0} for name in self.params}
        self.steps = 0
        angles = torch.outer(
            torch.arange(context).float(), 10_000.0 ** -(torch.arange(0, hidden // heads, 2) / (hidden // heads))
        )
        self.cos, self.sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

    def _shapes(self, vocab: int, hidden: int) -> dict[str, dict[str, tuple[int, ...]]]:
        """Weights by group: a group is one tensor, so that the step is a few long operations."""
        inner = {"llama": {"gate": 2, "up": 2, "down": 2}, "neox": {"up": 4, "down": 4}}[self.architecture]
        groups: dict[str, dict[str, tuple[int, ...]]] = {"embedding": {"embedding": (vocab, hidden)}}
        norms = ["norm"]
        for i in range(self.layers):
            attention = {f"{i}.{w}": (hidden, hidden) for w in ("query", "key", "value", "output")}
            feed = {f"{i}.{w}": (hidden, k * hidden) if w == "down" else (k * hidden, hidden) for w, k in inner.items()}
            groups[f"layer {i}"] = {**attention, **feed}
            norms += [f"{i}.attention_norm", f"{i}.feed_norm"]
        return {**groups, "norms": dict.fromkeys(norms, (hidden,))}

    def _initial(self, shapes: dict[str, tuple[int, ...]]) -> Tensor:
        replicas = []
        for seed in self.seeds:
            parts = []
            for name, shape in shapes.items():
                generator = torch.Generator().manual_seed((seed * 1_000_003 + slot_id(name)) % (1 << 63))
                parts.append(torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * 0.02)
            replicas.append(torch.cat([x.flatten() for x in parts]))
        return torch.stack(replicas).requires_grad_()

    def _weights(self) -> dict[str, Tensor]:
        """Every weight by name, ``(replicas, *shape)``."""
        found = {}
        for group, shapes in self.groups.items():
            parts = self.params[group].split([math.prod(s) for s in shapes.values()], dim=1)
            found.update({n: x.view(self.count, *s) for (n, s), x in zip(shapes.items(), parts, strict=True)})
        return found

    # ---------------------------------------------------------------- the model

    def losses(self, tokens: Tensor) -> Tensor:
        """Mean cross entropy of each replica.

        Parameters
        ----------
        tokens
            int64, ``(replicas, sequences, context + 1)``.

        Returns
        -------
        Tensor
            ``(replicas,)``.
        """
        self.weights, (r, b, t) = self._weights(), tokens[:, :, :-1].shape
        table = self.weights["embedding"]
        vocab, hidden = table.shape[1:]
        offsets = vocab * torch.arange(r).view(r, 1, 1)
        x = F.embedding(tokens[:, :, :-1] + offsets, table.reshape(r * vocab, hidden)).view(r, b * t, hidden)
        for i in range(self.layers):
            attended = self._attention(i, self._norm(x, f"{i}.attention_norm"), b, t)
            if self.architecture == "neox":
                fed = self._linear(F.gelu(self._linear(self._norm(x, f"{i}.feed_norm"), f"{i}.up")), f"{i}.down")
                x = x + attended + fed
            else:
                x = x + attended
                y = self._norm(x, f"{i}.feed_norm")
                x = x + self._linear(F.silu(self._linear(y, f"{i}.gate")) * self._linear(y, f"{i}.up"), f"{i}.down")
        logits = torch.bmm(self._norm(x, "norm"), table.transpose(1, 2))
        each = F.cross_entropy(logits.view(-1, vocab), tokens[:, :, 1:].reshape(-1), reduction="none")
        return each.view(r, -1).mean(dim=1)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return torch.bmm(x, self.weights[name].transpose(1, 2))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        if self.architecture == "neox":
            x = x - x.mean(dim=-1, keepdim=True)
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6) * self.weights[name].unsqueeze(1)

    def _attention(self, layer: int, x: Tensor, b: int, t: int) -> Tensor:
        r, _, hidden = x.shape
        size = hidden // self.heads
        q, k, v = (
            self._linear(x, f"{layer}.{w}").view(r * b, t, self.heads, size).transpose(1, 2)
            for w in ("query", "key", "value")
        )
        y = F.scaled_dot_product_attention(self._rotate(q), self._rotate(k), v, is_causal=True)
        return self._linear(y.transpose(1, 2).reshape(r, b * t, hidden), f"{layer}.output")

    def _rotate(self, x: Tensor) -> Tensor:
        t, half = x.shape[-2], x.shape[-1] // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        return x * self.cos[:t] + turned * self.sin[:t]

    # ---------------------------------------------------------------- the step

    def backward(self, tokens: Tensor) -> Tensor:
        """Gradients of every replica's own loss; returns the losses."""
        for p in self.params.values():
            p.grad = None
        losses = self.losses(tokens)
        losses.sum().backward()
        return losses.detach()

    @torch.no_grad()
    def clip(self, largest: float) -> None:
        """Limit the norm of each replica's gradient."""
        squares = torch.stack([p.grad.square().sum(1) for p in self.params.values() if p.grad is not None])
        factors = (largest / squares.sum(0).sqrt().clamp_min(1e-12)).clamp_max(1.0)
        for p in self.params.values():
            if p.grad is not None:
                p.grad.mul_(factors.unsqueeze(1))

    @torch.no_grad()
    def step(self, share: float, scale: float = 1.0) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """AdamW's step, by the library's rule, on gradients that :meth:`backward` left.

        Parameters
        ----------
        share
            Of the peak learning rates.
        scale
            Factor of the gradients.

        Returns
        -------
        dict
            Second moments of each group: before the step, new, and as stored.
        """
        self.steps += 1
        seen = {}
        for index, (name, p) in enumerate(self.params.items()):
            assert p.grad is not None
            for slot in self.ages[name]:
                self.ages[name][slot] += 1
            each = [self._scalars(name, float(lr) * share) for lr in self.lrs]
            c = {k: v for k, v in each[0].items() if k not in ("keep", "step_size")}
            for k in ("keep", "step_size"):
                c[k] = torch.tensor([s[k] for s in each]).unsqueeze(1)  # type: ignore[assignment]
            old = self.states[name]
            param, new = ADAM.update(p, p.grad * scale if scale != 1.0 else p.grad, old, c)
            stored = {
                slot: self.store(name, slot, value, partial(self._words, index, slot, value))
                for slot, value in new.items()
            }
            seen[name] = (old["exp_avg_sq"], new["exp_avg_sq"], stored["exp_avg_sq"])
            self.states[name] = stored
            p.copy_(param)
        return seen

    def _scalars(self, name: str, lr: float) -> dict[str, float]:
        decay = 0.0 if name == "norms" else self.weight_decay
        hyper = {
            "lr": lr, "betas": self.betas, "eps": 1e-8, "weight_decay": decay, "decoupled_weight_decay": True,
            "bound_update": True, "amsgrad": False,
        }  # fmt: skip
        return all_fp32(ADAM.scalars(hyper, {"step": self.steps, **self.ages[name]}))

    def _words(self, index: int, slot: str, like: Tensor) -> Tensor:
        """Random words of a state: a function of each replica's seed, the group, slot and step."""
        words = torch.empty(like.shape, dtype=torch.int64)
        for row, seed in zip(words, self.seeds, strict=True):
            high, low = stream_keys(seed, index, slot_id(slot), self.steps).tolist()
            row.random_(0, 1 << 32, generator=torch.Generator().manual_seed(high << 31 ^ low))
        return words

    def reset(self, names: tuple[str, ...], slots: tuple[str, ...] = ("exp_avg", "exp_avg_sq")) -> None:
        """Set states of some groups, and their ages, to zero."""
        for name in names:
            for slot in slots:
                self.states[name][slot] = torch.zeros_like(self.states[name][slot])
                self.ages[name][slot] = 0

    @torch.no_grad()
    def validation(self, tokens: Tensor, part: int = 16) -> Tensor:
        """Mean loss of each replica on the same sequences, ``(sequences, context + 1)``."""
        total = torch.zeros(self.count, dtype=torch.float64)
        for some in tokens.split(part):
            total += self.losses(some.expand(self.count, -1, -1)).double() * len(some)
        return total / len(tokens)

    @property
    def finite(self) -> Tensor:
        """Which replicas have finite weights only, bool ``(replicas,)``."""
        return torch.stack([torch.isfinite(p.detach()).all(1) for p in self.params.values()]).all(0)

    @property
    def size(self) -> int:
        """Parameters of one replica."""
        return sum(p.shape[1] for p in self.params.values())
