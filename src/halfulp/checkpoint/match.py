"""Matching of saved parameters with those of an optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from halfulp.engine.loading import bare, groups_in_order, in_order

__all__ = ["match_groups"]

Pairs = list[tuple[Mapping[str, Any], Any]]


def match_groups(saved: Sequence[Mapping[str, Any]], to: torch.optim.Optimizer) -> list[Pairs]:
    """Return the saved group and key of each parameter of each group of `to`.

    Parameters are matched by name if both sides have the same names, regardless of order and groups. Otherwise they are
    matched group by group, as in ``load_state_dict``.

    Raises
    ------
    ValueError
        If the groups differ without names on both sides, or the names do not match.
    """
    theirs, mine = [len(g["params"]) for g in saved], [len(g["params"]) for g in to.param_groups]
    known = [bare(name) for g in to.param_groups for name in g.get("param_names") or ()]
    named = {bare(n): (g, key) for g in saved for n, key in zip(_names(g), g["params"], strict=False)}
    if len(named) == sum(theirs) == len(known) == sum(mine) and set(named) == set(known):
        return [[named[bare(name)] for name in g["param_names"]] for g in to.param_groups]
    if theirs == mine:
        named_groups = groups_in_order([{**g, "param_names": _names(g)} for g in saved], to.param_groups)
        pairs = zip(named_groups, to.param_groups, strict=True)
        return [[(g, key) for key in in_order(g, own)] for g, own in pairs]
    if len(named) != sum(theirs) or len(known) != sum(mine):
        raise ValueError(
            f"the state_dict has parameter groups of {theirs} parameters, the optimizer of {mine}: build it with the "
            "groups it was saved with (the Trainer of transformers makes two: groups_by_name(model) are the same), or "
            "build both from named_parameters(), by which they are then matched"
        )
    missing, more = [name for name in known if name not in named], sorted(set(named) - set(known))
    raise ValueError(f"the state_dict lacks parameters {missing[:4]} and has {more[:4]}, unknown to the optimizer")


def _names(group: Mapping[str, Any]) -> list[str]:
    """Return the names of a saved group. Distributed checkpoints have them in place of numbers."""
    names = group.get("param_names") or group["params"]
    return list(names) if all(isinstance(n, str) and not n.isdigit() for n in names) else []
