"""The interface of every weight average: reading, swapping in, copying, saving."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from halfulp.averaging.exact import Exact, follow
from halfulp.averaging.serve import averaged_state
from halfulp.averaging.source import Model, Source, check_followed, is_frozen
from halfulp.averaging.store import AverageStore
from halfulp.averaging.swap import Keep, Swap
from halfulp.engine.loading import count
from halfulp.engine.memory import MemoryReport
from halfulp.engine.sharding import is_wrapper, local_part, shard_like
from halfulp.engine.storage import StorageOptions
from halfulp.numbers.log import log, log_once
from halfulp.numbers.show import Shown

__all__ = ["Buffers", "Frozen", "WeightAverage"]

Buffers = Literal["live", "average"]
Frozen = Literal["live", "average"]


class WeightAverage(Shown):
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

    def __init__(
        self,
        model: Model,
        *,
        buffers: Buffers = "live",
        frozen: Frozen = "live",
        ignore: Iterable[str] = (),
        **options: Any,
    ) -> None:
        for key, given in (("buffers", buffers), ("frozen", frozen)):
            if given not in ("live", "average"):
                raise ValueError(f"{key} is 'live' or 'average', got {given!r}")
        self.buffers, self.frozen, self.ignore = buffers, frozen, frozenset(ignore)
        self.source = self._source_of(model)
        self.model = self.source.model
        tensors = self.source.tensors()
        unknown = self.ignore - {*tensors, *self.source.left_out, *self.source.buffer_names}
        if unknown:
            raise ValueError(f"ignore= names {sorted(unknown)}, which the model does not have")
        self.step = 0
        """Calls of :meth:`update`."""
        self.updates = 0
        """Number of those calls that updated the average."""
        self.began: dict[str, int] = {}
        """Step at which each tensor's average began. It is above 0 for tensors that were unfrozen, added or resized."""
        followed = {n: t for n, t in tensors.items() if self._wanted(t)}
        if not followed:
            left = self.left_out
            why = f": {', '.join(f'{n} is left out ({r})' for n, r in list(left.items())[:3])}" if left else ""
            raise ValueError(
                f"there is nothing to average: the model has no trainable floating-point parameters{why}. Frozen ones "
                "are averaged with frozen='average'"
            )
        for name, reason in self.source.left_out.items():
            if reason != "ignored":
                log.warning("%s is not averaged: it is %s; averages are of float32, bfloat16 and float16", name, reason)
        self.store = self._store(followed, **options)
        self.began = dict.fromkeys(followed, 0)
        self._swap: Swap | None = None
        self._optimizers: list[Any] = []
        self._followed: dict[str, Tensor] = {}
        self._resting: list[str] = []
        self._synced: dict[str, Tensor] | None = None
        self._last: dict[str, Tensor] = dict(followed)
        """The tensors of the last update, used to recognize them under another name."""
        self._number(tensors)

    def _source_of(self, model: Model) -> Source:
        return Source(model, self.buffers == "average", self.ignore)

    def _wanted(self, tensor: Tensor) -> bool:
        return self.frozen == "average" or not is_frozen(tensor)

    def _store(self, followed: dict[str, Tensor], **options: Any) -> AverageStore:
        for name, tensor in followed.items():
            check_followed(name, tensor)
        keys = ("scale", "block_size", "min_size", "keep_fp32")
        storage = {k: options.pop(k) for k in keys if k in options}
        storage["keep_fp32"] = (*storage.get("keep_fp32", ()), *(n for n in followed if n in self.source.buffer_names))
        return AverageStore(followed, storage=StorageOptions(**storage), **options)

    # ---------------------------------------------------------------- which tensors

    @property
    def live(self) -> dict[str, Tensor]:
        """The averaged tensors as the model has them now, by name.

        A tensor that was removed or resized since the last :meth:`update` is missing until the next one. A warning
        says so.
        """
        if self._swap is not None:
            return self._swap.live
        return self._matched(self.source.tensors())

    @property
    def left_out(self) -> dict[str, str]:
        """Tensors of the model that are not averaged, and why: ``"frozen"``, ``"ignored"`` or a dtype."""
        tensors = self.source.tensors()
        store = getattr(self, "store", ())
        return {n: "frozen" for n in tensors if n not in store} | self.source.left_out

    def _matched(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        self._rename(tensors)
        found = {n: tensors[n] for n in self.store if n in tensors and self.store.fits(n, tensors[n])}
        lost = [n for n in self.store if n not in found]
        if lost:
            log_once(
                f"{', '.join(lost)} {'has' if len(lost) == 1 else 'have'} changed since update {self.updates} of the "
                "average, which is of the former model: until the next update the model's own values are used",
                30,
            )
        return found

    def _rename(self, tensors: dict[str, Tensor]) -> None:
        """Follow tensors whose name has changed, as when layers move or weights are pruned or parametrized."""
        if tensors is self._synced:
            return
        places = {id(t): n for n, t in tensors.items()}
        moved = {n: places[id(t)] for n, t in self._last.items() if n in self.store and id(t) in places}
        moved = {n: new for n, new in moved.items() if n != new}
        if not moved:
            return
        over = [n for n in self.store if n in moved.values() and n not in moved]
        if over:
            log.warning(
                "step %d: %s are different tensors now; the averages of the old ones are dropped", self.step, over
            )
            self._leave(over)
        self._renamed(moved)
        self._last = {moved.get(n, n): t for n, t in self._last.items() if n not in over}
        self.began = {moved.get(n, n): step for n, step in self.began.items()}
        log.info("averages continue under new names: %s", moved)

    def _renamed(self, names: Mapping[str, str]) -> None:
        for store in self._stores():
            store.rename(names)

    def _stores(self) -> tuple[AverageStore, ...]:
        """All stores. Subclasses may have more than one."""
        return (self.store,)

    def follow(self, optimizer: Any) -> None:
        """Average the fp32 weights that an optimizer keeps by ``master_weights=``, in place of the 16-bit parameters.

        Parameters
        ----------
        optimizer
            An optimizer over the model's parameters, possibly offloaded or inside a wrapper. Without master weights
            nothing changes.
        """
        follow(self._optimizers, optimizer)

    def _follow(self, model: Model | None = None) -> Mapping[str, Tensor]:
        """Return the live values for an update. Averages of new or resized tensors begin here."""
        tensors = self._tensors(model)
        return Exact(tensors, self._optimizers) if self._optimizers else tensors

    def _tensors(self, model: Model | None) -> dict[str, Tensor]:
        source = self.source if model is None or model is self.model else self._source_of(model)
        tensors = source.tensors()
        if tensors is self._synced and not any(
            tensors[n].requires_grad for n in self._resting
        ) and all(self.store.fits(n, tensors[n]) for n in self.store):  # fmt: skip
            return self._followed
        self._rename(tensors)
        quantized = [n for n in self.store if n in tensors and is_wrapper(tensors[n])]
        gone = [n for n in self.store if n not in tensors or (n in quantized and not self._wanted(tensors[n]))]
        if gone and source is not self.source:
            raise KeyError(f"{gone[0]!r} is averaged, and is not among the tensors given")
        new = {n: t for n, t in tensors.items() if n not in self.store and self._wanted(t)}
        other = {n: tensors[n] for n in self.store if n in tensors and not self.store.fits(n, tensors[n])}
        other = {n: t for n, t in other.items() if n not in gone}
        for name, tensor in {**new, **other, **{n: tensors[n] for n in quantized if n not in gone}}.items():
            check_followed(name, tensor)
        if gone:
            self._leave(gone)
            log.warning("step %d: the model has no %s to average any more; their averages are dropped", self.step, gone)
        if other:
            self._leave(list(other))
            log.warning("step %d: %s changed shape; their averages restart", self.step, list(other))
        if not len(self.store) and not new and not other:
            log.warning("step %d: the average has nothing left to follow; it averages nothing", self.step)
        if new:
            log.info("step %d: %s joined the model; their averages begin here", self.step, list(new))
        self._join({**other, **new})
        if source is self.source:
            self._number(tensors)
        self._followed = {n: tensors[n] for n in self.store}
        self._last = self._followed
        return self._followed

    def _number(self, tensors: dict[str, Tensor]) -> None:
        """Number the random streams by position in the model, so that a resumed run uses the same streams."""
        for store in self._stores():
            store.number({name: i for i, name in enumerate(tensors) if name in store})
        self._synced, self._resting = tensors, [n for n in tensors if n not in self.store]
        self._followed = {n: tensors[n] for n in self.store if n in tensors}
        self._last = self._followed

    def _join(self, tensors: dict[str, Tensor]) -> None:
        """Begin the averages of further tensors. Subclasses with more state extend this."""
        for store in self._stores():
            store.add(tensors, fp32=self.source.buffer_names)
        self.began.update(dict.fromkeys(tensors, self.step))

    def _leave(self, names: list[str]) -> None:
        """Drop averages. Subclasses with more state extend this."""
        for store in self._stores():
            store.remove(names)
        for name in names:
            del self.began[name]

    def pick(self, model: Model) -> dict[str, Tensor]:
        """Return the averaged tensors of another model of the same form, by name.

        Raise ``ValueError`` if any is missing.
        """
        tensors = self._source_of(model).tensors()
        missing = sorted(set(self.store) - set(tensors))
        if missing:
            raise ValueError(f"the model lacks {missing}, which are averaged")
        return {n: tensors[n] for n in self.store}

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
        for store in self._stores():
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
