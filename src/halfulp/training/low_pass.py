"""Low-pass filtering around any optimizer: gradients of the loss, smoothed by noise on the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from halfulp.averaging.swap import Swap, check_keep
from halfulp.engine.loading import count
from halfulp.engine.sharding import gathered, local_part
from halfulp.numbers.log import warn_once
from halfulp.numbers.rng import slot_id, step_keys
from halfulp.training.wrapper import Wrapper

__all__ = ["LowPass"]


class LowPass(Wrapper):
    """LPF-SGD: gradients are taken at noisy weights, which makes them gradients of a smoothed loss.

    Bisla, Wang & Choromanska, *Low-Pass Filtering SGD for Recovering Flat Optima in the Deep Learning Optimization
    Landscape*, arXiv 2201.08025. The published inner optimizer is SGD with momentum; any optimizer works.

    The noise of each element is normal. Its deviation is ``gamma`` times the norm of the element's row (its filter), or
    of the whole vector. Afterwards the weights are restored bit for bit from a copy, in any dtype.

    Parameters
    ----------
    optimizer
        Any ``torch.optim.Optimizer``.
    gamma
        Relative deviation of the noise. Published: 0.002 (CIFAR), 0.001 (Tiny ImageNet), 0.0005 (ImageNet) with one
        sample; 0.0005 with 8 samples and a growth of 15.
    samples
        Draws of noise in each :meth:`step` with a closure. In the paper, each draw has its own part of the batch; see
        :meth:`perturbed`.
    growth, steps
        `gamma` rises by the factor `growth` over this many steps, along half a cosine. Default: it is constant.
    seed
        Seed of the noise, which is a function of seed, parameter, draw and element. There is no generator to save.
    keep
        Where the copy is kept: ``"device"`` or ``"cpu"``.

    Raises
    ------
    ValueError
        If `gamma` or `growth` is negative, `samples` is below 1, `growth` is given without `steps`, the seed has more
        than 63 bits, or `keep` is unknown.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(8, 1)
    >>> optimizer = halfulp.LowPass(halfulp.SGD(model.parameters(), lr=0.1, momentum=0.9), gamma=0.002)
    >>> before = model.weight.detach().clone()
    >>> with optimizer.perturbed():  # the backward pass belongs inside
    ...     model(torch.ones(1, 8)).sum().backward()
    >>> bool((model.weight == before).all())
    True
    >>> optimizer.step()
    """

    key = "low_pass"
    _drawn = False
    """Whether noise was drawn since the last step."""

    def __init__(
        self,
        optimizer: Optimizer,
        gamma: float = 0.002,
        samples: int = 1,
        *,
        growth: float = 1.0,
        steps: int | None = None,
        seed: int = 0,
        keep: Literal["device", "cpu"] = "device",
    ) -> None:
        if not (0.0 <= gamma < math.inf and samples >= 1 and growth >= 0.0 and 0 <= seed < 1 << 63):
            raise ValueError(
                "LowPass needs gamma and growth not negative, at least one sample and a seed of 63 bits; got "
                f"gamma={gamma}, growth={growth}, samples={samples}, seed={seed}"
            )
        if growth != 1.0 and (steps is None or steps < 1):
            raise ValueError(f"a growing gamma needs the number of steps it grows over, at least 1; got steps={steps}")
        check_keep(keep, "device", "cpu")
        super().__init__(optimizer)
        self.gamma, self.samples, self.growth, self.total_steps = gamma, samples, growth, steps
        self.seed, self.keep = seed, keep
        self.steps = 0
        """Number of steps."""
        self.draws = 0
        """Number of draws of noise."""

    @property
    def radius(self) -> float:
        """Relative deviation of the noise in the present step.

        Examples
        --------
        >>> import torch, halfulp
        >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
        >>> halfulp.LowPass(sgd, 5e-4, growth=15.0, steps=100).radius
        0.0005
        """
        if self.total_steps is None:
            return self.gamma
        share = min(self.steps / self.total_steps, 1.0)
        return self.gamma * (1 + (self.growth - 1) * (1 - math.cos(math.pi * share)) / 2)

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Add a draw of noise to the weights inside the ``with`` block, and restore them bit for bit afterwards.

        Run the forward *and* the backward pass inside. For the published form, with M parts of a batch::

            for part in batch.chunk(M):
                with optimizer.perturbed():
                    (loss_of(part) / M).backward()
            optimizer.step()
            optimizer.zero_grad()
        """
        slot = slot_id(self.entry)  # one inside another has noise of its own
        live, number = self.trained, {name: i for i, name in enumerate(self.named)}

        def noisy(name: str) -> Tensor:
            (key,) = step_keys(self.seed, [number[name]], slot, [self.draws - 1])
            part = local_part(live[name])
            uniform = (part.random_bits(key).double() + 0.5) * 2.0**-32
            normal = torch.special.ndtri(uniform).reshape(part.tensor.shape)
            return (part.tensor.double() + normal * (_sizes(live[name]) * self.radius)).float()

        swap = Swap(live, noisy, {}, self.keep, None)
        self.draws += 1
        self._drawn = True
        swap.enter()
        try:
            yield
        finally:
            swap.leave()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step the inner optimizer.

        Parameters
        ----------
        closure
            Function that runs forward and backward pass and returns the loss. It is called once per sample. The step
            uses the mean of their gradients and returns the mean loss. Earlier gradients are dropped. Without a
            closure, the gradients accumulated under :meth:`perturbed` are used.
        """
        loss = None if closure is None else self._evaluate(closure)
        if not self._drawn and self.gamma:
            warn_once(
                "LowPass: no backward pass of this step was inside perturbed(), and step() got no closure: this "
                "was an ordinary step without noise"
            )
        self._drawn = False
        self._step_inside()
        self.steps += 1
        return loss

    def _evaluate(self, closure: Callable[[], Any]) -> Any:
        params = self.trained.values()
        sums: dict[Tensor, Tensor] = {}
        losses = []
        for _ in range(self.samples):
            for p in params:
                p.grad = None
            with self.perturbed(), torch.enable_grad():
                losses.append(closure())
            for p in params:
                if p.grad is not None:
                    sums[p] = p.grad if p not in sums else sums[p] + p.grad
        for p in params:
            p.grad = sums[p] / self.samples if p in sums else None
        return sum(losses[1:], losses[0]) / self.samples

    def own_state(self) -> dict[str, Any]:
        """Return the numbers of steps and draws, and the seed."""
        return {"steps": self.steps, "draws": self.draws, "seed": self.seed}

    def check_own(self, saved: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
        """See :class:`Wrapper`."""
        return {name: count("low_pass", name, value) for name, value in saved.items()}

    def take_own(self, checked: Any) -> None:
        """See :class:`Wrapper`."""
        self.steps, self.draws, self.seed = checked["steps"], checked["draws"], checked["seed"]


def _sizes(param: Tensor) -> Tensor:
    """Return the norms of the rows, or of a vector, shaped to broadcast against this rank's part."""
    whole, part = gathered(param.detach()).double(), local_part(param)
    if whole.ndim < 2:
        return whole.norm()
    rows = whole.reshape(whole.shape[0], -1)
    first = part.first_element // max(rows.shape[1], 1)
    norms = rows.norm(dim=1)[first : first + part.tensor.shape[0]]
    return norms.reshape(-1, *[1] * (whole.ndim - 1))
