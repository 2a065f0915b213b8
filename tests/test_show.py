"""The display of reports in a console and in a notebook."""

from __future__ import annotations

import html.parser

import pytest
import torch

import halfulp
from halfulp.averaging import EMA
from halfulp.numbers.show import Shown
from halfulp.theory.advice import advise

TORCH = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.LayerNorm(128), torch.nn.Linear(128, 64))


def reports() -> dict[str, Shown]:
    optimizer = halfulp.AdamW(TORCH.named_parameters(), lr=1e-3)
    watch = halfulp.StallMonitor(optimizer, every=1)
    for _ in range(2):
        for p in TORCH.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    return {
        "memory": optimizer.memory(),
        "table": watch.table(),
        "plan": halfulp.plan_reset("fp8", beta=0.99, rounding="nearest"),
        "advice": advise((0.9, 0.99), bytes_per_parameter=2.0),
        "average": EMA(TORCH, 0.999, state="8bit"),
    }


class Balanced(html.parser.HTMLParser):
    """Fails unless every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["td"]:
            self.cells.append(data)


@pytest.fixture(scope="module")
def shown() -> dict[str, Shown]:
    return reports()


@pytest.mark.parametrize("name", ["memory", "table", "plan", "advice", "average"])
def test_repr_is_a_line_and_html_is_whole(shown: dict[str, Shown], name: str) -> None:
    report = shown[name]
    line = repr(report)
    assert line.startswith(f"{type(report).__name__}(")
    assert "\n" not in line
    assert len(line) < 120
    assert Balanced(report._repr_html_()).open == []


def test_what_the_lines_say(shown: dict[str, Shown]) -> None:
    memory = TORCH.state_dict()
    vectors = 4 * sum(2 * t.numel() for t in memory.values() if t.ndim == 1)
    total = sum(2 * (t.numel() + t.shape[0] * -(-t.shape[1] // 128)) for t in memory.values() if t.ndim == 2) + vectors
    assert repr(shown["memory"]).startswith(f"MemoryReport({total:,} bytes, ")
    assert "4 vectors, such as 0.bias" in str(shown["memory"])
    assert f"{total:,}" in Balanced(shown["memory"]._repr_html_()).cells
    assert repr(shown["plan"]) == "ResetPlan(period=736)"
    assert str(shown["plan"]).startswith("Every 736 steps")
    assert repr(shown["average"]).startswith("EMA(6 tensors, 0 updates, ")


def test_a_table_shows_states_that_are_low(shown: dict[str, Shown]) -> None:
    """Those in fp32 are summed up above; names and figures are whole."""
    text = str(shown["table"])
    assert text.count(" float32 ") == 2  # one line for each slot
    assert "0.weight" in text
    assert "0.bias" not in text
    cells = Balanced(shown["table"]._repr_html_()).cells
    assert "4 parameters" in cells
    assert any(c.endswith("%") for c in cells)
