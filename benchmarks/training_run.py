"""A small real training run for theory_training.py: its gradients, and what StallMonitor counts of them."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import halfulp

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
    """Gradients by width of the matrix, ``(steps, rows, width)``, the first `before` steps before states were zeroed.

    `measured` and `plain` are the stalled fraction of all coordinates and its plain prediction, by cell and age.
    """

    gradients: dict[int, np.ndarray]
    before: int
    measured: dict[tuple[Cell, int], float]
    plain: dict[tuple[Cell, int], float]


def text() -> torch.Tensor:
    """Source text of the standard library, bytes as tokens."""
    library = Path(sysconfig.get_path("stdlib"))
    data = b"".join(p.read_bytes() for p in sorted(library.glob("*.py")))
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long()


def train(warmup: int, steps: int, before: int) -> Run:
    """Train in fp32; after `warmup` steps, feed the gradients to one AdamW an arm, watched at every coordinate."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    model, data = LlamaForCausalLM(config), text()
    trainer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    arms = []
    for state in ("bf16", "fp8", "fp4"):
        for rounding in ("nearest", "stochastic"):
            copies = [torch.nn.Parameter(p.detach().clone()) for p in matrices]
            optimizer = halfulp.AdamW(copies, lr=0.0, weight_decay=0.0, state=state, rounding=rounding, min_size=0)
            every = sum(p.numel() for p in matrices)
            arms.append((state, rounding, copies, optimizer, halfulp.StallMonitor(optimizer, sample=every)))
    generator = torch.Generator().manual_seed(1)
    seen: list[list[torch.Tensor]] = []
    run = Run({}, before, {}, {})
    for step in range(warmup + steps):
        starts = torch.randint(len(data) - 64, (8,), generator=generator)
        tokens = torch.stack([data[s : s + 64] for s in starts.tolist()])
        model.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        age = step - warmup
        if age >= -before:
            seen.append([p.grad.clone() for p in matrices if p.grad is not None])
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
    for width in sorted({p.shape[1] for p in matrices}):
        rows = [torch.cat([g for g in grads if g.shape[1] == width]) for grads in seen]
        run.gradients[width] = torch.stack(rows).numpy()
    return run
