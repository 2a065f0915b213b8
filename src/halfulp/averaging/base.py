"""What every weight average offers its user: reading it, swapping it in, copying it, saving it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from halfulp.averaging.shards import local_part
from halfulp.averaging.store import AverageStore
from halfulp.averaging.swap import Keep, Swap
from halfulp.engine.groups import PARAM_DTYPES
from halfulp.engine.loading import count
from halfulp.engine.memory import MemoryReport
from halfulp.engine.sharding import shard_like

__all__ = ["Buffers", "WeightAverage", "clean_name", "live_tensors"]

Buffers = Literal["live", "average"]
Model = nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]
WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")


def clean_name(name: str) -> str:
    """A parameter's name without what DistributedDataParallel, torch.compile and FSDP put into it."""
    for wrapper in WRAPPERS:
        name = name.replace(f".{wrapper}", ".")
        while name.startswith(wrapper):
            name = name.removeprefix(wrapper)
    return name


def live_tensors(model: Model, buffers: bool) -> dict[str, Tensor]:
    """What is averaged of a model, by clean name: its floating-point parameters, and buffers if asked for."""
    if isinstance(model, nn.Module):
        named = [*model.named_parameters(), *(model.named_buffers() if buffers else ())]
    else:
        named = list(model.items() if isinstance(model, Mapping) else model)
    return {clean_name(n): t for n, t in named if t.is_floating_point()}


