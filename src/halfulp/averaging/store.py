"""Averaged tensors in any storage format, the basis of every average in this package.

An :class:`AverageStore` keeps one state per tensor, with the quantizers, random bits and kernels of the optimizer
states. The update is a rule (:mod:`halfulp.rules.average`) that runs through :mod:`halfulp.kernels.dispatch`. The store
holds no reference to the model: tensors are passed in by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from halfulp.engine.checks import PARAM_DTYPES
from halfulp.engine.loading import count, tensor_entries
from halfulp.engine.memory import MemoryReport, MemoryRow
from halfulp.engine.sharding import Part, cut, is_sharded, local_part, local_state_shape
from halfulp.engine.slot_state import SlotState
from halfulp.engine.storage import FLOAT32, StorageOptions, fp32_reason, slot_quantizers
from halfulp.kernels import dispatch
from halfulp.kernels.binding import Binding, Step, plain
from halfulp.kernels.skipped import Skipped
from halfulp.numbers.formats import Format
from halfulp.numbers.log import log_once, warn_once
from halfulp.numbers.quantizer import Quantizer
from halfulp.numbers.rng import LANES, slot_id, step_keys
from halfulp.numbers.single import all_fp32
from halfulp.rules.average import COPY, DIFFERENCE, EMA
from halfulp.rules.base import Rule

__all__ = ["FORMATS", "AverageStore", "Tensors"]

Tensors = Mapping[str, Tensor]

FORMATS = {"8bit": "linear8", "int8": "linear8"}
"""Format names that mean another format for weights than for optimizer states. A weight average needs an even grid, not
a wide range (measured in ``docs/averaging.md``).
"""
TOGETHER = 64 << 20
"""Bytes of live values after which a step of averages is split, since the values may be copies that take memory."""


@dataclass
class _Averaged:
    """One averaged tensor: its number, its storage, the reason if it is kept in fp32, and its global shape."""

    index: int
    state: SlotState
    kept_fp32: str | None
    whole: torch.Size
    binding: Binding | None = None
    """Kept from step to step, since backends cache data on it."""

    def bound(self, rule: Rule, part: Part) -> Binding:
        """Return the stored average bound to a rule. It is bound again only if its tensors have changed."""
        state, binding, place = self.state, self.binding, (part.first_element, part.row_stride)
        if (
            binding is None
            or binding.rule is not rule
            or binding.states[0].codes is not state.codes
            or binding.states[0].scale is not state.scale
            or (binding.first_element, binding.row_stride) != place
            or not binding.intact()
        ):
            binding = self.binding = Binding(rule, None, (state.stored(),), *place)
        return binding

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "binding": None}  # it holds addresses, which a copy must not share


class AverageStore:
    """Averages of named tensors, stored in any format.

    Parameters
    ----------
    tensors
        The tensors to average, by name: float32, bfloat16 or float16; plain tensors, or DTensors sharded along
        dimension 0. The averages start as copies of them. Their order numbers the random streams.
    state, rounding
        As for the optimizers: a format name, a :class:`~halfulp.numbers.formats.Format` or a
        :class:`~halfulp.numbers.quantizer.Quantizer`; ``"stochastic"`` or ``"nearest"``.
    storage
        Scales, and which tensors are kept in fp32.
    seed
        Seed of the random bits.
    difference
        Whether to store the difference to the live tensors instead of the averages themselves.
    backend
        As for the optimizers.
    label
        Name of the random stream. Averages that exist side by side need different ones.

    Examples
    --------
    >>> import torch
    >>> live = {"w": torch.zeros(64, 64)}
    >>> store = AverageStore(live, state="bf16", rounding="nearest")
    >>> _ = live["w"].fill_(1.0)
    >>> store.update(live, 0.5, 1)  # decay, and number of the update
    >>> float(store.read("w").mean())
    0.5
    """

    def __init__(
        self,
        tensors: Tensors,
        *,
        state: Any = "8bit",
        rounding: str = "stochastic",
        storage: StorageOptions | None = None,
        seed: int = 0,
        difference: bool = False,
        backend: str | None = None,
        label: str = "average",
    ) -> None:
        dispatch.check_backend(backend)
        self.storage = storage or StorageOptions()
        self.rule = DIFFERENCE if difference else EMA
        self.seed, self.backend, self.label = seed, backend, label
        (self.slot,) = self.rule.slots({})
        wanted = FORMATS.get(state, state) if isinstance(state, str) else state
        if not isinstance(wanted, (str, Format, Quantizer)):
            raise ValueError(f"an average is stored as a format name, a Format or a Quantizer; got {state!r}")
        (self.quantizer,) = slot_quantizers((self.slot,), wanted, rounding, self.storage)
        self._skipped = Skipped(_say_skipped)
        self._averaged: dict[str, _Averaged] = {}
        self.add(tensors)

    @torch.no_grad()
    def add(self, tensors: Tensors, fp32: Collection[str] = ()) -> None:
        """Add tensors to average, starting from their present values. Names in `fp32` are kept in fp32."""
        kept = [n for n in tensors if n in fp32 and n not in self.storage.keep_fp32]
        if kept:
            self.storage = replace(self.storage, keep_fp32=(*self.storage.keep_fp32, *kept))
        for name, tensor in tensors.items():
            if name in self._averaged:
                raise ValueError(f"{name!r} is averaged already")
            self._averaged[name] = self._create(len(self._averaged), name, tensor)

    def _create(self, index: int, name: str, tensor: Tensor) -> _Averaged:
        if tensor.dtype not in PARAM_DTYPES:
            raise ValueError(f"averages are of float32, bfloat16 or float16 tensors; {name} is {tensor.dtype}")
        reason = None if self.quantizer.format.is_float32 else fp32_reason(tensor, name, self.storage)
        if reason is not None:
            log_once(f"the average of {name} stays in float32: {reason}")
        quantizer, sharded = self.quantizer if reason is None else FLOAT32, is_sharded(tensor)
        shape = torch.Size(local_state_shape(tensor, quantizer) if sharded else tensor.shape)
        state = SlotState(self.slot, quantizer, shape, {}, sharded)
        state.create(tensor)
        return _Averaged(index, state, reason, tensor.shape)

    def remove(self, names: Iterable[str]) -> None:
        """Drop averages."""
        for name in names:
            del self._averaged[name]

    def rename(self, names: Mapping[str, str]) -> None:
        """Rename averages."""
        self._averaged = {names.get(name, name): averaged for name, averaged in self._averaged.items()}

    def number(self, numbers: Mapping[str, int]) -> None:
        """Set the numbers of the random streams. The default is the order in which tensors were added."""
        for name, index in numbers.items():
            self._averaged[name].index = index

    def fits(self, name: str, tensor: Tensor) -> bool:
        """Whether a tensor has the shape of the average of that name."""
        return tensor.shape == self._averaged[name].whole

    def to(self, device: torch.device) -> None:
        """Move the stored averages to a device."""
        for averaged in self._averaged.values():
            entries = averaged.state.entries
            entries.update({k: v.to(device) for k, v in entries.items() if isinstance(v, Tensor)})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_skipped": Skipped(_say_skipped, self.skipped)}

    # ---------------------------------------------------------------- reading

    def __iter__(self) -> Iterator[str]:
        return iter(self._averaged)

    def __len__(self) -> int:
        return len(self._averaged)

    def __contains__(self, name: object) -> bool:
        return name in self._averaged

    def state_of(self, name: str) -> SlotState:
        """Return the storage of one average. Raise ``KeyError`` for a name that is not averaged."""
        if name not in self._averaged:
            raise KeyError(f"{name!r} is not averaged")
        return self._averaged[name].state

    def read(self, name: str) -> Tensor:
        """Return the stored value of a name, decoded to fp32. For a DTensor, it is this process's part."""
        state = self.state_of(name)
        return state.read().clone() if state.quantizer.format.is_float32 else state.read()

    def read_from(self, name: str, entries: Mapping[str, Any]) -> Tensor:
        """Like :meth:`read`, from saved entries (:meth:`state_dict`) instead of the present ones."""
        return replace(self.state_of(name), entries=dict(entries)).read()

    # ---------------------------------------------------------------- writing

    @torch.no_grad()
    def update(
        self, tensors: Tensors, decay: float | Mapping[str, float], step: int, before: Tensors | None = None,
        counts: dict[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Update every average.

        Parameters
        ----------
        tensors
            Live tensors by name. Every averaged name must be present.
        decay
            Decay of this update, or of each average: ``average <- average + (live - average) * (1 - decay)``.
        step
            Number of the update, starting at 1. It determines the random bits.
        before
            Live tensors before the optimizer's step. Needed if differences are stored.
        counts
            Counters to add to, by name: updates due, and those of them that stalled. int64 of shape (1, 2).
        """
        inputs = (tensors,) if before is None else (tensors, before)
        if isinstance(decay, Mapping):
            scalars = {name: all_fp32(self.rule.scalars({"decay": decay[name]}, {})) for name in self._averaged}
        else:
            scalars = dict.fromkeys(self._averaged, all_fp32(self.rule.scalars({"decay": decay}, {})))
        self._step(self.rule, self.label, step, LANES[1], inputs, scalars, counts)
        for averaged in self._averaged.values():
            averaged.state.age += 1

    def _step(
        self, rule: Rule, label: str, step: int, lane: int, inputs: Sequence[Tensors],
        scalars: Mapping[str, dict[str, float]], counts: dict[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Run one step of a rule on every average, with the random bits of a label, a step and a lane."""
        index = [a.index for a in self._averaged.values()]
        steps: list[Step] = []
        held = 0
        keys = step_keys(self.seed, index, slot_id(label), [step] * len(index))
        for name, (key0, key1) in zip(self._averaged, keys, strict=True):
            parts = [self._part(name, tensors) for tensors in inputs]
            binding = self._averaged[name].bound(rule, parts[0])
            one = Step(binding, tuple(part.tensor for part in parts), scalars[name], [(key0, key1, lane), (0, 0, 0)])
            one.skipped = self._skipped.counter(name, binding.device)
            if counts is not None:
                one.counts = counts.setdefault(name, torch.zeros(1, 2, dtype=torch.int64, device="cpu"))
            steps.append(one)
            held += sum(part.tensor.nbytes for part in parts)
            if held >= TOGETHER:
                dispatch.step(rule, steps, self.backend)
                steps, held = [], 0
        if steps:
            dispatch.step(rule, steps, self.backend)
        self._skipped.look()

    @property
    def skipped(self) -> dict[str, int]:
        """Number of elements skipped over all updates because a live value was not finite, by name."""
        return self._skipped.read()

    def _part(self, name: str, tensors: Tensors) -> Part:
        if name not in tensors:
            raise KeyError(f"{name!r} is averaged, and is not among the tensors given")
        state, part = self._averaged[name].state, local_part(tensors[name])
        tensor, device = part.tensor, state.codes.device
        if tensor.shape != state.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, its average {tuple(state.shape)}")
        if tensor.dtype not in PARAM_DTYPES or tensor.is_meta:
            what = "on the meta device" if tensor.is_meta else str(tensor.dtype)
            raise ValueError(f"averages are of float32, bfloat16 or float16 tensors with values; {name} is {what} now")
        if tensor.device != device:
            warn_once(
                f"averages are on {device} and weights on {tensor.device}: every update copies the weights there. "
                f"average.to({str(tensor.device)!r}) moves the averages"
            )
            tensor = tensor.to(device)
        return replace(part, tensor=plain(tensor))

    @torch.no_grad()
    def set(self, name: str, value: Tensor) -> None:
        """Store a value for one name, rounded to nearest. Its age does not change."""
        state = self.state_of(name)
        codes, scale = state.quantizer.with_rounding("nearest").quantize(value.float().to(state.codes.device))
        state.codes.copy_(codes)
        if scale is not None and state.scale is not None:
            state.scale.copy_(scale)

    @torch.no_grad()
    def copy_from(self, tensors: Tensors) -> None:
        """Start again from the given tensors, rounded to nearest. Ages and differences become zero."""
        for name, averaged in self._averaged.items():
            part = self._part(name, tensors)
            averaged.state.reset_(tensors[name] if averaged.state.sharded else part.tensor)

    @torch.no_grad()
    def write(self, tensors: Tensors, step: int) -> None:
        """Store the given tensors with the store's rounding and the random bits of a step."""
        self._step(COPY, f"{self.label}/write", step, LANES[0], (tensors,), {name: {} for name in self._averaged})
        for averaged in self._averaged.values():
            averaged.state.age = 0

    # ---------------------------------------------------------------- memory and checkpoints

    def memory(self) -> MemoryReport:
        """Return the bytes of each average and in total by format, and what is kept in fp32 and why."""
        rows = tuple(
            MemoryRow(n, a.state.slot.name, tuple(a.state.shape), a.state.quantizer.spec, a.state.bytes(), a.kept_fp32)
            for n, a in self._averaged.items()
        )
        return MemoryReport(rows, sum(a.state.shape.numel() for a in self._averaged.values()))

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return codes, scales and age by name. The tensors are shared, as in ``torch.nn.Module.state_dict``."""
        return {name: dict(a.state.entries) for name, a in self._averaged.items()}

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """Like :meth:`state_dict`, with copies of the tensors."""
        return {
            name: {key: x.clone() if isinstance(x, Tensor) else x for key, x in a.state.entries.items()}
            for name, a in self._averaged.items()
        }

    def validate(
        self, saved: Mapping[str, Mapping[str, Any]], without: Collection[str] = ()
    ) -> dict[str, dict[str, Any]]:
        """Return entries ready to load, copied to their devices. Raise ``ValueError`` if they do not fit.

        A sharded average takes this process's part of each whole tensor. Names in `without` may be missing.
        """
        wanted_names = set(self._averaged) - set(without)
        if set(saved) != wanted_names:
            missing, extra = sorted(wanted_names - set(saved)), sorted(set(saved) - wanted_names)
            raise ValueError(f"the saved averages belong to another model: missing {missing}, unknown {extra}")
        checked = {}
        for name in wanted_names:
            averaged = self._averaged[name]
            state, entries = averaged.state, dict(saved[name])
            if set(entries) != set(state.keys):
                raise ValueError(f"{name}: saved are {sorted(entries)}, this average has {sorted(state.keys)}")
            for key, own in state.entries.items():
                if is_sharded(own) and isinstance(entries[key], Tensor) and not is_sharded(entries[key]):
                    entries[key] = cut(own, entries[key])
            fresh = SlotState(state.slot, state.quantizer, state.shape, {}, state.sharded)
            fresh.entries[state.age_key] = count(name, state.age_key, entries[state.age_key])
            tensor_entries(name, fresh, entries, state.codes.device)
            checked[name] = fresh.entries
        return checked

    def load(self, checked: Mapping[str, dict[str, Any]]) -> None:
        """Load the result of :meth:`validate`."""
        for name, entries in checked.items():
            own = self._averaged[name].state.entries
            own.clear()
            own.update(entries)


def _say_skipped(name: str) -> None:
    warn_once(f"average of {name}: live values not finite; the stretches concerned were left untouched")
