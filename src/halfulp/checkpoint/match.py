"""Which saved parameter is which parameter of an optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

__all__ = ["match_groups"]

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module")
"""What wrappers of models put into names."""
Pairs = list[tuple[Mapping[str, Any], Any]]


def match_groups(saved: Sequence[Mapping[str, Any]], to: torch.optim.Optimizer) -> list[Pairs]:
    """For each parameter of each group of `to`: the saved group that it is in, and its key there.

    Parameters are matched by place where the groups have the same sizes, else by name.

    Raises
    ------
    ValueError
        Other groups without names on both sides, or names that do not fit.
    """
    theirs, mine = [len(g["params"]) for g in saved], [len(g["params"]) for g in to.param_groups]
    known = [name for g in to.param_groups for name in g.get("param_names") or ()]
    named = {_plain(n): (g, key) for g in saved for n, key in zip(_names(g), g["params"], strict=False)}
    if theirs == mine:
        for group, own in zip(saved, to.param_groups, strict=True):
            pairs = zip(_names(group), own.get("param_names") or (), strict=False)
            wrong = next((p for p in pairs if _plain(p[0]) != _plain(p[1])), None)
            if wrong is not None:
                raise ValueError(f"parameters are in another order: {wrong[0]!r} in the state_dict, {wrong[1]!r} here")
        return [[(g, key) for key in g["params"]] for g in saved]
    if len(named) != sum(theirs) or len(known) != sum(mine):
        raise ValueError(
            f"the state_dict has parameter groups of {theirs} parameters, the optimizer of {mine}: build it with the "
            "groups it was saved with (the Trainer of transformers makes two: groups_by_name(model) are the same), or "
            "build both from named_parameters(), by which they are then matched"
        )
    missing = [name for name in known if _plain(name) not in named]
    if missing or len(named) != len(known):
        more = sorted(set(named) - {_plain(n) for n in known})
        raise ValueError(
            f"the state_dict lacks parameters {missing[:4]} and has {more[:4]}, which the optimizer has not"
        )
    return [[named[_plain(name)] for name in g["param_names"]] for g in to.param_groups]


def _names(group: Mapping[str, Any]) -> list[str]:
    """Names of a saved group; distributed checkpoints have them in place of numbers."""
    names = group.get("param_names") or group["params"]
    return list(names) if all(isinstance(n, str) and not n.isdigit() for n in names) else []


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
