"""Conversion of other libraries' state dictionaries, recognized by structure, to the layout of ``torch.optim``.

A ``ValueError`` reports averages that torch does not have or that cannot be read, and says what to do instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from halfulp.checkpoint.decode import SavedState
from halfulp.engine.loading import check_layout
from halfulp.libraries.base import Entries, Group
from halfulp.libraries.heavyball import is_chain
from halfulp.libraries.pytorch_optimizer import Companded
from halfulp.libraries.torch_optim import betas_of

__all__ = ["torch_layout"]

HEAVYBALL_ADAM = ("update_by_adam_exp_avg_sq", "update_by_adam_exp_avg")
DEBIASED = {"exp_avg": 0, "exp_avg_sq": 1}
"""Averages of optimi and heavyball that are bias-corrected in place, and the index of their beta."""


def torch_layout(state_dict: Mapping[str, Any], sizes: list[list[torch.Size]]) -> Mapping[str, Any]:
    """Return the state dictionary with the keys and values of ``torch.optim``.

    Changed are those of Apex, Transformer Engine, DeepSpeed, Megatron-LM, optimi, heavyball and FlashOptim. `sizes` are
    the shapes of the target's parameters by group, which DeepSpeed stores as one vector.

    Raises
    ------
    ValueError
        If the file holds only part of the states, or states with another meaning than torch's.
    """
    state_dict = _unpacked(state_dict, sizes)
    if not {"state", "param_groups"} <= set(state_dict) or not isinstance(state_dict["state"], Mapping):
        return state_dict
    check_layout(state_dict)
    states, groups = dict(state_dict["state"]), []
    for saved in state_dict["param_groups"]:
        group = dict(saved)
        if "betas" not in group and "beta1" in group:  # optimi
            group["betas"] = betas_of(group)
        if group.get("decouple_lr") and group.get("max_lr"):  # its decay is multiplied only by lr / max_lr
            group["weight_decay"] = group.get("weight_decay", 0.0) / float(group["max_lr"])
        if "kahan_sum" in group and "momentum" in group:  # optimi's dampening says whether there is any
            group["dampening"] = float(group["momentum"]) if group.get("dampening") else 0.0
        names = []
        for key in group["params"]:
            found = key if key in states or str(key) not in states else str(key)  # DCP turns numbers into strings
            names.append(found)
            entries = states.get(found)
            if isinstance(entries, Mapping):
                for fits, change in LAYOUTS:
                    if fits(entries, group):
                        entries = change(entries, group)
                states[found] = entries
        groups.append({**group, "params": names})
    return {**state_dict, "state": states, "param_groups": groups}


# ---------------------------------------------------------------- one parameter


def _step_of_group(entries: Entries, group: Group) -> Entries:
    """Convert step counts kept in the group, as in Apex, Transformer Engine and optimi."""
    if not group.get("bias_correction", True):
        raise ValueError("bias_correction=False has no counterpart here: the averages were used without it")
    step = group["step"]
    return {**entries, "step": int(step) if not isinstance(step, Tensor) else int(step.item())}


def _optimi(entries: Entries, group: Group) -> Entries:
    if "betas" not in group:  # SGD; its dampened average is (1 - momentum) times torch's undampened one
        return {**{k: v for k, v in entries.items() if k != "exp_avg"}, "momentum_buffer": entries.get("exp_avg")}
    return _with_bias(entries, group) if "exp_avg_sq" in entries else entries


def _with_bias(entries: Entries, group: Group) -> Entries:
    """Convert debiased averages to torch's plain ones, which are divided by ``1 - beta**step`` at each step."""
    step, betas = int(entries.get("step") or 0), group["betas"]
    if step < 1:
        raise ValueError("the averages are debiased, and the state_dict does not say after how many steps")
    scaled = {
        name: (entries[name].double() * (1.0 - float(betas[which]) ** step)).float()
        for name, which in DEBIASED.items()
        if isinstance(entries.get(name), Tensor)
    }
    return {**entries, **scaled}


def _heavyball(entries: Entries, group: Group) -> Entries:
    holder = entries[0]
    if len([k for k in entries if isinstance(k, int)]) > 1:
        raise ValueError("heavyball updates a parameter in several views, whose states cannot be combined")
    found: dict[Any, Any] = {"step": holder.get("step", group.get("step"))}
    for key, value in holder.items():
        if not isinstance(value, Tensor) or value.ndim == 0:
            continue
        start = next((s for s in HEAVYBALL_ADAM if str(key).startswith(s)), None)
        if start is None:
            raise ValueError(f"heavyball's {key} belongs to a transform that is not Adam's, and has no place elsewhere")
        found[start.removeprefix("update_by_adam_")] = value
    return _with_bias(found, group)


def _error_bits(entries: Entries, group: Group) -> Entries:
    """Return FlashOptim's error bits as integers. It saves them in the dtype of the weights, as values or as bits."""
    bits = entries["error_bits"]
    if isinstance(bits, Tensor) and bits.dtype in (torch.bfloat16, torch.float16):
        as_values = int(group["master_bytewidth"]) == 3
        bits = bits.to(torch.int8) if as_values else bits.contiguous().view(torch.int16)
    return {**entries, "error_bits": bits}


