"""Pieces for other people's training loops: groups by name, a ``Trainer`` factory, steps during the backward pass.

Most trainers need nothing from here: every optimizer of the library is a ``torch.optim.Optimizer`` like any other.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from halfulp.engine.optimizer import RuleOptimizer
from halfulp.optim import AdamW

__all__ = ["TrainerFactory", "groups_by_name", "release_gradients"]

NO_DECAY = ("*bias", "*norm*")


def groups_by_name(
    model: nn.Module,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    no_decay: Sequence[str] = NO_DECAY,
) -> list[dict[str, Any]]:
    """Parameter groups, with names, from patterns.

    Parameters
    ----------
    model
        Parameters that need no gradient are left out.
    overrides
        Pattern of names (as of :mod:`fnmatch`, case ignored) -> group keys, such as ``{"*embed*": {"state": "bf16"}}``;
        where several fit, later ones win key by key.
    no_decay
        Patterns of parameters without weight decay.

    Returns
    -------
    list of dict
        One group for each different set of keys, in the order of the parameters; pass it to any optimizer here.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    >>> [g["param_names"] for g in groups_by_name(model, {"1.*": {"state": "bf16"}})]
    [['0.weight'], ['0.bias'], ['1.weight'], ['1.bias']]
    """
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    unused = set(overrides or ())
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        keys: dict[str, Any] = {"weight_decay": 0.0} if any(_fits(name, p) for p in no_decay) else {}
        for pattern, values in (overrides or {}).items():
            if _fits(name, pattern):
                keys.update(values)
                unused.discard(pattern)
        group = groups.setdefault(tuple((k, repr(v)) for k, v in sorted(keys.items())), {"params": [], **keys})
        group["params"].append((name, param))
    if unused:
        raise ValueError(f"no parameter's name fits {sorted(unused)}; names are like {_some_names(model)}")
    return [_split_names(g) for g in groups.values()]


def _fits(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name.lower(), pattern.lower())


def _some_names(model: nn.Module) -> str:
    return ", ".join([name for name, _ in model.named_parameters()][:4])


def _split_names(group: dict[str, Any]) -> dict[str, Any]:
    names, params = zip(*group["params"], strict=True)
    return {**group, "params": list(params), "param_names": list(names)}


class TrainerFactory:
    """Optimizer factory for Hugging Face's ``Trainer``, with exceptions by name.

    ``Trainer(..., optimizer_cls_and_kwargs=(TrainerFactory, {"overrides": {"*embed*": {"state": "bf16"}}}))``. Keyword
    arguments: `optimizer`, the class (:class:`~halfulp.AdamW` without), `overrides` and `no_decay` as of
    :func:`groups_by_name`, and those of the class.
    """

    def __call__(
        self,
        model: nn.Module,
        *,
        optimizer: type[RuleOptimizer] = AdamW,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        no_decay: Sequence[str] = NO_DECAY,
        **arguments: Any,
    ) -> RuleOptimizer:
        """Build the optimizer of a model."""
        made: RuleOptimizer = optimizer(groups_by_name(model, overrides, no_decay=no_decay), **arguments)
        return made


def release_gradients(optimizer: RuleOptimizer) -> list[Any]:
    """Step each parameter as soon as its gradient is there, and free the gradient: at most one is alive at a time.

    The bits are those of an ordinary ``step()`` after the backward pass. ``optimizer.step()`` must not be called, and
    gradients cannot be accumulated or clipped over the whole model.

    Returns
    -------
    list
        Handles whose ``remove()`` ends it.

    Raises
    ------
    ValueError
        A rule that needs sums over the whole model.

    Examples
    --------
    >>> import torch
    >>> model = nn.Linear(8, 8)
    >>> handles = release_gradients(AdamW(model.parameters(), lr=1e-3))
    >>> model(torch.ones(1, 8)).sum().backward()
    >>> model.weight.grad is None
    True
    """
    for group in optimizer.param_groups:
        rules = optimizer.active_rules(group)
        needing = [rule.name for rule in rules if rule.measure is not None and not rule.per_tensor]
        if needing:
            raise ValueError(f"{needing} need sums over the whole model: their steps cannot be taken one by one")

    def step(param: Tensor) -> None:
        optimizer.step_parameters([param])
        param.grad = None

    params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    return [p.register_post_accumulate_grad_hook(step) for p in params]
