"""A step in pieces of a tensor has the bits of a step of the whole tensor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from halfulp.kernels import pieces, reference
from halfulp.numbers.scaling import Scaling
from support.kernel_cases import Case, assert_same_bits, make_step

BASE = Case(shape=(70, 256))
CASES = [
    BASE,
    replace(BASE, formats=("fp4", "4bit"), rounding=("nearest", "stochastic")),
    replace(BASE, formats=("bf16", "int8"), data="specials"),
    replace(BASE, shape=(33, 3, 67), first_element=(1 << 32) - 300, scaling=Scaling("fp32", "row")),
    replace(BASE, param_dtype=torch.bfloat16, param_rounding="stochastic", data="specials"),
    replace(BASE, rule="lion", formats=("fp8",)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_same_bits_skipped_and_counted_as_the_whole(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = make_step(case), make_step(case)
    for work in (whole, cut):
        work.counts = torch.zeros(len(work.binding.states), 2, dtype=torch.int64)
    reference.step(whole.binding.rule, [whole])
    monkeypatch.setattr(pieces, "PIECE", 1000)
    assert len(pieces.pieces(cut)) > 5
    reference.step(cut.binding.rule, [cut])
    assert_same_bits(cut, whole)
    assert whole.counts is not None
    assert cut.counts is not None
    assert cut.counts.tolist() == whole.counts.tolist()
    assert int(whole.counts[:, 0].min()) > 0


@pytest.mark.parametrize(
    "case", [replace(BASE, scaling=Scaling("pow2", "tensor")), replace(BASE, shape=(5000,)), replace(BASE, shape=())],
    ids=["one scale", "one row", "scalar"],
)  # fmt: skip
def test_what_cannot_be_cut_stays_whole(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 1000)
    work = make_step(case)
    assert pieces.pieces(work) == [work]
