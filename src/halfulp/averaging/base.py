"""The interface of every weight average: reading, swapping in, copying, saving."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from halfulp.averaging.following import Following
from halfulp.averaging.serve import averaged_state
from halfulp.averaging.source import Model
from halfulp.averaging.swap import Keep, Swap
from halfulp.engine.loading import count
from halfulp.engine.memory import MemoryReport
from halfulp.engine.sharding import local_part, shard_like
from halfulp.numbers.log import log
from halfulp.numbers.show import Shown

__all__ = ["WeightAverage"]


class WeightAverage(Following, Shown):
    """Base class of the averages: an :class:`~halfulp.averaging.store.AverageStore` beside the live tensors.

    Subclasses decide when and how the store is updated, and may combine several stores in :meth:`value`.

    Parameters
    ----------
    model
        A module, or its named parameters (a mapping or pairs).
    buffers
        ``"live"``: evaluation uses the model's own buffers. ``"average"``: floating-point buffers are averaged too, in
        fp32. Integer buffers are never averaged.
    frozen
        ``"live"``: parameters with ``requires_grad=False`` are not averaged until they are unfrozen, and evaluation
        uses the model's own values. ``"average"``: they are averaged like the others.
    ignore
        Names that are not averaged. Evaluation uses the model's own values for them.
    options
        Options of the store.

    Examples
    --------
    >>> import torch, halfulp.averaging
    >>> issubclass(halfulp.averaging.EMA, WeightAverage)  # as every average: update(), swap(), state_dict()
    True
    """

    kind: ClassVar[str] = "average"
    _swap: Swap | None = None

    @property
    def live(self) -> dict[str, Tensor]:
        """As :attr:`Following.live`, also while the average is swapped in."""
        return super().live if self._swap is None else self._swap.live

    # ---------------------------------------------------------------- reading

    def value(self, name: str) -> Tensor:
        """Return the average of a tensor in fp32. For a DTensor, it is this process's part."""
        if self._swap is not None and name in self._swap.exchange:
            return local_part(self._swap.live[name]).tensor.float().clone()
        return self._value(name)

    def _value(self, name: str) -> Tensor:
        """Return the stored average of a tensor in fp32. Subclasses may combine several stores."""
        return self.store.read(name)

    def _live_part(self, name: str) -> Tensor:
        """Return the live values of a tensor, even while the average is swapped in."""
        return local_part(self.live[name]).tensor if self._swap is None else self._swap.original(name)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and averages, decoded one at a time to the dtype and sharding of the live tensors."""
        self._refuse_while_swapped("read the average")
        for name, live in self.live.items():
            yield name, shard_like(live, self.value(name).to(live.dtype))

    def parameters(self) -> Iterator[Tensor]:
        """Yield the averages, decoded one at a time."""
        return (tensor for _, tensor in self.named_parameters())

    @torch.no_grad()
    def copy_to(self, model: Model | None = None) -> None:
        """Copy the averages into a model permanently: the live model, or another of the same form."""
        self._refuse_while_swapped("copy the average")
        torch.clear_autocast_cache()
        for name, tensor in (self.live if model is None else self.pick(model)).items():
            local_part(tensor).tensor.copy_(self.value(name))

    def averaged_state_dict(self) -> dict[str, Any]:
        """Return the model's ``state_dict`` with the averages in it, in the model's dtypes, ready to ship.

        Keys have no prefixes from wrappers for distributed training or compilation.
        """
        self._refuse_while_swapped("read the average")
        return averaged_state(self.source, self.live, self.value)

    # ---------------------------------------------------------------- swapping

    @contextmanager
    def swap(self, model: Model | None = None, keep: Keep = "device") -> Iterator[None]:
        """Swap the averages into the model within the ``with`` block. The live weights are restored bit for bit.

        Parameters
        ----------
        model
            Another model of the same form, such as the unwrapped one. Default: the live model.
        keep
            Where the live weights are kept meanwhile: on the ``"device"``, on the ``"cpu"``, or ``"stream"``, which
            decodes module by module and never holds a copy of the model. Averages stored in the dtype of the weights
            are exchanged with them and need no memory in any of the three.
        """
        self.swap_in(model, keep)
        try:
            yield
        finally:
            self.swap_out()

    def swap_in(self, model: Model | None = None, keep: Keep = "device") -> None:
        """Put the averages into the model until :meth:`swap_out`."""
        self._refuse_while_swapped("swap in")
        live = self.live if model is None else self.pick(model)
        owner = self.model if model is None else model
        swap = Swap(live, self._value, self._exchangeable(live) if keep != "stream" else {}, keep, owner)
        swap.enter()
        self._swap = swap

    def swap_out(self) -> None:
        """Restore the live weights."""
        if self._swap is None:
            raise RuntimeError("the average is not swapped in")
        swap = self._swap
        swap.leave()
        self._swap = None
        now = self.source.tensors()
        replaced = [n for n, t in swap.live.items() if swap.owner is self.model and now.get(n) is not t]
        if replaced:
            log.warning("%s were replaced while the average was swapped in: they stay as they are now", replaced)

    @property
    def swapped(self) -> bool:
        """Whether the averages are in the model now."""
        return self._swap is not None

    def _exchangeable(self, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Codes that are themselves the average, in the live tensor's dtype."""
        found = {}
        for name, tensor in live.items():
            codes = self.store.state_of(name).codes
            if codes.dtype == tensor.dtype and codes.device == tensor.device:
                found[name] = codes
        return found

    def _refuse_while_swapped(self, what: str) -> None:
        if self._swap is not None:
            raise RuntimeError(f"cannot {what} while the average is swapped into the model: swap out first")

    # ---------------------------------------------------------------- memory and checkpoints

    def memory(self) -> MemoryReport:
        """Return the bytes of the average by format, and what is kept in fp32."""
        return self.store.memory()

    def in_short(self) -> str:
        """The number of tensors, the number of updates, and the bytes."""
        return f"{len(self.live)} tensors, {self.updates} updates, {self.memory().total:,} bytes"

    def in_html(self) -> str:
        """The one-line summary above the memory table."""
        return f"<p>{html.escape(repr(self))}</p>{self.memory().in_html()}"

    def __str__(self) -> str:
        return repr(self)

    def to(self, device: Any) -> None:
        """Move the stored averages to a device. Live tensors on other devices are copied there for each update."""
        self._refuse_while_swapped("move the average")
        for store in self.stores:
            store.to(torch.device(device))

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_while_swapped("copy the average")
        return {**self.__dict__, "_synced": None, "_followed": {}, "_optimizers": []}

    def state_dict(self) -> dict[str, Any]:
        """Return plain tensors and numbers: the stored averages, the counters, and the storage options."""
        self._refuse_while_swapped("save the average")
        state = {
            "kind": self.kind,
            "storage": self.store.quantizer.spec,
            "rounding": self.store.quantizer.rounding,
            "seed": self.store.seed,
            "step": self.step,
            "updates": self.updates,
            "averages": self.store.state_dict(),
        }
        frozen = [n for n, reason in self.left_out.items() if reason == "frozen"]
        return {**state, "frozen": frozen} if frozen else state

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the result of :meth:`state_dict` into an average with the same storage. Everything is checked first.

        The counters and the seed come from the checkpoint. The decay, the format and the rounding come from this
        object.
        """
        self._refuse_while_swapped("load an average")
        own = WeightAverage.state_dict(self)
        missing = sorted(set(own) - set(state_dict) - {"frozen"})
        if missing:
            raise ValueError(f"not a state_dict of halfulp.averaging: it lacks {missing}")
        for key in ("kind", "storage"):
            if state_dict[key] != own[key]:
                raise ValueError(
                    f"the state_dict has {key} {state_dict[key]!r}, this average has {own[key]!r}: build it as it was "
                    "saved. To change the format, load into such an average and take over its values with "
                    "average.store.copy_from({n: saved.value(n) for n in saved.store})"
                )
        saved, tensors, frozen = state_dict["averages"], self.source.tensors(), state_dict.get("frozen", ())
        added = {n: tensors[n] for n in saved if n in tensors and n not in self.store}
        unfrozen = [n for n in self.store if n not in saved and n in frozen]
        self._join(added)  # frozen in this model, averaged in the checkpoint
        try:
            checked = self.store.validate(saved, without=unfrozen)
            counts = [count("average", k, state_dict[k]) for k in ("step", "updates", "seed")]
            self._load_extra(state_dict)
        except Exception:
            self._leave(list(added))
            raise
        self._leave(unfrozen)  # their averages begin with the next update, as without a checkpoint
        self.store.load(checked)
        self.step, self.updates, self.store.seed = counts
        self._number(tensors)

    def _load_extra(self, state_dict: Mapping[str, Any]) -> None:
        """Load what a subclass adds to the state_dict, after checking it."""
