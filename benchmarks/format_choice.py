"""Which format loses least in which slot, on the gradients of a real run.

A small language model is trained in fp32 on the source text of the standard library. At every step the same gradients
also go to AdamW optimizers that store one slot in a candidate format, and the other in fp32. Their parameters are held
at zero with lr = 1, so that each result is the update. The output is the update's mean squared error relative to the
fp32 update's mean square, over the steps after the first 100 (or half, if fewer), and the share of stored codes that
are zero.

With ``--spread SD`` the gradients are independent normal numbers instead. The standard deviations of neighbouring
elements differ by a log-normal factor (SD in natural logarithms), so blocks can be arbitrarily uneven.

Usage: python benchmarks/format_choice.py [--steps 1500] [--spread SD] [--only FORMAT ...] [--out table.csv]
"""

from __future__ import annotations

import argparse
import csv
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from halfulp import AdamW, Quantizer, Scaling
from halfulp.numbers.formats import FORMATS

CANDIDATES = {
    "exp_avg": ["bfloat16", "float8_e4m3fn", "float8_e3m4", "float8_e5m2", "dynamic8", "linear8",
        "float4_e2m1fn", "int4",
    ],
    "exp_avg_sq": [
        "bfloat16", "float8_e4m3fn", "float8_e5m2", "ufloat8_e4m4", "ufloat8_e5m3", "udynamic8", "ulinear8",
        "ufloat4_e2m2", "ufloat4_e3m1", "ufloat4_e4m0", "uint4",
    ],
}  # fmt: skip


@dataclass
class Candidate:
    """One format in one slot, and its error so far."""

    slot: str
    format: str
    scale: str
    rounding: str
    optimizer: AdamW
    params: list[torch.Tensor]
    errors: list[float] = field(default_factory=list)
    zeros: float = 0.0


def candidates(shapes: list[torch.Size], betas: tuple[float, float], only: list[str] | None) -> Iterator[Candidate]:
    for slot, names in CANDIDATES.items():
        for name in names if only is None else [n for n in names if n in only]:
            for scale in ("pow2", "fp32") if FORMATS[name].scaled else ("none",):
                for rounding in ("nearest", "stochastic"):
                    yield candidate(slot, name, scale, rounding, shapes, betas)


def candidate(
    slot: str, name: str, scale: str, rounding: str, shapes: list[torch.Size], betas: tuple[float, float]
) -> Candidate:
    params = [torch.nn.Parameter(torch.zeros(s)) for s in shapes]
    scaling, floor = Scaling("pow2" if scale == "none" else scale), slot == "exp_avg_sq"
    quantizer = Quantizer(FORMATS[name], scaling, rounding, floor)
    optimizer = AdamW(params, lr=1.0, betas=betas, weight_decay=0.0, state={slot: quantizer}, min_size=0)
    return Candidate(slot, name, scale, rounding, optimizer, params)


def batches(seed: int, batch: int, length: int) -> Iterator[torch.Tensor]:
    library = Path(sysconfig.get_path("stdlib"))
    text = b"".join(p.read_bytes() for p in sorted(library.glob("*.py")))
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(data) - length, (batch,), generator=generator)
        yield torch.stack([data[s : s + length] for s in starts.tolist()])


def model_gradients(betas: tuple[float, float]) -> Iterator[list[torch.Tensor]]:
    """Yield the gradients of a small language model's matrices, trained by AdamW in fp32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    trainer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=betas)
    for tokens in batches(0, 8, 128):
        model.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        yield [p.grad for p in model.parameters() if p.ndim == 2 and p.grad is not None]
        trainer.step()


def uneven_gradients(spread: float) -> Iterator[list[torch.Tensor]]:
    """Yield normal gradients with a log-normal standard deviation per element."""
    generator = torch.Generator().manual_seed(0)
    deviation = torch.exp(spread * torch.randn(128, 256, generator=generator))
    while True:
        yield [deviation * torch.randn(128, 256, generator=generator)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--betas", type=float, nargs=2, default=(0.9, 0.999))
    parser.add_argument("--spread", type=float)
    parser.add_argument("--only", nargs="+", choices=sorted({n for names in CANDIDATES.values() for n in names}))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    betas = (args.betas[0], args.betas[1])
    source = model_gradients(betas) if args.spread is None else uneven_gradients(args.spread)
    shapes = [g.shape for g in next(source)]
    exact = candidate("exp_avg", "float32", "none", "nearest", shapes, betas)
    arms = list(candidates(shapes, betas, args.only))
    for step, gradients in zip(range(args.steps), source, strict=False):
        for arm in [exact, *arms]:
            for p, gradient in zip(arm.params, gradients, strict=True):
                p.data.zero_()
                p.grad = gradient
            arm.optimizer.step()
        update = torch.cat([p.detach().flatten() for p in exact.params])
        for arm in arms if step >= min(100, args.steps // 2) else []:
            own = torch.cat([p.detach().flatten() for p in arm.params])
            arm.errors.append(float((own - update).square().mean() / update.square().mean()))
    rows = []
    for arm in arms:
        values = torch.cat([arm.optimizer.state_tensor(p, arm.slot).flatten() for p in arm.params])
        arm.zeros = float((values == 0).float().mean())
        errors = torch.tensor(arm.errors)
        rows.append([arm.slot, arm.format, arm.scale, arm.rounding, float(errors.mean()), float(errors[-1]), arm.zeros])
    rows.sort(key=lambda r: (r[0], r[4]))
    print(f"{'slot':11} {'format':14} {'scale':5} {'rounding':10} {'error':>9} {'at end':>9} {'zeros':>6}")
    for slot, name, scale, rounding, mean, last, zeros in rows:
        print(f"{slot:11} {name:14} {scale:5} {rounding:10} {mean:9.5f} {last:9.5f} {zeros:6.3f}")
    if args.out:
        with args.out.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [["slot", "format", "scale", "rounding", "error", "last", "zeros"], *rows]
            )


if __name__ == "__main__":
    main()