class WeightAverage:
    """Base of the averages: one :class:`~halfulp.averaging.store.AverageStore` beside the live tensors.

    Subclasses decide when and how the store moves, and may combine several stores in :meth:`value`.

    Parameters
    ----------
    model
        A module, or its named parameters (a mapping or pairs).
    buffers
        ``"live"``: evaluation uses the model's own buffers, as they are then. ``"average"``: floating-point buffers are
        averaged too, in fp32 (integer ones stay live).
    ignore
        Names that are not averaged; the model's own are used.
    options
        Of the store.

    Examples
    --------
    >>> import torch, halfulp.averaging
    >>> issubclass(halfulp.averaging.EMA, WeightAverage)  # as every average: update(), swap(), state_dict()
    True
    """

    kind: ClassVar[str] = "average"

    def __init__(self, model: Model, *, buffers: Buffers = "live", ignore: Iterable[str] = (), **options: Any) -> None:
        if buffers not in ("live", "average"):
            raise ValueError(f"buffers is 'live' or 'average', got {buffers!r}")
        if not isinstance(model, (nn.Module, Mapping)):
            try:
                model = dict(model)
            except (TypeError, ValueError):
                raise TypeError(
                    "an average is of a module or of named tensors (a mapping, or pairs as model.named_parameters()); "
                    f"got {type(model).__name__}"
                ) from None
        self.model, self.buffers, self.ignore = model, buffers, frozenset(ignore)
        self.live = self.pick(model)
        unknown = self.ignore - set(live_tensors(model, True))
        if unknown:
            raise ValueError(f"ignore= names {sorted(unknown)}, which the model does not have")
        if not self.live:
            raise ValueError("there is nothing to average: the model has no floating-point parameters")
        names = {clean_name(n) for n, _ in model.named_buffers()} if isinstance(model, nn.Module) else set()
        self.store = self._store(names=names, **options)
        self.step = 0
        """Calls of :meth:`update`."""
        self.updates = 0
        """Those among them that moved the average."""
        self._swap: Swap | None = None

    def _store(self, names: set[str], **options: Any) -> AverageStore:
        from halfulp.engine.storage import StorageOptions

        keys = ("scale", "block_size", "min_size", "keep_fp32")
        storage = {k: options.pop(k) for k in keys if k in options}
        storage["keep_fp32"] = (*storage.get("keep_fp32", ()), *(n for n in self.live if n in names))
        return AverageStore(self.live, storage=StorageOptions(**storage), **options)

    def pick(self, model: Model) -> dict[str, Tensor]:
        """The tensors of a model that this average is about, by name."""
        found = live_tensors(model, self.buffers == "average")
        return {n: t for n, t in found.items() if n not in self.ignore and t.dtype in PARAM_DTYPES}

    # ---------------------------------------------------------------- reading

    def value(self, name: str) -> Tensor:
        """The average of a name in fp32 (this process's part, of a DTensor)."""
        return self.store.read(name)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Names and averages, decoded one by one to the dtype of the live tensors; sharded as these are."""
        self._refuse_while_swapped("read the average")
        for name, live in self.live.items():
            yield name, shard_like(live, self.value(name).to(live.dtype))

    def parameters(self) -> Iterator[Tensor]:
        """Averages, decoded one by one."""
        return (tensor for _, tensor in self.named_parameters())

    @torch.no_grad()
    def copy_to(self, model: Model | None = None) -> None:
        """Put the averages into a model for good: another of the same form, or the live one."""
        self._refuse_while_swapped("copy the average")
        target = self.live if model is None else self.pick(model)
        missing = set(self.live) - set(target)
        if missing:
            raise ValueError(f"the model lacks {sorted(missing)}, which are averaged")
        for name in self.live:
            local_part(target[name]).tensor.copy_(self.value(name))

    def averaged_state_dict(self) -> dict[str, Any]:
        """A ``state_dict`` of the model with the averages in it, in the model's dtypes: what one ships."""
        state: dict[str, Any] = {}
        if isinstance(self.model, nn.Module):
            state.update({clean_name(n): t for n, t in self.model.state_dict().items()})
            aliases = _aliases(self.model)
        else:
            aliases = {}
        values = dict(self.named_parameters())
        state.update({n: t.detach() for n, t in self.live.items() if n not in values} | values)
        state.update({alias: values[name] for alias, name in aliases.items() if name in values and alias in state})
        return state

    # ---------------------------------------------------------------- swapping

    @contextmanager
    def swap(self, model: Model | None = None, keep: Keep = "device") -> Iterator[None]:
        """Within the ``with`` block the model has the averaged weights; afterwards the live ones, bit for bit.

        Parameters
        ----------
        model
            Another model of the same form, such as the unwrapped one; the live one without.
        keep
            Where the live weights go meanwhile: ``"device"``, ``"cpu"``, or ``"stream"``: module by module, so that no
            copy of the model ever exists. Averages stored in the dtype of the weights change places with them and need
            no memory under any of the three.
        """
        self.swap_in(model, keep)
        try:
            yield
        finally:
            self.swap_out()

    def swap_in(self, model: Model | None = None, keep: Keep = "device") -> None:
        """Averages into the model, until :meth:`swap_out`."""
        self._refuse_while_swapped("swap in")
        live = self.live if model is None else self.pick(model)
        owner = self.model if model is None else model
        swap = Swap(live, self.value, self._exchangeable(live) if keep != "stream" else {}, keep, owner)
        swap.enter()
        self._swap = swap

    def swap_out(self) -> None:
        """Live weights back into the model."""
        if self._swap is None:
            raise RuntimeError("the average is not swapped in")
        swap, self._swap = self._swap, None
        swap.leave()

    @property
    def swapped(self) -> bool:
        """Whether the model has the averaged weights now."""
        return self._swap is not None

    def _exchangeable(self, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Codes that are the average itself, in the live tensor's dtype."""
        found = {}
        for name, tensor in live.items():
            codes = self.store.state_of(name).codes
            if codes.dtype == tensor.dtype:
                found[name] = codes
        return found

    def _refuse_while_swapped(self, what: str) -> None:
        if self._swap is not None:
            raise RuntimeError(f"cannot {what} while the average is swapped into the model: swap out first")

    # ---------------------------------------------------------------- memory and checkpoints

    def memory(self) -> MemoryReport:
        """Bytes of the average by format, and what stays in fp32."""
        return self.store.memory()

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers: the stored averages, the counts, and how they are stored."""
        self._refuse_while_swapped("save the average")
        return {
            "kind": self.kind,
            "storage": self.store.quantizer.spec,
            "rounding": self.store.quantizer.rounding,
            "seed": self.store.seed,
            "step": self.step,
            "updates": self.updates,
            "averages": self.store.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` gave, into an average built with the same storage; all is checked first.

        The counts and the seed come from the checkpoint; the decay, the format and the rounding from this object.
        """
        self._refuse_while_swapped("load an average")
        own = WeightAverage.state_dict(self)
        missing = sorted(set(own) - set(state_dict))
        if missing:
            raise ValueError(f"not a state_dict of halfulp.averaging: it lacks {missing}")
        for key in ("kind", "storage"):
            if state_dict[key] != own[key]:
                raise ValueError(f"the state_dict has {key} {state_dict[key]!r}, this average {own[key]!r}")
        checked = self.store.validate(state_dict["averages"])
        counts = [count("average", k, state_dict[k]) for k in ("step", "updates", "seed")]
        self._load_extra(state_dict)
        self.store.load(checked)
        self.step, self.updates, self.store.seed = counts

    def _load_extra(self, state_dict: Mapping[str, Any]) -> None:
        """Subclasses load what they add to the state_dict, checking it first."""


def _aliases(model: nn.Module) -> dict[str, str]:
    """Further names of tied parameters, to the one that ``named_parameters`` gives."""
    first: dict[int, str] = {}
    aliases = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(tensor), name)
        if known != name:
            aliases[clean_name(name)] = clean_name(known)
    return aliases
