"""Lookahead around any optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from halfulp.averaging.switch import SlowWeights
from halfulp.engine.loading import count
from halfulp.engine.memory import MemoryReport
from halfulp.engine.storage import StorageOptions
from halfulp.training.wrapper import Wrapper

__all__ = ["Lookahead"]


class Lookahead(Wrapper):
    """Lookahead: every `k` steps the weights return to slow ones, which move by `alpha` towards them.

    Zhang et al., arXiv 1907.08610. The states of the optimizer inside are kept, as published.

    Parameters
    ----------
    optimizer
        Any ``torch.optim.Optimizer``.
    k, alpha
        Steps between two returns; the share of the way that the slow weights move, in (0, 1].
    state, rounding, seed, backend
        How slow weights are stored, as for the optimizers. The default is ``"fp32"``, since the weights become what is
        stored at every return (``docs/wrappers.md`` says what that costs).
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
            storage=StorageOptions(**storage),
        )  # fmt: skip

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of the optimizer inside, and every `k` of them the return to the slow weights."""
        self._begin(self.trained)
        with self._stepping() as inside:
            loss = inside.step() if closure is None else inside.step(closure)
        self.steps += 1
        if self.steps % self.k == 0:
            self.slow.synchronize(self._fast(), self.steps // self.k)
        return loss

    def _begin(self, names: Iterable[str]) -> None:
        """Slow weights of parameters that have none yet, from where they stand: layers that were frozen until now."""
        named, store = self.named, self.slow.store
        self.slow.store.add({n: named[n] for n in names if n in named and n not in store})

    def _fast(self) -> dict[str, Tensor]:
        """Weights that have slow ones, whether or not they still take gradients."""
        return {n: p for n, p in self.named.items() if n in self.slow.store}

    def memory(self) -> MemoryReport:
        """Bytes of the slow weights by format, and which stay in fp32 for which reason."""
        return self.slow.store.memory()

    def own_state(self) -> dict[str, Any]:
        """Steps made and the stored slow weights."""
        store = self.slow.store
        return {"steps": self.steps, "storage": store.quantizer.spec, "seed": store.seed, "slow": store.state_dict()}

    def check_own(self, saved: Mapping[str, Any]) -> Any:
        """See :class:`Wrapper`."""
        if set(saved) != set(self.own_state()):
            raise ValueError(f"lookahead: saved are {sorted(saved)}, expected {sorted(self.own_state())}")
        if saved["storage"] != self.slow.store.quantizer.spec:
            own = self.slow.store.quantizer.spec
            raise ValueError(f"lookahead: slow weights are saved as {saved['storage']!r}, this wrapper has {own!r}")
        counts = [count("lookahead", name, saved[name]) for name in ("steps", "seed")]
        self._begin(saved["slow"])
        return counts, self.slow.store.validate(saved["slow"])

    def take_own(self, checked: Any) -> None:
        """See :class:`Wrapper`."""
        (self.steps, self.slow.store.seed), entries = checked
        self.slow.store.load(entries)
