"""Averages of a small model with integer arithmetic, for checkpoints written by earlier versions."""

import hashlib

import torch
from torch import nn

from halfulp.averaging import BEMA, EMA, LAWA, SWA, AveragedModel, ElasticReset, EMAPytorch, PostHocEMA, Teacher, Warmup

BUILD = {
    "ema fp32": lambda m: EMA(m, 0.9, state="fp32"),
    "ema bf16": lambda m: EMA(m, 0.9, state="bf16", seed=3),
    "ema 8bit": lambda m: EMA(m, Warmup(0.99), state="8bit", update_every=2),
    "ema 4bit nearest": lambda m: EMA(m, 0.9, state="4bit", rounding="nearest", buffers="average"),
    "difference": lambda m: EMA(m, 0.9, state="8bit", difference=True),
    "swa": lambda m: SWA(m, state="bf16"),
    "lawa": lambda m: LAWA(m, size=2, every=2, state="8bit"),
    "bema": lambda m: BEMA(m, update_every=1, state="bf16"),
    "elastic reset": lambda m: ElasticReset(m, 0.9, every=5, state="8bit"),
    "post hoc": lambda m: PostHocEMA(m, every=3, state="8bit"),
    "teacher": lambda m: Teacher(m, 0.9, state="8bit"),
    "averaged model": lambda m: AveragedModel(m, state="8bit", use_buffers=True),
    "ema pytorch": lambda m: EMAPytorch(m, beta=0.9, update_after_step=2, update_every=2, state="8bit"),
}


def build():
    """Return a model with two matrices, a batch norm and a tied weight. Its values are exact in every 11-bit format."""
    model = nn.Sequential(nn.Linear(32, 48), nn.BatchNorm1d(48), nn.Linear(48, 32), nn.Linear(32, 48, bias=False))
    model[3].weight = model[0].weight
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.copy_(_pattern(p, k, 0))
    return model


def _pattern(tensor, k, step):
    return ((torch.arange(tensor.numel()) * 37 + 59 * k + 101 * step) % 211 - 105).reshape(tensor.shape) / 1024


@torch.no_grad()
def move(model, step, average):
    """Do one step of training and of the average."""
    if getattr(average, "difference", False):
        average.before_step()
    for k, p in enumerate(model.parameters()):
        p.add_(_pattern(p, k, step) / 8)
    model[1].running_mean.add_(0.25)
    update = getattr(average, "update", None)
    average.update_parameters(model) if update is None else update()


def digest(state):
    """Return a digest of every number and bit of nested mappings."""
    found = hashlib.sha256()

    def visit(value):
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                found.update(str(key).encode())
                visit(value[key])
        elif isinstance(value, (list, tuple)):
            for one in value:
                visit(one)
        elif isinstance(value, torch.Tensor):
            found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            found.update(repr(value).encode())

    visit(state)
    return found.hexdigest()
