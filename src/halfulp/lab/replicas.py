"""Several runs of one small language model trained as one: every weight has a leading dimension of replicas.

With a model of 0.1 M parameters a laptop's cores are mostly idle, because the operations are too small. Runs that
differ only in seed and learning rate are therefore trained together in batched matrix products. A replica depends only
on its own seed, rate and text. The other replicas only change the order of sums inside a matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfulp.kernels import dispatch
from halfulp.kernels.binding import Binding, Step, Stored
from halfulp.lab.decoder import Decoder
from halfulp.numbers.formats import get_format
from halfulp.numbers.quantizer import Quantizer
from halfulp.numbers.rng import slot_id
from halfulp.numbers.single import all_fp32
from halfulp.rules.adam import ADAM, EXP_AVG, EXP_AVG_SQ

__all__ = ["SLOTS", "Replicas", "Store", "round_fraction_"]

SLOTS = (EXP_AVG.name, EXP_AVG_SQ.name)
Store = Callable[[str, str, Tensor, Tensor | None], None]
"""Function that rounds a new state in place: (group, slot, values ``(replicas, elements)``, random words)."""
AT_ONCE = 400_000
"""Parameters per matrix product, of all its replicas. More would not fit in the second-level cache."""


def round_fraction_(x: Tensor, fraction_bits: int, rand_bits: Tensor | None = None) -> Tensor:
    """Round fp32 values to 0 to 22 fraction bits in place, at any exponent.

    With int32 random words in the shape of `x`, of which the low ``23 - fraction_bits`` bits are used, the rounding is
    stochastic. ``None`` rounds to nearest, ties to even.

    Examples
    --------
    >>> round_fraction_(torch.tensor([1.03, 1.04, -3.0]), 4)
    tensor([ 1.0000,  1.0625, -3.0000])
    """
    bits, drop = x.view(torch.int32), 23 - fraction_bits
    if rand_bits is None:
        bits.add_((bits >> drop).bitwise_and_(1).add_((1 << (drop - 1)) - 1))
    else:
        bits.add_(rand_bits & ((1 << drop) - 1))
    bits.bitwise_and_(-(1 << drop))
    return x


class Replicas:
    """Replicas of a small decoder on bytes, with AdamW for each of them. Vectors do not decay.

    Weights, gradients and states are one tensor each, of shape ``(replicas, parameters per replica)``. Each replica has
    its own seed (of weights and random bits) and peak learning rate. `store` rounds the states after the update, which
    uses them before rounding; `stochastic` says whether it needs random words.
    """

    def __init__(
        self,
        model: Decoder,
        seeds: list[int],
        lrs: list[float],
        *,
        betas: tuple[float, float],
        weight_decay: float,
        store: Store = lambda group, slot, values, words: None,
        stochastic: bool = False,
    ) -> None:
        if len(seeds) != len(lrs):
            raise ValueError(f"each replica has a seed and a rate, got {len(seeds)} seeds and {len(lrs)} rates")
        self.model, self.seeds, self.lrs, self.count = model, seeds, lrs, len(seeds)
        self.betas, self.weight_decay, self.store, self.stochastic = betas, weight_decay, store, stochastic
        self.groups: dict[str, slice] = {}
        start = 0
        for group, shapes in model.shapes.items():
            length = sum(math.prod(shape) for shape in shapes.values())
            self.groups[group], start = slice(start, start + length), start + length
        self.size = start
        """Number of parameters per replica."""
        initial = {seed: self._initial(seed) for seed in set(seeds)}
        self.params = torch.stack([initial[seed] for seed in seeds])
        self.grads = torch.zeros_like(self.params)
        self.states = {slot: torch.zeros_like(self.params) for slot in SLOTS}
        self.ages = {group: dict.fromkeys(SLOTS, 0) for group in self.groups}
        self.steps = 0
        self.skipped = torch.zeros(self.count, dtype=torch.int64)
        """Number of skipped elements of each replica, whose gradient was not finite."""
        self.weights, self.weight_grads = self._views(self.params), self._views(self.grads)
        self.bindings = {g: [self._binding(row, s) for row in range(self.count)] for g, s in self.groups.items()}

    def _initial(self, seed: int) -> Tensor:
        parts = []
        for shapes in self.model.shapes.values():
            for name, shape in shapes.items():
                generator = torch.Generator().manual_seed((seed * 1_000_003 + slot_id(name)) % (1 << 63))
                parts.append(torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * 0.02)
        return torch.cat([x.flatten() for x in parts])

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return each weight by name, of shape ``(replicas, *shape)``."""
        shapes = {name: shape for of_group in self.model.shapes.values() for name, shape in of_group.items()}
        parts = flat.split([math.prod(shape) for shape in shapes.values()], dim=1)
        return {n: part.view(self.count, *s) for (n, s), part in zip(shapes.items(), parts, strict=True)}

    def _binding(self, row: int, span: slice) -> Binding:
        param, fp32 = self.params[row, span], Quantizer(get_format("float32"))
        stored = [
            Stored(slot, fp32, param.shape, self.states[slot.name][row, span], None) for slot in (EXP_AVG, EXP_AVG_SQ)
        ]
        return Binding(ADAM, param, tuple(stored))

    # ---------------------------------------------------------------- losses

    def backward(self, tokens: Tensor) -> Tensor:
        """Compute the gradients of every replica's own loss in :attr:`grads`, and return the losses.

        Tokens are int64, of shape ``(replicas, sequences, context + 1)``.
        """
        return self._losses(tokens, grads=True)

    def validation(self, tokens: Tensor, part: int = 16) -> Tensor:
        """Return the mean loss of each replica on the same sequences, ``(sequences, context + 1)``."""
        total = torch.zeros(self.count, dtype=torch.float64)
        for some in tokens.split(part):
            total += self._losses(some.expand(self.count, -1, -1), grads=False).double() * len(some)
        return total / len(tokens)

    def _losses(self, tokens: Tensor, grads: bool) -> Tensor:
        found = []
        at_once = max(1, AT_ONCE // self.size)
        for start in range(0, self.count, at_once):
            rows = slice(start, start + at_once)
            into = {n: g[rows] for n, g in self.weight_grads.items()} if grads else None
            found.append(self.model.losses({n: w[rows] for n, w in self.weights.items()}, tokens[rows], into))
        return torch.cat(found)

    def clip(self, largest: float) -> None:
        """Clip the norm of each replica's gradient."""
        norms = torch.linalg.vector_norm(self.grads, dim=1, keepdim=True)
        self.grads.mul_((largest / norms.clamp_min(1e-12)).clamp_max(1.0))

    # ---------------------------------------------------------------- the step

    def step(self, share: float) -> None:
        """Step with the library's AdamW rule, at a share of the peak learning rates."""
        self.steps += 1
        for group, span in self.groups.items():
            ages = self.ages[group]
            for slot in SLOTS:
                ages[slot] += 1
            scalars = {lr: self._scalars(group, lr * share) for lr in set(self.lrs)}
            rows = zip(self.bindings[group], self.grads, self.lrs, self.skipped, strict=True)
            steps = [Step(b, (g[span],), scalars[lr], [(0, 0, 0)] * 3, skipped=n) for b, g, lr, n in rows]
            dispatch.step(ADAM, steps, None)
        words = self._words() if self.stochastic else [None] * len(SLOTS)
        for slot, random in zip(SLOTS, words, strict=True):
            for group, span in self.groups.items():
                self.store(group, slot, self.states[slot][:, span], None if random is None else random[:, span])

    def _scalars(self, group: str, lr: float) -> dict[str, float]:
        decay = 0.0 if group == "norms" else self.weight_decay
        hyper = {
            "lr": lr, "betas": self.betas, "eps": 1e-8, "weight_decay": decay, "decoupled_weight_decay": True,
            "bound_update": True, "amsgrad": False,
        }  # fmt: skip
        return all_fp32(ADAM.scalars(hyper, {"step": self.steps, **self.ages[group]}))

    def _words(self) -> Tensor:
        """Return int32 random words for each slot, a function of each replica's seed and the step."""
        shape = (len(SLOTS), self.size)
        drawn = {
            seed: np.random.SFC64([seed, self.steps]).random_raw(self.size).view(np.int32).reshape(shape)
            for seed in set(self.seeds)
        }
        return torch.from_numpy(np.stack([drawn[seed] for seed in self.seeds], axis=1))

    def reset(self, groups: tuple[str, ...], slots: tuple[str, ...] = SLOTS) -> None:
        """Reset the states of some groups, and their ages, to zero."""
        for group in groups:
            for slot in slots:
                self.states[slot][:, self.groups[group]] = 0.0
                self.ages[group][slot] = 0

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes during training."""
        return {"params": self.params, **self.states, "skipped": self.skipped, "ages": self.ages, "steps": self.steps}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from the result of :meth:`state_dict`."""
        for mine, name in ((self.params, "params"), *((self.states[s], s) for s in SLOTS), (self.skipped, "skipped")):
            mine.copy_(saved[name])
        self.ages, self.steps = saved["ages"], saved["steps"]
