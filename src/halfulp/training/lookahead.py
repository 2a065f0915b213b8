"""Lookahead around any optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from halfulp.averaging.switch import SlowWeights
from halfulp.engine.loading import count
from halfulp.engine.memory import MemoryReport
from halfulp.engine.storage import StorageOptions
from halfulp.training.wrapper import Wrapper

__all__ = ["Lookahead"]


class Lookahead(Wrapper):
    """Lookahead: every `k` steps the slow weights move by `alpha` towards the weights, which are then reset to them.

    Zhang et al., arXiv 1907.08610. The states of the inner optimizer are kept, as published.

    Parameters
    ----------
    optimizer
        Any ``torch.optim.Optimizer``.
    k, alpha
        Steps between synchronizations, and the share of the distance that the slow weights move, in (0, 1].
    state, rounding, seed, backend
        Storage of the slow weights, as for the optimizers. The default is ``"fp32"``, since at every synchronization
        the weights become the stored values (``docs/wrappers.md`` says what that costs).
    storage
        ``scale``, ``block_size``, ``min_size``, ``keep_fp32``: see :class:`~halfulp.engine.storage.StorageOptions`.

    Raises
    ------
    ValueError
        If `k` is below 1 or `alpha` is outside (0, 1].

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.Lookahead(torch.optim.Adam(model.parameters(), lr=1e-3), k=5, state="bf16")
    >>> model(torch.ones(1, 64)).sum().backward(); optimizer.step()
    >>> optimizer.memory().total  # of the slow weights
    8448
    """

    key = "lookahead"

    def __init__(
        self,
        optimizer: Optimizer,
        k: int = 5,
        alpha: float = 0.5,
        *,
        state: Any = "fp32",
        rounding: str = "stochastic",
        seed: int = 0,
        backend: str | None = None,
        **storage: Any,
    ) -> None:
        if k < 1 or not 0.0 < alpha <= 1.0:
            raise ValueError(f"Lookahead needs k >= 1 and alpha in (0, 1], got k={k} and alpha={alpha}")
        super().__init__(optimizer)
        self.k, self.steps = k, 0
        self.slow = SlowWeights(
            self.trained, alpha, state=state, rounding=rounding, seed=seed, backend=backend,
            storage=StorageOptions(**storage), label=self.entry.replace(self.key, "slow"),
        )  # fmt: skip

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step the inner optimizer, and synchronize with the slow weights every `k` steps.

        Raises
        ------
        ValueError
            If a parameter was replaced by one of another shape. Nothing is changed in this case.
        """
        self._begin(self.trained)
        loss = self._step_inside(closure)
        self.steps += 1
        if self.steps % self.k == 0:  # also with weights that take no gradients any more
            fast = {n: p for n, p in self.named.items() if n in self.slow.store}
            self.slow.synchronize(fast, self.steps // self.k)
        return loss

    def _begin(self, names: Iterable[str]) -> None:
        """Add slow weights for parameters that have none yet, such as newly unfrozen layers."""
        named, store = self.named, self.slow.store
        for name in store:
            if name in named and not store.fits(name, named[name]):
                raise ValueError(
                    f"lookahead: parameter {name} was replaced by one of another shape, {tuple(named[name].shape)}, "
                    "which its slow weights do not have: put a new Lookahead around the inner optimizer"
                )
        store.add({n: named[n] for n in names if n in named and n not in store})

    def memory(self) -> MemoryReport:
        """Return the bytes of the slow weights by format, and which are kept in fp32 and why."""
        return self.slow.store.memory()

    def own_state(self) -> dict[str, Any]:
        """Return the number of steps and the stored slow weights."""
        store = self.slow.store
        return {"steps": self.steps, "storage": store.quantizer.spec, "seed": store.seed, "slow": store.state_dict()}

    def check_own(self, saved: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
        """See :class:`Wrapper`."""
        if saved["storage"] != own["storage"]:
            raise ValueError(
                f"lookahead: slow weights are saved as {saved['storage']!r}, this wrapper has {own['storage']!r}"
            )
        counts = [count("lookahead", name, saved[name]) for name in ("steps", "seed")]
        self._begin(saved["slow"])
        return counts, self.slow.store.validate(saved["slow"])

    def take_own(self, checked: Any) -> None:
        """See :class:`Wrapper`."""
        (self.steps, self.slow.store.seed), entries = checked
        self.slow.store.load(entries)
