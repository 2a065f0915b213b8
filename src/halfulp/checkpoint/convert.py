"""Conversion of an optimizer's state between formats and libraries.

``convert_state_dict(state_dict, to=optimizer)`` returns a state dictionary that `optimizer` can load. The source is one
of our optimizers, ``torch.optim``, bitsandbytes, torchao or a library in :mod:`~halfulp.checkpoint.foreign`. The target
is one of ours, ``torch.optim`` or FlashOptim. States are decoded to fp32 and rounded to nearest once, in the target's
format. An fp32 target involves no rounding.

Our slots have one age each, while torch has one ``step`` per parameter. In a conversion to torch, ``step`` is the age
of the oldest slot. Younger slots are scaled to keep their bias-corrected values.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halfulp.checkpoint.decode import SavedState, saved_states
from halfulp.checkpoint.foreign import torch_layout
from halfulp.checkpoint.masters import BESIDE, ERROR_BITS, error_bits, fp32_weights_of, master_entry
from halfulp.checkpoint.match import match_groups
from halfulp.engine.loading import check_layout, reading
from halfulp.engine.master import MasterState, master_kind
from halfulp.engine.optimizer import RuleOptimizer
from halfulp.engine.options import STORAGE_KEYS
from halfulp.libraries import unwrap
from halfulp.libraries.base import Entries, Group
from halfulp.libraries.ours import QuantizerCodec
from halfulp.numbers.log import warn_once

__all__ = ["convert_state_dict"]

STATE1 = ("momentum_buffer", "exp_avg", "square_avg", "sum")
"""Possible names of the single state of bitsandbytes, most preferred first."""
FLASH_BITS = {3: torch.int8, 4: torch.int16}
"""FlashOptim's error bits of 16-bit weights, by the ``master_bytewidth`` of a group."""


def convert_state_dict(state_dict: Mapping[str, Any], to: torch.optim.Optimizer) -> dict[str, Any]:
    """Convert a state dictionary from another format or library to that of `to`. Neither argument is changed.

    Hyper-parameters known to both (``lr``, ``betas``, ``weight_decay`` ...) and ``initial_lr`` come from the
    checkpoint. The storage of states and all other settings come from the target.

    Parameters
    ----------
    state_dict
        State dictionary of an optimizer of halfulp, ``torch.optim``, bitsandbytes, torchao, Apex, Transformer Engine,
        optimi, heavyball and others (``docs/checkpoints.md``), over the same parameters in the same groups. The groups
        may differ if both sides have names.
    to
        An optimizer of halfulp, ``torch.optim`` or FlashOptim over the parameters, possibly inside a wrapper such as
        Accelerate's. Its 16-bit weights must be loaded first: what is kept beside them is relative to them.

    Raises
    ------
    ValueError
        If groups, parameters or shapes differ, the target keeps other states, or a value is not finite.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> old = torch.optim.AdamW(model.parameters(), lr=3e-4)
    >>> model(torch.ones(1, 64)).sum().backward(); old.step()
    >>> new = halfulp.AdamW(model.parameters(), state="fp8")
    >>> new.load_state_dict(halfulp.convert_state_dict(old.state_dict(), to=new))
    >>> new.param_groups[0]["lr"]
    0.0003
    """
    to = unwrap(to)
    if not isinstance(to, RuleOptimizer) and not type(to).__module__.startswith("torch.optim") and not _is_flash(to):
        raise ValueError(f"states are converted to halfulp, torch.optim and FlashOptim, not to {type(to).__module__}")
    if not isinstance(state_dict, Mapping):
        raise ValueError("not an optimizer state_dict: it needs the keys 'state' and 'param_groups'")
    target: dict[str, Any] = to.state_dict()
    with reading("the state_dict"):
        return _converted(state_dict, to, target)


def _converted(state_dict: Mapping[str, Any], to: torch.optim.Optimizer, target: dict[str, Any]) -> dict[str, Any]:
    ours = isinstance(to, RuleOptimizer)
    state_dict = torch_layout(state_dict, [[p.shape for p in g["params"]] for g in to.param_groups])
    check_layout(state_dict)
    out: dict[str, Any] = {"state": {}, "param_groups": []}
    matched = match_groups(state_dict["param_groups"], to)
    for pairs, own, group in zip(matched, target["param_groups"], to.param_groups, strict=True):
        hyper = _hyper([saved for saved, _ in pairs], own)
        if isinstance(to, RuleOptimizer):  # the checkpoint's hyper-parameters decide which states exist
            hyper["state"] = to.plan({**group, **_rule_keys(hyper)}).specs
        out["param_groups"].append(hyper)
        place = _Place(to, {**group, **_rule_keys(hyper)}, hyper)
        names = group.get("param_names") or [f"parameter {key}" for _, key in pairs]
        for (saved, old), new, param, label in zip(pairs, own["params"], group["params"], names, strict=True):
            entries = state_dict["state"].get(old)
            if ours and entries and set(entries) == {"step"}:  # the states were forgotten
                out["state"][new] = {"step": int(entries["step"])}
            elif entries:
                made = (_to_ours if ours else _to_torch)(place, param, label, entries, saved)
                out["state"][new] = made
    return {**{k: copy.deepcopy(v) for k, v in target.items() if k not in out}, **out}


