"""GPT-2 (124 million parameters) from scratch in pure bf16: loss, time and memory by kind of master weights.

Beside the bf16 weights there are fp32 master weights, 16 or 8 bits of remainder, or nothing with stochastic rounding.
States are in fp32, 8 and 4 bits. The twelve runs have a few hundred steps each, from one seed over the same tokens. The
text is the running Python's standard library, split into words. Nothing is downloaded.

    python benchmarks/gpu_train.py --json train.json
    python benchmarks/gpu_train.py --dry-run              a toy model on the CPU; its results mean nothing

Runs that would start after ``--seconds`` are skipped and listed as such, so that the finished ones are written.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import halfulp
from halfulp.lab.files import write_json
from halfulp.lab.text import load_corpus

WEIGHTS: dict[str, dict[str, Any]] = {
    "fp32 master": {"master_weights": "fp32"},
    "remainder16": {"master_weights": "remainder16"},
    "remainder8": {"master_weights": "remainder8"},
    "stochastic": {"param_rounding": "stochastic"},
}
STATES = ("8bit", "fp32", "4bit")
PIECE = re.compile(r"\w+|[^\S\n]+|\n|[^\w\s]")


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and its batches."""

    vocab: int = 50304
    """GPT-2's 50257, padded to a multiple of 128."""
    width: int = 768
    layers: int = 12
    heads: int = 12
    context: int = 1024
    batch: int = 8
    steps: int = 300


TOY = Shape(vocab=512, width=64, layers=2, heads=2, context=16, batch=2, steps=6)


class Block(nn.Module):
    """Attention and feed-forward, each after a norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        w, self.heads = shape.width, shape.heads
        self.norm1, self.norm2 = nn.LayerNorm(w), nn.LayerNorm(w)
        self.qkv, self.out = nn.Linear(w, 3 * w), nn.Linear(w, w)
        self.up, self.down = nn.Linear(w, 4 * w), nn.Linear(4 * w, w)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, context, width)`` to the same shape."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT2(nn.Module):
    """The GPT-2 decoder with its initialization. The embedding is shared with the output."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(shape.vocab, shape.width), nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                scale = math.sqrt(2 * shape.layers) if name.endswith(("out.weight", "down.weight")) else 1.0
                nn.init.normal_(p, std=0.02 / scale)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def loss(self, tokens: Tensor) -> Tensor:
        """Return the mean cross entropy of ``(batch, context + 1)`` tokens."""
        x = self.tokens(tokens[:, :-1]) + self.places.weight
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def words(text: list[str], vocab: int) -> Tensor:
    """Encode texts as indices of their most frequent pieces; 0 stands for all others."""
    pieces = [piece for one in text for piece in PIECE.findall(one)]
    known = {piece: i + 1 for i, (piece, _) in enumerate(Counter(pieces).most_common(vocab - 1))}
    return torch.tensor([known.get(piece, 0) for piece in pieces])


def batch(tokens: Tensor, shape: Shape, step: int, device: str) -> Tensor:
    """Return the sequences of a step, the same for every run."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(tokens) - shape.context - 1, (shape.batch, 1), generator=generator)
    return tokens[starts + torch.arange(shape.context + 1)].to(device)


def train(weights: str, state: str, tokens: Tensor, shape: Shape, device: str) -> dict[str, Any]:
    """Train one run."""
    torch.manual_seed(0)
    model = GPT2(shape).to(device, torch.bfloat16)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    decayed = [(n, p) for n, p in model.named_parameters() if p.ndim == 2]
    others = [(n, p) for n, p in model.named_parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = halfulp.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), state=state, **WEIGHTS[weights])
    warm, losses, begin, stepping = min(50, shape.steps // 2), [], 0.0, 0.0
    for step in range(shape.steps):
        rate = min((step + 1) / warm, 0.55 + 0.45 * math.cos(math.pi * step / shape.steps))
        for group in optimizer.param_groups:
            group["lr"] = 6e-4 * rate
        optimizer.zero_grad()
        loss = model.loss(batch(tokens, shape, step, device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        timed = step % 10 == 9 or step == shape.steps - 1
        if timed:
            losses.append(float(loss.detach()))  # this waits for the device
        before = time.perf_counter()
        optimizer.step()
        if timed and device == "cuda":
            torch.cuda.synchronize()
        if timed:
            stepping = time.perf_counter() - before
        if step == warm - 1:
            float(loss.detach())
            begin = time.perf_counter()
    elapsed = time.perf_counter() - begin
    if not all(math.isfinite(value) for value in losses):
        raise RuntimeError(f"{weights}, {state}: the loss is not finite")
    return {
        "weights": weights,
        "states": state,
        "loss": sum(losses[-5:]) / len(losses[-5:]),
        "iteration ms": 1e3 * elapsed / (shape.steps - warm),
        "step ms": 1e3 * stepping,
        "state B/param": optimizer.memory().bytes_per_parameter,
        "peak MB": torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else 0.0,
        "losses": losses,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=220.0, help="no run begins later than this")
    parser.add_argument("--steps", type=int, help="of each run")
    parser.add_argument("--text", type=Path, help="file or folder to train on; the standard library by default")
    parser.add_argument("--json", type=Path, help="also write the results there, after every run")
    parser.add_argument("--dry-run", action="store_true", help="a toy model on the CPU, to test the script")
    args = parser.parse_args()
    device, shape = ("cpu", TOY) if args.dry_run else ("cuda", Shape())
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu_train: torch finds no CUDA device here. Run it where one is; --dry-run only tests the script.")
    shape = shape if args.steps is None else Shape(**{**vars(shape), "steps": args.steps})
    corpus = load_corpus(args.text, max_mb=0.2 if args.dry_run else 64.0)
    tokens = words(corpus.train, shape.vocab)
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU, dry run: no figure here means anything"
    begin, rows, late = time.perf_counter(), [], []
    for state in STATES:
        for weights in WEIGHTS:
            if time.perf_counter() - begin > args.seconds:
                late.append(f"{weights}, {state}")
                continue
            rows.append(train(weights, state, tokens, shape, device))
            if args.json is not None:
                found = {"where": where, "text": corpus.info["source"], "tokens": len(tokens), "shape": vars(shape)}
                write_json(args.json, {**found, "runs": rows})
    columns = [name for name in rows[0] if name != "losses"] if rows else ["weights", "states"]
    title = f"{shape.layers} layers of {shape.width}, {shape.steps} steps, {corpus.info['source']}. {where}"
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(f"{row[c]:.3f}" if isinstance(row[c], float) else row[c] for c in columns))
    Console(width=None if sys.stdout.isatty() else 130).print(table)
    if late:
        sys.exit(f"gpu_train: no time was left for {'; '.join(late)}")


if __name__ == "__main__":
    main()
