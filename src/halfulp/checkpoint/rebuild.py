"""Conversion of a saved optimizer without its model. Parameters in the shapes of its states replace the real ones."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from halfulp.checkpoint.atomic import folder_written, write_bytes
from halfulp.checkpoint.convert import convert_state_dict
from halfulp.checkpoint.decode import saved_states
from halfulp.checkpoint.files import write_file
from halfulp.checkpoint.foreign import torch_layout
from halfulp.checkpoint.read import find_optimizers

__all__ = ["choose", "rebuilt", "write_saved"]

KINDS = {
    frozenset({"exp_avg", "exp_avg_sq"}): "AdamW",
    frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}): "AdamW",
    frozenset({"exp_avg"}): "Lion",
    frozenset({"state1"}): "Lion",
    frozenset({"momentum_buffer"}): "SGD",
}
"""Optimizer with exactly these states. Adam's are those of AdamW."""
SUFFIXES = (".pt", ".pth", ".bin")


def choose(tree: Any, at: str | None) -> tuple[str, dict[str, Any]]:
    """Return the optimizer and its path. Raise ``ValueError`` if there are several and none is named."""
    found = dict(find_optimizers(tree))
    if at is None and len(found) > 1:
        raise ValueError(f"there are {len(found)} optimizers: name one of {', '.join(found)} with --at")
    place = next(iter(found)) if at is None else at
    if place not in found:
        raise ValueError(f"no optimizer at {place!r}; there are {', '.join(map(repr, found))}")
    return place, found[place]


def rebuilt(
    saved: Mapping[str, Any], state: str, optimizer: str | None = None, rounding: str = "stochastic"
) -> tuple[dict[str, Any], str]:
    """Return the state dictionary of an optimizer with the states of `saved`, and the optimizer's name.

    `state` is a format, or ``"torch"`` for ``torch.optim``. `optimizer` is the name of a class, by default of the one
    that has these states. `rounding` is that of later steps.

    Raises
    ------
    ValueError
        If the optimizer is unknown or has other states.
    """
    from halfulp.optim import OPTIMIZERS

    saved = torch_layout(saved, [])
    if not saved["param_groups"] or any("params" not in g for g in saved["param_groups"]):
        raise ValueError("the file holds states without groups of parameters: hyper-parameters are not known")
    groups, kinds = [], set[str]()
    for group in saved["param_groups"]:
        params = []
        for key in group["params"]:
            states = saved_states(saved["state"].get(key, {}), group)
            shapes = {name: s.shape for name, s in states.items() if name not in ("kahan_comp", "master_param")}
            if any(getattr(s.codec, "quantizer", None) and s.codec.quantizer.format.packed for s in states.values()):  # type: ignore[attr-defined]
                raise ValueError(
                    "a state of 4 bits does not say whether its rows are odd: convert it in Python, with "
                    "halfulp.convert_state_dict and the optimizer of the model"
                )
            kinds |= set(shapes)
            shape = max(shapes.values(), key=len, default=torch.Size([0]))
            params.append(nn.Parameter(torch.empty(shape, device="cpu")))
        names = group.get("param_names")
        groups.append({"params": list(zip(names, params, strict=True)) if names else params})
    name = optimizer or KINDS.get(frozenset(kinds))
    if name is None:
        raise ValueError(f"the states are {sorted(kinds)}: say whose they are with --optimizer")
    ours = {cls.__name__: cls for cls in OPTIMIZERS}
    if state == "torch":
        made = getattr(torch.optim, name, None)
        if made is None:
            raise ValueError(f"torch.optim has no {name}")
        target = made(groups, lr=1e-3)
    elif name in ours:
        target = ours[name](groups, state=state, rounding=rounding)
    else:
        raise ValueError(f"--optimizer is one of {', '.join(ours)}; got {name!r}")
    return convert_state_dict(saved, to=target), name if state != "torch" else f"torch.optim.{name}"


def write_saved(state_dict: dict[str, Any], path: Path) -> None:
    """Write a state dictionary as safetensors, a torch file or a DCP folder, according to the path's suffix."""
    if path.suffix == ".safetensors":
        write_file(state_dict, path)
    elif path.suffix in SUFFIXES:
        data = io.BytesIO()
        torch.save(state_dict, data)
        write_bytes(path, data.getvalue())
    elif path.suffix and not path.is_dir():
        raise ValueError(f"{path} must be .safetensors, {', '.join(SUFFIXES)}, or a folder without suffix")
    else:
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException

        with folder_written(path) as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about running in a single process
            try:
                dcp.save({"optimizer": state_dict}, checkpoint_id=folder, no_dist=True)
            except CheckpointException as error:  # the errors of all ranks, of which there is one
                raise next(iter(error.failures.values()))[0] from None
