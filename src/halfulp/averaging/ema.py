"""Exponential moving averages of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from halfulp.averaging.base import WeightAverage
from halfulp.averaging.decay import Decay, Uniform, as_decay
from halfulp.averaging.exact import keeps_masters
from halfulp.averaging.following import Use
from halfulp.averaging.source import Model
from halfulp.libraries import hooked
from halfulp.numbers.log import warn_once

__all__ = ["EMA", "SWA", "TemporalEnsemble"]


class EMA(WeightAverage):
    """Exponential moving average of a model's weights, stored in any format.

    ``average <- average + (live - average) * (1 - decay)`` in fp32, then rounded to the format. At a decay of 0.999 or
    more, a bf16 average under nearest rounding is frozen: its updates are smaller than half the gap to the next number.
    Stochastic rounding keeps it moving, even in 8 bits.

    Parameters
    ----------
    model
        A module, or its named parameters (a mapping or pairs).
    decay
        A number, or a function of the update's number, starting at 1 (:mod:`halfulp.averaging.decay`).
    state, rounding
        As for the optimizers. ``docs/averaging.md`` compares the formats.
    update_after_step
        Number of steps during which the average is a copy of the weights.
    update_every
        Steps between updates. The decay is per update.
    buffers, frozen, ignore
        See :class:`~halfulp.averaging.base.WeightAverage`.
    difference
        Whether to store the difference to the live weights instead of the average. Needs :meth:`before_step` (or
        :meth:`attach`), and a copy of the weights during the optimizer's step.
    seed, scale, block_size, min_size, keep_fp32, backend
        As for the optimizers.

    Examples
    --------
    >>> import torch, halfulp.averaging
    >>> model = torch.nn.Linear(64, 64)
    >>> ema = halfulp.averaging.EMA(model, decay=0.999, state="8bit")
    >>> _ = torch.nn.init.zeros_(model.weight)      # a step of the optimizer
    >>> ema.update()
    >>> with ema.swap():                             # the model has the averaged weights here
    ...     output = model(torch.ones(1, 64))
    >>> bool((model.weight == 0).all())
    True
    """

    kind = "ema"

    def __init__(
        self,
        model: Model,
        decay: float | Decay = 0.9999,
        *,
        state: Any = "8bit",
        rounding: str = "stochastic",
        update_after_step: int = 0,
        update_every: int = 1,
        buffers: Use = "live",
        frozen: Use = "live",
        ignore: Iterable[str] = (),
        difference: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.decay = as_decay(decay)
        if update_every < 1 or update_after_step < 0:
            raise ValueError(
                f"update_every is at least 1 and update_after_step at least 0, got {update_every}, {update_after_step}"
            )
        self.update_every, self.update_after_step, self.difference = update_every, update_after_step, difference
        self._before: dict[str, Tensor] | None = None
        self._attached: list[tuple[torch.optim.Optimizer, list[Any]]] = []
        self._within_hook = False
        self.counts: dict[str, Tensor] | None = None
        """Updates due and stalled by name, while :func:`~halfulp.averaging.stall.watch` is counting."""
        super().__init__(
            model, buffers=buffers, frozen=frozen, ignore=ignore, state=state, rounding=rounding, seed=seed,
            difference=difference, **options,
        )  # fmt: skip

    def update(self, model: Model | None = None) -> None:
        """Count a step, and update the average if it is due. Call this after the optimizer's step.

        Parameters
        ----------
        model
            Model that provides the weights. Default: the live model.
        """
        self._refuse_while_swapped("update")
        if self._attached and not self._within_hook:
            warn_once(
                "update() of an average that is attached to an optimizer, which moves it after every step: it moves "
                "twice a step. Call update() or attach(), not both"
            )
        live = self._follow(model)
        self.step += 1
        if self.step <= self.update_after_step:
            self.store.copy_from(live)
            self._before = None
            return
        if self.difference and self._before is None:
            self.step -= 1
            raise RuntimeError(
                "an average that is stored as a difference needs the weights before the optimizer's step: call "
                "before_step() before it, or attach(optimizer) once"
            )
        if self._before is not None:  # averages that began in this update have not moved
            kept = self._before
            self._before = {n: kept[n] if n in kept and kept[n].shape == t.shape else t for n, t in live.items()}
        if (self.step - self.update_after_step) % self.update_every:
            if self.difference:
                self.store.update(live, 1.0, self.step, self._before)
                self._before = None
            return
        self.updates += 1
        self._move(live, self.decay(self.updates))
        self._before = None

    def _move(self, live: Mapping[str, Tensor], decay: float) -> None:
        if decay == 0.0 and not self.difference:
            self.store.write(live, self.step)  # a copy, not old + (live - old)
        else:
            self.store.update(live, decay, self.step, self._before, self.counts)

    @torch.no_grad()
    def before_step(self) -> None:
        """Keep a copy of the live weights until :meth:`update`. Only needed if the difference is stored."""
        if self.difference:
            self._before = {n: t.detach().clone() for n, t in self.live.items()}

    def follow(self, optimizer: Any) -> None:
        """As :meth:`WeightAverage.follow`. An average stored as a difference is always one of the live weights."""
        if not self.difference:
            super().follow(optimizer)
        elif keeps_masters(optimizer):
            warn_once(
                "an average stored as a difference averages the 16-bit parameters, not the fp32 weights that "
                "master_weights= keeps; difference=False averages those"
            )

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Update after every step of an optimizer, until :meth:`detach`. See also :meth:`follow`.

        Copies and pickled averages are not attached, as torch copies optimizers without their hooks.

        Parameters
        ----------
        optimizer
            An optimizer, or a wrapper of one such as Accelerate's.

        Raises
        ------
        RuntimeError
            If it is attached already: each step would count twice.
        """
        self.follow(optimizer)
        optimizer = hooked(optimizer)
        if any(known is optimizer for known, _ in self._attached):
            raise RuntimeError("the average is attached to this optimizer already: detach() it first")

        def before(*_: Any) -> None:
            self.before_step()

        def after(*_: Any) -> None:
            self._within_hook = True
            try:
                self.update()
            finally:
                self._within_hook = False

        for hook in (before, after):  # gradients may be freed before the hooks run
            hook.__dict__["reads_gradients"] = False
        hooks = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
        self._attached.append((optimizer, hooks))

    def detach(self) -> None:
        """Stop following the optimizers passed to :meth:`attach`."""
        for _, hooks in self._attached:
            for hook in hooks:
                hook.remove()
        self._attached.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_attached": []}

    def _value(self, name: str) -> Tensor:
        stored = self.store.read(name)
        return self._live_part(name).float() + stored if self.difference else stored

    def _exchangeable(self, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {} if self.difference else super()._exchangeable(live)

    def state_dict(self) -> dict[str, Any]:
        """Return plain tensors and numbers: the stored averages, the counters, and the storage options."""
        return {**super().state_dict(), "difference": self.difference}

    def _load_extra(self, state_dict: Mapping[str, Any]) -> None:
        if bool(state_dict.get("difference")) != self.difference:
            raise ValueError(f"the state_dict has difference={state_dict.get('difference')}, not {self.difference}")


class TemporalEnsemble(EMA):
    """EMA of decay 0.99, used only at evaluation: temporal ensembles for continual learning.

    Soutif-Cormerais et al., Improving Online Continual Learning Performance and Stability with Temporal Ensembles,
    arXiv 2306.16817. Training is unchanged, bit for bit.

    Parameters
    ----------
    model, decay, options
        As for :class:`EMA`.

    Examples
    --------
    >>> import torch, halfulp.averaging
    >>> ensemble = halfulp.averaging.TemporalEnsemble(torch.nn.Linear(4, 4), state="8bit")
    >>> ensemble.update()
    """

    kind = "temporal_ensemble"

    def __init__(self, model: Model, decay: float | Decay = 0.99, **options: Any) -> None:
        super().__init__(model, decay, **options)


class SWA(EMA):
    """Stochastic weight averaging: the uniform mean of the weights at each update (Izmailov et al., arXiv 1803.05407).

    Call :meth:`update` once per epoch, or every ``update_every`` steps, during the part of training to average.

    Parameters
    ----------
    model, options
        As for :class:`EMA`.

    Examples
    --------
    >>> import torch, halfulp.averaging
    >>> model = torch.nn.Linear(2, 1)
    >>> swa = halfulp.averaging.SWA(model, state="bf16")
    >>> swa.update()
    """

    kind = "swa"

    def __init__(self, model: Model, **options: Any) -> None:
        super().__init__(model, Uniform(), **options)
