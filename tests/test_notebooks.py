"""The notebooks run, and their stored output is what they print."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def kinds(notebook: dict[str, Any]) -> list[list[str]]:
    """What each cell shows, without the figures, whose last digits depend on the machine."""
    return [[o["output_type"], *sorted(o.get("data", {}))] for c in notebook["cells"] for o in c.get("outputs", [])]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.chdir(tmp_path)
    tool = importlib.import_module("notebooks")
    stored = json.loads(path.read_text())
    state = torch.random.get_rng_state()
    try:
        assert kinds(tool.run(stored)) == kinds(stored)
    finally:
        torch.random.set_rng_state(state)
    assert all("text/plain" in page or "stream" in page for page in kinds(stored))


def test_there_are_three() -> None:
    assert [p.stem for p in NOTEBOOKS] == ["bf16-run", "first-steps", "paper"]
