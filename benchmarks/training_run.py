"""A small real training run for theory_training.py: its gradients, and StallMonitor's counts for them."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

import halfulp
from halfulp.numbers.scaling import Scaling

AGES = (9, 29, 99, 199, 299)
BETAS = {"exp_avg": 0.9, "exp_avg_sq": 0.999}
CELLS = [
    (state, rounding, slot)
    for slot in ("exp_avg_sq", "exp_avg")
    for state in ("bf16", "fp8", "fp4")
    for rounding in ("nearest", "stochastic")
]
Cell = tuple[str, str, str]


@dataclass
class Run:
    """Gradients by block width, ``(steps, blocks, elements)``; the first `before` steps precede the reset.

    `measured` and `plain` are the stalled fraction of all coordinates and its plain prediction, by cell and age.
    """

    gradients: dict[int, np.ndarray]
    before: int
    measured: dict[tuple[Cell, int], float]
    plain: dict[tuple[Cell, int], float]


def text() -> torch.Tensor:
    """Return source text of the standard library, with bytes as tokens."""
    library = Path(sysconfig.get_path("stdlib"))
    data = b"".join(p.read_bytes() for p in sorted(library.glob("*.py")))
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long()


def build(name: str, seed: int) -> torch.nn.Module:
    """Return a small language model: 0.09 million parameters in blocks of 64 and 128, or 0.25 million in 96 and 128."""
    torch.manual_seed(seed)
    common = {"vocab_size": 256, "num_hidden_layers": 2, "max_position_embeddings": 64, "tie_word_embeddings": False}
    if name == "llama":
        config = LlamaConfig(hidden_size=64, intermediate_size=128, num_attention_heads=2, **common)
        return LlamaForCausalLM(config)
    return GPTNeoXForCausalLM(GPTNeoXConfig(hidden_size=96, intermediate_size=384, num_attention_heads=3, **common))


def train(warmup: int, steps: int, before: int, *, name: str = "llama", seed: int = 0) -> Run:
    """Train in fp32. After `warmup` steps, feed the gradients to one AdamW per arm, watched at every coordinate."""
    model, data = build(name, seed), text()
    trainer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    matrices = [
        p for n, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in n and "embed_in" not in n
    ]
    arms = []
    for state in ("bf16", "fp8", "fp4"):
        for rounding in ("nearest", "stochastic"):
            copies = [torch.nn.Parameter(p.detach().clone()) for p in matrices]
            optimizer = halfulp.AdamW(copies, lr=0.0, weight_decay=0.0, state=state, rounding=rounding, min_size=0)
            every = sum(p.numel() for p in matrices)
            arms.append((state, rounding, copies, optimizer, halfulp.StallMonitor(optimizer, sample=every)))
    generator = torch.Generator().manual_seed(seed + 1)
    seen: list[list[torch.Tensor]] = []
    run = Run({}, before, {}, {})
    for step in range(warmup + steps):
        starts = torch.randint(len(data) - 64, (8,), generator=generator)
        tokens = torch.stack([data[s : s + 64] for s in starts.tolist()])
        model.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        age = step - warmup
        if age >= -before:
            seen.append([blocks(p.grad.clone()) for p in matrices if p.grad is not None])
        if age >= 0:
            for state, rounding, copies, optimizer, monitor in arms:
                for copy, source in zip(copies, matrices, strict=True):
                    copy.grad = source.grad
                optimizer.step()
                if age in AGES:
                    for m in monitor.measure():
                        run.measured[(state, rounding, m.slot), age] = m.stalled
                        run.plain[(state, rounding, m.slot), age] = m.predicted or 0.0
        trainer.step()
    for size in sorted({g.shape[1] for g in seen[0]}):
        run.gradients[size] = torch.stack([torch.cat([g for g in gs if g.shape[1] == size]) for gs in seen]).numpy()
    return run


def blocks(gradient: torch.Tensor) -> torch.Tensor:
    """Return a matrix in the blocks in which it is stored. Its rows hold a whole number of them."""
    return gradient.reshape(-1, Scaling().layout(gradient.shape).block)
