"""Which tensors of a model are averaged: they may be renamed, replaced, frozen, added, removed or resized meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import Tensor

from halfulp.averaging.exact import Exact, follow
from halfulp.averaging.source import Model, Source, check_followed, is_frozen
from halfulp.averaging.store import AverageStore
from halfulp.engine.sharding import is_wrapper
from halfulp.engine.storage import StorageOptions
from halfulp.numbers.log import log, warn_once

__all__ = ["Following", "Use"]

Use = Literal["live", "average"]
"""Which values evaluation uses: the model's own, or their average."""


class Following:
    """The stores of an average, which follow the tensors of a model. For the parameters see :class:`WeightAverage`."""

    def __init__(
        self, model: Model, *, buffers: Use = "live", frozen: Use = "live", ignore: Iterable[str] = (), **options: Any
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
        self.stores = [self.store]
        """The store, and those of what a subclass keeps beside it. All have the same tensors."""
        self.began = dict.fromkeys(followed, 0)
        """Step at which each tensor's average began. It is above 0 for tensors that were unfrozen, added or resized."""
        self._optimizers: list[Any] = []
        self._synced: dict[str, Tensor] | None
        """What the source returned when the random streams were last numbered."""
        self._followed: dict[str, Tensor]
        """Those of them that are averaged."""
        self._resting: list[str]
        """Names of the others."""
        self._last: dict[str, Tensor]
        """The tensors of the last update, possibly of another model, used to recognize them under another name."""
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

    @property
    def live(self) -> dict[str, Tensor]:
        """The averaged tensors as the model has them now, by name.

        A tensor that was removed or resized since the last :meth:`update` is missing until the next one. A warning
        says so.
        """
        tensors = self.source.tensors()
        self._rename(tensors)
        found = {n: tensors[n] for n in self.store if n in tensors and self.store.fits(n, tensors[n])}
        lost = [n for n in self.store if n not in found]
        if lost:
            warn_once(
                f"{', '.join(lost)} {'has' if len(lost) == 1 else 'have'} changed since update {self.updates} of the "
                "average, which is of the former model: until the next update the model's own values are used"
            )
        return found

    @property
    def left_out(self) -> dict[str, str]:
        """Tensors of the model that are not averaged, and why: ``"frozen"``, ``"ignored"`` or a dtype."""
        tensors = self.source.tensors()
        store = getattr(self, "store", ())
        return {n: "frozen" for n in tensors if n not in store} | self.source.left_out

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
        """Rename averages. Subclasses with more state extend this."""
        for store in self.stores:
            store.rename(names)

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
        own = model is None or model is self.model
        tensors = (self.source if model is None or own else self._source_of(model)).tensors()
        if tensors is self._synced and not any(
            tensors[n].requires_grad for n in self._resting
        ) and all(self.store.fits(n, tensors[n]) for n in self.store):  # fmt: skip
            return self._followed
        self._rename(tensors)
        quantized = [n for n in self.store if n in tensors and is_wrapper(tensors[n])]
        gone = [n for n in self.store if n not in tensors or (n in quantized and not self._wanted(tensors[n]))]
        if gone and not own:
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
        if own:
            self._number(tensors)
        else:
            self._synced, self._last = None, {n: tensors[n] for n in self.store}
        return self._last

    def _number(self, tensors: dict[str, Tensor]) -> None:
        """Number the random streams by position in the model, so that a resumed run uses the same streams."""
        for store in self.stores:
            store.number({name: i for i, name in enumerate(tensors) if name in store})
        self._synced, self._resting = tensors, [n for n in tensors if n not in self.store]
        self._last = self._followed = {n: tensors[n] for n in self.store if n in tensors}

    def _join(self, tensors: dict[str, Tensor]) -> None:
        """Begin the averages of further tensors."""
        for store in self.stores:
            store.add(tensors, fp32=self.source.buffer_names)
        self.began.update(dict.fromkeys(tensors, self.step))

    def _leave(self, names: list[str]) -> None:
        """Drop averages. Subclasses with more state extend this."""
        for store in self.stores:
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
