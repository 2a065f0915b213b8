"""Transforms: functions from a rule to a rule, which can be combined.

A transform adds its own slots and scalars to those of the rule it wraps, and changes the gradient before the rule or
the parameter after it. Optimizers take them as ``transforms=``. The first transform is applied to the gradient first.

Examples
--------
>>> import torch, halfulp
>>> model = torch.nn.Linear(64, 64)
>>> clips = [halfulp.clip_global(1.0), halfulp.adagc()]
>>> optimizer = halfulp.AdaBelief(model.parameters(), lr=1e-3, transforms=clips[:1], state="fp8")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from halfulp.numbers.single import all_fp32
from halfulp.rules.base import Ages, Rule, Scalars, States, minimum, total
from halfulp.rules.hyper import decay_factors
from halfulp.rules.slots import Hyper, StateSlot

__all__ = [
    "Transform", "adagc", "check_transforms", "clip_coordinates", "clip_global", "compose", "with_weight_decay",
]  # fmt: skip

Transform = Callable[[Rule], Rule]
Sums = dict[str, Tensor]


@lru_cache(maxsize=1024)
def compose(rule: Rule, transforms: tuple[Transform, ...]) -> Rule:
    """Return the rule with all transforms; the first acts on the gradient first. Equal arguments give the same object.

    A transform may change the `update` of a rule with sums but not its `measure`. The sums would then belong to another
    gradient than the one that `update` gets. Such a transform gets the rule with its sums moved into the update.

    Raise ``TypeError`` if a transform returns anything but a rule, and ``ValueError`` if these are sums over the model.
    """
    for transform in reversed(transforms):
        made = transform(rule)
        if not isinstance(made, Rule):
            raise TypeError(f"a transform returns a Rule, got {made!r} from {transform!r}")
        if rule.measure is not None and made.measure is rule.measure and made.update is not rule.update:
            made = transform(_without_sums(rule))
        rule = made
    return rule


def _on_gradient(
    rule: Rule,
    name: str,
    change: Callable[[Tensor, Tensor, Scalars], Tensor],
    scalars: Callable[[Hyper, Ages], Scalars] = lambda hyper, ages: {},
    *,
    elementwise: bool = True,
) -> Rule:
    """Return a rule whose gradient is first replaced by ``change(param, grad, scalars)``."""
    measure = rule.measure

    def update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
        return rule.update(param, change(param, grad, c), states, c)

    def measured(param: Tensor, grad: Tensor, states: States, c: Scalars) -> Sums:
        assert measure is not None
        return dict(measure(param, change(param, grad, c), states, c))

    return replace(
        rule, name=f"{rule.name}+{name}", update=update, elementwise=rule.elementwise and elementwise,
        scalars=lambda hyper, ages: {**rule.scalars(hyper, ages), **scalars(hyper, ages)},
        measure=None if measure is None else measured,
    )  # fmt: skip


def with_weight_decay(rule: Rule) -> Rule:
    """Add weight decay, decoupled or coupled, by the group's ``weight_decay`` and ``decoupled_weight_decay``.

    Decoupled weight decay multiplies the parameter by ``1 - lr * weight_decay`` before the rule's step (Loshchilov &
    Hutter, arXiv 1711.05101). Coupled weight decay adds ``weight_decay * param`` to the gradient.
    """

    def scalars(hyper: Hyper, ages: Ages) -> Scalars:
        return dict(zip(("decay_keep", "decay_l2"), decay_factors(hyper), strict=True))

    def couple(param: Tensor, grad: Tensor, c: Scalars) -> Tensor:
        return grad if c["decay_l2"] == 0.0 else grad + param * c["decay_l2"]

    inner = _on_gradient(rule, "decay", couple, scalars)

    def update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
        grad = couple(param, grad, c)
        return rule.update(param * c["decay_keep"], grad, states, c)

    return replace(inner, name=rule.name, update=update)


def clip_global(max_norm: float) -> Transform:
    """Scale all gradients of the optimizer so that their global norm is at most `max_norm`.

    This does what ``torch.nn.utils.clip_grad_norm_`` does over the optimizer's parameters, within the step. Parameters
    with different rules (Muon's matrices and its fallback) are clipped separately.

    Parameters
    ----------
    max_norm
        Largest Euclidean norm of all gradients together.

    Raises
    ------
    ValueError
        If `max_norm` is not positive, or the rule itself needs sums over the model.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.AdamW(model.parameters(), transforms=[halfulp.clip_global(1.0)])
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}")

    return partial(_clip_global, max_norm)


def _clip_global(max_norm: float, rule: Rule) -> Rule:
    clipped = _on_gradient(_without_sums(rule), "clip_global", lambda param, grad, c: grad * c["clip_scale"])

    def measure(param: Tensor, grad: Tensor, states: States, c: Scalars) -> Sums:
        return {"clip_norm_sq": total(grad, grad)}

    def combine(sums: Mapping[str, float], c: Scalars) -> Scalars:
        size = sums["clip_norm_sq"] ** 0.5
        return {"clip_scale": 1.0 if size <= max_norm else max_norm / size}

    return replace(clipped, measure=measure, combine=combine)


