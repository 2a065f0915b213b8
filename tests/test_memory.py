"""Bytes per parameter for a model of 10 million parameters, against the bytes of the stored tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import halfulp

LIMITS = {
    "fp32": 8.0,
    "bf16": 4.0,
    "fp16": 4.0,
    "fp8": 2.04,
    "8bit": 2.04,
    "int8": 2.04,
    "fp4": 1.04,
    "4bit": 1.04,
    "int4": 1.04,
}


def ten_million() -> nn.Module:
    """A transformer's matrices: embedding, attention and MLP of six layers, norms."""
    width, layers = 384, 6
    blocks = [
        nn.ModuleDict({
            "qkv": nn.Linear(width, 3 * width, bias=False), "out": nn.Linear(width, width, bias=False),
            "up": nn.Linear(width, 3 * width), "down": nn.Linear(3 * width, width), "norm": nn.LayerNorm(width),
        })
        for _ in range(layers)
    ]  # fmt: skip
    return nn.ModuleList([nn.Embedding(3000, width), *blocks])


@pytest.mark.parametrize("state", LIMITS)
def test_bytes_per_parameter(state: str) -> None:
    model = ten_million()
    count = sum(p.numel() for p in model.parameters())
    assert 9.5e6 < count < 10.5e6
    optimizer = halfulp.AdamW(model.named_parameters(), state=state)
    planned = optimizer.memory()  # before any step: the planned bytes
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e-3)
    optimizer.step()
    stored = [v for e in optimizer.state.values() for v in e.values() if isinstance(v, Tensor)]
    real = sum(v.untyped_storage().nbytes() for v in stored)
    assert planned == optimizer.memory()
    assert planned.total == real == sum(r.bytes for r in planned.rows) == sum(planned.by_storage.values())
    assert planned.parameters == count
    kept = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    extra = 8 * kept / count if state != "fp32" else 0.0
    assert kept < 0.002 * count
    assert planned.bytes_per_parameter == real / count <= LIMITS[state] + (extra if state in ("bf16", "fp16") else 0)
    saved = [v for e in optimizer.state_dict()["state"].values() for v in e.values() if isinstance(v, Tensor)]
    assert sum(v.untyped_storage().nbytes() for v in saved) == real


def test_the_report_says_it_in_words() -> None:
    optimizer = halfulp.AdamW(nn.Linear(64, 64).named_parameters(), state="fp8")
    text = str(optimizer.memory())
    total = 2 * (64 * 64 + 64) + 2 * 64 * 4
    assert f"{total:,} bytes of state, {total / (64 * 65):.4f} per parameter" in text
    assert "float8_e4m3fn:pow2:block128" in text
    assert "kept in float32 (1 parameter):\n  bias: 1-D tensor" in text
    assert optimizer.memory().kept_fp32 == {"bias": "1-D tensor"}


def test_no_parameters_no_division() -> None:
    report = halfulp.AdamW([nn.Parameter(torch.empty(0, 5))], state="fp8", min_size=0).memory()
    assert (report.total, report.bytes_per_parameter) == (0, 0.0)


@pytest.mark.parametrize(
    ("shapes", "options", "warned"),
    [
        ([(1 << 18,)], {}, True),  # a part flattened by DeepSpeed's ZeRO
        ([(1 << 18,)], {"min_size": 0}, False),
        ([(1 << 18,)], {"state": "fp32"}, False),
        ([(1 << 12,)], {}, False),  # less than a MiB
        ([(1 << 18,), (1 << 12, 1 << 12)], {}, False),  # less than a tenth
        ([(1 << 18,), (1 << 10, 1 << 10)], {}, True),
        ([(32, 64)] * 128, {}, True),
        ([(1 << 10, 1 << 9)], {"keep_fp32": "w*"}, False),  # asked for
    ],
)
def test_what_fp32_states_cost_is_said_once(
    shapes: list[tuple[int, ...]], options: dict[str, Any], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    params = [(f"w{i}", nn.Parameter(torch.zeros(shape))) for i, shape in enumerate(shapes)]
    optimizer = halfulp.AdamW(params, **options)
    for _ in range(2):
        for _, p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    said = [m for m in caplog.messages if "stay in fp32 take" in m]
    assert len(said) == warned
    if warned:
        kept = sum(row.bytes for row in optimizer.memory().rows if row.kept_fp32)
        assert f"take {kept / 2**20:.1f} of {optimizer.memory().total / 2**20:.1f} MiB" in said[0]
        assert "min_size=0" in said[0]
