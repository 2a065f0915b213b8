"""Self-test before training that an optimizer's checkpoints can be loaded again."""

from __future__ import annotations

import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from halfulp.checkpoint.files import read_file, write_file
from halfulp.engine.loading import validate
from halfulp.engine.optimizer import RuleOptimizer
from halfulp.engine.slot_state import SlotState

__all__ = ["check_roundtrip"]


@torch.no_grad()
def check_roundtrip(optimizer: torch.optim.Optimizer) -> int:
    """Save and load the states of one parameter per kind of storage, and compare every bit.

    It takes milliseconds, since it uses the smallest parameter of each storage. It tests ``torch.save`` with
    ``weights_only`` and the library's own files. Before the first step, our optimizers are tested on noise in the
    shapes and formats of their later states. The optimizer is not changed.

    Parameters
    ----------
    optimizer
        Any optimizer.

    Returns
    -------
    int
        Number of parameters tested.

    Raises
    ------
    RuntimeError
        If something is not restored bit for bit. The message says what.

    Examples
    --------
    >>> import torch, halfulp
    >>> optimizer = halfulp.AdamW(torch.nn.Linear(64, 64).parameters(), state="fp8")
    >>> halfulp.check_roundtrip(optimizer)
    2
    """
    state_dict = optimizer.state_dict()
    if isinstance(optimizer, RuleOptimizer):
        state_dict = {**state_dict, "state": _probes(optimizer, state_dict)}
    for name, copy in (("torch.save", _by_torch(state_dict)), ("save_optimizer", _by_file(state_dict))):
        where = _difference(state_dict, copy, "state_dict")
        if where is not None:
            raise RuntimeError(f"{where} does not come back from {name} as it was")
        if isinstance(optimizer, RuleOptimizer):
            states, _ = validate(optimizer, copy)
            flat = [p for g in optimizer.param_groups for p in g["params"]]
            for number, entries in state_dict["state"].items():
                where = _difference(entries, states[flat[number]], f"state of parameter {number}")
                if where is not None:
                    raise RuntimeError(f"{where} is not what load_state_dict would take from {name}")
    return len(state_dict["state"])


def _probes(optimizer: RuleOptimizer, state_dict: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the states of the smallest parameter of each storage: its own, or noise."""
    chosen: dict[Any, tuple[int, int, dict[str, Any], Tensor]] = {}
    number = 0
    for at, group in enumerate(optimizer.param_groups):
        for param in group["params"]:
            key = (at, tuple((s.name, len(shape), q.spec) for s, shape, q in optimizer.slot_storage(group, param)))
            if key not in chosen or param.numel() < chosen[key][0]:
                chosen[key] = (param.numel(), number, group, param)
            number += 1
    probes = {}
    generator = torch.Generator().manual_seed(0)
    for _, number, group, param in chosen.values():
        if number in state_dict["state"]:
            probes[number] = state_dict["state"][number]
            continue
        entries: dict[str, Any] = {"step": 3}
        for slot, shape, quantizer in optimizer.slot_storage(group, param):
            noise = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
            codes, scale = quantizer.with_rounding("nearest").quantize(noise if slot.signed else noise.square())
            state = SlotState(slot, quantizer, shape, entries)
            entries[slot.name], entries[state.age_key] = codes.to(param.device), 2
            if scale is not None:
                entries[state.scale_key] = scale.to(param.device)
        probes[number] = entries
    return probes


def _by_torch(state_dict: dict[str, Any]) -> Any:
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def _by_file(state_dict: dict[str, Any]) -> Any:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "selftest.safetensors"
        write_file(state_dict, path)
        return read_file(path)


def _difference(a: Any, b: Any, where: str) -> str | None:
    """Return the path of the first bitwise difference, or ``None``."""
    if isinstance(a, Tensor):
        same = isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape
        if same:
            x, y = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
            same = torch.equal(x, y)
        return None if same else where
    if isinstance(a, dict):
        if not isinstance(b, dict) or set(a) != set(b):
            return where
        return next((d for k in a if (d := _difference(a[k], b[k], f"{where}[{k!r}]")) is not None), None)
    if isinstance(a, (list, tuple)):
        if not isinstance(b, (list, tuple)) or len(a) != len(b):
            return where
        pairs = enumerate(zip(a, b, strict=True))
        return next((d for i, (x, y) in pairs if (d := _difference(x, y, f"{where}[{i}]")) is not None), None)
    return None if a == b or (a != a and b != b) else where
