"""Random states through ``hu_encode`` and ``hu_decode``, the C library's entry points, against the quantizers.

``python -m support.random_codecs SEED COUNT`` (in ``tests``) runs some and prints the failures.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from halfulp.kernels import cpu, native
from halfulp.kernels.descriptors import describe_slot
from halfulp.numbers.quantizer import Quantizer
from halfulp.numbers.rng import LANES, hash_elements
from halfulp.numbers.scaling import Scaling, rows_and_cols
from support.random_steps import BLOCKS, KINDS, SHAPES, difference, draw_format, values

LARGE: tuple[tuple[int, ...], ...] = ((70001,), (3, 40000), (1000, 77), (2, 3, 33000))
"""Shapes that several threads process."""
STARTS = (0, 0, 1, 63, 2**31 - 5, 2**32 - 300, 2**32 - 1, 2**33 + 17, 2**40 + 3, 2**63)
"""Global indices of first elements."""
STRIDES = (0, 0, 1, 2**20, 2**31, 2**32 - 1, 2**33)
"""Extra distances between rows of the whole tensor, beyond their length."""


@dataclass
class Case:
    """A tensor to be stored."""

    quantizer: Quantizer
    x: Tensor
    first_element: int = 0
    row_stride: int = 0
    """The distance between rows of the whole tensor, beyond their length."""
    threads: int = 1
    any_bytes: bool = False
    """Whether to decode random bytes, as in a file, instead of stored values."""


def draw(seed: int) -> Case | None:
    """Return the case of a seed, or ``None`` if its levels are too uneven for a quantizer."""
    r, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    signed = r.random() < 0.6
    fmt, kind, block = draw_format(r, signed), r.choice(("pow2", "fp32")), r.choice(BLOCKS)
    scaling = Scaling(kind, r.choice(("block", "block", "row", "tensor")), block)
    try:
        quantizer = Quantizer(fmt, scaling, r.choice(("nearest", "stochastic")), zero_floor=r.random() < 0.5)
    except ValueError:
        return None
    shape = r.choice((*SHAPES, *LARGE) if r.random() < 0.1 else SHAPES)
    x = values(r.choice(KINDS), shape, generator)
    if not signed and r.random() < 0.9:
        x = x.abs()
    x = torch.where(x.isfinite(), x, 0.5)  # a step stores only finite values
    return Case(quantizer, x, r.choice(STARTS), r.choice(STRIDES), r.randint(1, 3), r.random() < 0.5)


def compare(case: Case, seed: int = 0) -> str | None:
    """Return the difference between C and the quantizer, or ``None``."""
    r, x, quantizer = random.Random(seed), case.x.contiguous(), case.quantizer
    rows, cols = rows_and_cols(x.shape)
    stride = cols + case.row_stride
    start = min(case.first_element, 2**63 - rows * stride - 1)
    key = (r.getrandbits(32), r.getrandbits(32), r.choice(LANES))
    elements = start + stride * torch.arange(rows).unsqueeze(1) + torch.arange(cols)
    expected = quantizer.quantize(x, hash_elements(key, elements.reshape(x.shape)) if quantizer.stochastic else None)
    codes, scale = torch.empty_like(expected[0]), None if expected[1] is None else torch.empty_like(expected[1])
    slot = describe_slot(quantizer, x.shape)
    slot["codes"], slot["key"] = codes.data_ptr(), key
    if scale is not None:
        slot["scale"] = scale.data_ptr()
    lib, out = native.library(), torch.empty(x.shape)
    lib.hu_encode(slot.ctypes.data, rows, cols, start, stride, x.data_ptr(), case.threads)
    found = difference(entries(codes, scale), entries(*expected))
    if found is not None:
        return f"encoded {found}"
    if case.any_bytes and quantizer.format.bits <= 8:
        generator = torch.Generator().manual_seed(seed)
        codes.copy_(torch.randint(0, 256, codes.shape, generator=generator, dtype=torch.uint8))
    lib.hu_decode(slot.ctypes.data, rows, cols, out.data_ptr(), case.threads)
    found = difference({"values": out}, {"values": quantizer.dequantize(codes, scale, x.shape)})
    return None if found is None else f"decoded {found}"


def entries(codes: Tensor, scale: Tensor | None) -> dict[str, Tensor]:
    """Return the stored tensors by name."""
    return {"codes": codes} if scale is None else {"codes": codes, "scale": scale}


def search(first: int, count: int) -> tuple[int, list[str]]:
    """Return how many of the seeds agreed, and the descriptions of the others."""
    agreed, differed = 0, []
    for seed in range(first, first + count):
        case = draw(seed)
        found = None if case is None else compare(case, seed)
        agreed += case is not None and found is None
        if case is not None and found is not None:
            differed.append(f"seed {seed}: {case.quantizer}, shape {tuple(case.x.shape)}: {found}")
    return agreed, differed


if __name__ == "__main__":
    assert cpu.status().startswith("available"), cpu.status()
    start, total, agreed = int(sys.argv[1]), int(sys.argv[2]), 0
    for seed in range(start, start + total, 500):
        more, bad = search(seed, min(500, start + total - seed))
        agreed += more
        print(*bad, f"{agreed} have agreed, up to seed {seed + 500}", sep="\n", flush=True)
