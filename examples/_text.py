"""Data and model of the examples: the bytes of Python's own library, and a small LLaMA."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

LENGTH = 64


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=LENGTH,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def windows(count: int) -> Tensor:
    """Return `count` windows of source text, shape ``(count, LENGTH)``."""
    text = b"".join(p.read_bytes() for p in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    starts = torch.randint(len(data) - LENGTH, (count,), generator=torch.Generator().manual_seed(0))
    return torch.stack([data[s : s + LENGTH] for s in starts.tolist()])


def batches(steps: int, size: int = 8) -> Iterator[Tensor]:
    yield from windows(steps * size).split(size)


def rows(count: int) -> list[dict[str, Tensor]]:
    """Return the same as a data set of dictionaries."""
    return [{"input_ids": w, "labels": w} for w in windows(count)]
