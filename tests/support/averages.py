"""A model of which averages are taken, and steps of its weights."""

import torch
from torch import nn


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 96), nn.BatchNorm1d(96), nn.GELU(), nn.Linear(96, 64, bias=False))


@torch.no_grad()
def walk(model, step, size=0.01):
    """A step that every run makes alike."""
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.add_(torch.randn(p.shape, generator=generator) * size)