def clip_coordinates(fraction: float = 0.1) -> Transform:
    """Clip the largest `fraction` of each gradient tensor, by magnitude, to the largest of the others.

    This is the coordinate-wise clipping of Pan & Li (arXiv 2306.00204) with a different threshold.

    Parameters
    ----------
    fraction
        Share of the elements of each tensor, in [0, 1).

    Raises
    ------
    ValueError
        If `fraction` is outside [0, 1).

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.SGD(model.parameters(), lr=0.1, transforms=[halfulp.clip_coordinates(0.1)])
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"fraction is in [0, 1), got {fraction}")

    return partial(_clip_coordinates, fraction)


def _clip_coordinates(fraction: float, rule: Rule) -> Rule:
    def change(param: Tensor, grad: Tensor, c: Scalars) -> Tensor:
        if not grad.numel():
            return grad
        keep = grad.numel() - int(fraction * grad.numel())
        threshold = grad.abs().flatten().kthvalue(keep).values
        return torch.minimum(torch.maximum(grad, -threshold), threshold)

    return _on_gradient(rule, "clip_coordinates", change, elementwise=False)


def adagc(relative: float = 1.05, beta: float = 0.98, warmup: int = 100, absolute: float = 1.0) -> Transform:
    """AdaGC: clip each tensor's gradient to `relative` times an EMA of its clipped norm (arXiv 2502.11034).

    In the first `warmup` steps, each tensor's norm is limited to `absolute` instead, and the smallest norm so far is
    kept. (The paper limits the norm of the whole model there.) This needs one fp32 number per tensor.

    Parameters
    ----------
    relative
        Largest norm of a tensor, relative to the average norm.
    beta
        Decay of the average.
    warmup
        Length of the warm-up in steps, by the age of the average.
    absolute
        Largest norm during the warm-up.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.AdamW(model.parameters(), transforms=[halfulp.adagc(warmup=20)])
    """
    return partial(_adagc, relative, beta, warmup, absolute)


def _adagc(relative: float, beta: float, warmup: int, absolute: float, rule: Rule) -> Rule:
    inner = _without_sums(rule)

    def slots(hyper: Hyper) -> tuple[StateSlot, ...]:
        return (
            *rule.slots(hyper),
            StateSlot("clip_norm", signed=False, decay=lambda h: beta, shape=lambda s: (), exact=True),
        )

    def scalars(hyper: Hyper, ages: Ages) -> Scalars:
        age = ages["clip_norm"]
        return {**rule.scalars(hyper, ages), "clip_warm": float(age <= warmup), "clip_first": float(age == 1)}

    def measure(param: Tensor, grad: Tensor, states: States, c: Scalars) -> Sums:
        return {"clip_sq": total(grad, grad)}

    def combine(sums: Mapping[str, float], c: Scalars) -> Scalars:
        return {"clip_size": sums["clip_sq"] ** 0.5}

    def update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
        average = states["clip_norm"]
        size = torch.full_like(average, c["clip_size"])
        limit = torch.full_like(average, absolute) if c["clip_warm"] else average * relative
        clipped = minimum(size, limit)
        share = torch.where(size > limit, limit / size, 1.0)
        if c["clip_warm"]:
            average = clipped if c["clip_first"] else minimum(average, clipped)
        else:
            average = average * beta + clipped * (1 - beta)
        param, new = inner.update(param, grad * share, states, c)
        return param, {**new, "clip_norm": average}

    return replace(
        inner, name=f"{rule.name}+adagc", slots=slots, scalars=scalars, update=update, measure=measure,
        combine=combine, per_tensor=True,
    )  # fmt: skip


def _without_sums(rule: Rule) -> Rule:
    """Return the rule with its sums moved into the update, over the gradient that a transform passes to it.

    Raise ``ValueError`` if they are sums over the model.
    """
    measure, combine = rule.measure, rule.combine
    if measure is None or combine is None:
        return rule
    if not rule.per_tensor:
        raise ValueError(
            f"the rule {rule.name!r} needs sums over the model of the gradient that a transform hands to it: clip "
            "before the step, with torch.nn.utils.clip_grad_norm_; a transform of your own replaces `measure` too"
        )

    def update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
        sums = {name: float(value) for name, value in measure(param, grad, states, c).items()}
        return rule.update(param, grad, states, {**c, **all_fp32(combine(sums, c))})

    return replace(rule, update=update, elementwise=False, measure=None, combine=None, per_tensor=False)


def check_transforms(transforms: Sequence[Transform]) -> tuple[Transform, ...]:
    """Return the transforms as a tuple. Raise ``ValueError`` for anything but functions."""
    if not isinstance(transforms, Iterable) or callable(transforms) or not all(callable(t) for t in transforms):
        raise ValueError(f"transforms is a list of functions from a rule to a rule, got {transforms!r}")
    return tuple(transforms)
