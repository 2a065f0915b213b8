"""Parameters that consist of several matrices: each is treated separately, and undeclared ones are reported."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import halfulp

Parts = list[Tensor]


def seeded(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def train(optimizer: Any, params: list[nn.Parameter], cut: Callable[[Tensor], Parts], shape: tuple[int, ...]) -> None:
    """Three steps, with the gradient of one tensor cut into those of the parameters."""
    for step in range(3):
        for p, grad in zip(params, cut(seeded(shape, step)), strict=True):
            p.grad = grad.clone()
        optimizer.step()


CUTS: dict[str, tuple[tuple[int, ...], str, Callable[[Tensor], Parts]]] = {
    "experts": ((4, 12, 8), "stacked", lambda x: list(x)),
    "experts of experts": ((2, 3, 12, 8), "stacked", lambda x: list(x.reshape(6, 12, 8))),
    "fused QKV": ((36, 12), "rows:3", lambda x: list(x.chunk(3))),
    "grouped queries": ((24, 12), "rows:12,6,6", lambda x: list(x.split([12, 6, 6]))),
    "GPT-2's QKV": ((12, 36), "columns:3", lambda x: list(x.chunk(3, 1))),
    "fused experts": ((3, 16, 6), "stacked rows:2", lambda x: [half for expert in x for half in expert.chunk(2)]),
    "convolution": ((8, 4, 3, 3), "flat", lambda x: [x.reshape(8, 36)]),
    "convolution of text": ((8, 4, 3), "flat", lambda x: [x.reshape(8, 12)]),
    "one matrix": ((16, 8), "stacked", lambda x: [x]),
    "a vector": ((16,), "stacked", lambda x: [x]),
}
RULES: dict[str, dict[str, Any]] = {
    "Muon": {"fallback": ()}, "SOAP": {"period": 2}, "Conda": {"period": 2},
    "SubspaceMomentum": {"rank": 4, "period": 2},
}  # fmt: skip


PAIRS = [(n, c) for n in RULES for c in CUTS if n == "Muon" or c != "grouped queries"]
"""All but rules with other states than momentum on matrices of several shapes, which are refused."""


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_each_matrix_is_treated_as_if_it_were_alone(name: str, case: str) -> None:
    shape, split, cut = CUTS[case]
    options = {"lr": 0.02, "state": "fp32", **RULES[name]}
    together = nn.Parameter(seeded(shape, 9))
    alone = [nn.Parameter(x.clone()) for x in cut(seeded(shape, 9))]
    make = getattr(halfulp, name)
    train(make([together], split=split, **options), [together], lambda x: [x], shape)
    train(make(alone, **options), alone, cut, shape)
    for found, expected in zip(cut(together.detach()), alone, strict=True):
        # products of strided matrices may differ in the last bits
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("case", ["experts", "fused QKV", "GPT-2's QKV"])
def test_split_states_are_stored_saved_and_resumed(name: str, case: str) -> None:
    shape, split, _ = CUTS[case]

    def run(steps: list[int], saved: tuple[Tensor, dict[str, Any]] | None) -> tuple[Tensor, dict[str, Any]]:
        p = nn.Parameter(seeded(shape, 9) if saved is None else saved[0].clone())
        group = {"params": [("w", p)], "split": split}
        optimizer = getattr(halfulp, name)([group], lr=0.02, state="8bit", min_size=0, **RULES[name])
        if saved is not None:
            optimizer.load_state_dict(saved[1])
        for step in steps:
            p.grad = seeded(shape, step)
            optimizer.step()
        assert optimizer.memory().total == sum(s.bytes() for s in optimizer.states(p))
        return p.detach(), optimizer.state_dict()

    assert torch.equal(run([3, 4], run([0, 1, 2], None))[0], run([0, 1, 2, 3, 4], None)[0])


SAID = {
    "layers.0.mlp.experts.w1": ((4, 8, 8), {}, None),  # found by its name
    "layers.0.moe.w1": ((4, 8, 8), {}, "stack of 4 matrices"),
    "conv1d.weight": ((8, 4, 3), {}, "or a convolution"),
    "conv1d.weight ": ((8, 4, 3), {"split": "flat"}, None),
    "conv2d.weight": ((8, 4, 3, 3), {}, None),
    "attn.qkv.weight": ((24, 8), {}, "side by side"),
    "attn.qkv.weight ": ((24, 8), {"split": "rows:3"}, None),
    "attn.in_proj_weight": ((24, 8), {}, "side by side"),
    "h.0.attn.c_attn.weight": ((8, 24), {}, "side by side"),
    "mlp.gate_up_proj.weight": ((16, 8), {}, "side by side"),
    "attn.qkv.bias": ((24,), {}, None),
    "mlp.fc1.weight": ((24, 8), {}, None),
    "": ((24, 8), {}, "have no names"),
    " ": ((24, 8), {"fallback": ()}, None),
}


@pytest.mark.parametrize("name", SAID)
def test_muon_says_what_is_ambiguous_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    shape, options, expected = SAID[name]
    p = nn.Parameter(seeded(shape, 0))
    optimizer = halfulp.Muon([(name.strip(), p)] if name.strip() else [p], **options)
    for _ in range(2):
        p.grad = seeded(shape, 1)
        optimizer.step()
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and "Muon:" in r.getMessage()]
    assert len(said) == (expected is not None)
    assert expected is None or expected in said[0]


@pytest.mark.parametrize("name", ["SOAP", "Conda", "SubspaceMomentum"])
def test_other_rules_of_matrices_say_it_too(name: str, caplog: pytest.LogCaptureFixture) -> None:
    p = nn.Parameter(seeded((4, 8, 8), 0))
    p.grad = seeded((4, 8, 8), 1)
    getattr(halfulp, name)([("experts.w1", p)], **RULES[name]).step()
    assert [name in m for m in caplog.messages if "stack of 4 matrices" in m] == [True]


OUTER = {
    "tied": ("model.embed_tokens.weight", "adam"), "T5": ("shared.weight", "adam"), "timm": ("head.weight", "adam"),
    "T5 positions": ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "adam"),
    "BART": ("model.shared.weight", "adam"),
    "GPT-2": ("transformer.wte.weight", "adam"), "LLaMA": ("lm_head.weight", "adam"),
    "hidden": ("layers.0.mlp.down_proj.weight", "muon"),
    "BERT": ("encoder.layer.0.attention.output.dense.weight", "muon"),
    "DeepSeek": ("layers.1.mlp.shared_experts.up_proj.weight", "muon"),
}  # fmt: skip


@pytest.mark.parametrize("case", OUTER)
def test_embeddings_and_heads_go_to_adamw(case: str) -> None:
    name, rule = OUTER[case]
    p = nn.Parameter(seeded((16, 8), 0))
    optimizer = halfulp.Muon([(name, p)])
    assert optimizer.active_rule(optimizer.param_groups[0], p).name == rule


@pytest.mark.parametrize(
    ("split", "shape", "message"),
    [
        ("experts", (4, 8), "split is None, 'flat'"), ("rows", (4, 8), "got 'rows'"), ("", (4, 8), "got ''"),
        ("rows:0", (4, 8), "got 'rows:0'"), ("rows:3", (4, 8), "3 equal parts to the 4 rows"),
        ("columns:2,5", (4, 8), r"\(2, 5\) to the 8 columns"), (3, (4, 8), "got 3"),
    ],
)  # fmt: skip
def test_splits_that_do_not_fit_are_refused_when_the_optimizer_is_built(
    split: Any, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        halfulp.Muon([nn.Parameter(torch.zeros(shape))], split=split)


def test_parts_of_several_shapes_need_states_of_their_own() -> None:
    p = nn.Parameter(torch.zeros(24, 12))
    with pytest.raises(ValueError, match="gram_left needs them of one shape"):
        halfulp.SOAP([p], split="rows:12,6,6").memory()
