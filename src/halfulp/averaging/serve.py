"""Weights that exist only while they are read: module attributes that decode an average at each access.

A forward reads ``self.weight``, or the parent reads ``self.out_proj.weight``. Either way the read goes through the
module's dictionary of parameters. A replacement of that dictionary gives every reader the average. The tensor lives as
long as the reader keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from halfulp.averaging.source import Source, clean_name, shipped_names
from halfulp.engine.sharding import shard_like

__all__ = ["Served", "averaged_state", "placeholder", "refuse_compiled", "serve", "unserve"]

Read = Callable[[str], nn.Parameter]


def placeholder(like: Tensor) -> nn.Parameter:
    """Return a parameter of the same shape and dtype without storage."""
    return nn.Parameter(torch.empty(like.shape, dtype=like.dtype, device="meta"), requires_grad=False)


class Served(dict[str, Any]):
    """Parameters of a module, some of which are decoded from an average: those whose keys are in `names`.

    Code that bypasses this class (a compiled graph) finds the `entries`, placeholders without values.
    """

    def __init__(self, entries: Mapping[str, Any], names: Mapping[str, str], read: Read) -> None:
        super().__init__(entries)
        self.names, self.read = names, read

    def __getitem__(self, key: str) -> Any:
        if key not in self.names:
            return super().__getitem__(key)
        if torch.compiler.is_compiling():
            raise RuntimeError(f"{self.names[key]} is decoded while it is read, which torch.compile cannot trace")
        return self.read(self.names[key])

    def __setitem__(self, key: str, value: Any) -> None:
        if key in self.names:
            raise RuntimeError(f"{self.names[key]} is an average that is decoded while it is read: it cannot be set")
        super().__setitem__(key, value)

    get, items, values = Mapping.get, Mapping.items, Mapping.values  # type: ignore[assignment]  # decode by self[key]

    def __iter__(self) -> Iterator[str]:  # makes dict(served) decode as well
        return iter(self.keys())

    def copy(self) -> dict[str, Any]:
        """Return a plain dictionary with the decoded averages."""
        return dict(self.items())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (list(self.items()),)  # a copied module is a plain one that holds the averages


def serve(model: nn.Module, names: Mapping[int, str], read: Read) -> list[tuple[nn.Module, dict[str, Any]]]:
    """Make every module of a model read its parameters through `read`, which gets the name of an average.

    `names` has the averages by the ``id`` of the parameters that they replace. The modules are returned with their
    former dictionaries of parameters, for :func:`unserve`.
    """
    before: list[tuple[nn.Module, dict[str, Any]]] = []
    for module in model.modules():
        entries = module._parameters
        keys = {key: names[id(p)] for key, p in entries.items() if p is not None and id(p) in names}
        if keys:
            hidden = {key: placeholder(p) if key in keys and p is not None else p for key, p in entries.items()}
            before.append((module, entries))
            module.__dict__["_parameters"] = Served(hidden, keys, read)
    return before


def unserve(before: list[tuple[nn.Module, dict[str, Any]]]) -> None:
    """Undo :func:`serve`."""
    for module, entries in before:
        module.__dict__["_parameters"] = entries


def refuse_compiled(model: nn.Module, what: str, instead: str) -> None:
    """Raise ``ValueError`` if torch has compiled part of a model, since compiled parts read no attributes."""
    for path, module in model.named_modules():
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        if compiled or type(module).__name__ == "OptimizedModule" or isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{what}, and {path or 'the model'} is compiled, which reads no attributes: {instead}")


def averaged_state(source: Source, live: Mapping[str, Tensor], value: Callable[[str], Tensor]) -> dict[str, Any]:
    """Return the ``state_dict`` of a model with averages in place of the `live` values, in the model's dtypes.

    `value` returns the average of a name in fp32, in the local shape.
    """
    model = source.model
    if not isinstance(model, nn.Module):
        own = {clean_name(n): t.detach() for n, t in model.items()}
        return own | {n: shard_like(t, value(n).to(t.dtype)) for n, t in live.items()}
    decoded: dict[str, Tensor] = {}

    def read(name: str) -> nn.Parameter:
        if name not in decoded:
            decoded[name] = shard_like(live[name], value(name).to(live[name].dtype))
        return nn.Parameter(decoded[name], requires_grad=False)

    served = serve(model, {id(t): n for n, t in live.items() if n not in source.buffer_names}, read)
    try:
        state = model.state_dict()
    finally:
        unserve(served)
    for raw, name in source.names.items():
        if name in live and name in source.buffer_names and raw in state:
            state[raw] = read(name).detach()
    shipped = shipped_names(model, state)
    return {shipped[key]: tensor for key, tensor in state.items()}