@dataclass(frozen=True)
class _Place:
    """Target of a group's states: the resulting `group`, and the hyper-parameters loaded with it."""

    to: Any
    group: Mapping[str, Any]
    hyper: Mapping[str, Any]


def _hyper(saved: list[Mapping[str, Any]], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a target group, from the groups that its parameters were saved in."""
    found = [_group(s, own) for i, s in enumerate(saved) if all(s is not other for other in saved[:i])]
    for other in found[1:]:
        differing = sorted(k for k in other if k not in ("params", "param_names") and other[k] != found[0][k])
        if differing:
            raise ValueError(
                f"parameters of one group were saved in groups that differ in {differing}: build the optimizer with "
                "groups that keep them apart"
            )
    return found[0] if found else copy.deepcopy(dict(own))


def _group(saved: Group, own: Group) -> dict[str, Any]:
    out = copy.deepcopy(dict(own))
    keep = {"params", "param_names", "foreach", "fused", "capturable", "differentiable", *STORAGE_KEYS}
    if isinstance(saved.get("state"), str):  # in another library, a key of this name means something else
        keep -= {"seed"}
    for key, value in saved.items():
        if key not in keep and (key in own or key == "initial_lr"):
            out[key] = float(value) if isinstance(value, Tensor) and not isinstance(own.get(key), Tensor) else value
    if "momentum" in own and "momentum" not in saved and "betas" in saved:  # bitsandbytes' SGD
        out["momentum"] = float(saved["betas"][0])
    if "betas" in out:
        out["betas"] = tuple(float(b) for b in out["betas"][: len(own["betas"])])
    return out


def _decoded(
    entries: Entries,
    saved: Group,
    wanted: Mapping[str, torch.Size],
    label: str,
    kind: str,
    optional: tuple[str, ...] = (),
) -> dict[str, SavedState]:
    """Return the saved states under the target's names and in its shapes. Raise ``ValueError`` if they do not fit."""
    states = saved_states(entries, saved, wanted)
    for name in [n for n in BESIDE if n in states]:
        warn_once(f"{name} has no place in {kind} and is left out")
        del states[name]
    if "state1" in states:
        fit = next((name for name in STATE1 if name in wanted), None)
        if fit is None:
            raise ValueError(f"{label}: {kind} keeps {sorted(wanted)}, none of which is bitsandbytes' state1")
        states[fit] = states.pop("state1")
    missing, extra = sorted(set(wanted) - set(states) - set(optional)), sorted(set(states) - set(wanted))
    if missing or extra:
        lacks = f" lacks {missing}" if missing else ""
        more = f"{' and' if missing else ''} has {extra}, which {kind} does not keep" if extra else ""
        raise ValueError(f"{label}: the state_dict{lacks}{more}; it is of another kind of optimizer")
    for name, state in states.items():
        if tuple(state.shape) != tuple(wanted[name]):
            raise ValueError(f"{label}: {name} has shape {tuple(state.shape)}, {kind} expects {tuple(wanted[name])}")
    return states


def _finite(values: Tensor, name: str, label: str) -> Tensor:
    if values.numel() and not bool(torch.isfinite(values).all()):
        raise ValueError(f"{label}: {name} has values that are not finite; the checkpoint is damaged or diverged")
    return values


def _to_ours(place: _Place, param: Tensor, label: str, entries: Entries, saved: Group) -> dict[str, Any]:
    kind = f"halfulp.{type(place.to).__name__}"
    slots = place.to.slot_storage(place.group, param)
    kept = BESIDE if master_kind(place.group["master_weights"], param, label) else ()
    rest = {k: v for k, v in entries.items() if k not in kept}
    states = _decoded(rest, saved, {slot.name: shape for slot, shape, _ in slots}, label, kind)
    step = _step(entries)
    ages = {name: state.age for name, state in states.items()}
    known = [a for a in ages.values() if a is not None]
    _check_counted(known, step, states, label)
    step = max(known, default=1) if step is None else step  # torch's SGD does not count steps
    made: dict[str, Any] = {"step": step}
    for slot, _, quantizer in slots:
        values = _finite(states[slot.name].values().to(param.device), slot.name, label).contiguous()
        if not slot.signed:
            values = values.clamp_min(0.0)
        codec = states[slot.name].codec
        if isinstance(codec, QuantizerCodec) and codec.quantizer.spec == quantizer.spec:  # already stored in this way
            codes, scale = (t.to(param.device, copy=True) for t in states[slot.name].tensors)
        else:
            codes, scale = quantizer.with_rounding("nearest").quantize(values)
        made[slot.name] = codes.clone()
        if scale is not None:
            made[f"{slot.name}_scale"] = scale
        age = ages[slot.name]
        made[f"{slot.name}_age"] = step if age is None else age
    rule = place.to.active_rule(place.group, param)
    master = MasterState.of(param, place.group["master_weights"], {}, rule, label)
    return made if master is None else made | master_entry(master, param, label, entries)


def _rule_keys(hyper: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters that determine the slots (momentum = 0 has none)."""
    return {k: v for k, v in hyper.items() if k not in (*STORAGE_KEYS, "params", "param_names")}


def _check_counted(ages: list[int], step: int | None, states: Mapping[str, Any], label: str) -> None:
    """Check that the number of steps is known if bias correction needs it: where there is a second moment.

    Some optimizers correct inside the average.
    """
    if not ages and step is None and "exp_avg_sq" in states:
        raise ValueError(
            f"{label}: the state_dict does not say how many steps it has made, which bias correction needs; its "
            "averages may be of a kind that is not converted (pytorch-optimizer)"
        )


def _step(entries: Entries) -> int | None:
    step = entries.get("step")
    return None if step is None else int(step)


def _to_torch(place: _Place, param: Tensor, label: str, entries: Entries, saved: Group) -> dict[str, Any]:
    hyper, kind = place.hyper, f"{type(place.to).__module__.partition('.')[0]}.{type(place.to).__name__}"
    names, beside = _torch_slots(place.to, hyper), _error_bits(place, param, entries)
    entries = {k: v for k, v in entries.items() if not beside or k not in BESIDE}
    states = _decoded(entries, saved, dict.fromkeys(names, param.shape), label, kind, ("max_exp_avg_sq",))
    values = {n: _finite(s.values(), n, label).to(param.device, torch.float32, copy=True) for n, s in states.items()}
    ages = {n: s.age for n, s in states.items() if s.age is not None}
    if "momentum_buffer" in names or names == ["exp_avg"]:  # FlashOptim's Lion counts no steps either
        return values | beside
    _check_counted(list(ages.values()), _step(entries), states, label)
    oldest = max(ages.values(), default=0)
    if "betas" in hyper:
        decays = {"exp_avg": hyper["betas"][0], "exp_avg_sq": hyper["betas"][1]}
        for name, age in ages.items():
            if name in decays and 0 < age < oldest:
                values[name] *= (1 - decays[name] ** oldest) / (1 - decays[name] ** age)
    if "max_exp_avg_sq" in names and "max_exp_avg_sq" not in values:
        warn_once("the running maximum of AMSGrad starts from exp_avg_sq: the checkpoint has none")
        values["max_exp_avg_sq"] = values["exp_avg_sq"].clone()
    step = torch.tensor(oldest if _is_flash(place.to) else float(oldest), device="cpu")
    return {"step": step, **values, **beside}


def _is_flash(to: torch.optim.Optimizer) -> bool:
    return type(to).__module__.partition(".")[0] == "flashoptim"


def _error_bits(place: _Place, param: Tensor, entries: Entries) -> dict[str, Tensor]:
    """Return the entry of FlashOptim's error bits for a 16-bit parameter, in the parameter's dtype as it saves them."""
    dtype = FLASH_BITS.get(int(place.group.get("master_bytewidth") or 0)) if _is_flash(place.to) else None
    values = None if dtype is None or param.dtype == torch.float32 else fp32_weights_of(param, entries)
    if dtype is None or values is None:
        return {}
    bits = error_bits(param.detach(), values, dtype)
    return {ERROR_BITS: bits.to(param.dtype) if dtype == torch.int8 else bits.view(param.dtype)}


def _torch_slots(to: torch.optim.Optimizer, hyper: Mapping[str, Any]) -> list[str]:
    kind = type(to).__name__
    if _is_flash(to):
        if kind == "FlashLion":
            return ["exp_avg"]
        kind = kind.removeprefix("Flash").replace("SGDW", "SGD")
    if kind in ("Adam", "AdamW"):
        return ["exp_avg", "exp_avg_sq", *["max_exp_avg_sq"] * bool(hyper.get("amsgrad"))]
    if kind == "SGD":
        return ["momentum_buffer"] if hyper.get("momentum") else []
    if kind == "RMSprop" and not hyper.get("centered") and not hyper.get("momentum"):
        return ["square_avg"]
    if kind == "Adagrad":
        return ["sum"]
    raise ValueError(f"torch.optim has Adam, AdamW, SGD, RMSprop and Adagrad to convert to, not {kind}")
