"""Rules that treat a parameter as a matrix: Muon, SOAP, Conda.

Matrix products and decompositions come from torch. Their last bits may depend on the device and the number of threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from halfulp.rules.adam import ADAM, EXP_AVG, EXP_AVG_SQ, MomentsHyper, moment_scalars, normalise, second_moment
from halfulp.rules.base import Ages, Rule, Scalars, States, ema, sqrt
from halfulp.rules.parts import MatrixHyper
from halfulp.rules.slots import GRADIENT, Hyper, Shape, StateSlot
from halfulp.rules.transforms import with_weight_decay

__all__ = ["CONDA", "MUON", "MUON_FALLBACK", "SOAP", "CondaHyper", "MuonHyper", "SOAPHyper", "orthogonalise"]


# ---------------------------------------------------------------- Muon


@dataclass(frozen=True)
class MuonHyper(MatrixHyper):
    """Hyper-parameters of Muon, and of AdamW for vectors, embeddings and output layers.

    Parameters
    ----------
    momentum, nesterov
        Decay of the average of gradients, and whether to use Nesterov momentum.
    adjust_lr_fn
        ``"match_rms_adamw"`` scales updates to the size of AdamW's, so that both parts share a learning rate.
        ``"original"`` scales steps only by ``sqrt(max(1, rows / columns))``.
    ns_coefficients, ns_steps, ns_eps
        Coefficients, number of steps and epsilon of the Newton-Schulz iteration.
    betas, eps
        Betas and epsilon of the AdamW fallback.
    fallback
        Name patterns of the matrices that AdamW updates: embeddings and output layers. Vectors always use AdamW.
        Parameters without names are all treated as hidden layers, which is logged unless this is ``()``.
    """

    lr: float | Tensor = 1e-3
    weight_decay: float = 0.1
    momentum: float = 0.95
    nesterov: bool = True
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315)
    ns_steps: int = 5
    ns_eps: float = 1e-7
    adjust_lr_fn: str = "match_rms_adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    fallback: tuple[str, ...] = ("*emb*", "*w[tp]e*", "*lm_head*", "*head.weight", "*shared.weight", "*_bias.w*")

    free: ClassVar[tuple[str, ...]] = ("ns_coefficients", "fallback")
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"adjust_lr_fn": ("match_rms_adamw", "original")}

    def check(self) -> None:
        """See :class:`~halfulp.rules.hyper.HyperParameters`."""
        super().check()
        if len(self.ns_coefficients) != 3 or not all(isinstance(p, str) for p in self.fallback):
            raise ValueError("ns_coefficients are three numbers, fallback a list of name patterns")


def _self_product(x: Tensor) -> Tensor:
    """Compute ``x @ x.T``. It is symmetric, so on a CPU the upper blocks of large ones are copied from the lower."""
    rows = len(x)
    if rows < 256 or not x.is_cpu:
        return x @ x.T
    first, second = x[: rows // 2], x[rows // 2 :]
    made = x.new_empty(rows, rows)
    made[: rows // 2, : rows // 2] = _self_product(first)
    made[rows // 2 :, rows // 2 :] = _self_product(second)
    lower = second @ first.T
    made[rows // 2 :, : rows // 2] = lower
    made[: rows // 2, rows // 2 :] = lower.T
    return made


def orthogonalise(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Return nearly the orthogonal factor of a matrix, by Newton-Schulz. Singular values end up in about [0.7, 1.2]."""
    a, b, c = coefficients
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / torch.clamp(torch.linalg.norm(x), min=eps)
    for _ in range(steps):
        gram = _self_product(x)
        x = torch.addmm(x, _self_product(gram).mul_(c).add_(gram, alpha=b), x, beta=a)
    return x.T if tall else x


def _muon_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    a, b, c = hyper["ns_coefficients"]
    return {
        "lr": float(hyper["lr"]), "momentum": hyper["momentum"], "nesterov": float(hyper["nesterov"]),
        "a": a, "b": b, "c": c, "steps": float(hyper["ns_steps"]), "eps": hyper["ns_eps"],
        "match": float(hyper["adjust_lr_fn"] == "match_rms_adamw"),
    }  # fmt: skip


