"""MicroAdam: Adam's moments over a window of sparse gradients, with feedback of what the window leaves out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from halfulp.rules.adam import MomentsHyper
from halfulp.rules.base import Ages, Rule, Scalars, States, sqrt
from halfulp.rules.slots import Hyper, Shape, StateSlot
from halfulp.rules.transforms import with_weight_decay

__all__ = ["MICRO_ADAM", "MicroAdamHyper"]

BLOCK = 4096
"""The block of elements from which the largest are kept. An index in it has 12 bits, so an fp32 number holds two."""


@dataclass(frozen=True)
class MicroAdamHyper(MomentsHyper):
    """Hyper-parameters of MicroAdam.

    Parameters
    ----------
    window
        Number of gradients in the window.
    density
        Fraction of each gradient that is kept: the largest elements of each block of 4096.
    """

    window: int = 10
    density: float = 0.01

    at_least_one = ("window",)
    above_zero = ("density",)
    at_most: ClassVar[dict[str, float]] = {"density": 1}


def _layout(shape: Shape, density: float) -> tuple[int, int, int]:
    """Return the number of blocks, their size, and the number of elements kept per block."""
    count = math.prod(shape)
    size = max(1, min(BLOCK, count))
    return -(-count // size), size, math.ceil(density * size)


def _slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    window, density = hyper["window"], hyper["density"]

    def values(shape: Shape) -> Shape:
        blocks, _, kept = _layout(shape, density)
        return (window, blocks * kept)

    def places(shape: Shape) -> Shape:
        return (window, -(-values(shape)[1] // 2))

    return (
        StateSlot("error", signed=True),
        StateSlot("window", signed=True, shape=values),
        StateSlot("window_index", signed=False, shape=places, exact=True),
    )


def _scalars(hyper: Hyper, ages: Ages) -> Scalars:
    (beta1, beta2), age = hyper["betas"], ages["window"]
    return {
        "lr": float(hyper["lr"]), "eps": hyper["eps"], "density": hyper["density"], "beta1": beta1, "beta2": beta2,
        "row": float((age - 1) % hyper["window"]), "filled": float(min(age, hyper["window"])),
        "gain1": (1 - beta1) / (1 - beta1**age), "gain2": (1 - beta2) / (1 - beta2**age),
    }  # fmt: skip


def _pack(places: Tensor) -> Tensor:
    """Pack two indices of 12 bits into each fp32 number."""
    pairs = torch.nn.functional.pad(places, (0, places.numel() % 2)).reshape(-1, 2)
    return (pairs[:, 0] + pairs[:, 1] * BLOCK).float()


def _unpack(words: Tensor, count: int) -> Tensor:
    whole = words.to(torch.int64)
    return torch.stack([whole % BLOCK, whole // BLOCK], 1).reshape(-1)[:count]


def _update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    blocks, size, kept = _layout(tuple(param.shape), c["density"])
    padding = blocks * size - param.numel()
    total = torch.nn.functional.pad((grad + states["error"]).reshape(-1), (0, padding)).reshape(blocks, size)
    largest = total.abs()
    largest[-1, size - padding :] = -1.0
    places = largest.topk(kept, dim=1).indices
    error = total.scatter(1, places, 0.0)
    window, index, row = states["window"].clone(), states["window_index"].clone(), int(c["row"])
    window[row], index[row] = total.gather(1, places).reshape(-1), _pack(places.reshape(-1))
    first, second = torch.zeros_like(total), torch.zeros_like(total)
    for back in range(int(c["filled"])):
        at = (row - back) % window.shape[0]
        where, value = _unpack(index[at], blocks * kept).reshape(blocks, kept), window[at].reshape(blocks, kept)
        first.scatter_add_(1, where, value * c["beta1"] ** back)
        second.scatter_add_(1, where, value * value * c["beta2"] ** back)
    step = first * c["gain1"] / (sqrt(second * c["gain2"]) + c["eps"])
    step = torch.where(second > 0, step, 0.0)  # most elements are not in the window
    count, shape = param.numel(), param.shape
    return param - step.reshape(-1)[:count].reshape(shape) * c["lr"], {
        "error": error.reshape(-1)[:count].reshape(shape), "window": window, "window_index": index,
    }  # fmt: skip


MICRO_ADAM = with_weight_decay(
    Rule(
        "micro_adam", _slots, _scalars, _update, elementwise=False, title="MicroAdam", hyper=MicroAdamHyper,
        summary="Adam over a window of sparse gradients, with error feedback",
        source="Modoranu et al., arXiv 2405.15593",
        notes="""The error is stored like any state, instead of in a special asymmetric 4-bit code.
        ``state="4bit"`` takes 0.8 bytes per weight.""",
        example='lr=1e-3, state="4bit"',
    )
)  # fmt: skip
