"""The stubs for type checkers and editors match the library."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import halfulp

ROOT = Path(__file__).resolve().parents[1]
SNIPPET = """
import torch
import halfulp

model = torch.nn.Linear(64, 64)
first = halfulp.AdamW(model.parameters(), lr=1e-3, state="8bit")
second = halfulp.SGD(model.parameters(), 0.1, 0.9, nesterov=True)
third = halfulp.BAdam(model.named_parameters(), period=3, block_size=64)
reveal_type(first)
reveal_type(third.block)
reveal_type(halfulp.wrappers.Lookahead)
mine = halfulp.optimizer(second.rule)(model.parameters(), lr=0.1)
halfulp.AdamW(model.parameters(), lr="1e-3")
halfulp.AdamW(model.parameters(), decoupled_weight_decay=False)
halfulp.AdamW(model.parameters(), block_sise=64)
halfulp.AdamX
"""
"""Of a user's program: the last four lines are wrong."""
FOUND = [
    'note: Revealed type is "halfulp.optim.AdamW"', "list[torch._tensor.Tensor]",
    "def (optimizer: ", 'incompatible type "str"; expected "float | Tensor"',
    'Unexpected keyword argument "decoupled_weight_decay" for "AdamW"',
    'Unexpected keyword argument "block_sise" for "AdamW"; did you mean "block_size"?',
    'Module has no attribute "AdamX"',
]  # fmt: skip


def test_stubs_are_what_the_declarations_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever adds an optimizer, or changes an argument, runs ``python tools/stubs.py``."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    for path, text in importlib.import_module("stubs").STUBS.items():
        assert path.read_text() == text(), f"{path} is not fresh: run python tools/stubs.py"


def test_the_stub_names_every_public_name_where_it_is() -> None:
    tree = ast.parse(Path(halfulp.__file__).with_suffix(".pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    found = {str(n.names[0].asname): str(n.module) for n in imports if n.names[0].asname not in halfulp._MODULES}
    assert set(found) == set(halfulp.__all__)
    for name, module in found.items():
        assert getattr(importlib.import_module(module), name) is getattr(halfulp, name)


def test_the_stub_gives_each_optimizer_the_arguments_it_has() -> None:
    tree = ast.parse(Path(halfulp.optim.__file__).with_suffix(".pyi").read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    assert list(classes) == [cls.__name__ for cls in halfulp.optim.OPTIMIZERS]
    for cls in halfulp.optim.OPTIMIZERS:
        init = next(n for n in classes[cls.__name__].body if isinstance(n, ast.FunctionDef))
        given = [a.arg for a in (*init.args.args[1:], *init.args.kwonlyargs)]
        assert given == list(inspect.signature(cls).parameters)[: len(given)]
        assert set(given) == {"params", *inspect.signature(cls.hyper).parameters}


@pytest.mark.slow
def test_a_type_checker_follows_a_program_of_a_user(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_text(SNIPPET)
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path), "--follow-imports=silent", str(program)]
    out = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    lines = [line for line in out.stdout.splitlines() if line.startswith("program.py") and "defined in" not in line]
    assert [line for line, text in zip(lines, FOUND, strict=True) if text not in line] == []
