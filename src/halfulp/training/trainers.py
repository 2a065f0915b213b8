"""Helpers for third-party training loops: parameter groups by name, and a ``Trainer`` factory.

Most trainers need none of them: every optimizer of the library is an ordinary ``torch.optim.Optimizer``.
"""

from __future__ import annotations

import fnmatch
import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from halfulp.engine.callers import calling
from halfulp.engine.optimizer import RuleOptimizer
from halfulp.numbers.log import log_once
from halfulp.optim import AdamW
from halfulp.training.release import release_gradients

__all__ = ["TrainerFactory", "groups_by_name", "release_gradients"]

NO_DECAY = ("*bias", "*norm*")
"""Names without weight decay. Vectors of normalization layers are never decayed either, whatever their names."""
ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}
"""Defaults of the optimizers that take `betas` and `eps` from a Trainer's arguments."""


def groups_by_name(
    model: nn.Module,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    no_decay: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Return parameter groups, with names, built from name patterns.

    Parameters
    ----------
    model
        The model. Frozen parameters are left out.
    overrides
        Name patterns (as in :mod:`fnmatch`, case-insensitive) and their group keys, such as ``{"*embed*": {"state":
        "bf16"}}``. If several patterns match, later ones override earlier ones key by key.
    no_decay
        Patterns of parameters without weight decay. Default: names with "bias" or "norm", the vectors of every
        normalization layer, and what the Trainer of transformers does not decay, if it is loaded.

    Returns
    -------
    list of dict
        One group per distinct set of keys, in the order of the parameters. Pass it to any optimizer here.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    >>> [g["param_names"] for g in groups_by_name(model, {"1.*": {"state": "bf16"}})]
    [['0.weight'], ['0.bias'], ['1.weight'], ['1.bias']]
    """
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    unused = set(overrides or ())
    plain = _without_decay(model) if no_decay is None else set[str]()
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        kept = name in plain or any(_fits(name, p) for p in no_decay or ())
        keys: dict[str, Any] = {"weight_decay": 0.0} if kept else {}
        for pattern, values in (overrides or {}).items():
            if _fits(name, pattern):
                keys.update(values)
                unused.discard(pattern)
        group = groups.setdefault(
            tuple((k, repr(v)) for k, v in sorted(keys.items())), {"params": [], "param_names": [], **keys}
        )
        group["params"].append(param)
        group["param_names"].append(name)
    if unused:
        names = ", ".join([name for name, _ in model.named_parameters()][:4])
        raise ValueError(f"no parameter name matches {sorted(unused)}; names look like {names}")
    return list(groups.values())


def _without_decay(model: nn.Module) -> set[str]:
    """Return the names of parameters that are not decayed by default."""
    names = {name for name, _ in model.named_parameters()}
    found = {name for name in names if any(_fits(name, p) for p in NO_DECAY)}
    for place, module in model.named_modules():
        if "norm" in type(module).__name__.lower():
            vectors = (n for n, p in module.named_parameters(recurse=False) if p.ndim < 2)
            found |= {f"{place}.{n}".lstrip(".") for n in vectors}
    trainer = sys.modules.get("transformers.trainer")  # loaded if its Trainer is used
    if trainer is not None:
        found |= names - set(trainer.Trainer.get_decay_parameter_names(None, model))
    return found & names


def _fits(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name.lower(), pattern.lower())


def _trainer() -> Any:
    """Return the Trainer whose ``create_optimizer`` is being called, or ``None``."""

    def makes(trainer: Any) -> bool:
        return hasattr(trainer, "create_optimizer") and hasattr(getattr(trainer, "args", None), "learning_rate")

    return next((trainer for trainer, _ in calling(makes)), None)


def _with_losses(model: nn.Module, trainer: Any) -> nn.Module:
    """Return the model with the losses of a sentence-transformers trainer, which may have weights of their own."""
    losses = getattr(trainer, "loss", None)
    modules = [x for x in (losses.values() if isinstance(losses, Mapping) else [losses]) if isinstance(x, nn.Module)]
    if not modules:
        return model
    both = nn.Module()
    both._parameters.update(model._parameters)
    both._modules.update(model._modules, loss=nn.ModuleList(modules))  # names of the model's parameters stay
    return both


def _taken(args: Any, optimizer: type[RuleOptimizer]) -> dict[str, Any]:
    """Return the arguments of an optimizer taken from those of a Trainer."""
    offered = {
        "lr": args.learning_rate, "weight_decay": args.weight_decay, "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
    }  # fmt: skip
    own = inspect.signature(optimizer).parameters
    taken = {k: v for k, v in offered.items() if k in own and (k not in ADAM or own[k].default == ADAM[k])}
    log_once(f"{optimizer.__name__}: from the TrainingArguments: {taken}")
    return taken


class TrainerFactory:
    """Optimizer factory for Hugging Face's ``Trainer``, with overrides by name.

    Use it as ``Trainer(..., optimizer_cls_and_kwargs=(TrainerFactory, {"overrides": {"*embed*": {"state":
    "bf16"}}}))``. Keyword arguments are the class `optimizer` (default :class:`~halfulp.AdamW`), `overrides` and
    `no_decay` as for :func:`groups_by_name`, `args`, and the arguments of the class.

    A missing learning rate or weight decay is taken from the ``TrainingArguments`` of the calling Trainer, or from
    `args`. So are `betas` and `eps` of optimizers like Adam. Losses of sentence-transformers that have weights are
    trained too.
    """

    def __call__(
        self,
        model: nn.Module,
        *,
        optimizer: type[RuleOptimizer] = AdamW,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        no_decay: Sequence[str] | None = None,
        args: Any = None,
        **arguments: Any,
    ) -> RuleOptimizer:
        """Build the optimizer of a model. Raise ``ValueError`` if no learning rate is given."""
        if not callable(optimizer):
            raise TypeError(f"optimizer= is a class, such as halfulp.Lion; got {optimizer!r}")
        trainer = _trainer()
        given = getattr(trainer, "args", None) if args is None else args
        if given is not None:
            arguments = {**_taken(given, optimizer), **arguments}
        elif "lr" not in arguments:
            raise ValueError(
                "TrainerFactory was not called by a Trainer, so it has no learning rate: give lr=..., or "
                "args=training_arguments"
            )
        groups = groups_by_name(_with_losses(model, trainer), overrides, no_decay=no_decay)
        made: RuleOptimizer = optimizer(groups, **arguments)
        return made
