"""BAdam: Adam on one block of the parameters at a time. ``halfulp.optim.badam`` decides which block is next."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from halfulp.rules.adam import ADAM, MomentsHyper

__all__ = ["BADAM", "BAdamHyper"]


@dataclass(frozen=True)
class BAdamHyper(MomentsHyper):
    """Hyper-parameters of BAdam. `period`, `order` and `block_seed` must be the same in all groups.

    Parameters
    ----------
    period
        Number of steps on a block before the next one's turn.
    order
        ``"descending"`` (from the output down, as published), ``"ascending"`` or ``"random"`` (each block once per
        round).
    block_seed
        Seed of the random order.
    """

    period: int = 50
    order: str = "descending"
    block_seed: int = 0

    at_least_one = ("period",)
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"order": ("descending", "ascending", "random")}


BADAM = replace(
    ADAM, title="BAdam", hyper=BAdamHyper, source="Luo et al., arXiv 2404.02827", tier="contributed",
    summary="Adam on one block of layers at a time; the other blocks have no states and no gradients",
    notes="""A block is a layer: parameters whose names agree up to the first number (``model.layers.3.``), or in the
    module if there is no number. Parameters without names are blocks of their own. Pass ``model.named_parameters()``,
    and override :meth:`~halfulp.BAdam.block_of` for other blocks. Inactive parameters have ``requires_grad`` off, so
    that the backward pass skips them. ``master_weights="fp32"`` is the authors' fp32 copy of the block's 16-bit
    weights; stochastic rounding, the default, needs none. Each turn resets the states. By the end of a turn of 50
    steps, second moments stall in a third of their updates in bf16 (nearest, 0.999), and in 83 % in fp8.""",
    example="""
    >>> import torch, halfulp
    >>> model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4)))
    >>> optimizer = halfulp.BAdam(model.named_parameters(), lr=1e-3, period=50, weight_decay=0.01, state="8bit")
    >>> [p.requires_grad for p in model.parameters()]  # from the last layer down
    [False, False, False, False, False, False, True, True]
    >>> model(torch.ones(1, 64)).sum().backward(); optimizer.step()
    >>> optimizer.memory().total  # bytes of one layer's states
    8832
    """,
)  # fmt: skip