def _muon(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    buffer = ema(states["momentum_buffer"], grad, 1 - c["momentum"])
    step = ema(grad, buffer, c["momentum"]) if c["nesterov"] else buffer
    flat = step.reshape(step.shape[0], -1)
    rows, cols = flat.shape
    step = orthogonalise(flat, (c["a"], c["b"], c["c"]), int(c["steps"]), c["eps"]).reshape(step.shape)
    size = 0.2 * math.sqrt(max(rows, cols)) if c["match"] else math.sqrt(max(1.0, rows / cols))
    return param - step * (c["lr"] * size), {"momentum_buffer": buffer}


MUON_BUFFER = StateSlot("momentum_buffer", signed=True, decay=lambda h: h["momentum"], drive=GRADIENT)
MUON = with_weight_decay(
    Rule(
        "muon", lambda h: (MUON_BUFFER,), _muon_scalars, _muon, elementwise=False, title="Muon", hyper=MuonHyper,
        summary="orthogonalized momentum of each matrix; AdamW for vectors, embeddings and output layers",
        source="Jordan et al., 2024, with the sizes of Liu et al., arXiv 2502.16982",
        notes="""AdamW updates matrices selected by name (`fallback`), so pass ``model.named_parameters()``. Stacked
        experts are found by their name (``*expert*``) or marked with ``split="stacked"``. Mark a fused QKV with
        ``split="rows:3"`` in a group of its own. ``torch.optim.Muon`` accepts only matrices. Its ``eps`` is ``ns_eps``
        here, and its default ``adjust_lr_fn`` is ``"original"``.""",
        example="""
        >>> import torch, halfulp
        >>> model = torch.nn.Linear(64, 64)
        >>> optimizer = halfulp.Muon(model.named_parameters(), lr=1e-3, state="8bit")
        """,
        tier="core",
    )
)  # fmt: skip
MUON_FALLBACK = ADAM


TURNED_SQ = replace(EXP_AVG_SQ, alike=True, least_bits=8)
"""The second moment in a basis that changes.

The first moment is in another basis, so no exact bound limits the step if 4 bits rounded the second moment to zero.
"""


# ---------------------------------------------------------------- SOAP


@dataclass(frozen=True)
class SOAPHyper(MomentsHyper, MatrixHyper):
    """Hyper-parameters of SOAP.

    Parameters
    ----------
    period
        Number of steps between updates of the eigenbases.
    max_dim
        Dimensions longer than this are not rotated. Tensors with more than two dimensions are not rotated without
        `split`.
    """

    lr: float | Tensor = 3e-3
    betas: tuple[float, float] = (0.95, 0.95)
    weight_decay: float = 1e-2
    period: int = 10
    max_dim: int = 10000


def _square(side: int, limit: int) -> object:
    def shape(param: Shape) -> Shape | None:
        return (param[side],) * 2 if len(param) == 2 and param[side] <= limit else None

    return shape


def _soap_slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    first = replace(EXP_AVG, least_bits=8)  # rotation spreads its errors over all coordinates
    slots = [first, TURNED_SQ]
    for side, name in enumerate(("left", "right")):
        shape = _square(side, hyper["max_dim"])
        slots += [
            StateSlot(f"gram_{name}", True, lambda h: h["betas"][1], GRADIENT, alike=True, shape=shape),  # type: ignore[arg-type]
            StateSlot(f"basis_{name}", True, shape=shape, exact=True),  # type: ignore[arg-type]
        ]
    return tuple(slots)


def _soap_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    step = ages["exp_avg"]
    # the first step only sets the bases
    later = {"exp_avg": max(step - 1, 1), "exp_avg_sq": max(ages["exp_avg_sq"] - 1, 1)}
    turn = float(step > 1 and (step - 1) % max(hyper["period"], 1) == 0)
    later_c = {**moment_scalars(hyper, later), "bound": math.inf}  # the second moment is not rotated with its basis
    return {**later_c, "first": float(step == 1), "turn": turn}


def _rotate(x: Tensor, left: Tensor | None, right: Tensor | None, back: bool = False) -> Tensor:
    """Rotate into the eigenbases, or back."""
    if left is not None:
        x = (left if back else left.T) @ x
    if right is not None:
        x = x @ (right.T if back else right)
    return x


def _soap(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    new, sides = dict(states), [n for n in ("left", "right") if f"gram_{n}" in states]
    bases = {n: None if c["first"] else states[f"basis_{n}"] for n in sides}
    if not c["first"]:
        q = (bases.get("left"), bases.get("right"))
        exp_avg = new["exp_avg"] = torch.lerp(states["exp_avg"], grad, c["weight1"])
        turned = _rotate(grad, *q)
        square = (states["exp_avg_sq"] * c["beta2"]).addcmul_(turned, turned, value=c["weight2"])
        new["exp_avg_sq"] = square
        root = sqrt(square).mul_(c["inv_sqrt_correction2"]).add_(c["eps"])
        step = _rotate(_rotate(exp_avg, *q) / root, *q, back=True)
        param = torch.add(param, step, alpha=-c["lr"] / c["correction1"])
    for name in sides:
        side = 0 if name == "left" else 1
        outer = _self_product(grad if side == 0 else grad.T)
        gram = new[f"gram_{name}"] = torch.lerp(states[f"gram_{name}"], outer, c["weight2"])
        if c["first"]:
            new[f"basis_{name}"] = torch.linalg.eigh(gram.double()).eigenvectors.flip(1).float()
        elif c["turn"]:
            product = ((gram + gram.T) / 2) @ states[f"basis_{name}"]  # storage rounding breaks the symmetry
            order = (states[f"basis_{name}"] * product).sum(0).argsort(descending=True)
            new["exp_avg_sq"] = new["exp_avg_sq"].index_select(side, order)
            new[f"basis_{name}"] = torch.linalg.qr(product.index_select(1, order)).Q
    return param, new


SOAP = with_weight_decay(
    Rule(
        "soap", _soap_slots, _soap_scalars, _soap, elementwise=False, title="SOAP", hyper=SOAPHyper, tier="core",
        summary="Adam in the eigenbases of Shampoo's two matrices", source="Vyas et al., arXiv 2409.11321",
        notes="The bases stay in fp32.",
    )
)  # fmt: skip


# ---------------------------------------------------------------- Conda


@dataclass(frozen=True)
class CondaHyper(MomentsHyper, MatrixHyper):
    """Hyper-parameters of Conda.

    Parameters
    ----------
    period
        Number of steps between changes of the basis.
    update_scale
        Factor of steps that are taken in a basis, which are those of matrices.
    """

    period: int = 2000
    update_scale: float = 1.0


def _shorter(shape: Shape) -> Shape | None:
    return (min(shape),) * 2 if len(shape) == 2 else None


def _conda_slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    basis = StateSlot("basis", True, shape=_shorter, exact=True)
    return (EXP_AVG, TURNED_SQ, basis)


def _conda_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    turn = float(ages["exp_avg"] == 1 or ages["step"] % max(hyper["period"], 1) == 0)
    return {**moment_scalars(hyper, ages), "bound": math.inf, "turn": turn, "scale": hyper["update_scale"]}


def _conda(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    new = dict(states)
    exp_avg = new["exp_avg"] = ema(states["exp_avg"], grad, c["weight1"])
    first, scale, q = exp_avg, 1.0, (None, None)
    if "basis" in states:
        left = grad.shape[0] < grad.shape[1]
        basis = states["basis"]
        if c["turn"]:
            u, _, v = torch.linalg.svd(exp_avg.double(), full_matrices=False)
            basis = new["basis"] = (u if left else v.T).float()
        q, scale = ((basis, None) if left else (None, basis)), c["scale"]  # type: ignore[assignment]
        first, grad = _rotate(exp_avg, *q), _rotate(grad, *q)
    square = new["exp_avg_sq"] = second_moment(grad, states, c)
    return param - _rotate(normalise(first, square, c), *q, back=True) * (c["lr"] * scale), new


CONDA = with_weight_decay(
    Rule(
        "conda", _conda_slots, _conda_scalars, _conda, elementwise=False, title="Conda", hyper=CondaHyper,
        summary="Adam in the singular basis of the first moment, on the shorter side", source="arXiv 2509.24218",
        notes="The basis stays in fp32.",
    )
)  # fmt: skip