def _flash(entries: Entries, group: Group) -> Entries:
    """Decode FlashOptim's compressed states: 8-bit codes, and the largest magnitude of every 32 elements in float16."""
    found = {k: v for k, v in entries.items() if not str(k).endswith(("::quantized", "::scales"))}
    for key in (k for k in entries if str(k).endswith("::quantized")):
        name = str(key).removesuffix("::quantized")
        codes, scales = entries[key], entries.get(f"{name}::scales")
        square = name == "exp_avg_sq"
        dtype = torch.uint8 if square else torch.int8
        wanted = f"{name}::quantized is {dtype}, with one of {name}::scales in 16 bits for every 32 elements"
        if not (isinstance(codes, Tensor) and isinstance(scales, Tensor)):
            raise ValueError(f"a compressed state of FlashOptim is incomplete: {wanted}, as tensors")
        if codes.dtype != dtype or scales.dtype.itemsize != 2 or scales.numel() != -(-codes.numel() // Companded.block):
            raise ValueError(
                f"{wanted}; these are {codes.numel()} elements of {codes.dtype} and {scales.numel()} of {scales.dtype}"
            )
        scales = scales.contiguous().view(torch.float16)  # saved under the dtype of bf16 weights
        found[name] = SavedState(Companded(not square), (codes, scales), codes.shape, None).values()
    return found


def _schedule_free(entries: Entries, group: Group) -> Entries:
    raise ValueError(
        "a schedule-free optimizer keeps the sequence z in place of a first moment, and its weights are an average of "
        "it: call its eval(), keep the weights, and start the new optimizer without states"
    )


def _prodigy(entries: Entries, group: Group) -> Entries:
    raise ValueError(
        "Prodigy and D-Adaptation scale their moments by an estimate of the distance, which changes from step to step: "
        "start the new optimizer without states, at the rate d * lr that they found"
    )


LAYOUTS: tuple[tuple[Callable[[Entries, Group], bool], Callable[[Entries, Group], Entries]], ...] = (
    (lambda e, g: "z" in e and ("weight_sum" in g or "k" in g), _schedule_free),
    (lambda e, g: "p0" in e and "d" in g, _prodigy),
    (lambda e, g: any(str(k).endswith("::quantized") for k in e), _flash),
    (lambda e, g: "error_bits" in e and bool(g.get("master_bytewidth")), _error_bits),
    (lambda e, g: "step" not in e and g.get("step") is not None and 0 not in e, _step_of_group),
    (lambda e, g: "kahan_sum" in g and ("beta1" in g or "momentum" in g), _optimi),
    (lambda e, g: is_chain(e), _heavyball),
)
"""Pairs of (whether a parameter's states have this layout, conversion to torch's), tried in order."""


# ---------------------------------------------------------------- files around it


def _unpacked(state_dict: Mapping[str, Any], sizes: list[list[torch.Size]]) -> Mapping[str, Any]:
    """Remove the structure that DeepSpeed and Megatron-LM put around the state dictionary."""
    if "base_optimizer_state" in state_dict:
        return _zero(state_dict, sizes)
    for key in ("optimizer_state_dict", "optimizer"):
        inside = state_dict.get(key)
        if not isinstance(inside, Mapping) or "state" in state_dict:
            continue
        if "param_groups" in inside and "state" not in inside:
            raise ValueError(
                "the file is of Megatron-LM's distributed optimizer, whose states are in files of their own by rank: "
                "convert the checkpoint with Megatron's tools to one that is not distributed"
            )
        if {"state", "param_groups"} <= set(inside) or "base_optimizer_state" in inside:
            return _unpacked(inside, sizes)
    return state_dict


def _zero(saved: Mapping[str, Any], sizes: list[list[torch.Size]]) -> Mapping[str, Any]:
    """Unpack one rank of ZeRO stage 1 or 2. Each group is one vector: its parameters in order, then padding."""
    counts = saved.get("partition_count", 1)
    ranks = max(counts) if isinstance(counts, (list, tuple)) else int(counts)
    if ranks > 1:
        raise ValueError(
            f"the file is one of {ranks} partitions of DeepSpeed's ZeRO: put them together with its ds_to_universal or "
            "zero_to_fp32, or save from one rank"
        )
    base = saved["base_optimizer_state"]
    if not isinstance(base, Mapping) or not {"state", "param_groups"} <= set(base):
        raise ValueError("DeepSpeed's base_optimizer_state has an unknown version")
    states: dict[int, Any] = {}
    groups = []
    if len(sizes) != len(base["param_groups"]):
        return base
    for group, shapes in zip(base["param_groups"], sizes, strict=True):
        first, (key,) = len(states), group["params"]
        flat = base["state"].get(key, base["state"].get(str(key), {}))
        ends = list(accumulate(shape.numel() for shape in shapes))
        for i, shape in enumerate(shapes):
            part = slice(ends[i] - shape.numel(), ends[i])
            states[first + i] = {k: _part(k, v, part, shape, ends[-1]) for k, v in flat.items()}
        groups.append({**group, "params": list(range(first, first + len(shapes)))})
    return {"state": states, "param_groups": groups}


def _part(name: str, value: Any, part: slice, shape: torch.Size, total: int) -> Any:
    if not isinstance(value, Tensor) or value.ndim == 0 or name == "step":
        return value
    if value.ndim != 1 or value.numel() < total:
        raise ValueError(f"DeepSpeed's {name} has {value.numel()} elements, the parameters of its group {total}")
    return value[part].reshape(shape)
