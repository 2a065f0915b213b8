"""Swap averages into a model and out again, bit for bit, with as little memory as possible.

The live weight must be kept somewhere while its average takes its place. There are three ways:

* an average stored in the weight's own dtype is exchanged with it and needs no memory;
* ``"device"`` and ``"cpu"`` keep a copy of the other weights, on their device or in host memory;
* ``"stream"`` copies nothing: modules decode an average each time a weight is read (:mod:`halfulp.averaging.serve`).
  The live tensors cannot be used meanwhile: code that holds one of them finds NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.weak import WeakTensorKeyDictionary

from halfulp.averaging.serve import refuse_compiled, serve, unserve
from halfulp.engine.sharding import is_sharded, local_part
from halfulp.numbers.log import log

__all__ = ["Keep", "Swap", "check_keep"]

Keep = Literal["device", "cpu", "stream"]
Value = Callable[[str], Tensor]


def _nothing() -> None:
    """Stand-in for a reference to a swap."""


_TOP: Any = WeakTensorKeyDictionary()
"""The last swap of each tensor that currently holds an average, by weak reference."""


def check_keep(keep: str, *known: str) -> None:
    """Raise ``ValueError`` if `keep` is not a known place."""
    if keep not in known:
        *others, last = (repr(name) for name in known)
        raise ValueError(f"keep is {', '.join(others)} or {last}, got {keep!r}")


class Swap:
    """One swap of averages into a model and out again.

    The tensors `live` are replaced by what `value` returns for their names: fp32, in the local shape. Those with codes
    in `exchange` change places with them. The others are kept where `keep` says. ``"stream"`` needs the model.

    Raises
    ------
    ValueError
        If ``"stream"`` cannot serve every read of a weight: the model is sharded or compiled, or holds weights in
        attributes other than parameters.
    RuntimeError
        If another average is in the model, and it or this one is swapped with ``"stream"``.
    """

    def __init__(
        self, live: Mapping[str, Tensor], value: Value, exchange: Mapping[str, Tensor], keep: Keep, model: Any
    ) -> None:
        check_keep(keep, "device", "cpu", "stream")
        self.live, self.exchange = dict(live), exchange
        self.owner, self._value, self._keep = model, value, keep
        self._kept: list[tuple[str, Tensor]] = []
        """Live tensors in the order of replacement. They are restored last to first."""
        self._served: list[tuple[nn.Module, dict[str, Any]]] = []
        self._below: dict[str, Callable[[], Swap | None]] = {}
        """Swaps of other averages whose values these replaced."""
        self._versions: dict[str, int] = {}
        """Autograd's version counter of each live tensor when the averages were swapped in."""
        self._in_place: set[str] = set()
        """Buffers, which ``"stream"`` replaces by copying."""
        if keep == "stream":
            self._check_stream()
        for tensor in self.live.values():
            other = _TOP.get(tensor, _nothing)()
            if other is not None and "stream" in (keep, other._keep):
                raise RuntimeError(
                    "another average is in the model, and one of the two is swapped with keep='stream', which cannot "
                    "be nested: use keep='device' or 'cpu' for both"
                )
        if parametrize._cache_enabled:
            raise RuntimeError("parametrize.cached() holds weights that were computed before: swap outside of it")

    def _check_stream(self) -> None:
        if not isinstance(self.owner, nn.Module):
            raise ValueError("keep='stream' follows the modules of a model: give one to the average or to swap()")
        what, instead = "keep='stream' serves weights while modules read them", "use keep='device' or 'cpu'"
        refuse_compiled(self.owner, what, instead)
        if any(is_sharded(t) for t in self.live.values()) or any(
            type(m).__name__ == "FullyShardedDataParallel" for m in self.owner.modules()
        ):
            raise ValueError(f"{what}, and sharded weights are gathered before: {instead}")
        held = {id(t): name for name, t in self.live.items()}
        for path, module in self.owner.named_modules():
            for attribute, tensor in _other_tensors(module):
                if id(tensor) in held:
                    raise ValueError(
                        f"{what}, and {path or 'the model'} also holds {held[id(tensor)]} as {attribute!r}: {instead}"
                    )

    @torch.no_grad()
    def enter(self) -> None:
        """Put the averages in."""
        torch.clear_autocast_cache()  # an outer autocast region would reuse casts of the live weights
        if self._keep == "stream":
            self._stream()
            return
        try:
            for name in self.live:
                self._in(name, torch.device("cpu") if self._keep == "cpu" else None)
        except BaseException:
            self.leave()
            raise
        self._versions = {name: live._version for name, live in self.live.items()}

    @torch.no_grad()
    def leave(self) -> None:
        """Restore the live weights.

        Raises
        ------
        RuntimeError
            If another average was swapped in later and is still there. Nothing is changed.
        """
        for name, _ in self._kept:
            top = _TOP.get(self.live[name], _nothing)()
            if top is not None and top is not self:
                raise RuntimeError(
                    f"another average was swapped in after this one, and holds {name}: swap that one out first"
                )
        changed = [name for name, version in self._versions.items() if self.live[name]._version != version]
        if changed:
            also = ", and is in the average now" if set(changed) & set(self.exchange) else ""
            log.warning(
                "%s was changed while the average was swapped in, by a step or load_state_dict: the change is lost%s",
                changed[0] if len(changed) == 1 else f"{changed[0]} and {len(changed) - 1} others", also,
            )  # fmt: skip
        torch.clear_autocast_cache()
        unserve(self._served)
        self._served = []
        while self._kept:
            name, kept = self._kept[-1]
            if self._keep == "stream" and name not in self._in_place:
                self.live[name].data = kept
            elif name in self.exchange:
                _change_places(local_part(self.live[name]).tensor, self.exchange[name])
            else:
                local_part(self.live[name]).tensor.copy_(kept)
            _TOP[self.live[name]] = self._below.pop(name)
            self._kept.pop()  # not before it is restored, so that an error loses nothing

    def original(self, name: str) -> Tensor:
        """Return the local values of a live tensor while its average is swapped in."""
        return next((kept for n, kept in self._kept if n == name), local_part(self.live[name]).tensor)

    def _in(self, name: str, device: torch.device | None) -> None:
        weight = local_part(self.live[name]).tensor
        live, codes = self.live[name], self.exchange.get(name)
        self._below[name], _TOP[live] = _TOP.get(live, _nothing), ref(self)
        if codes is not None:
            _change_places(weight, codes)
            self._kept.append((name, codes))
            return
        average = self._value(name)
        self._kept.append((name, weight.to(device or weight.device, copy=True)))
        weight.copy_(average)

    def _stream(self) -> None:
        parameters = {id(p) for p in self.owner.parameters()}
        self._in_place = {name for name, t in self.live.items() if id(t) not in parameters}
        for name in self._in_place:  # buffers
            self._in(name, None)
        names = {id(t): name for name, t in self.live.items() if name not in self._in_place}
        dtypes = {name: t.dtype for name, t in self.live.items()}
        self._served = serve(
            self.owner, names, lambda name: nn.Parameter(self._value(name).to(dtypes[name]), requires_grad=False)
        )
        for name in names.values():
            live = self.live[name]
            self._below[name], _TOP[live] = _nothing, ref(self)
            self._kept.append((name, live.data))
            live.data = torch.full((), torch.nan, dtype=live.dtype, device=live.device).expand(live.shape)


def _other_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors that a module holds outside its parameters and buffers. RNNs look theirs up in each forward."""
    for attribute, value in vars(module).items():
        if attribute in ("_parameters", "_buffers", "_modules", "_flat_weights"):
            continue
        values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)
        yield from ((attribute, one) for one in values if isinstance(one, Tensor))


def _change_places(a: Tensor, b: Tensor) -> None:
    held = a.clone()
    a.copy_(b)
    b.copy_(held)
