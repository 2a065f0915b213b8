"""Averages into a model and out again, bit for bit, with as little memory as possible.

A live weight has to be kept somewhere while its average stands in its place. Three ways:

* an average that is stored in the weight's own dtype changes places with it: no memory at all;
* ``"device"`` and ``"cpu"`` keep a copy of the others, beside the model or in the host's memory;
* ``"stream"`` keeps no more than one module: the weights of a module are replaced when its ``forward`` begins and
  brought back when it ends. Code that reads a weight outside the ``forward`` of the module that owns it sees the live
  weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from halfulp.averaging.shards import local_part

__all__ = ["Keep", "Swap", "check_keep", "follow"]

Keep = Literal["device", "cpu", "stream"]
Value = Callable[[str], Tensor]


def check_keep(keep: str, *known: str) -> None:
    """``ValueError`` for a place to keep tensors that is not known."""
    if keep not in known:
        *others, last = (repr(name) for name in known)
        raise ValueError(f"keep is {', '.join(others)} or {last}, got {keep!r}")


class Swap:
    """One swap, in and out.

    Parameters
    ----------
    live
        What is replaced, by name.
    value
        Average of a name, in fp32, of the local part's shape.
    exchange
        Codes that may change places with the live tensor of a name, by name.
    keep
        Where the other live tensors go.
    model
        Needed by ``"stream"``.
    """

    def __init__(
        self, live: Mapping[str, Tensor], value: Value, exchange: Mapping[str, Tensor], keep: Keep, model: Any
    ) -> None:
        check_keep(keep, "device", "cpu", "stream")
        if keep == "stream" and not isinstance(model, nn.Module):
            raise ValueError("keep='stream' follows the modules of a model: give one to the average or to swap()")
        self._live, self._value, self._exchange = live, value, exchange
        self._kept: dict[str, Tensor] = {}
        self._hooks: list[Any] = []
        self._keep, self._model = keep, model

    @torch.no_grad()
    def enter(self) -> None:
        """Averages in."""
        if self._keep == "stream":
            self._stream()
            return
        done: list[str] = []
        try:
            for name in self._live:
                self._in(name, torch.device("cpu") if self._keep == "cpu" else None)
                done.append(name)
        except BaseException:
            for name in done:
                self._out(name)
            raise

    @torch.no_grad()
    def leave(self) -> None:
        """Live weights back."""
        if self._keep == "stream":
            for hook in self._hooks:
                hook.remove()
            self._hooks.clear()
            for name in list(self._kept):
                self._out(name)
            return
        for name in self._live:
            self._out(name)

    def _in(self, name: str, device: torch.device | None) -> None:
        weight = local_part(self._live[name]).tensor
        codes = self._exchange.get(name)
        if codes is not None:
            _change_places(weight, codes)
            return
        average = self._value(name)
        self._kept[name] = weight.to(device or weight.device, copy=True)
        weight.copy_(average)

    def _out(self, name: str) -> None:
        weight = local_part(self._live[name]).tensor
        codes = self._exchange.get(name)
        if codes is not None:
            _change_places(weight, codes)
            return
        weight.copy_(self._kept.pop(name))

    def _stream(self) -> None:
        self._hooks = follow(self._model, self._live, lambda name: self._in(name, None), self._out)


def follow(
    model: nn.Module, tensors: Mapping[str, Tensor], enter: Callable[[str], None], leave: Callable[[str], None]
) -> list[Any]:
    """Call `enter` and `leave` for each tensor around the ``forward`` of the modules that own it; returns the hooks.

    A tensor that modules share, or that is used again before the first use has ended, is entered once. An error in a
    ``forward`` leaves what it had entered.
    """
    names_of = {id(t): name for name, t in tensors.items()}
    depth = dict.fromkeys(tensors, 0)

    def before(names: tuple[str, ...]) -> Callable[..., None]:
        @torch.no_grad()
        def hook(*_: Any) -> None:
            for name in names:
                depth[name] += 1
                if depth[name] == 1:
                    enter(name)

        return hook

    def after(names: tuple[str, ...]) -> Callable[..., None]:
        @torch.no_grad()
        def hook(*_: Any) -> None:
            for name in names:
                depth[name] -= 1
                if depth[name] == 0:
                    leave(name)

        return hook

    hooks: list[Any] = []
    for module in model.modules():
        own = [*module._parameters.values(), *module._buffers.values()]
        names = tuple(dict.fromkeys(names_of[id(t)] for t in own if t is not None and id(t) in names_of))
        if names:
            hooks.append(module.register_forward_pre_hook(before(names)))
            hooks.append(module.register_forward_hook(after(names), always_call=True))
    return hooks


def _change_places(a: Tensor, b: Tensor) -> None:
    held = a.clone()
    a.copy_(b)
    b.copy_(held)
